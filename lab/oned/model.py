# SPDX-License-Identifier: Apache-2.0
"""The objects that oned keeps."""

from __future__ import annotations

from dataclasses import dataclass, field

from lab.oned.states import Action, HostState, ImageState, LcmState, VmState
from lab.oned.templates import Template

__all__ = [
    "Backups",
    "Datastore",
    "History",
    "Host",
    "Image",
    "Increment",
    "Owner",
    "Snapshot",
    "Snapshots",
    "User",
    "Vm",
]

IMAGE_TYPES = ("OS", "CDROM", "DATABLOCK", "KERNEL", "RAMDISK", "CONTEXT", "BACKUP")
DATASTORE_TYPES = ("IMAGE_DS", "SYSTEM_DS", "FILE_DS", "BACKUP_DS")
DISK_TYPES = {"FILE": 0, "CDROM": 1, "BLOCK": 2, "RBD": 3}


@dataclass
class User:
    """A user with its login tokens (token to expiry time, -1 for never)."""

    id: int
    name: str
    password: str
    gid: int
    gname: str
    tokens: dict[str, int] = field(default_factory=dict)

    @property
    def is_admin(self) -> bool:
        """Members of the group oneadmin may do everything."""
        return self.gid == 0


@dataclass(frozen=True)
class Owner:
    """Who an object belongs to."""

    uid: int = 0
    gid: int = 0
    uname: str = "oneadmin"
    gname: str = "oneadmin"


@dataclass
class Datastore:
    """A datastore; sizes are MiB, ``type`` an index of :data:`DATASTORE_TYPES`."""

    id: int
    name: str
    owner: Owner
    type: int
    template: Template
    base_path: str
    disk_type: int = 0
    is_enabled: bool = True
    total_mb: int = 0
    free_mb: int = 0
    used_mb: int = 0
    images: list[int] = field(default_factory=list)

    @property
    def ds_mad(self) -> str:
        return self.template.get("DS_MAD", "-")

    @property
    def tm_mad(self) -> str:
        return self.template.get("TM_MAD", "-")

    @property
    def is_system(self) -> bool:
        return self.type == 1


@dataclass
class Snapshot:
    """A snapshot of a disk."""

    id: int
    name: str
    date: int
    size: int
    parent: int = -1
    is_active: bool = False


@dataclass
class Snapshots:
    """The snapshots of a disk or an image; ``disk_id`` is None for an image."""

    disk_id: int | None = None
    allow_orphans: str = "NO"
    next_id: int = 0
    items: list[Snapshot] = field(default_factory=list)

    def find(self, snapshot_id: int) -> Snapshot | None:
        return next((snapshot for snapshot in self.items if snapshot.id == snapshot_id), None)

    def activate(self, snapshot_id: int) -> None:
        for snapshot in self.items:
            snapshot.is_active = snapshot.id == snapshot_id


@dataclass(frozen=True)
class Increment:
    """One backup in a chain."""

    id: int
    parent: int
    kind: str
    date: int
    size: int
    source: str


@dataclass
class Image:
    """An image; sizes are MiB, ``type`` an index of :data:`IMAGE_TYPES`."""

    id: int
    name: str
    owner: Owner
    type: int
    disk_type: int
    datastore_id: int
    datastore: str
    template: Template
    regtime: int
    is_persistent: bool = False
    source: str = ""
    path: str = ""
    format: str = ""
    fs: str = ""
    size: int = 0
    state: ImageState = ImageState.LOCKED
    prev_state: ImageState = ImageState.INIT
    cloning_id: int = -1
    target_snapshot: int = -1
    vms: list[int] = field(default_factory=list)
    clones: list[int] = field(default_factory=list)
    snapshots: Snapshots = field(default_factory=Snapshots)
    increments: list[Increment] = field(default_factory=list)
    backup_disks: list[int] = field(default_factory=list)

    @property
    def is_cdrom(self) -> bool:
        return self.type == 1


@dataclass
class Host:
    """A host."""

    id: int
    name: str
    vm_mad: str
    im_mad: str = "kvm"
    state: HostState = HostState.MONITORED


@dataclass
class History:
    """One stay of a VM on a host."""

    seq: int
    host: str
    host_id: int
    vm_mad: str
    tm_mad: str
    datastore_id: int
    stime: int
    etime: int = 0
    pstime: int = 0
    petime: int = 0
    rstime: int = 0
    retime: int = 0
    estime: int = 0
    eetime: int = 0
    action: Action = Action.NONE
    uid: int = -1
    gid: int = -1
    request_id: int = -1


@dataclass
class Backups:
    """Backup settings of a VM and the backup images it has."""

    config: dict[str, str] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)


@dataclass
class Vm:
    """A VM. Its disks are the DISK vectors of ``template``; the last of ``history`` is where it is now."""

    id: int
    name: str
    owner: Owner
    template: Template
    user_template: Template
    stime: int
    state: VmState = VmState.PENDING
    lcm_state: LcmState = LcmState.LCM_INIT
    etime: int = 0
    deploy_id: str = ""
    history: list[History] = field(default_factory=list)
    snapshots: list[Snapshots] = field(default_factory=list)
    backups: Backups = field(default_factory=Backups)
    next_system_snapshot: int = 0
    is_stored: bool = False  # the disks are on the front-end, after stop and undeploy

    @property
    def disks(self) -> list[dict[str, str]]:
        return self.template.vectors("DISK")

    @property
    def here(self) -> History:
        """Where the VM is, or was last."""
        return self.history[-1]

    @property
    def next_disk(self) -> int:
        """The id that the next disk gets: one more than the largest in use, the context disk's among them."""
        used = [*self.disks, *self.template.vectors("CONTEXT")]
        return max((int(each["DISK_ID"]) for each in used if "DISK_ID" in each), default=-1) + 1

    def disk(self, disk_id: int) -> dict[str, str] | None:
        return next((disk for disk in self.disks if disk["DISK_ID"] == str(disk_id)), None)

    def disk_snapshots(self, disk_id: int) -> Snapshots | None:
        return next((s for s in self.snapshots if s.disk_id == disk_id), None)

    @property
    def shown_state(self) -> str:
        """The state as error texts call it."""
        return self.lcm_state.name if self.state is VmState.ACTIVE else self.state.name
