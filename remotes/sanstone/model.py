# SPDX-License-Identifier: Apache-2.0
"""What crosses the borders between rooms: frozen, typed, without behaviour that reaches out.

Sizes are bytes and times are seconds unless a name says otherwise. A WWID is what multipath shows:
``3`` followed by the lower-case NAA identifier, for a V7000 ``3`` + vdisk_UID.
"""

from __future__ import annotations

from dataclasses import dataclass

from sanstone.secret import Secret

__all__ = [
    "MIB",
    "Capacity",
    "Chap",
    "Connection",
    "Device",
    "Initiator",
    "Path",
    "Portal",
    "Target",
    "Volume",
]

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume of an array; ``is_thin``: it takes room as it is written."""

    name: str
    wwid: str
    size: int
    pool: str
    is_online: bool = True
    is_thin: bool = True


@dataclass(frozen=True, slots=True)
class Portal:
    """One address at which a target listens."""

    address: str
    port: int = 3260

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """An iSCSI target with the portals that lead to it."""

    iqn: str
    portals: tuple[Portal, ...]


@dataclass(frozen=True, slots=True)
class Chap:
    """What an initiator proves to a target that it may log in."""

    user: str
    password: Secret


@dataclass(frozen=True, slots=True)
class Connection:
    """All that a host must know to attach one volume, and to be sure that it is that volume."""

    volume: str
    wwid: str
    size: int
    lun: int
    targets: tuple[Target, ...]
    chap: Chap | None = None

    @property
    def expected_paths(self) -> int:
        """One path per portal of every target."""
        return sum(len(target.portals) for target in self.targets)


@dataclass(frozen=True, slots=True)
class Initiator:
    """The iSCSI initiator of a host; ``takes_secrets``: it can be given a CHAP secret without showing it."""

    name: str
    takes_secrets: bool = False


@dataclass(frozen=True, slots=True)
class Path:
    """One way from a host to a volume: SCSI device ``name`` (sdb), ``hctl`` (3:0:0:1), kernel state."""

    name: str
    hctl: str
    target: str
    portal: str
    state: str


@dataclass(frozen=True, slots=True)
class Device:
    """The certificate of an attached volume: what was checked before a disk was linked to it."""

    path: str
    wwid: str
    size: int
    paths: tuple[Path, ...]
    expected_paths: int

    @property
    def is_degraded(self) -> bool:
        """Fewer paths than the array offers."""
        return len(self.paths) < self.expected_paths


@dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes that a datastore has, has given away, and can still give."""

    total: int
    used: int
    free: int
