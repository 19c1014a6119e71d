# SPDX-License-Identifier: Apache-2.0
"""Put in order what actions have left undone: volumes, mappings, devices, links, files on the way.

An action that succeeds takes its lock on a volume along; a lock that stays says that it was killed or failed,
and where it was about to bring the volume. OpenNebula does not repeat everything that failed: what is to
become of the volume is up to what it has now. It is asked about these volumes only, so that nothing is asked
when all went well.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from sanstone.actions import volumes
from sanstone.actions.disks import disk_volume
from sanstone.actions.removing import delete_with_snapshots
from sanstone.actions.site import Site
from sanstone.arrays import Array
from sanstone.errors import BusyError, NotFoundError, SanstoneError
from sanstone.hosts.ops import Attached, LinkState, ReadLink, RemovePath
from sanstone.model import Volume
from sanstone.names import VolumeName, read_name
from sanstone.opennebula.documents import ImageDocument, ImageType, SnapshotEntry, VmDocument
from sanstone.opennebula.paths import DiskPath
from sanstone.settings import Settings
from sanstone.store.locks import Place

__all__ = ["drop_earlier", "settle", "take_off_forgotten", "take_off_incomplete"]

log = logging.getLogger(__name__)

_FILE_SECONDS = 60.0
_SURE = 3600.0
_DONE, _ACTIVE, _PENDING, _HOLD = 6, 3, 1, 2
_ON_A_HOST = (8, 5)  # POWEROFF, SUSPENDED
_AT_REST = (_DONE, _PENDING, _HOLD, 4, 9, *_ON_A_HOST)  # and STOPPED, UNDEPLOYED
_RUNNING = (3, 16)  # RUNNING, UNKNOWN
_DELETE_RECREATE = 14  # ACTION of a history record
_IN_PROGRESS = (0, 4, 7, 9, 10)  # of an image: INIT, LOCKED, DELETE, LOCKED_USED, LOCKED_USED_PERS


@dataclass(frozen=True, slots=True)
class _Use:
    """Where OpenNebula has a disk: the host, and the numbers of VM and disk."""

    host: str
    vm: int
    disk: int


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Whether OpenNebula has something that is this volume, and where it is in use."""

    is_there: bool
    uses: Collection[_Use] = ()


def settle(site: Site, settings: Settings, array: Array) -> None:
    """Put every volume of ``array`` in order whose action was killed or failed.

    What OpenNebula is in the middle of, or waits with until somebody recovers it, is left for the next time.
    """
    for name in site.ledger.locks.left(array.name):
        with _said(name), site.ledger.locks.settling(array.name, name) as places:
            _settle(site, settings, array, name, places)


def take_off_forgotten(site: Site, settings: Settings, array: Array, name: str, host: str) -> bool:
    """Take a volume off other hosts than ``host`` where a killed action left it; tell whether there was one.

    The caller holds the volume.
    """
    what = read_name(name)
    places = [place for place in site.ledger.locks.places(array.name, name) if place.host != host]
    if what is None or not places:
        return False
    (volume,) = array.find(name)
    _leave(site, settings, array, name, volume, _ask(site, what, name), places)
    return True


def take_off_incomplete(site: Site, settings: Settings, array: Array, name: str, host: str) -> None:
    """Take a volume off ``host`` that a killed action was filling there, so that it can be made anew.

    The caller holds the volume.
    """
    entry = site.ledger.find(array.name, name)
    if entry is None or entry.is_ready:
        return
    (volume,) = array.find(name)
    if volume is not None and entry.covers(volume.wwid):
        volumes.detach(site, settings, array, name, volume.wwid, host)


