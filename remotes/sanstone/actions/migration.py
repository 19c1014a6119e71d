# SPDX-License-Identifier: Apache-2.0
"""Live migration: for its time, and no longer, two hosts have the volumes of a VM.

OpenNebula's own drivers of system datastores pass the first and the last of the three calls on, but never
failmigrate. So the two hosts of a migration are written down before the second one gets anything, and struck
out when the migration is known to have ended. If nobody tells, the next action on the disk, or the monitoring
of the datastore, does what nobody asked for.

The link of a disk is left as it is on the host that the VM leaves: in a shared directory it is the other
host's as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from sanstone.actions import volumes
from sanstone.actions.disks import disk_volume, existing_name, is_used_by_others, is_volatile_block
from sanstone.actions.site import Site
from sanstone.arrays import Array
from sanstone.errors import ConnectError, NotFoundError, SanstoneError
from sanstone.hosts.ops import Attached, Detached, Operation, Outcomes, RemovePath, Result, Together
from sanstone.model import Connection
from sanstone.opennebula.messages import DiskPath, Failmigrate, Postmigrate, Premigrate
from sanstone.settings import Settings
from sanstone.store.locks import Place
from sanstone.transport.command import Command, run

__all__ = ["failmigrate", "postmigrate", "premigrate", "settle"]

log = logging.getLogger(__name__)

_FILE_SECONDS = 600.0
_PASSED_ON_SECONDS = 3600.0

Call = Premigrate | Postmigrate | Failmigrate


@dataclass(frozen=True, slots=True)
class _Moving:
    """A disk of ours that a VM takes along; ``path`` is where the target host has it."""

    settings: Settings
    array: Array
    name: str
    path: str
    is_shared: bool


def premigrate(request: Premigrate, site: Site) -> str:
    """Let the target host have the disks as well; when it cannot have them all, it gets none."""
    with _held(request, site) as moving:
        if request.source_host != request.target_host:
            for each in moving:
                here = DiskPath(request.source_host, each.path)
                settle(site, each.settings, each.array, each.name, here)
                _write_down(request, site, each)
        try:
            _bring(request, site, moving, request.target_host)
        except BaseException:
            if request.source_host != request.target_host:
                try:
                    _take(request, site, moving, request.target_host)
                except SanstoneError as left:
                    log.error("%s keeps disks of VM %d for now: %s", request.target_host, request.vm_id, left)
            raise
    _pass_on(request, site, "premigrate")
    return ""


def postmigrate(request: Postmigrate, site: Site) -> str:
    """Take the disks off the host that the VM has left, or off its old directory on the same host."""
    with _held(request, site) as moving:
        if request.source_host == request.target_host:
            # The stock drivers pass this call on, but not the one before.
            _bring(request, site, moving, request.target_host)
            _remove_old_links(request, site, moving)
        else:
            _take(request, site, moving, request.source_host)
    _pass_on(request, site, "postmigrate")
    return ""


def failmigrate(request: Failmigrate, site: Site) -> str:
    """Take the disks off the target host: the VM has stayed where it was. No stock driver passes this on."""
    with _held(request, site) as moving:
        if request.source_host == request.target_host:
            _remove(site, request.target_host, [each.path for each in moving])
            return ""
        _take(request, site, moving, request.target_host)
        # Where the directory is shared, the link is the one that the target host has made.
        _bring(request, site, moving, request.source_host)
    return ""


def settle(site: Site, settings: Settings, array: Array, name: str, disk: DiskPath) -> None:
    """End a migration of the disk's VM of which nobody has said how it ended.

    The disk is where ``disk`` says, and is taken off the other host. The caller holds the volume.

    Raises: BusyError when the other host still uses it.
    """
    if disk.vm_id is None:
        return
    places = site.ledger.locks.migrating(array.name, name, disk.vm_id)
    if not places:
        return
    (volume,) = array.find(name)
    for place in places:
        if volume is None or place.host == disk.host:
            continue
        if is_used_by_others(site, name, volume.wwid, DiskPath(place.host, disk.path)):
            continue
        log.warning("%s is taken off %s, where a migration has left it", name, place.host)
        volumes.detach(site, settings, array, name, volume.wwid, place.host)
    site.ledger.locks.forget_migration(array.name, name, disk.vm_id)


@contextmanager
def _held(request: Call, site: Site) -> Iterator[list[_Moving]]:
    """Hold the volumes of all disks of ours, always in one order."""
    moving = sorted(_moving(request, site), key=lambda each: (each.array.name, each.name))
    with ExitStack() as stack:
        for key in dict.fromkeys((each.array.name, each.name) for each in moving):
            array = next(each.array for each in moving if (each.array.name, each.name) == key)
            stack.enter_context(site.volume(array, key[1]))
        yield moving


def _moving(request: Call, site: Site) -> Iterator[_Moving]:
    """List the volumes that the VM's disks of this driver are."""
    opened: dict[int, tuple[Settings, Array]] = {}
    for disk in request.vm.disks:
        number = request.datastore_id if disk.is_volatile else disk.datastore_id
        if disk.tm_mad != request.driver or number is None:
            continue
        if number not in opened:
            datastore = site.opennebula.datastore(number)
            if disk.is_volatile and not is_volatile_block(datastore):
                continue
            settings = site.settings(datastore)
            opened[number] = (settings, site.array(settings))
        settings, array = opened[number]
        name = existing_name(site, array, disk_volume(request.vm, disk))
        path = str(PurePosixPath(request.directory) / f"disk.{disk.id}")
        is_shared = disk.is_cdrom or (not disk.is_clone and not disk.is_persistent and not disk.is_volatile)
        yield _Moving(settings, array, name, path, is_shared)


