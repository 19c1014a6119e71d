# SPDX-License-Identifier: Apache-2.0
"""Which volume a VM's disk is."""

from __future__ import annotations

from dataclasses import dataclass

from sanstone.arrays import Array
from sanstone.errors import NotFoundError
from sanstone.model import Volume
from sanstone.names import clone_names, volatile_volume, volume_of_source
from sanstone.opennebula.documents import DatastoreDocument, Disk, VmDocument

__all__ = ["DiskVolume", "disk_volume", "is_system", "is_volatile_block"]

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


def is_system(datastore: DatastoreDocument) -> bool:
    return datastore.type == _SYSTEM


def is_volatile_block(datastore: DatastoreDocument) -> bool:
    """Tell whether volatile disks of a system datastore are volumes (its own DISK_TYPE decides)."""
    return is_system(datastore) and datastore.template.get("DISK_TYPE", "").upper() == "BLOCK"
