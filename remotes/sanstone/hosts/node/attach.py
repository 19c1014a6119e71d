# SPDX-License-Identifier: Apache-2.0
"""Bring a volume to the host and prove that it is that volume.

Sessions to the portals; no stranger at that LUN; scan that one LUN; every path's WWID and size; the map; then
the link. Each step does only what is missing: a volume which is attached already costs no command at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.lock import hold
from sanstone.transport.remote.run import Context, Deadline, Json, in_parallel, wait_until

from . import files, iscsi, multipath, scsi, sysfs
from .detach import Targets, who_holds
from .iscsi import Chap, Portal, Session
from .sysfs import Disk, Map

__all__ = ["attach"]

_SCAN_LIMIT = 20.0
_SLOW_SCAN = 4.0
"""How long to wait for scans that have not returned when one path is there."""
_FIRST_PATH = 30.0
_OTHER_PATHS = 8.0
"""How much longer to wait for further paths when one is there."""
_SCAN_AGAIN = (1.0, 4.0, 9.0)
"""Seconds after which a LUN that has not shown up is asked for again: some arrays take their time."""
_NUDGE = 1.0
"""How long multipathd may take to make a map by itself once udev has told it of the paths."""
_UDEV_LIMIT = 10.0
_MAP_LIMIT = 30.0
_NAME_LIMIT = 60.0
"""How long udev may take to name a device: where many volumes come at once it is the slowest part."""
_RESCAN_LIMIT = 5.0


class Wanted(NamedTuple):
    """What the array promises."""

    volume: str
    wwid: str
    size: int
    lun: int
    portals: tuple[Portal, ...]
    proof: Chap | None

    @property
    def targets(self) -> list[str]:
        return sorted({portal.target for portal in self.portals})

    @classmethod
    def parse(cls, connection: Json) -> Wanted:
        portals = tuple(
            iscsi.portal(target["iqn"], portal["address"], int(portal["port"]))
            for target in connection["targets"]
            for portal in target["portals"]
        )
        return cls(
            connection["volume"],
            sysfs.identity(connection["wwid"]),
            int(connection["size"]),
            int(connection["lun"]),
            portals,
            Chap(**connection["chap"]) if connection.get("chap") else None,
        )

    def lies_at(self, disk: Disk, session: Session | None) -> bool:
        """Tell whether ``disk`` is where the array put the volume: at its LUN of one of its targets."""
        return (
            session is not None
            and session.portal.target in self.targets
            and disk.target == session.target_id
            and disk.lun in scsi.lun_numbers(self.lun)
        )


def attach(request: Json, context: Context) -> Json:
    """Attach ``connection`` and let ``link`` point to its device.

    Raises NodeError: ConnectError (no portal answers), DataSafetyError (wrong volume or size), HostError,
    BusyError, DeadlineError.
    """
    wanted, deadline = Wanted.parse(request["connection"]), context.deadline
    with contextlib.ExitStack() as locks:
        locks.enter_context(hold("wwid", wanted.wwid, deadline))
        for target in wanted.targets:
            # Shared: many volumes attach at once, but nobody logs out meanwhile.
            locks.enter_context(hold("target", target, deadline, is_shared=True))
        for target in wanted.targets:
            locks.enter_context(hold("lun", f"{target} {wanted.lun}", deadline))
        device = _bring(wanted, bool(request.get("log_in", True)), deadline)
        if request.get("link"):
            files.make_link(request["link"], device["path"])
    return device


def _bring(wanted: Wanted, may_log_in: bool, deadline: Deadline) -> Json:
    sessions, reasons = _sessions(wanted, may_log_in, deadline)
    _clear(wanted, deadline)
    paths = _paths(wanted, sessions, reasons, deadline)
    _check_sizes(wanted, paths, deadline)
    device, used = _device(wanted, paths, deadline)
    by_host = {session.host: session for session in sessions}
    ways = {by_host[disk.host].portal for disk in used if disk.host in by_host}
    return {
        "warnings": [
            f"no path by {portal} ({portal.target}): {reasons.get(portal, 'its disk did not show up')}"
            for portal in wanted.portals
            if portal not in ways
        ],
        "path": str(device),
        "wwid": wanted.wwid,
        "size": sysfs.size(used[0].name),
        "paths": [_describe(disk, by_host.get(disk.host)) for disk in used],
        "expected_paths": len(wanted.portals),
    }


def _describe(disk: Disk, session: Session | None) -> Json:
    return {
        "name": disk.name,
        "hctl": disk.hctl,
        "target": session.portal.target if session else "",
        "portal": str(session.portal) if session else "",
        "state": sysfs.state(disk.name),
    }


def _sessions(
    wanted: Wanted, may_log_in: bool, deadline: Deadline
) -> tuple[list[Session], dict[Portal, str]]:
    """Return the live sessions with the volume's targets, after logging in where one is missing."""
    found = iscsi.sessions(wanted.targets)
    known = {session.portal for session in found}
    missing = [portal for portal in wanted.portals if portal not in known]
    reasons: dict[Portal, str] = {}
    if missing and may_log_in:
        note = Targets(wanted.wwid)
        is_new = note.add(wanted.targets)
        is_urgent = not any(session.is_live for session in found)
        reasons = iscsi.log_in(missing, deadline, is_urgent=is_urgent, proof=wanted.proof)
        if len(reasons) < len(missing):
            found = iscsi.sessions(wanted.targets)
        elif is_new and not found:
            note.forget()
    live = [session for session in found if session.is_live]
    for session in found:
        if not session.is_live:
            reasons[session.portal] = f"the session is in state {session.state}"
    if not live:
        lines = [
            f"{portal} ({portal.target}): {reasons.get(portal, 'no session')}" for portal in wanted.portals
        ]
        raise NodeError(
            "ConnectError",
            f"No portal leads to volume {wanted.volume}: " + "; ".join(lines) + ".",
            "See the storage network of this host and the array's iSCSI ports."
            if may_log_in
            else "This host must not log in by itself (NO_ISCSI): log in to the targets first.",
        )
    return live, reasons


