# SPDX-License-Identifier: Apache-2.0
"""The objects of OpenNebula, from the XML that drivers, hooks and API calls are given alike.

Elements that nobody here asks for are ignored, so that a newer oned is understood. What may hold a password
(templates) is left out of ``repr``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from sanstone.errors import RequestError
from sanstone.opennebula.markup import MAX_DOCUMENT, Element

__all__ = [
    "BackupConfig",
    "DatastoreDocument",
    "Disk",
    "HistoryRecord",
    "HostDocument",
    "ImageDocument",
    "ImageType",
    "SnapshotEntry",
    "VmDocument",
    "read_datastore",
    "read_host",
    "read_image",
    "read_vm",
]

_HOTPLUG = 17
_HOTPLUG_PROLOG_POWEROFF = 33
_HOTPLUG_EPILOG_POWEROFF = 34


class ImageType(enum.Enum):
    """What an image is, by oned's number."""

    OS = 0
    CDROM = 1
    DATABLOCK = 2
    KERNEL = 3
    RAMDISK = 4
    CONTEXT = 5
    BACKUP = 6
    FILESYSTEM = 7


@dataclass(frozen=True, slots=True)
class SnapshotEntry:
    """A disk snapshot as oned counts it; ``parent`` is None for a first one."""

    id: int
    name: str
    parent: int | None
    size_mib: int | None
    is_active: bool


