# SPDX-License-Identifier: Apache-2.0
"""What a box knows: pools, volumes, hosts, mappings, FlashCopy mappings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeVar

from lab.v7000.errors import CommandError
from lab.v7000.options import is_name

__all__ = [
    "Copy",
    "FcGroup",
    "FcMap",
    "FcState",
    "Host",
    "Mapping",
    "Node",
    "Pool",
    "State",
    "Volume",
]

GRAIN = 256 * 1024


class FcState(str, Enum):
    IDLE = "idle_or_copied"
    PREPARING = "preparing"
    PREPARED = "prepared"
    COPYING = "copying"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(slots=True)
class Node:
    """A canister with its portal address."""

    id: int
    name: str
    iqn: str
    address: str
    is_config: bool


@dataclass(slots=True)
class Pool:
    id: int
    name: str
    size: int
    extent: int = 256 * 1024**2
    is_data_reduction: bool = False


@dataclass(slots=True)
class Copy:
    """One copy of a volume. ``rsize`` is the real size asked for a thin copy, None for a full one."""

    id: int
    pool: Pool
    rsize: int | None = None
    autoexpand: bool = False
    warning: int = 80
    grainsize: int = 256
    compressed: bool = False
    deduplicated: bool = False


@dataclass(slots=True)
class Volume:
    id: int
    name: str
    uid: str
    size: int
    copies: list[Copy]
    cache: str = "readwrite"
    sync_rate: int = 50
    easy_tier: str = "on"
    formatted: bool = False
    formatting_until: float = 0.0
    used: int = 0


@dataclass(slots=True)
class Host:
    id: int
    name: str
    iqns: list[str] = field(default_factory=list)
    wwpns: list[str] = field(default_factory=list)
    portset: str = "portset0"
    site: str = ""
    type: str = "generic"
    chap_secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Mapping:
    host: int
    volume: int
    lun: int


@dataclass(slots=True)
class FcGroup:
    id: int
    name: str
    autodelete: bool = False


@dataclass(slots=True)
class FcMap:
    """A FlashCopy mapping. ``copied`` bytes were copied up to ``since``; ``until`` ends a passing state."""

    id: int
    name: str
    source: int
    target: int
    copy_rate: int = 50
    clean_rate: int = 50
    grainsize: int = 256
    incremental: bool = False
    autodelete: bool = False
    group: int | None = None
    state: FcState = FcState.IDLE
    copied: float = 0.0
    progress: int = 0
    since: float = 0.0
    until: float = 0.0
    starts_when_prepared: bool = False
    restoring: bool = False
    start_time: str = ""


class Named(Protocol):
    id: int
    name: str


T = TypeVar("T", bound=Named)


class State:
    """Everything of one box, guarded by the box's lock."""

    def __init__(self, name: str, pools: Iterable[Pool], nodes: Iterable[Node], first_lun: int = 0) -> None:
        digest = hashlib.sha256(name.encode()).hexdigest().upper()
        self.name = name
        self.system_id = "00000200" + digest[:8]
        self.pools = {pool.id: pool for pool in pools}
        self.nodes = tuple(nodes)
        self.volumes: dict[int, Volume] = {}
        self.hosts: dict[int, Host] = {}
        self.mappings: list[Mapping] = []
        self.fc_maps: dict[int, FcMap] = {}
        self.fc_groups: dict[int, FcGroup] = {}
        self.first_lun = first_lun
        self._uid_prefix = "6005076" + digest[8:17]
        self._uids_given = 0

    def next_uid(self) -> str:
        """Return a new vdisk_UID: 32 hex digits that no volume of any box had before."""
        self._uids_given += 1
        return f"{self._uid_prefix}{self._uids_given:016X}"

    @staticmethod
    def free_id(taken: Iterable[int], first: int = 0) -> int:
        used = set(taken)
        number = first
        while number in used:
            number += 1
        return number

    def find(
        self, objects: dict[int, T], word: str, by_id: str = "CMMVC5753E", by_name: str = "CMMVC5754E"
    ) -> T:
        """Find an object by its id or its name.

        Raises: CommandError with ``by_id`` or ``by_name``; a word that cannot be a name is CMMVC5754E.
        """
        if word.isdigit():
            found = objects.get(int(word))
            if found is None:
                raise CommandError(by_id)
            return found
        for candidate in objects.values():
            if candidate.name == word:
                return candidate
        raise CommandError(by_name if is_name(word) else "CMMVC5754E")

    def is_taken(self, objects: dict[int, T], name: str) -> bool:
        return any(one.name == name for one in objects.values())

    def mappings_of_host(self, host: Host) -> list[Mapping]:
        return sorted((one for one in self.mappings if one.host == host.id), key=lambda one: one.lun)

    def mappings_of_volume(self, volume: Volume) -> list[Mapping]:
        return sorted((one for one in self.mappings if one.volume == volume.id), key=lambda one: one.host)

    def fc_maps_of(self, volume: Volume) -> list[FcMap]:
        return [one for one in self.fc_maps.values() if volume.id in (one.source, one.target)]

    def is_online(self, volume: Volume) -> bool:
        """A FlashCopy target is offline while prepared and when it was stopped before all was copied."""
        states = {one.state for one in self.fc_maps.values() if one.target == volume.id}
        return not states & {FcState.PREPARING, FcState.PREPARED, FcState.STOPPING, FcState.STOPPED}

    # capacity: what a copy takes from its pool

    def used(self, volume: Volume, copy: Copy) -> int:
        if copy.rsize is None:
            return volume.size
        return min(volume.size, -(-volume.used // GRAIN) * GRAIN)

    def real(self, volume: Volume, copy: Copy) -> int:
        if copy.rsize is None:
            return volume.size
        if copy.autoexpand:
            return min(volume.size, self.used(volume, copy) + copy.rsize)
        return copy.rsize

    def copies_in(self, pool: Pool) -> Iterator[tuple[Volume, Copy]]:
        for volume in self.volumes.values():
            for copy in volume.copies:
                if copy.pool is pool:
                    yield volume, copy

    def free(self, pool: Pool) -> int:
        taken = sum(extents(self.real(volume, copy), pool) for volume, copy in self.copies_in(pool))
        return max(0, pool.size - taken)


def extents(size: int, pool: Pool) -> int:
    """Round up to whole extents of the pool."""
    return -(-size // pool.extent) * pool.extent