def _clear(wanted: Wanted, deadline: Deadline) -> None:
    """Take away what must not be there: another volume's leavings at our LUN, and our own at another LUN.

    Linux keeps an old disk when an array gives its LUN to another volume, and would then use the wrong one.
    """
    by_host = iscsi.sessions_by_host()
    for disk in list(sysfs.disks()):
        session = by_host.get(disk.host)
        is_live = session is not None and session.is_live
        is_here, is_ours = wanted.lies_at(disk, session), disk.wwid == wanted.wwid
        above = _map_of(disk)
        if is_here and (not is_ours or (above is not None and above.wwid != wanted.wwid)):
            _purge(wanted, disk, above, is_live, deadline)
        elif is_ours and not is_here:
            _drop_ghost(wanted, disk, session, deadline)
        elif is_ours and is_live and sysfs.state(disk.name) == "offline":
            # The kernel has given it up for good; a scan brings it anew.
            _take_away(disk, deadline)


def _purge(wanted: Wanted, disk: Disk, above: Map | None, is_live: bool, deadline: Deadline) -> None:
    """Remove a disk at our LUN that is not known to be our volume, unless somebody uses it.

    A disk of another volume is not read anew: it would take on our identity, and the next attach would share
    it with whoever has it open as that volume. In a map it still is that volume, whatever it says itself.
    """
    was = above.wwid if above else disk.wwid
    if was is None and is_live:
        _rescan([disk], deadline)
    now = sysfs.disk(disk.name)
    if now is None or (was is None and now.wwid == wanted.wwid):
        return
    who = who_holds(was or "", [now], above) or _take_away(now, deadline)
    if who:
        raise _not_ours(
            wanted,
            f"{disk.name} ({disk.hctl}) at LUN {wanted.lun}, where it belongs, is volume "
            f"{was or 'of unknown WWID'} and in use: {who}.",
        )


def _drop_ghost(wanted: Wanted, disk: Disk, session: Session | None, deadline: Deadline) -> None:
    """Remove a disk with our WWID at a place where the array does not show the volume.

    A path through a target that was not named stays when it still says that it is our volume.
    """
    is_elsewhere = session is None or session.portal.target not in wanted.targets
    if is_elsewhere and (session is None or session.is_live):
        _rescan([disk], deadline)
    now = sysfs.disk(disk.name)
    if now is None or (is_elsewhere and now.wwid == wanted.wwid):
        return
    who = _take_away(now, deadline)
    if who:
        raise _not_ours(
            wanted, f"{disk.name} ({disk.hctl}) is an old path to it, at another LUN, and in use: {who}."
        )