def drop_earlier(
    site: Site, settings: Settings, array: Array, name: str, disk: DiskPath, contents: Collection[str]
) -> None:
    """Delete the volume of an earlier disk of this number, whose attachment or deletion was killed.

    OpenNebula asks for a new disk in its place. ``contents`` are what it may hold; one that holds something
    else is left alone. The caller holds the volume.
    """
    entry = site.ledger.find(array.name, name)
    marks = {volumes.content_mark(content) for content in contents}
    if entry is None or entry.wwid is None or not entry.is_ready or entry.content not in marks:
        return
    noted = [place.host for place in site.ledger.locks.places(array.name, name)]
    for host in dict.fromkeys((disk.host, *noted)):
        if not site.is_frontend(host):
            volumes.detach(site, settings, array, name, entry.wwid, host, link=disk.path)
    delete_with_snapshots(site, settings, array, name, wwid=entry.wwid)
    log.warning("%s, made for an earlier disk of this number, is deleted", name)


@contextmanager
def _said(name: str) -> Iterator[None]:
    """Let what cannot be done for one volume be no reason to leave out the others."""
    try:
        yield
    except SanstoneError as err:
        log.info("%s is not in order yet: %s", name, err.message)


def _settle(site: Site, settings: Settings, array: Array, name: str, places: Collection[Place]) -> None:
    what = read_name(name)
    if what is None:
        return
    wanted = _ask(site, what, name)
    (volume,) = array.find(name)
    _leave(site, settings, array, name, volume, wanted, places)
    if not wanted.is_there:
        _remove(site, settings, array, name, volume)
    elif volume is not None:
        _bring_back(site, settings, array, volume, wanted, places)


def _remove(site: Site, settings: Settings, array: Array, name: str, volume: Volume | None) -> None:
    """Delete a volume that nothing in OpenNebula is, if it is surely ours."""
    entry = site.ledger.find(array.name, name)
    if volume is None:
        site.ledger.forget(array.name, name)
        return
    if entry is None or not entry.covers(volume.wwid):
        return
    if entry.wwid is None and time.time() - entry.at > _SURE:
        log.warning("%s on %s may be ours or not: delete it if nobody needs it", name, array.name)
        return
    delete_with_snapshots(site, settings, array, name, wwid=volume.wwid)
    log.warning("%s, which a killed action left, is deleted", name)


def _leave(
    site: Site,
    settings: Settings,
    array: Array,
    name: str,
    volume: Volume | None,
    wanted: _Wanted,
    places: Collection[Place],
) -> None:
    """Take a volume off the places where OpenNebula does not have it, with what was on the way there."""
    entry = site.ledger.find(array.name, name)
    wwid = volume.wwid if volume else entry.wwid if entry else None
    for place in places:
        if place.file is not None:
            site.host(place.host).run([RemovePath(place.file)], deadline=_FILE_SECONDS)
        here = [use for use in wanted.uses if use.host == place.host]
        if any(_is_link_of(use, place.link) for use in here):
            continue
        if here or site.is_frontend(place.host):
            _unlink(site, place, wwid)
        elif wwid is not None:
            # in a shared directory the link may be that of the host where the disk is
            is_in_use = any(_is_link_of(use, place.link) for use in wanted.uses)
            link = None if is_in_use else place.link
            volumes.let_go(site, settings, array, name, wwid, place.host, link=link)
            if volume is not None:
                array.unmap(name, place.host)


def _bring_back(
    site: Site, settings: Settings, array: Array, volume: Volume, wanted: _Wanted, places: Collection[Place]
) -> None:
    """Bring a volume to where OpenNebula has it and a killed action has taken it away."""
    for use in wanted.uses:
        link = next((place.link for place in places if _is_link_of(use, place.link)), None)
        if link is None:
            continue
        host = site.host(use.host)
        (state,) = host.run([ReadLink(link)], deadline=_FILE_SECONDS)
        if isinstance(state, LinkState) and state.exists and state.wwid == volume.wwid:
            continue
        is_shared = len({each.host for each in wanted.uses}) > 1
        connection = array.map(volume.name, use.host, is_shared=is_shared)
        bring = volumes.attach_operation(site, settings, connection, use.host, link)
        array.close()
        (result,) = host.run([bring], deadline=settings.seconds("ATTACH_TIMEOUT"))
        assert isinstance(result, Attached)
        volumes.certify(connection, use.host, result)
        log.warning("%s is back on %s, from which a killed action took it", volume.name, use.host)