def _write_down(request: Call, site: Site, each: _Moving) -> None:
    for host in (request.source_host, request.target_host):
        site.ledger.locks.note(each.array.name, each.name, Place(host, each.path, vm=request.vm_id))


def _bring(request: Call, site: Site, moving: Sequence[_Moving], host: str) -> None:
    """Map the disks to a host, and attach and link them there, all at once."""
    for each in moving:
        site.ledger.locks.note(each.array.name, each.name, Place(host, each.path))
    connections = [each.array.map(each.name, host, is_shared=True) for each in moving]
    for each in moving:
        each.array.close()
    operations = [
        volumes.attach_operation(site, each.settings, connection, host, each.path)
        for each, connection in zip(moving, connections, strict=True)
    ]
    results = _at_once(site, host, operations, _seconds(moving))
    for connection, result in zip(connections, results, strict=True):
        _certify(connection, host, result)


def _certify(connection: Connection, host: str, result: Result | SanstoneError) -> None:
    if isinstance(result, SanstoneError):
        raise result
    assert isinstance(result, Attached)
    volumes.certify(connection, host, result)


def _take(request: Call, site: Site, moving: Sequence[_Moving], host: str) -> None:
    """Take the disks off a host, each that can be, and strike the migration out.

    What other VMs there use too stays. A host out of reach loses the mappings all the same.
    """
    there = [
        (each, wwid)
        for each, wwid in zip(moving, _wwids(moving), strict=True)
        if not each.is_shared or not is_used_by_others(site, each.name, wwid, DiskPath(host, each.path))
    ]
    operations = [volumes.detach_operation(each.array, wwid) for each, wwid in there]
    outcomes: Sequence[Result | SanstoneError]
    try:
        outcomes = _at_once(site, host, operations, _seconds(moving))
    except ConnectError as err:
        log.warning("VM %d's disks are unmapped from %s without its consent: %s", request.vm_id, host, err)
        outcomes = [None] * len(operations)
    failures = []
    for (each, _), outcome in zip(there, outcomes, strict=True):
        if isinstance(outcome, SanstoneError):
            failures.append(outcome)
            continue
        for warning in outcome.warnings if isinstance(outcome, Detached) else ():
            log.warning("%s on %s: %s", each.name, host, warning)
        each.array.unmap(each.name, host)
    for failure in failures[1:]:
        log.error("%s", failure)
    if failures:
        raise failures[0]
    for each in moving:
        site.ledger.locks.forget_migration(each.array.name, each.name, request.vm_id)


def _wwids(moving: Sequence[_Moving]) -> list[str]:
    """Look the volumes up, with one question to each array."""
    found: dict[tuple[str, str], str] = {}
    for array in {each.array.name: each.array for each in moving}.values():
        names = sorted({each.name for each in moving if each.array.name == array.name})
        for name, volume in zip(names, array.find(*names), strict=True):
            if volume is None:
                raise NotFoundError(f"Volume {name} is not on {array.name}.", "Was it deleted by hand?")
            found[array.name, name] = volume.wwid
    return [found[each.array.name, each.name] for each in moving]


def _at_once(
    site: Site, host: str, operations: Sequence[Operation], seconds: float
) -> Sequence[Result | SanstoneError]:
    if not operations:
        return []
    (outcomes,) = site.host(host).run([Together(tuple(operations))], deadline=seconds)
    assert isinstance(outcomes, Outcomes)
    return outcomes.of_each


def _seconds(moving: Sequence[_Moving]) -> float:
    return max((each.settings.seconds("ATTACH_TIMEOUT") for each in moving), default=_FILE_SECONDS)


def _remove_old_links(request: Call, site: Site, moving: Sequence[_Moving]) -> None:
    """Remove the links from the directory in the system datastore that the VM has left, if that is known."""
    history = site.opennebula.vm(request.vm_id).history
    old = history[-2].datastore_id if len(history) > 1 else None
    directory = PurePosixPath(request.directory)
    if old is None or str(old) == directory.parent.name:
        return
    before = directory.parent.parent / str(old) / directory.name
    _remove(site, request.target_host, [str(before / PurePosixPath(each.path).name) for each in moving])


def _remove(site: Site, host: str, paths: Sequence[str]) -> None:
    site.host(host).run([RemovePath(path) for path in paths], deadline=_FILE_SECONDS)


def _pass_on(request: Call, site: Site, action: str) -> None:
    """Tell the drivers of the VM's other disks, as OpenNebula's own drivers of system datastores do."""
    if request.called_by is not None:
        return
    others = dict.fromkeys(disk.tm_mad for disk in request.vm.disks)
    for driver in others:
        script = site.remotes / "tm" / driver / action
        if driver in ("", request.driver):
            continue
        if not script.exists():
            log.warning("the disks of driver %s get no %s: there is no %s", driver, action, script)
            continue
        argv = (
            str(script),
            request.source_host,
            request.target_host,
            request.directory,
            str(request.vm_id),
            str(request.datastore_id),
            request.driver,
        )
        run(Command.of(argv, deadline=_PASSED_ON_SECONDS, stdin=request.document))