def _take_away(disk: Disk, deadline: Deadline) -> str:
    """Remove one disk, out of its map too if it is in one; return by whom it is used if it cannot be removed.

    Other paths of the map carry on; a map that loses its last path goes along, unless it is in use.
    """
    above = _map_of(disk)
    if above is not None and above.slaves != {disk.name}:
        multipath.del_path(disk.name, deadline)
        wait_until(lambda: _map_of(disk) is None, deadline.within(_RESCAN_LIMIT))
    else:
        who = who_holds(above.wwid if above else disk.wwid or "", [disk], above)
        if not who and above is not None:
            who = multipath.flush_map(above, deadline)
        if who:
            return who
    scsi.delete([disk], deadline)
    if above is not None:
        multipath.forget_paths([disk.name], deadline)
        left = sysfs.find_map(above.wwid)
        if left is not None and not left.slaves:
            # multipathd took its last path out while the other ones went, and had no time to remove it
            multipath.flush_map(left, deadline)
    return ""


def _map_of(disk: Disk) -> Map | None:
    return next((found for found in sysfs.maps() if disk.name in found.slaves), None)


def _not_ours(wanted: Wanted, what: str, details: str = "") -> NodeError:
    return NodeError(
        "DataSafetyError",
        f"Volume {wanted.volume} ({wanted.wwid}) was not attached: {what}",
        "See on the array which volume has this LUN for this host, and what uses the old disk here.",
        details,
    )


def _paths(
    wanted: Wanted, sessions: list[Session], reasons: dict[Portal, str], deadline: Deadline
) -> list[Disk]:
    """Return the disks through which the volume can be reached, after a scan where one is missing."""
    if _missing(wanted, sessions):
        _scan(wanted, sessions, deadline)
    here = [disk for disk in sysfs.disks() if _session_of(wanted, disk, sessions)]
    ours = [disk for disk in here if disk.wwid == wanted.wwid]
    strangers = [disk for disk in here if disk.wwid != wanted.wwid]
    if strangers:
        found = ", ".join(f"{disk.wwid or 'no WWID'} ({disk.name}, {disk.hctl})" for disk in strangers)
        for disk in strangers:
            _take_away(disk, deadline)
        raise _not_ours(wanted, f"its LUN {wanted.lun} leads to {found}; expected {wanted.wwid}.")
    usable = [disk for disk in ours if sysfs.state(disk.name) == "running"]
    if not usable:
        lines = [f"{session.portal}: {_why_no_path(session, ours)}" for session in sessions]
        lines += [f"{portal}: {reason}" for portal, reason in reasons.items()]
        raise NodeError(
            "HostError",
            f"LUN {wanted.lun} with volume {wanted.volume} does not show up: " + "; ".join(lines) + ".",
            "See on the array whether the volume is mapped to this host's initiator name, and is online.",
        )
    # A further path through a target that was not named has been found to be our volume.
    others = [disk for disk in sysfs.disks() if disk.wwid == wanted.wwid and disk not in ours]
    return usable + [disk for disk in others if sysfs.state(disk.name) == "running"]


def _why_no_path(session: Session, ours: Iterable[Disk]) -> str:
    disk = next((disk for disk in ours if disk.host == session.host), None)
    return f"{disk.name} is {sysfs.state(disk.name)}" if disk else "nothing at this LUN"


def _session_of(wanted: Wanted, disk: Disk, sessions: Iterable[Session]) -> Session | None:
    return next((s for s in sessions if s.host == disk.host and wanted.lies_at(disk, s)), None)


def _missing(wanted: Wanted, sessions: list[Session]) -> list[Session]:
    """Return the sessions through which no disk has come yet."""
    there = [disk for disk in sysfs.disks() if _session_of(wanted, disk, sessions)]
    return [s for s in sessions if not any(_session_of(wanted, disk, [s]) for disk in there)]