def _is_link_of(use: _Use, link: str | None) -> bool:
    path = PurePosixPath(link or "/")
    return (path.parent.name, path.name) == (str(use.vm), f"disk.{use.disk}")


def _unlink(site: Site, place: Place, wwid: str | None) -> None:
    """Remove a link to the volume beside another one that is in use."""
    if place.link is None or wwid is None:
        return
    host = site.host(place.host)
    (state,) = host.run([ReadLink(place.link)], deadline=_FILE_SECONDS)
    if isinstance(state, LinkState) and state.wwid == wwid:
        host.run([RemovePath(place.link)], deadline=_FILE_SECONDS)


# what OpenNebula has


def _ask(site: Site, what: VolumeName, name: str) -> _Wanted:
    """Ask OpenNebula what a volume is there.

    Raises: BusyError while it is in the middle of something.
    """
    if what.backup is not None:
        return _Wanted(is_there=True)  # what becomes of it is up to the next backup
    if what.vm is None:
        return _ask_image(site, what)
    if what.disk is None:
        return _Wanted(is_there=True)
    vm = _vm(site, what.vm)
    disk = vm.disk(what.disk) if vm is not None else None
    if vm is None or disk is None or vm.state == _DONE or _is_recreated(vm):
        return _Wanted(is_there=False)
    if what.snapshot is not None:
        return _Wanted(_has(disk.snapshots, what.snapshot))
    is_there = name in disk_volume(vm, disk).names
    return _Wanted(is_there, _uses(vm, disk.id) if is_there else ())


def _ask_image(site: Site, what: VolumeName) -> _Wanted:
    assert what.image is not None
    image = _image(site, what.image)
    if image is None or (not image.source and image.state not in _IN_PROGRESS):
        return _Wanted(is_there=False)
    if image.state in _IN_PROGRESS:
        raise BusyError(f"Image {image.id} is being worked on.")
    uses: list[_Use] = []
    snapshots = image.snapshots
    is_shared = not image.is_persistent and image.type is not ImageType.CDROM  # its VMs have clones
    for vm in (_vm(site, number) for number in (() if is_shared else image.vm_ids)):
        for disk in vm.disks if vm is not None else ():
            if vm is not None and disk.image_id == image.id and not disk.is_clone:
                uses += _uses(vm, disk.id)
                snapshots = disk.snapshots
    if what.snapshot is not None:
        return _Wanted(_has(snapshots, what.snapshot))
    return _Wanted(is_there=True, uses=uses)


def _has(snapshots: Collection[SnapshotEntry], number: int) -> bool:
    return any(snapshot.id == number for snapshot in snapshots)


def _uses(vm: VmDocument, disk: int) -> list[_Use]:
    is_on_host = vm.lcm_state in _RUNNING if vm.state == _ACTIVE else vm.state in _ON_A_HOST
    return [_Use(vm.host, vm.id, disk)] if is_on_host else []


def _is_recreated(vm: VmDocument) -> bool:
    """Tell whether a VM waits to begin anew, so that nothing of its former disks is wanted."""
    return vm.state in (_PENDING, _HOLD) and bool(vm.history) and vm.history[-1].action == _DELETE_RECREATE


def _vm(site: Site, number: int) -> VmDocument | None:
    try:
        vm = site.opennebula.vm(number)
    except NotFoundError:
        return None
    if vm.state not in _AT_REST and not (vm.state == _ACTIVE and vm.lcm_state in _RUNNING):
        raise BusyError(f"VM {number} is being worked on, or waits to be recovered.")
    return vm


def _image(site: Site, number: int) -> ImageDocument | None:
    try:
        return site.opennebula.image(number)
    except NotFoundError:
        return None
