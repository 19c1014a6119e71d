# SPDX-License-Identifier: Apache-2.0
"""What oned can ask of a datastore or transfer driver: one frozen type per action.

``driver`` is the directory under which oned found the script. For datastore actions ``request_id`` is what
the answer belongs to: the image's id, the datastore's for a monitor, a mere counter for ``stat`` and
``restore``. For transfer actions ``system_tm`` is the suffix of the action's name (``clone.ssh``): the driver
of the VM's system datastore when that is another one; ``datastore_id`` is the image's datastore for a disk of
an image, else the system datastore. Sizes are MiB.

Types that add no field are no dataclasses of their own: making those would cost each driver process 10 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sanstone.opennebula.documents import DatastoreDocument, ImageDocument, VmDocument
from sanstone.opennebula.paths import DiskPath

__all__ = [
    "Backup",
    "BackupCancel",
    "Clone",
    "CloneImage",
    "Context",
    "CopyToDatastore",
    "Cp",
    "DatastoreRequest",
    "Delete",
    "Export",
    "Failmigrate",
    "ImageSnapshotDelete",
    "ImageSnapshotFlatten",
    "ImageSnapshotRevert",
    "IncrementFlatten",
    "Ln",
    "MakeImage",
    "MakeSwap",
    "Mkfs",
    "MonitorDatastore",
    "MonitorSystem",
    "Move",
    "MoveToDatastore",
    "Postbackup",
    "Postmigrate",
    "Prebackup",
    "Premigrate",
    "Request",
    "Resize",
    "Restore",
    "RestoreImage",
    "Rm",
    "SnapshotCreate",
    "SnapshotCreateLive",
    "SnapshotDelete",
    "SnapshotFlatten",
    "SnapshotRevert",
    "Stat",
    "TransferRequest",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfDatastore:
    driver: str
    request_id: int
    datastore: DatastoreDocument


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfImage(_OfDatastore):
    image: ImageDocument


class Stat(_OfImage):
    """Tell the size of what ``image.path`` names; nothing else is known of the image yet."""

    __slots__ = ()


class Cp(_OfImage):
    """Bring ``image.path`` into the datastore as a new volume."""

    __slots__ = ()


class Mkfs(_OfImage):
    """Make a new volume of ``image.size_mib``, for a data block or as the target of a disk save-as."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneImage(_OfImage):
    """Clone the volume that ``image.path`` names (the origin's SOURCE) into ``datastore``."""

    source_bridge_list: tuple[str, ...]


class Rm(_OfImage):
    """Delete the volume of ``image.source``."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfImageSnapshot(_OfImage):
    target_snapshot: int


class ImageSnapshotDelete(_OfImageSnapshot):
    """Delete a snapshot of an image that no VM uses."""

    __slots__ = ()


class ImageSnapshotRevert(_OfImageSnapshot):
    """Put an image back to a snapshot."""

    __slots__ = ()


class ImageSnapshotFlatten(_OfImageSnapshot):
    """Put an image back to a snapshot and drop all its snapshots."""

    __slots__ = ()


class MonitorDatastore(_OfDatastore):
    """Tell the datastore's capacity."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreImage(_OfImage):
    """Make images of a backup in ``destination_datastore_id``; ``options`` came with the call."""

    destination_datastore_id: int
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class IncrementFlatten(_OfImage):
    """Merge a backup's increments until ``keep_last`` are left."""

    keep_last: int


class Export(_OfImage):
    """Tell a marketplace how to get at an image; ``request_id`` is the app's."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """Store the disks of a VM. ``vm`` is None before OpenNebula 6.10.1, which sends the datastore alone."""

    driver: str
    disk: DiskPath
    disk_ids: tuple[int, ...]
    deploy_id: str
    job_id: int | None
    vm_id: int
    datastore_id: int
    datastore: DatastoreDocument
    vm: VmDocument | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupCancel:
    """Stop the backup of a VM. ``vm`` is None where oned does not send it (seen in the source of 6.10)."""

    driver: str
    disk: DiskPath
    deploy_id: str
    vm: VmDocument | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Transfer:
    driver: str
    system_tm: str | None
    vm_id: int
    datastore_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfDisk(_Transfer):
    disk: DiskPath


@dataclass(frozen=True, slots=True, kw_only=True)
class _FromSource(_OfDisk):
    """``source`` is an image's SOURCE as oned passes it on: with ``frontend:`` unless it holds a colon."""

    source: str


class Clone(_FromSource):
    """Give the VM a copy of an image. A larger size of the disk is not said here."""

    __slots__ = ()