def _scan(wanted: Wanted, sessions: list[Session], deadline: Deadline) -> None:
    """Ask for the LUN through each session that has no disk yet, until all have one or patience ends.

    A session that is dead and does not know it yet keeps a scan for as long as its time-outs last. It is not
    waited for, and not asked again, when the volume can be reached by another way.
    """
    limit = deadline.within(_FIRST_PATH)
    silent: set[Session] = set()

    def ask(missing: list[Session]) -> None:
        each, soon = deadline.within(_SCAN_LIMIT), deadline.within(_SLOW_SCAN)

        def scan(session: Session) -> None:
            silent.add(session)
            try:
                scsi.scan(session.host, session.target_id, wanted.lun, each)
            except NodeError as fault:
                if fault.family == "DeadlineError":
                    raise NodeError(
                        "ConnectError", f"{session.portal} does not answer", "", fault.message
                    ) from None
                silent.discard(session)
                raise
            silent.discard(session)

        def is_enough() -> bool:
            return not soon.left() and len(_missing(wanted, sessions)) < len(sessions)

        calls: list[Callable[[], None]] = [lambda s=s: scan(s) for s in missing]  # type: ignore[misc]
        faults = [fault for fault in in_parallel(calls, is_enough=is_enough) if fault is not None]
        if len(faults) == len(sessions):
            raise _unanswered(wanted, faults)

    for pause in (*_SCAN_AGAIN, _FIRST_PATH):
        missing = [session for session in _missing(wanted, sessions) if session not in silent]
        if not missing:
            return
        ask(missing)
        is_first_there = len(_missing(wanted, sessions)) < len(sessions)
        patience = limit.within(min(pause, _OTHER_PATHS) if is_first_there else pause)
        if wait_until(lambda: not set(_missing(wanted, sessions)) - silent, patience):
            return
        if not limit.left() or (pause >= _SCAN_AGAIN[1] and len(_missing(wanted, sessions)) < len(sessions)):
            return


def _unanswered(wanted: Wanted, faults: list[NodeError]) -> NodeError:
    other = next((fault for fault in faults if fault.family != "ConnectError"), None)
    return other or NodeError(
        "ConnectError",
        f"No portal leads to volume {wanted.volume}: " + "; ".join(fault.message for fault in faults) + ".",
        "See the storage network of this host and the array's iSCSI ports.",
        "\n".join(fault.details for fault in faults),
    )


def _rescan(disks: Iterable[Disk], deadline: Deadline) -> list[NodeError | None]:
    each = deadline.within(_SCAN_LIMIT)
    return in_parallel([lambda name=disk.name: scsi.rescan(name, each) for disk in disks])  # type: ignore[misc]


def _check_sizes(wanted: Wanted, paths: list[Disk], deadline: Deadline) -> None:
    """Let every path have the volume's size and be writable; read those anew that do not."""
    stale = [disk for disk in paths if not _is_sized(wanted, disk.name) or sysfs.is_read_only(disk.name)]
    if not stale:
        return
    faults = _rescan(stale, deadline)
    answered = [disk for index, disk in enumerate(stale) if faults[index] is None]
    wait_until(lambda: all(_is_sized(wanted, disk.name) for disk in answered), deadline.within(_RESCAN_LIMIT))
    for index, disk in enumerate(stale):
        fault = faults[index]
        if not _is_sized(wanted, disk.name):
            if fault is not None or sysfs.state(disk.name) != "running":
                raise _unread(wanted, disk, fault.message if fault else "")
            raise _not_ours(wanted, f"{disk.name} has {sysfs.size(disk.name)} bytes; expected {wanted.size}.")
        if sysfs.is_read_only(disk.name):
            scsi.set_writable(disk.name, deadline)


def _unread(wanted: Wanted, disk: Disk, details: str = "") -> NodeError:
    return NodeError(
        "HostError",
        f"Path {disk.name} ({disk.hctl}) of volume {wanted.volume} has {sysfs.size(disk.name)} bytes, "
        f"expected {wanted.size}, and does not answer, so that its size cannot be read anew.",
        "See the storage network of this host; all paths of a volume must be up when it has grown.",
        details,
    )


def _is_sized(wanted: Wanted, name: str) -> bool:
    return sysfs.size(name) == wanted.size if wanted.size > 0 else sysfs.size(name) > 0


