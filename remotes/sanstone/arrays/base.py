# SPDX-License-Identifier: Apache-2.0
"""What every storage system can do for us, in one interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sanstone.errors import ConflictError
from sanstone.model import Capacity, Connection, Initiator, Volume

__all__ = [
    "Abilities",
    "Array",
    "Claim",
    "Extent",
    "Initiators",
    "NameTakenError",
    "NewVolume",
    "Placement",
]


class NameTakenError(ConflictError):
    """Somebody else has just made a volume of the name that was free a moment ago."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a system can do beyond the interface: the actions and the wizard ask before they offer it.

    ``target_per_volume``: each volume has an iSCSI target of its own, so that a host logs out with it.
    ``tells_changes``: ``changes`` knows where two snapshots of a volume differ. ``links_clones``: a clone
    made for a VM shall depend on its image. ``zeroes_new_volumes``: a thin one reads as zeros where nothing
    was written. ``size_step``: sizes are rounded up, to multiples of at most so many bytes.
    """

    clones_within: bool = True
    expands_copies: bool = False
    zeroes_new_volumes: bool = True
    target_per_volume: bool = False
    tells_changes: bool = False
    links_clones: bool = True
    size_step: int = 1


@dataclass(frozen=True, slots=True)
class NewVolume:
    """A volume that shall be there: empty with ``size`` bytes, or with the contents of ``source``.

    ``is_linked``: it may depend on ``source`` for ever (a snapshot); else it becomes independent. ``needs``:
    bytes that its pools must have free before it is made, 0 for any.
    """

    name: str
    size: int = 0
    source: str | None = None
    is_linked: bool = False
    needs: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """A volume, and how the host reaches it when it was mapped as well."""

    volume: Volume
    connection: Connection | None = None


@dataclass(frozen=True, slots=True)
class Extent:
    """``length`` bytes from ``offset``."""

    offset: int
    length: int


Claim = Callable[[Volume | None], None]
Initiators = Callable[[str], Initiator]
"""Tells the iSCSI initiator of a host by OpenNebula's name for it. Raises: ConnectError, HostError."""


class Array(Protocol):
    """One storage system with the settings of one datastore.

    Every operation brings about a state: it may be called again, and after being cut off anywhere.
    Hosts are named as OpenNebula names them. All raise ConnectError, BusyError, DeadlineError and ArrayError.
    """

    @property
    def name(self) -> str:
        """The address by which a person knows the system."""

    @property
    def abilities(self) -> Abilities: ...

    def source(self, name: str) -> str:
        """Spell the SOURCE by which OpenNebula shall know the volume of an image."""

    def close(self) -> None:
        """Log out and let others in; the next question logs in again."""

    def refresh(self) -> None:
        """Forget what is remembered of the system, because something did not fit."""

    def capacity(self) -> Capacity:
        """Hold the settings against the system and read what the datastore's pools have, as it counts.

        Raises: ConfigurationError for a pool, I/O group or the like that is not there.
        """

    def needed(self, *, size: int, data: int) -> int:
        """Tell how many bytes must be free for a new volume of ``size`` into which ``data`` are written.

        oned does not check oneadmin's images (seen in image-create-oversize-as-oneadmin).
        """

    def find(self, *names: str) -> tuple[Volume | None, ...]:
        """Look volumes up by name, all in one question."""

    def find_wwid(self, wwid: str) -> Volume | None:
        """Look a volume up by what a host sees of it."""

    def create(self, new: NewVolume, *, claim: Claim, host: str | None = None) -> Placement:
        """Let the volume be there, mapped to ``host`` if given.

        ``claim`` is told what bears the name before anything is made, and may refuse.

        Raises: what ``claim`` raises, NotFoundError for a missing source, CapacityError, NameTakenError.
        """

    def snapshots(self, name: str) -> tuple[Volume, ...]:
        """List the snapshots of a volume by their names (``names.snapshot_volume``, ``backup_volume``)."""

    def changes(self, older: str, newer: str) -> tuple[Extent, ...]:
        """Tell where two snapshots of one volume differ, in ascending order; only if ``tells_changes``."""

    def copy(self, source: str, target: str) -> None:
        """Let ``target``, which exists and has the same size, have the contents that ``source`` has now.

        ``source`` may be a snapshot of ``target``, which so goes back to it; the snapshot stays.

        Raises: ConflictError when the sizes differ or ``target`` is mapped.
        """

    def delete(self, name: str, *, wait: float, host: str | None = None, wwid: str | None = None) -> bool:
        """Let the volume be gone, off ``host`` first if given; tell whether it is.

        ``wait``: seconds that copies which still read from it may take. ``wwid``: which volume is meant;
        another one that bears the name now stays.

        Raises: ConflictError while mapped or while snapshots depend on it, BusyError after ``wait``.
        """

    def resize(self, name: str, size: int, *, wait: float = 0.0) -> None:
        """Let the volume have at least ``size`` bytes.

        ``wait``: seconds that copies which stand in the way may take to be completed.

        Raises: CapacityError, ConflictError when the system cannot expand it in its present state, BusyError
        after ``wait``.
        """

    def map(self, name: str, host: str, *, is_shared: bool = False) -> Connection:
        """Let ``host`` reach the volume; a second host only if ``is_shared``.

        Raises: NotFoundError, ConflictError when another host has it, ConfigurationError for an unknown host.
        """

    def unmap(self, name: str, host: str) -> None:
        """Let ``host`` no longer reach the volume."""

    def mapped_hosts(self, name: str) -> tuple[str, ...]:
        """List who can reach the volume, by the system's own names."""
