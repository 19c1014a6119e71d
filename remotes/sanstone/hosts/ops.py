# SPDX-License-Identifier: Apache-2.0
"""What can be done on a host: each operation is data, runs to a state, and can be run again.

A list of operations travels in one round trip and runs in order until one fails
(``hosts.client.Host.run``). Paths under ``/dev`` and ``/sys`` are the host's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from sanstone.errors import SanstoneError
from sanstone.model import Connection, Device, Initiator

__all__ = [
    "Attach",
    "Attached",
    "Convert",
    "Copied",
    "CopyVolume",
    "Detach",
    "Detached",
    "Digest",
    "DiskUsage",
    "FileDigest",
    "Filesystem",
    "Grow",
    "GrowFile",
    "Grown",
    "HeldStill",
    "HoldStill",
    "Link",
    "LinkState",
    "MakeFilesystem",
    "MakeImageFile",
    "MovePath",
    "Operation",
    "Outcomes",
    "Part",
    "PutFile",
    "ReadInitiator",
    "ReadLink",
    "RemoveBackup",
    "RemovePath",
    "Result",
    "SaveDisk",
    "Thaw",
    "Together",
]


@dataclass(frozen=True, slots=True)
class Attach:
    """Bring ``connection`` to the host and, when ``link`` is given, let that path point to its device.

    ``log_in`` is false on a host that must never log in or out (NO_ISCSI): only its sessions are used.
    """

    connection: Connection
    link: str | None = None
    log_in: bool = True


@dataclass(frozen=True, slots=True)
class Attached:
    """``warnings`` name each missing path and the reason."""

    device: Device
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Detach:
    """Take the device of ``wwid`` off the host: nobody holds it, flush, remove the map, delete the paths.

    ``link`` is removed first when given. Nothing attached is success.
    """

    wwid: str
    link: str | None = None
    log_out: bool = False


@dataclass(frozen=True, slots=True)
class Detached:
    was_attached: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Convert:
    """Write a disk image file of the host (raw, qcow2, vmdk, ...) onto the attached volume ``wwid``.

    ``target_is_zero`` says that unwritten blocks read as zeros, so that holes are skipped.
    ``tool`` is ``qemu-img``, ``ddpt`` or ``dd`` (the latter two for raw images only).
    """

    source: str
    wwid: str
    target_is_zero: bool
    format: str | None = None
    tool: str = "qemu-img"


@dataclass(frozen=True, slots=True)
class CopyVolume:
    """Copy one attached volume onto another, which must be at least as large."""

    source_wwid: str
    target_wwid: str
    target_is_zero: bool
    tool: str = "qemu-img"


@dataclass(frozen=True, slots=True)
class Copied:
    """``size`` bytes of image, ``data`` bytes of it allocated, in ``seconds``."""

    size: int
    data: int
    seconds: float


@dataclass(frozen=True, slots=True)
class MakeFilesystem:
    """Make a file system (``ext4``, ``xfs``, ..., ``swap``) on the attached volume ``wwid``."""

    wwid: str
    kind: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class MakeImageFile:
    """Make a disk image file of ``size`` bytes; ``kind`` is a file system, ``swap`` or empty."""

    path: str
    size: int
    format: str = "raw"
    kind: str = ""


@dataclass(frozen=True, slots=True)
class PutFile:
    """Write a file on the host from the ``upload`` stream that goes with the request, whole or not at all."""

    path: str
    size: int
    mode: int = 0o640


@dataclass(frozen=True, slots=True)
class Link:
    """Let ``path`` be a symbolic link to ``target``, replacing a link, never a file."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class ReadLink:
    path: str


@dataclass(frozen=True, slots=True)
class ReadInitiator:
    """Tell the name of the host's iSCSI initiator (``model.Initiator``)."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """Where ``path`` points (None: no link there) and the WWID of the device there, attached or not."""

    target: str | None
    wwid: str | None
    exists: bool


@dataclass(frozen=True, slots=True)
class RemovePath:
    """Remove a file, a link, or a directory with all in it. Absent is success."""

    path: str


@dataclass(frozen=True, slots=True)
class MovePath:
    """Move a file or directory within the host. A source that is gone with the target in place is success."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class DiskUsage:
    path: str


@dataclass(frozen=True, slots=True)
class Filesystem:
    total: int
    used: int
    free: int


@dataclass(frozen=True, slots=True)
class Part:
    """``length`` bytes of a volume from ``offset``."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class SaveDisk:
    """Write the attached volume ``wwid``, or else the disk image file ``source``, to the QCOW2 file ``path``.

    ``is_increment``: write what has changed, zeros too, without a backing file: in ``extents`` if given, else
    where the attached volume ``base_wwid`` differs, else everything.
    """

    path: str
    wwid: str | None = None
    source: str | None = None
    format: str | None = None
    is_increment: bool = False
    base_wwid: str | None = None
    extents: tuple[Part, ...] | None = None


@dataclass(frozen=True, slots=True)
class HoldStill:
    """Let a guest hold still (``how``: AGENT freezes its file systems, SUSPEND stops it) for a while.

    It goes on as soon as the upload ends, when nobody listens any more, or after ``seconds``.
    """

    domain: str
    how: str
    uri: str
    seconds: float


@dataclass(frozen=True, slots=True)
class HeldStill:
    seconds: float
    was_in_time: bool


@dataclass(frozen=True, slots=True)
class Thaw:
    """Let a guest go on that a killed HoldStill may have left. One that does not hold still is success."""

    domain: str
    how: str
    uri: str


@dataclass(frozen=True, slots=True)
class RemoveBackup:
    """Remove the directory ``VM/backup``, and what it is in if that is empty then. Absent is success."""

    path: str
    with_parent: bool = False


@dataclass(frozen=True, slots=True)
class FileDigest:
    path: str


@dataclass(frozen=True, slots=True)
class Digest:
    size: int
    md5: str


@dataclass(frozen=True, slots=True)
class Grow:
    """Let the attached device of ``connection`` have the size that the array has given the volume.

    Nothing attached is an error: there is no device to grow. ``is_cut``: the array has ended the sessions for
    a moment, so that they are waited for.
    """

    connection: Connection
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Grown:
    """The device with its new size; ``warnings`` tell of paths that had to be dropped."""

    device: Device
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GrowFile:
    """Let a disk image file have at least ``size`` bytes; one that a guest has open is grown if it is raw."""

    path: str
    size: int
    format: str = "raw"


@dataclass(frozen=True, slots=True)
class Together:
    """Operations that are done at once; what becomes of one is nothing to the others."""

    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The result of each operation, or its error, in their order."""

    of_each: tuple[Result | SanstoneError, ...]


Operation = (
    Attach
    | Detach
    | Convert
    | CopyVolume
    | MakeFilesystem
    | MakeImageFile
    | PutFile
    | Link
    | ReadInitiator
    | ReadLink
    | RemovePath
    | MovePath
    | DiskUsage
    | SaveDisk
    | HoldStill
    | Thaw
    | RemoveBackup
    | FileDigest
    | Grow
    | GrowFile
    | Together
)
Result = (
    Attached
    | Detached
    | Copied
    | LinkState
    | Filesystem
    | Initiator
    | HeldStill
    | Digest
    | Grown
    | Outcomes
    | None
)
