# SPDX-License-Identifier: Apache-2.0
"""What can be done on a host: each operation is data, runs to a state, and can be run again.

A list of operations travels in one round trip and runs in order until one fails
(``hosts.client.Host.run``). Paths under ``/dev`` and ``/sys`` are the host's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from sanstone.model import Connection, Device, Initiator

__all__ = [
    "Attach",
    "Attached",
    "Convert",
    "Copied",
    "CopyVolume",
    "Detach",
    "Detached",
    "DiskUsage",
    "Filesystem",
    "Link",
    "LinkState",
    "MakeFilesystem",
    "MakeImageFile",
    "MovePath",
    "Operation",
    "PutFile",
    "ReadInitiator",
    "ReadLink",
    "RemovePath",
    "Result",
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
    device: Device


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
)
Result = Attached | Detached | Copied | LinkState | Filesystem | Initiator | None
