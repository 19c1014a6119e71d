# SPDX-License-Identifier: Apache-2.0
"""Take a volume off the host, in the order that can neither lose data nor leave paths behind.

Nobody holds it; flush; remove the map; delete every path; wait until all of it is gone. Only then may the
array unmap.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.lock import hold, state_directory
from sanstone.transport.remote.run import Context, Deadline, Json, run, wait_until

from . import files, holders, iscsi, multipath, scsi, sysfs
from .sysfs import Disk, Map

__all__ = ["Targets", "detach", "who_holds"]

_GRACE = 5.0
"""How long a holder may take to let go: a guest that has just ended, udev that has a look."""
_FLUSH_LIMIT = 120.0
_LOGOUT_LIMIT = 30.0
_ROUNDS = 3


def detach(request: Json, context: Context) -> Json:
    """Detach the volume ``wwid``; nothing attached is success.

    Raises NodeError: BusyError (who holds it), DataSafetyError (data could not be flushed), HostError,
    DeadlineError.
    """
    wwid, deadline = sysfs.identity(request["wwid"]), context.deadline
    warnings: list[str] = []
    with hold("wwid", wwid, deadline):
        disks, found = _what_is_there(wwid)
        targets = Targets(wwid)
        if request.get("log_out"):
            targets.add(_targets_of(disks))
        if disks or found:
            _refuse_if_held(wwid, disks, found, deadline)
        undo = _remove_link(request.get("link"), wwid, warnings)
        if disks or found:
            try:
                _remove_map(wwid, disks, found, deadline, warnings)
            except NodeError:
                if undo is not None:
                    files.make_link(*undo)
                raise
            _remove_paths(wwid, disks, found, deadline, warnings)
        if request.get("log_out"):
            targets.log_out(deadline, warnings)
        else:
            targets.forget()
    return {"was_attached": bool(disks or found), "warnings": warnings}


class Targets:
    """Where to log out once the volume has gone. It is written down before a login and before a detach.

    Afterwards, and after a reboot in between, nothing else on the host tells it.
    """

    def __init__(self, wwid: str) -> None:
        self._note = state_directory() / f"log-out-{wwid}.json"
        self._names: set[str] = set()
        with contextlib.suppress(OSError, ValueError, TypeError):
            self._names |= {str(name) for name in json.loads(self._note.read_text())}

    def add(self, names: Iterable[str]) -> bool:
        """Write targets down; tell whether the note is new."""
        is_new = not self._names
        if not self._names.issuperset(names):
            self._names.update(names)
            temporary = self._note.with_suffix(".new")
            temporary.write_text(json.dumps(sorted(self._names)))
            temporary.replace(self._note)
        return is_new

    def forget(self) -> None:
        self._note.unlink(missing_ok=True)

    def log_out(self, deadline: Deadline, warnings: list[str]) -> None:
        """Log out, and forget the note when that went well: otherwise the next detach tries again."""
        failures: list[str] = []
        for target in sorted(self._names):
            try:
                failures += iscsi.log_out(target, deadline.within(_LOGOUT_LIMIT))
            except NodeError as err:
                failures.append(f"not logged out of {target}: {err.message}")
        if not failures:
            self.forget()
        warnings += failures


def _targets_of(disks: list[Disk]) -> list[str]:
    by_host = iscsi.sessions_by_host()
    return [by_host[disk.host].portal.target for disk in disks if disk.host in by_host]


def _what_is_there(wwid: str) -> tuple[list[Disk], Map | None]:
    """Return every path of the volume and its map.

    A failed path is no slave of the map any more; one that never told its identity is known by the map only.
    """
    found = sysfs.find_map(wwid)
    slaves = found.slaves if found is not None else frozenset()
    disks = [
        disk for disk in sysfs.disks() if disk.wwid == wwid or (disk.wwid is None and disk.name in slaves)
    ]
    return disks, found


def who_holds(wwid: str, disks: list[Disk], found: Map | None) -> str:
    """Name what is built on the volume or has it open, as far as it can be seen; empty if nothing."""
    kernels = [disk.name for disk in disks]
    seen = [line for kernel in kernels for line in holders.device_holders(kernel, wwid)]
    if found is not None:
        seen += holders.device_holders(found.kernel, wwid)
        seen += map(str, holders.processes(found.kernel, sysfs.dev("mapper", found.name)))
    for kernel in kernels:
        seen += map(str, holders.processes(kernel))
    return ", ".join(dict.fromkeys(seen))


def _busy(wwid: str, who: str, details: str = "") -> NodeError:
    return NodeError(
        "BusyError",
        f"Volume {wwid} is in use: {who}."
        if who
        else f"Volume {wwid} is in use by a process that cannot be seen.",
        "Stop what uses it and run the action again; nothing was removed.",
        details,
    )


def _refuse_if_held(wwid: str, disks: list[Disk], found: Map | None, deadline: Deadline) -> None:
    seen: list[str] = []

    def is_free() -> bool:
        seen[:] = [who_holds(wwid, disks, found)]
        return not seen[0]

    if not wait_until(is_free, deadline.within(min(_GRACE, deadline.left() / 4)), first=0.05):
        raise _busy(wwid, seen[0])


def _remove_link(link: str | None, wwid: str, warnings: list[str]) -> tuple[str, str] | None:
    """Remove the link to this volume; return what makes it again."""
    if link is None:
        return None
    place = files.absolute(link)
    if not place.is_symlink():
        if os.path.lexists(place):
            warnings.append(f"{link} is not a link and was left alone")
        return None
    target = os.fspath(place.readlink())
    pointed = files.wwid_of_link(place)
    if pointed != wwid and (pointed is not None or place.exists()):
        warnings.append(f"{link} leads to {target}, not to volume {wwid}, and was left alone")
        return None
    place.unlink()
    return link, target


def _good(disks: list[Disk]) -> list[Disk]:
    """Return the paths that can take data now."""
    by_host = iscsi.sessions_by_host()
    return [
        disk
        for disk in disks
        if sysfs.state(disk.name) == "running" and (disk.host not in by_host or by_host[disk.host].is_live)
    ]


def _remove_map(
    wwid: str, disks: list[Disk], found: Map | None, deadline: Deadline, warnings: list[str]
) -> None:
    good = _good(disks)
    if found is None:
        for disk in disks:
            _flush(wwid, sysfs.dev(disk.name), disk in good, deadline, warnings)
        return
    if not good:
        multipath.disable_queueing(found.name, deadline)
    device = sysfs.dev("mapper", found.name)
    _flush(
        wwid, device if device.exists() else sysfs.dev(found.kernel), bool(good), deadline, warnings, found
    )
    said = multipath.flush_map(found, deadline)
    if said:
        raise _busy(wwid, who_holds(wwid, disks, found), said)
    for disk in disks:
        if disk not in good:
            warnings.append(f"path {disk.name} ({disk.hctl}) was down")


def _flush(
    wwid: str, device: Path, is_good: bool, deadline: Deadline, warnings: list[str], found: Map | None = None
) -> None:
    """Bring to the array what the host still holds in its page cache.

    With a path that works a failure stops everything. Without one the data cannot reach the array any more,
    and a dead array must not keep a volume on a host for ever: then it is a warning.
    """
    limit = deadline.within(min(_FLUSH_LIMIT, deadline.left() / 2))
    try:
        _sync(device, limit)
        run(["blockdev", "--flushbufs", str(device)], limit)
    except NodeError as fault:
        if fault.message.endswith(("is not installed.", "through sudo.")):
            raise
        if found is not None and fault.family == "DeadlineError":
            multipath.disable_queueing(found.name, deadline)
        if is_good:
            raise NodeError(
                "DataSafetyError",
                f"The data of volume {wwid} could not be flushed, so it stays attached: {fault.message}",
                "See the kernel's log and the paths (multipath -ll), mend them and run the action again.",
                fault.details,
            ) from fault
        warnings.append(
            f"{device.name} does not take writes; what the host still held of {wwid} was not written"
        )


def _sync(device: Path, deadline: Deadline) -> None:
    """Write dirty pages, and learn of those that could not be written, also earlier and by others.

    ``blockdev --flushbufs`` does not tell: Linux drops the error of a failed write there. A device that this
    user may not open cannot have been written by it either.
    """
    done = run(["sync", "--", str(device)], deadline, ok=None)
    if done.code and "Permission denied" not in done.stderr:
        last = (done.words.splitlines() or ["no message"])[-1]
        raise NodeError("HostError", f"sync failed (exit code {done.code}): {last}", "", done.words)


def _remove_paths(
    wwid: str, known: list[Disk], found: Map | None, deadline: Deadline, warnings: list[str]
) -> None:
    """Delete all paths and see that nothing is left; a scan by somebody else can bring one back meanwhile."""
    deleted: set[str] = set()
    for _ in range(_ROUNDS):
        disks, again = _what_is_there(wwid)
        disks += [disk for disk in known if disk not in disks and scsi.is_same(disk)]
        if again is not None:
            said = multipath.flush_map(again, deadline)
            if said:
                raise _busy(wwid, who_holds(wwid, disks, again), said)
        elif not disks:
            break
        deleted |= {disk.name for disk in disks}
        warnings += scsi.delete(disks, deadline)
    else:
        raise NodeError(
            "HostError",
            f"The paths of volume {wwid} come back as soon as they are deleted.",
            "Set node.session.scan to manual in /etc/iscsi/iscsid.conf of the host and run the action again.",
        )
    _wait_for_links(wwid, deadline, warnings, found)
    if deleted and found is not None and multipath.is_installed():
        multipath.forget_paths(deleted, deadline)


def _wait_for_links(wwid: str, deadline: Deadline, warnings: list[str], found: Map | None) -> None:
    links = [*sysfs.by_id(wwid), sysfs.dev("disk", "by-id", f"dm-uuid-mpath-{wwid}")]
    if found is not None:
        links.append(sysfs.dev("mapper", found.name))
    if not wait_until(lambda: not any(os.path.lexists(path) for path in links), deadline.within(5)):
        left = ", ".join(str(path) for path in links if os.path.lexists(path))
        warnings.append(f"udev has not removed {left}")