class Ln(_FromSource):
    """Give the VM the image itself: a persistent one, or a CD-ROM."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeImage(_OfDisk):
    """Make a volatile disk."""

    size_mib: int
    format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfSize(_OfDisk):
    size_mib: int


class MakeSwap(_OfSize):
    """Make a volatile disk with swap space."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Context(_OfDisk):
    """Make the context CD-ROM of ``files``, which are on the front-end; the first is context.sh."""

    files: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Move(_Transfer):
    """Move a disk, or at last the VM's directory, between hosts or system datastores."""

    source: DiskPath
    target: DiskPath

    @property
    def is_directory(self) -> bool:
        return self.source.disk_id is None


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveToDatastore(_OfDisk):
    """Give a persistent disk back to its image, whose SOURCE is ``source``."""

    source: str


class Delete(_OfDisk):
    """Remove a disk, or at last the VM's directory. A forced deletion asks it of persistent disks, too."""

    __slots__ = ()

    @property
    def is_directory(self) -> bool:
        return self.disk.disk_id is None


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyToDatastore(_OfDisk):
    """Copy a disk, or its snapshot, into the new image that ``mkfs`` made before."""

    source: str
    snapshot_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfSnapshot(_OfDisk):
    snapshot_id: int


class SnapshotCreate(_OfSnapshot):
    """Take a snapshot of a disk of a VM that does not run."""

    __slots__ = ()


class SnapshotCreateLive(_OfSnapshot):
    """Take a snapshot of a disk of a running VM."""

    __slots__ = ()


class SnapshotDelete(_OfSnapshot):
    """Delete a snapshot of a disk; the VM may be running."""

    __slots__ = ()


class SnapshotRevert(_OfSnapshot):
    """Put a disk back to a snapshot."""

    __slots__ = ()


class SnapshotFlatten(_OfSnapshot):
    """Put a disk back to a snapshot and drop all its snapshots."""

    __slots__ = ()


class Resize(_OfSize):
    """Make a disk ``size_mib`` large."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Migrate(_Transfer):
    """A live migration. ``directory`` is the VM's directory in the target system datastore.

    ``called_by`` names the system datastore's driver that passed the call on; None when oned called.
    ``document`` is the VM as it came, for drivers to which the call is passed on.
    """

    source_host: str
    target_host: str
    directory: str
    vm: VmDocument
    called_by: str | None
    document: bytes = field(repr=False)


class Premigrate(_Migrate):
    """Make the disks usable on the target host as well."""

    __slots__ = ()


class Postmigrate(_Migrate):
    """Take the disks off the source host."""

    __slots__ = ()


class Failmigrate(_Migrate):
    """Undo what premigrate did: the VM stayed where it was."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _AroundBackup(_OfDisk):
    """``disk`` is the VM's directory. ``job_id``: the backup job, None for a backup asked for singly.

    ``document`` is ``vm`` as oned wrote it, which goes into the backup.
    """

    disk_ids: tuple[int, ...]
    deploy_id: str
    job_id: int | None
    is_live: bool
    vm: VmDocument
    document: str = field(repr=False)


class Prebackup(_AroundBackup):
    """Make files of the disks for the backup driver."""

    __slots__ = ()


class Postbackup(_AroundBackup):
    """Remove what prebackup made; also asked for after a failure."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """Put a VM's disks back from the backup ``image_id``: all of them when ``disk_id`` is None."""

    driver: str
    system_tm: str | None
    disk: DiskPath
    vm_id: int
    image_id: int
    increment: int | None
    disk_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorSystem:
    """Tell a system datastore's capacity; ``location`` is where the datastores are on a host."""

    driver: str
    request_id: int
    datastore: DatastoreDocument
    location: str = ""
    monitor_vm_disks: bool = field(default=False)


DatastoreRequest = (
    Stat
    | Cp
    | Mkfs
    | CloneImage
    | Rm
    | ImageSnapshotDelete
    | ImageSnapshotRevert
    | ImageSnapshotFlatten
    | MonitorDatastore
    | RestoreImage
    | IncrementFlatten
    | Export
    | Backup
    | BackupCancel
)
TransferRequest = (
    Clone
    | Ln
    | MakeImage
    | MakeSwap
    | Context
    | Move
    | MoveToDatastore
    | Delete
    | CopyToDatastore
    | SnapshotCreate
    | SnapshotCreateLive
    | SnapshotDelete
    | SnapshotRevert
    | SnapshotFlatten
    | Resize
    | Premigrate
    | Postmigrate
    | Failmigrate
    | Prebackup
    | Postbackup
    | Restore
    | MonitorSystem
)
Request = DatastoreRequest | TransferRequest
