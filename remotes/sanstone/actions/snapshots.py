# SPDX-License-Identifier: Apache-2.0
"""Disk snapshots: of the disks of VMs, running or not, and of images.

Snapshot N of volume X is a volume X-sN, which nobody maps. What a running guest has written is in it as after
a power cut, all of one moment; to let the guest come to rest before is up to the hypervisor.
"""

from __future__ import annotations

import logging

from sanstone.actions import migration, volumes
from sanstone.actions.datastore import Origin, copy_onto
from sanstone.actions.disks import locate
from sanstone.actions.removing import delete_snapshot, is_ours
from sanstone.actions.site import Site
from sanstone.arrays import Array, NewVolume
from sanstone.errors import NotFoundError, SanstoneError
from sanstone.hosts.ops import Attached
from sanstone.model import Volume
from sanstone.names import snapshot_volume, volume_of_source
from sanstone.opennebula.messages import (
    DiskPath,
    ImageSnapshotDelete,
    ImageSnapshotFlatten,
    ImageSnapshotRevert,
    SnapshotCreate,
    SnapshotCreateLive,
    SnapshotDelete,
    SnapshotFlatten,
    SnapshotRevert,
)
from sanstone.settings import Settings

__all__ = [
    "create",
    "delete",
    "flatten",
    "image_delete",
    "image_flatten",
    "image_revert",
    "revert",
]

log = logging.getLogger(__name__)


def create(request: SnapshotCreate | SnapshotCreateLive, site: Site) -> str:
    """Take a snapshot of a disk, whether its VM runs or not."""
    at = locate(request.vm_id, request.datastore_id, request.disk, site)
    array = at.array
    snapshot = snapshot_volume(at.name, request.snapshot_id)
    with site.volume(array, at.name), site.volume(array, snapshot):
        new = NewVolume(snapshot, source=at.name, is_linked=True)
        volumes.make(site, array, new, content=f"snapshot\0{at.name}", is_of_now=True)
        volumes.complete(site, array, snapshot)
    return ""


def delete(request: SnapshotDelete, site: Site) -> str:
    """Delete a snapshot of a disk, whether its VM runs or not."""
    at = locate(request.vm_id, request.datastore_id, request.disk, site)
    with site.volume(at.array, at.name):
        delete_snapshot(site, at.array, at.name, snapshot_volume(at.name, request.snapshot_id))
    return ""


def revert(request: SnapshotRevert, site: Site) -> str:
    """Put the disk of a VM that does not run back to a snapshot."""
    at = locate(request.vm_id, request.datastore_id, request.disk, site)
    with site.volume(at.array, at.name):
        _revert(site, at.settings, at.array, at.name, request.snapshot_id, request.disk)
    return ""


def flatten(request: SnapshotFlatten, site: Site) -> str:
    """Put a disk back to a snapshot and drop all its snapshots."""
    at = locate(request.vm_id, request.datastore_id, request.disk, site)
    with site.volume(at.array, at.name):
        _flatten(site, at.settings, at.array, at.name, request.snapshot_id, request.disk)
    return ""


def image_delete(request: ImageSnapshotDelete, site: Site) -> str:
    """Delete a snapshot of an image."""
    array = site.array(site.settings(request.datastore))
    name = volume_of_source(request.image.source)
    with site.volume(array, name):
        delete_snapshot(site, array, name, snapshot_volume(name, request.target_snapshot))
    return ""


def image_revert(request: ImageSnapshotRevert, site: Site) -> str:
    """Put an image back to a snapshot."""
    settings = site.settings(request.datastore)
    array = site.array(settings)
    name = volume_of_source(request.image.source)
    with site.volume(array, name):
        _revert(site, settings, array, name, request.target_snapshot, None)
    return ""


