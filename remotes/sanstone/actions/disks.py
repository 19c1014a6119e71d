# SPDX-License-Identifier: Apache-2.0
"""Which volume a VM's disk is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from sanstone.actions.site import Site
from sanstone.arrays import Array
from sanstone.errors import ConnectError, NotFoundError
from sanstone.hosts.ops import LinkState, ReadLink
from sanstone.model import Volume
from sanstone.names import clone_names, read_name, volatile_volume, volume_of_source
from sanstone.opennebula.documents import DatastoreDocument, Disk, VmDocument
from sanstone.opennebula.paths import DiskPath
from sanstone.settings import Settings

__all__ = [
    "DiskVolume",
    "Located",
    "disk_of",
    "disk_volume",
    "existing_name",
    "is_system",
    "is_used_by_others",
    "is_volatile_block",
    "locate",
]

_FILE_SECONDS = 600.0
_SYSTEM = 1  # TYPE of a datastore document (recorded in xml/datastore-system-rec.xml)


@dataclass(frozen=True, slots=True)
class DiskVolume:
    """What a disk's volume may be called, ours first; ``is_own``: it goes with the disk."""

    names: tuple[str, ...]
    is_own: bool

    @property
    def name(self) -> str:
        return self.names[0]

    def find(self, array: Array) -> Volume | None:
        """Look for the volume under each of its names, in one question."""
        if not self.names:
            return None
        return next((volume for volume in array.find(*self.names) if volume is not None), None)


def disk_volume(vm: VmDocument, disk: Disk) -> DiskVolume:
    """Work out which volume a disk is, from what OpenNebula says of it."""
    if disk.is_volatile:
        return DiskVolume((volatile_volume(vm.id, disk.id),), is_own=True)
    if disk.is_persistent or disk.is_cdrom or not disk.is_clone:
        return DiskVolume((volume_of_source(disk.source),), is_own=False)
    if disk.image_id is None:
        raise NotFoundError(f"Disk {disk.id} of VM {vm.id} names no image.")
    names = clone_names(disk.image_id, vm.id, disk.id)
    # The old name has no disk in it: the first disk of that image bears it, for the others were never made.
    is_first = not any(each.image_id == disk.image_id and each.id < disk.id for each in vm.disks)
    return DiskVolume(names if is_first else names[:1], is_own=True)


@dataclass(frozen=True, slots=True)
class Located:
    """A disk of a VM, and the name of its volume on its array."""

    settings: Settings
    array: Array
    vm: VmDocument
    disk: Disk
    name: str


def locate(vm_id: int, datastore_id: int, path: DiskPath, site: Site) -> Located:
    """Find out which volume the disk at ``path`` is; ``datastore_id`` is that of its image.

    Raises: NotFoundError.
    """
    settings = site.settings(site.opennebula.datastore(datastore_id))
    array = site.array(settings)
    vm = site.opennebula.vm(vm_id)
    disk = disk_of(vm, path)
    return Located(settings, array, vm, disk, existing_name(site, array, disk_volume(vm, disk)))


def disk_of(vm: VmDocument, path: DiskPath) -> Disk:
    """Find the disk of a VM that a path names.

    Raises: NotFoundError.
    """
    disk = vm.disk(path.disk_id) if path.disk_id is not None else None
    if disk is None:
        raise NotFoundError(f"VM {vm.id} has no disk {path.disk_id}.", "Run the action again.")
    return disk


def existing_name(site: Site, array: Array, wanted: DiskVolume) -> str:
    """Find under which of its possible names a disk's volume is there.

    Raises: NotFoundError.
    """
    if len(wanted.names) == 1:
        return wanted.name
    if site.ledger.find(array.name, wanted.name) is not None:
        return wanted.name
    found = wanted.find(array)
    if found is None:
        raise NotFoundError(
            f"No volume {' or '.join(wanted.names)} is on {array.name}.", "Was it deleted by hand?"
        )
    return found.name


def is_used_by_others(site: Site, name: str, wwid: str, disk: DiskPath) -> bool:
    """Tell whether another disk on that host is the same image, as with a CD-ROM.

    The links there tell: a VM that has left has none any more, whatever OpenNebula still lists.
    """
    what = read_name(name)
    if what is None or what.image is None or what.vm is not None:
        return False
    datastores = PurePosixPath(disk.directory).parent.parent
    others = []
    for vm_id in site.opennebula.image(what.image).vm_ids:
        vm = site.opennebula.vm(vm_id)
        if vm.host != disk.host or vm.system_datastore_id is None:
            continue
        place = datastores / str(vm.system_datastore_id) / str(vm.id)
        others += [str(place / f"disk.{each.id}") for each in vm.disks if each.image_id == what.image]
    questions = [ReadLink(path) for path in dict.fromkeys(others) if path != disk.path]
    if not questions:
        return False
    try:
        links = site.host(disk.host).run(questions, deadline=_FILE_SECONDS)
    except ConnectError:
        return False  # out of reach, so that all of its disks are lost to it
    return any(isinstance(link, LinkState) and link.wwid == wwid for link in links)


def is_system(datastore: DatastoreDocument) -> bool:
    return datastore.type == _SYSTEM


def is_volatile_block(datastore: DatastoreDocument) -> bool:
    """Tell whether volatile disks of a system datastore are volumes (its own DISK_TYPE decides)."""
    return is_system(datastore) and datastore.template.get("DISK_TYPE", "").upper() == "BLOCK"