@dataclass(frozen=True, slots=True)
class ImageDocument:
    """An image. For ``stat`` there is a path and nothing else: id, type and the like are None."""

    id: int | None
    name: str
    type: ImageType | None
    is_persistent: bool
    size_mib: int | None
    path: str
    source: str
    format: str
    fs: str
    state: int | None
    cloning_id: int | None
    datastore_id: int | None
    running_vms: int
    vm_ids: tuple[int, ...]
    target_snapshot: int | None
    snapshots: tuple[SnapshotEntry, ...]
    template: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class DatastoreDocument:
    """A datastore. ``type``: 0 image, 1 system, 2 files, 3 backup; ``disk_type``: 0 file, 2 block."""

    id: int
    name: str
    ds_mad: str
    tm_mad: str
    type: int
    disk_type: int | None
    base_path: str
    state: int
    cluster_ids: tuple[int, ...]
    total_mib: int | None
    used_mib: int | None
    free_mib: int | None
    image_ids: tuple[int, ...]
    template: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of a VM.

    ``type`` as OpenNebula writes it (BLOCK, FILE, CDROM, fs, swap). ``is_clone`` is None for a volatile disk.
    oned marks a disk that is being attached and one that is being detached alike (ATTACH=YES): under a
    running VM both ``is_attaching`` and ``is_detaching`` are true, under one in POWEROFF its state tells.
    """

    id: int
    image_id: int | None
    image: str
    datastore_id: int | None
    source: str
    type: str
    is_clone: bool | None
    is_persistent: bool
    is_readonly: bool
    is_cdrom: bool
    is_volatile: bool
    size_mib: int | None
    original_size_mib: int | None
    tm_mad: str
    ds_mad: str
    format: str
    fs: str
    target: str
    is_attaching: bool
    is_detaching: bool
    snapshots: tuple[SnapshotEntry, ...]
    attributes: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class HistoryRecord:
    """Where a VM was or is; ``datastore_id`` is its system datastore, ``action`` says why it left."""

    seq: int
    host: str
    host_id: int | None
    datastore_id: int | None
    tm_mad: str
    vm_mad: str
    action: int | None


@dataclass(frozen=True, slots=True)
class BackupConfig:
    """How a VM is backed up.

    ``chain``: the image that holds the increments so far, ``last_increment`` the newest of them; both None
    before a first one and after a reset. ``bridge``: the host that works on the files, empty for the VM's.
    """

    is_incremental: bool = False
    fs_freeze: str = "NONE"
    last_increment: int | None = None
    chain: int | None = None
    bridge: str = ""
    is_interactive: bool = False


@dataclass(frozen=True, slots=True)
class VmDocument:
    """A virtual machine. ``context_disk_id`` is None when it has no context."""

    id: int
    name: str
    state: int
    lcm_state: int
    user_id: int | None
    group_id: int | None
    user: str
    group: str
    deploy_id: str
    disks: tuple[Disk, ...]
    context_disk_id: int | None
    history: tuple[HistoryRecord, ...]
    user_template: Mapping[str, str] = field(repr=False)
    backup: BackupConfig = field(default_factory=BackupConfig)

    @property
    def host(self) -> str:
        """The host of the last history record, empty when the VM was nowhere yet."""
        return self.history[-1].host if self.history else ""

    @property
    def system_datastore_id(self) -> int | None:
        return self.history[-1].datastore_id if self.history else None

    def disk(self, disk_id: int) -> Disk | None:
        """Find a disk by its number; the context disk is none of them."""
        return next((disk for disk in self.disks if disk.id == disk_id), None)


@dataclass(frozen=True, slots=True)
class HostDocument:
    """A host. ``state``: 0 init, 2 monitored, 3 error, 4 disabled, 8 offline, the others while monitoring."""

    id: int
    name: str
    state: int
    vm_mad: str
    cluster_id: int | None
    vm_ids: tuple[int, ...]
    template: Mapping[str, str] = field(repr=False)


def read_image(source: Element | str | bytes) -> ImageDocument:
    """Read an IMAGE document.

    Raises: RequestError for malformed XML, another document, or a number that is none.
    """
    image = _root(source, "IMAGE")
    return ImageDocument(
        id=image.number("ID"),
        name=image.text("NAME"),
        type=_image_type(image),
        is_persistent=image.flag("PERSISTENT") is True,
        size_mib=image.number("SIZE"),
        path=image.text("PATH"),
        source=image.text("SOURCE"),
        format=image.text("FORMAT"),
        fs=image.text("FS"),
        state=image.number("STATE"),
        cloning_id=image.number("CLONING_ID"),
        datastore_id=image.number("DATASTORE_ID"),
        running_vms=image.number("RUNNING_VMS") or 0,
        vm_ids=image.numbers("VMS", "ID"),
        target_snapshot=image.number("TARGET_SNAPSHOT"),
        snapshots=_snapshots(image.child("SNAPSHOTS")),
        template=_attributes(image, "TEMPLATE"),
    )


def read_datastore(source: Element | str | bytes) -> DatastoreDocument:
    """Read a DATASTORE document; attributes that oned keeps encrypted are as it gives them.

    Raises: RequestError for malformed XML, another document, a missing element, or a number that is none.
    """
    datastore = _root(source, "DATASTORE")
    return DatastoreDocument(
        id=datastore.count("ID"),
        name=datastore.text("NAME"),
        ds_mad=datastore.text("DS_MAD"),
        tm_mad=datastore.text("TM_MAD"),
        type=datastore.count("TYPE"),
        disk_type=datastore.number("DISK_TYPE"),
        base_path=datastore.text("BASE_PATH"),
        state=datastore.number("STATE") or 0,
        cluster_ids=datastore.numbers("CLUSTERS", "ID"),
        total_mib=datastore.number("TOTAL_MB"),
        used_mib=datastore.number("USED_MB"),
        free_mib=datastore.number("FREE_MB"),
        image_ids=datastore.numbers("IMAGES", "ID"),
        template=_attributes(datastore, "TEMPLATE"),
    )


def read_vm(source: Element | str | bytes) -> VmDocument:
    """Read a VM document, that of a pool included.

    Raises: RequestError for malformed XML, another document, a missing element, or a number that is none.
    """
    vm = _root(source, "VM")
    template = vm.child("TEMPLATE")
    context = template.child("CONTEXT") if template else None
    lcm_state = vm.count("LCM_STATE")
    snapshots = {
        entry.number("DISK_ID"): _snapshots(entry) for entry in vm.all("SNAPSHOTS") if entry.text("DISK_ID")
    }
    return VmDocument(
        id=vm.count("ID"),
        name=vm.text("NAME"),
        state=vm.count("STATE"),
        lcm_state=lcm_state,
        user_id=vm.number("UID"),
        group_id=vm.number("GID"),
        user=vm.text("UNAME"),
        group=vm.text("GNAME"),
        deploy_id=vm.text("DEPLOY_ID"),
        disks=tuple(
            _disk(entry, lcm_state, snapshots) for entry in (template.all("DISK") if template else ())
        ),
        context_disk_id=context.number("DISK_ID") if context else None,
        history=tuple(
            _history(entry) for records in vm.all("HISTORY_RECORDS") for entry in records.all("HISTORY")
        ),
        user_template=_attributes(vm, "USER_TEMPLATE"),
        backup=_backup(vm.child("BACKUPS")),
    )


def read_host(source: Element | str | bytes) -> HostDocument:
    """Read a HOST document.

    Raises: RequestError for malformed XML, another document, a missing element, or a number that is none.
    """
    host = _root(source, "HOST")
    return HostDocument(
        id=host.count("ID"),
        name=host.text("NAME"),
        state=host.count("STATE"),
        vm_mad=host.text("VM_MAD"),
        cluster_id=host.number("CLUSTER_ID"),
        vm_ids=host.numbers("VMS", "ID"),
        template=_attributes(host, "TEMPLATE"),
    )


def _root(source: Element | str | bytes, tag: str) -> Element:
    root = source if isinstance(source, Element) else Element.parse(source, MAX_DOCUMENT)
    if root.tag != tag:
        raise RequestError(f"A document with {tag} was expected, and it is {root.tag[:40]}.")
    return root


def _attributes(parent: Element, tag: str) -> dict[str, str]:
    template = parent.child(tag)
    return template.attributes() if template else {}


def _image_type(image: Element) -> ImageType | None:
    number = image.number("TYPE")
    if number is None:
        return None
    try:
        return ImageType(number)
    except ValueError as err:
        raise RequestError(f"Image type {number} is not known.") from err


def _snapshots(parent: Element | None) -> tuple[SnapshotEntry, ...]:
    if parent is None:
        return ()
    return tuple(
        SnapshotEntry(
            id=entry.count("ID"),
            name=entry.text("NAME"),
            parent=entry.number("PARENT"),
            size_mib=entry.number("SIZE"),
            is_active=entry.flag("ACTIVE") is True,
        )
        for entry in parent.all("SNAPSHOT")
    )


def _disk(disk: Element, lcm_state: int, snapshots: Mapping[int | None, tuple[SnapshotEntry, ...]]) -> Disk:
    kind = disk.text("TYPE")
    disk_id, image_id = disk.count("DISK_ID"), disk.number("IMAGE_ID")
    is_cdrom = kind.upper().endswith("CDROM")
    is_clone, is_persistent = disk.flag("CLONE"), disk.flag("PERSISTENT")
    if is_persistent is None:
        # The short documents of one.vmpool.info leave PERSISTENT out; what is neither cloned nor a CD-ROM is.
        is_persistent = is_clone is False and image_id is not None and not is_cdrom
    is_moving = disk.flag("ATTACH") is True
    return Disk(
        id=disk_id,
        image_id=image_id,
        image=disk.text("IMAGE"),
        datastore_id=disk.number("DATASTORE_ID"),
        source=disk.text("SOURCE"),
        type=kind,
        is_clone=is_clone,
        is_persistent=is_persistent,
        is_readonly=disk.flag("READONLY") is True,
        is_cdrom=is_cdrom,
        is_volatile=kind.upper() in ("FS", "SWAP"),
        size_mib=disk.number("SIZE"),
        original_size_mib=disk.number("ORIGINAL_SIZE"),
        tm_mad=disk.text("TM_MAD"),
        ds_mad=disk.text("DS_MAD"),
        format=disk.text("FORMAT"),
        fs=disk.text("FS"),
        target=disk.text("TARGET"),
        is_attaching=is_moving and lcm_state in (_HOTPLUG, _HOTPLUG_PROLOG_POWEROFF),
        is_detaching=is_moving and lcm_state in (_HOTPLUG, _HOTPLUG_EPILOG_POWEROFF),
        snapshots=snapshots.get(disk_id, ()),
        attributes=disk.attributes(),
    )


def _backup(backups: Element | None) -> BackupConfig:
    config = backups.child("BACKUP_CONFIG") if backups else None
    if config is None:
        return BackupConfig()
    return BackupConfig(
        is_incremental=config.text("MODE").strip().upper() == "INCREMENT",
        fs_freeze=config.text("FS_FREEZE").strip().upper() or "NONE",
        last_increment=config.number("LAST_INCREMENT_ID"),
        chain=config.number("INCREMENTAL_BACKUP_ID"),
        bridge=config.text("LAST_BRIDGE").strip(),
        is_interactive=config.flag("INTERACTIVE") is True,
    )


def _history(record: Element) -> HistoryRecord:
    return HistoryRecord(
        seq=record.count("SEQ"),
        host=record.text("HOSTNAME"),
        host_id=record.number("HID"),
        datastore_id=record.number("DS_ID"),
        tm_mad=record.text("TM_MAD"),
        vm_mad=record.text("VM_MAD"),
        action=record.number("ACTION"),
    )