def _device(wanted: Wanted, paths: list[Disk], deadline: Deadline) -> tuple[Path, list[Disk]]:
    """Return the path of the block device to use, and the disks that it uses."""
    if not multipath.is_installed():
        return _plain(wanted, paths, "multipath-tools are not installed", deadline)
    names = {disk.name for disk in paths}
    found = _wait_for_map(wanted, names, deadline.within(_UDEV_LIMIT), _NUDGE)
    if found is None or not names <= found.slaves:
        if not multipath.is_running(deadline):
            if found is None:
                return _plain(wanted, paths, "multipathd does not run", deadline)
        else:
            found = _nudge(wanted, names, found, deadline)
    if found is None:
        raise NodeError(
            "HostError",
            f"multipathd made no map for {wanted.volume} ({wanted.wwid}) of {', '.join(sorted(names))}.",
            "See whether multipath.conf on this host excludes the device: multipath -v3 -ll",
        )
    return _check_map(wanted, found, paths, deadline)


def _wait_for_map(
    wanted: Wanted, names: set[str], deadline: Deadline, patience: float | None = None
) -> Map | None:
    """Wait for a map that has all these paths and its name under /dev; return what is there in the end.

    ``patience`` ends the wait so many seconds after udev has told multipathd of the last path: earlier it
    cannot know of it, which takes long on a host that is busy.
    """
    announced: list[Deadline] = []

    def is_over() -> bool:
        found = sysfs.find_map(wanted.wwid)
        if found is not None and names <= found.slaves and sysfs.dev("mapper", found.name).exists():
            return True
        if patience is not None and not announced and all(map(sysfs.is_announced, names)):
            announced.append(Deadline(patience))
        return bool(announced) and not announced[0].left()

    wait_until(is_over, deadline)
    return sysfs.find_map(wanted.wwid)


def _nudge(wanted: Wanted, names: set[str], found: Map | None, deadline: Deadline) -> Map | None:
    """Make multipathd take paths that it left alone, a single one above all (find_multipaths)."""
    if found is None:
        multipath.whitelist(wanted.wwid, deadline)
    for name in sorted(names - (found.slaves if found else frozenset())):
        multipath.add_path(name, deadline)
    return _wait_for_map(wanted, names, deadline.within(_MAP_LIMIT))


def _check_map(wanted: Wanted, found: Map, paths: list[Disk], deadline: Deadline) -> tuple[Path, list[Disk]]:
    used = [disk for disk in paths if disk.name in found.slaves]
    for name in sorted(found.slaves - {disk.name for disk in paths}):
        identity = sysfs.wwid(name)
        if identity is not None and identity != wanted.wwid:
            raise _not_ours(wanted, f"its map {found.name} has the path {name}, which is volume {identity}.")
    if not used:
        raise _not_ours(
            wanted, f"its map {found.name} has none of the paths {', '.join(d.name for d in paths)}."
        )
    if not _is_sized(wanted, found.kernel):
        # multipathd would answer "ok" and leave the map as it is
        for name in sorted(found.slaves):
            disk = sysfs.disk(name)
            if disk is not None and not _is_sized(wanted, name):
                raise _unread(wanted, disk)
        multipath.resize(found.name, wanted.size, deadline)
    if sysfs.is_read_only(found.kernel):
        scsi.set_writable(found.kernel, deadline)
    device = sysfs.dev("mapper", found.name)
    if not wait_until(device.exists, deadline.within(_NAME_LIMIT)):
        raise NodeError(
            "HostError", f"udev made no {device}.", "See whether systemd-udevd runs on this host."
        )
    return device, used


def _plain(wanted: Wanted, paths: list[Disk], why: str, deadline: Deadline) -> tuple[Path, list[Disk]]:
    """Return the name by which udev knows the only path."""
    if len(paths) > 1:
        raise NodeError(
            "HostError",
            f"Volume {wanted.volume} has {len(paths)} paths on this host, but {why}.",
            "Install multipath-tools and let multipathd run: systemctl enable --now multipathd",
        )
    names = sysfs.by_id(wanted.wwid)
    kernel = sysfs.dev(paths[0].name).resolve()

    def device() -> Path | None:
        return next((name for name in names if name.exists() and name.resolve() == kernel), None)

    wait_until(device, deadline.within(_NAME_LIMIT))
    found = device()
    if found is None:
        raise NodeError(
            "HostError", f"udev made no {names[0]}.", "See whether systemd-udevd runs on this host."
        )
    return found, paths
