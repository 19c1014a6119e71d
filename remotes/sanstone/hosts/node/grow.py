# SPDX-License-Identifier: Apache-2.0
"""Let a device that is in use follow its volume, which has grown on the array.

Every path first, then the map: multipathd answers ``ok`` and leaves the map as it is when one path still has
the old size, so that what the kernel shows is believed and nothing else. A path that does not answer cannot
learn the size; it is dropped when another one can, for the map could not grow with it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.lock import hold
from sanstone.transport.remote.run import Context, Deadline, Json, in_parallel, run, wait_until

from . import files, iscsi, multipath, scsi, sysfs
from .sysfs import Disk, Map

__all__ = ["grow", "grow_file"]

_SESSIONS_BACK = 20.0
"""How long to wait for sessions that the array has cut while it let the volume grow."""
_RESCAN_LIMIT = 10.0
_SIZE_LIMIT = 5.0


def grow(request: Json, context: Context) -> Json:
    """Let the device of ``connection`` have its size; one that has it costs no command.

    Raises NodeError: NotFoundError when the volume is not attached, HostError, DeadlineError.
    """
    connection, deadline = request["connection"], context.deadline
    wwid, size = sysfs.identity(connection["wwid"]), int(connection["size"])
    targets = [target["iqn"] for target in connection["targets"]]
    warnings: list[str] = []
    with hold("wwid", wwid, deadline):
        found = sysfs.find_map(wwid)
        disks = _paths(wwid)
        if not disks:
            raise NodeError(
                "NotFoundError",
                f"Volume {connection['volume']} ({wwid}) is not attached to this host.",
                "The volume has grown on the array; the host sees it when the disk is attached again.",
            )
        if not all(sysfs.size(name) == size for name in _devices(disks, found)):
            if request.get("is_cut"):
                _wait_for_sessions(targets, deadline)
            disks = _grow_paths(connection["volume"], wwid, size, _paths(wwid), found, deadline, warnings)
            if found is not None:
                _grow_map(wwid, size, deadline)
        found = sysfs.find_map(wwid)
        by_host = iscsi.sessions_by_host()
        expected = sum(len(target["portals"]) for target in connection["targets"])
        device = sysfs.dev("mapper", found.name) if found is not None else _plain(wwid, disks[0])
        return {
            "device": {
                "path": str(device),
                "wwid": wwid,
                "size": sysfs.size(found.kernel if found is not None else disks[0].name),
                "paths": [
                    {
                        "name": disk.name,
                        "hctl": disk.hctl,
                        "target": by_host[disk.host].portal.target if disk.host in by_host else "",
                        "portal": str(by_host[disk.host].portal) if disk.host in by_host else "",
                        "state": sysfs.state(disk.name),
                    }
                    for disk in disks
                ],
                "expected_paths": expected,
            },
            "warnings": warnings,
        }


def _paths(wwid: str) -> list[Disk]:
    return [disk for disk in sysfs.disks() if disk.wwid == wwid]


def _devices(disks: list[Disk], found: Map | None) -> list[str]:
    return [disk.name for disk in disks] + ([found.kernel] if found is not None else [])


def _plain(wwid: str, disk: Disk) -> Path:
    kernel = sysfs.dev(disk.name).resolve()
    return next((name for name in sysfs.by_id(wwid) if name.resolve() == kernel), sysfs.dev(disk.name))


def _wait_for_sessions(targets: list[str], deadline: Deadline) -> None:
    """Wait until all sessions with the volume's targets live; one that is dead stays so without harm."""

    def are_back() -> bool:
        found = iscsi.sessions(targets)
        return bool(found) and all(session.is_live for session in found)

    wait_until(are_back, deadline.within(min(_SESSIONS_BACK, deadline.left() / 3)))


def _grow_paths(
    volume: str,
    wwid: str,
    size: int,
    disks: list[Disk],
    found: Map | None,
    deadline: Deadline,
    warnings: list[str],
) -> list[Disk]:
    """Let every path be read anew; return those that have the new size, and drop those that do not answer."""
    each = deadline.within(min(_RESCAN_LIMIT, deadline.left() / 2))
    small = [disk for disk in disks if sysfs.size(disk.name) != size]
    asked = [disk for disk in small if _is_alive(disk)]
    faults = in_parallel([lambda name=disk.name: scsi.rescan(name, each) for disk in asked])  # type: ignore[misc]
    live = [disk for disk, fault in zip(asked, faults, strict=True) if fault is None and _is_alive(disk)]
    wait_until(lambda: all(sysfs.size(disk.name) == size for disk in live), deadline.within(_SIZE_LIMIT))
    good = [disk for disk in disks if sysfs.size(disk.name) == size]
    stuck = [disk for disk in live if disk not in good]
    if stuck:
        raise NodeError(
            "HostError",
            f"{', '.join(f'{disk.name} ({disk.hctl})' for disk in stuck)}: volume {volume} has "
            f"{sysfs.size(stuck[0].name)} bytes there after it was read anew, not {size}.",
            "See on the array what size it shows through each of its ports, then run the action again.",
        )
    if not good:
        raise NodeError(
            "HostError",
            f"No path of volume {volume} answers, so that its new size of {size} bytes cannot be seen here.",
            "See the storage network of this host; run the action again when a path is back.",
            "\n".join(fault.message for fault in faults if fault is not None),
        )
    for disk in disks:
        if disk not in good:
            _drop(disk, found, deadline)
            warnings.append(
                f"path {disk.name} ({disk.hctl}) did not answer and was dropped, for the map could not grow "
                "with it; the next attachment brings it back"
            )
    return good


def _is_alive(disk: Disk) -> bool:
    session = iscsi.sessions_by_host().get(disk.host)
    return sysfs.state(disk.name) == "running" and (session is None or session.is_live)


def _drop(disk: Disk, found: Map | None, deadline: Deadline) -> None:
    if found is not None and disk.name in found.slaves:
        multipath.del_path(disk.name, deadline)
        wait_until(lambda: disk.name not in _slaves(found.wwid), deadline.within(_SIZE_LIMIT))
    scsi.delete([disk], deadline)
    if found is not None:
        multipath.forget_paths([disk.name], deadline)


def _slaves(wwid: str) -> frozenset[str]:
    found = sysfs.find_map(wwid)
    return found.slaves if found is not None else frozenset()


def _grow_map(wwid: str, size: int, deadline: Deadline) -> None:
    found = sysfs.find_map(wwid)
    if found is None:
        raise NodeError("HostError", f"The map of {wwid} has gone.", "Attach the disk again.")
    if sysfs.size(found.kernel) != size:
        multipath.resize(found.name, size, deadline)


def grow_file(request: Json, context: Context) -> None:
    """Let a disk image file have at least ``size`` bytes."""
    path, size = files.absolute(request["path"]), int(request["size"])
    if request["format"] == "raw":
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size < size:
                os.ftruncate(fd, size)
        finally:
            os.close(fd)
        return
    done = run(
        ["qemu-img", "resize", "-q", "-f", request["format"], str(path), str(size)],
        context.deadline,
        ok=None,
    )
    # A guest that runs holds the lock; its hypervisor lets the file grow itself when oned tells it.
    if done.code and "lock" not in done.stderr and "shrink" not in done.stderr:
        with contextlib.suppress(IndexError):
            raise NodeError("HostError", f"qemu-img: {done.words.splitlines()[-1]}", "", done.words)
        raise NodeError("HostError", f"qemu-img resize failed (exit code {done.code}).")