def image_flatten(request: ImageSnapshotFlatten, site: Site) -> str:
    """Put an image back to a snapshot and drop all its snapshots."""
    settings = site.settings(request.datastore)
    array = site.array(settings)
    name = volume_of_source(request.image.source)
    with site.volume(array, name):
        _flatten(site, settings, array, name, request.target_snapshot, None)
    return ""


def _flatten(
    site: Site, settings: Settings, array: Array, name: str, number: int, disk: DiskPath | None
) -> None:
    """Revert, then delete the snapshots, the one that was reverted to at last: a repeat begins with it."""
    wanted = snapshot_volume(name, number)
    there = [each.name for each in array.snapshots(name) if each.name.startswith(f"{name}-s")]
    entry = site.ledger.find(array.name, wanted)
    if (wanted in there and not (entry and entry.is_doomed)) or any(each != wanted for each in there):
        _revert(site, settings, array, name, number, disk)
    for each in sorted(there, key=lambda each: each == wanted):
        delete_snapshot(site, array, name, each)


def _revert(
    site: Site, settings: Settings, array: Array, name: str, number: int, disk: DiskPath | None
) -> None:
    """Give a volume the contents of its snapshot; ``disk`` is where it is, None for an image.

    The link of the disk stays meanwhile. A repeat begins anew, whatever a killed run has done.
    """
    wanted = snapshot_volume(name, number)
    volume, snapshot = array.find(name, wanted)
    if volume is None:
        raise NotFoundError(f"Volume {name} is not on {array.name}.", "Was it deleted by hand?")
    _check(site, array, name, wanted, snapshot)
    assert snapshot is not None
    host = disk.host if disk is not None and not site.is_frontend(disk.host) else None
    volumes.end_visit(site, settings, array, name)
    if disk is not None:
        migration.settle(site, settings, array, name, disk)
    if host is not None:
        # The host has to agree: what it still holds must not be written over the snapshot later.
        detach = volumes.detach_operation(array, volume.wwid)
        site.host(host).run([detach], deadline=settings.seconds("ATTACH_TIMEOUT"))
        array.unmap(name, host)
    try:
        _put_back(site, settings, array, snapshot, volume, host)
    except BaseException:
        if disk is not None and host is not None:
            try:
                _bring_back(site, settings, array, name, disk)
            except SanstoneError as left:
                log.error("%s is not on %s any more, revert again: %s", name, host, left)
        raise
    if disk is not None and host is not None:
        _bring_back(site, settings, array, name, disk)


def _check(site: Site, array: Array, name: str, wanted: str, snapshot: Volume | None) -> None:
    entry = site.ledger.find(array.name, wanted)
    if snapshot is None or (entry is not None and (entry.is_doomed or not entry.is_ready)):
        raise NotFoundError(
            f"Snapshot {wanted} is not on {array.name}.",
            "Was it deleted by hand? Delete it in OpenNebula too.",
        )
    if not is_ours(site, array, name, snapshot):
        raise volumes.NotOursError(
            f"{wanted} on {array.name} is no snapshot that this front-end made.",
            "See who made that volume; delete the snapshot in OpenNebula.",
        )


def _put_back(
    site: Site, settings: Settings, array: Array, snapshot: Volume, volume: Volume, host: str | None
) -> None:
    if snapshot.size == volume.size:
        array.copy(snapshot.name, volume.name)
        return
    log.info("%s has grown since %s: the host copies", volume.name, snapshot.name)
    place = host or site.bridges(settings, 0)[0]
    origin = Origin(array, settings, snapshot.name)
    copy_onto(origin, site, settings, array, array.map(volume.name, place), place, is_zero=False)


def _bring_back(site: Site, settings: Settings, array: Array, name: str, disk: DiskPath) -> None:
    connection = array.map(name, disk.host)
    bring = volumes.attach_operation(site, settings, connection, disk.host, disk.path)
    array.close()
    (result,) = site.host(disk.host).run([bring], deadline=settings.seconds("ATTACH_TIMEOUT"))
    assert isinstance(result, Attached)
    volumes.certify(connection, disk.host, result)
