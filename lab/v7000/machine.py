# SPDX-License-Identifier: Apache-2.0
"""What a command works on: the state, the firmware, the clock and the data face of one box."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lab.v7000.clock import Clock
from lab.v7000.options import Arguments, Syntax
from lab.v7000.state import FcMap, FcState, Host, State, Volume

__all__ = ["Machine", "NoPlane", "Plane", "Registered", "command", "registry"]

COPY_RATE_UNIT = 128 * 1024


class Plane(Protocol):
    """The data face: files of volumes, LUNs of hosts."""

    def create_volume(self, volume: Volume) -> None: ...

    def delete_volume(self, volume: Volume) -> None: ...

    def used(self, volume: Volume) -> int:
        """Return the bytes that are really allocated."""
        ...

    def add_host(self, host: Host) -> None: ...

    def change_initiators(self, host: Host) -> None: ...

    def remove_host(self, host: Host) -> None: ...

    def map(self, host: Host, volume: Volume, lun: int, is_online: bool) -> None: ...

    def unmap(self, host: Host, volume: Volume, lun: int) -> None: ...

    def resize(self, volume: Volume, luns: Mapping[int, int], is_online: bool) -> None:
        """Let the file and the LUNs (host id to LUN) have the volume's size."""
        ...

    def set_online(self, volume: Volume, luns: Mapping[int, int], is_online: bool) -> None: ...

    def copy(self, pairs: Sequence[tuple[Volume, Volume]], hosts: Iterable[int]) -> None:
        """Give each target its source's contents, all as of one moment for these hosts."""
        ...

    def lose(self, volume: Volume, start: int) -> None:
        """Let what lies behind ``start`` be gone: a copy that was stopped before it got there."""
        ...

    def logged_in(self, iqn: str) -> int:
        """Return at how many nodes an initiator is logged in."""
        ...


class NoPlane:
    """A box without a data face."""

    def create_volume(self, volume: Volume) -> None:
        pass

    def delete_volume(self, volume: Volume) -> None:
        pass

    def used(self, volume: Volume) -> int:
        return volume.used

    def add_host(self, host: Host) -> None:
        pass

    def change_initiators(self, host: Host) -> None:
        pass

    def remove_host(self, host: Host) -> None:
        pass

    def map(self, host: Host, volume: Volume, lun: int, is_online: bool) -> None:
        pass

    def unmap(self, host: Host, volume: Volume, lun: int) -> None:
        pass

    def resize(self, volume: Volume, luns: Mapping[int, int], is_online: bool) -> None:
        pass

    def set_online(self, volume: Volume, luns: Mapping[int, int], is_online: bool) -> None:
        pass

    def copy(self, pairs: Sequence[tuple[Volume, Volume]], hosts: Iterable[int]) -> None:
        for source, target in pairs:
            target.used = source.used

    def lose(self, volume: Volume, start: int) -> None:
        pass

    def logged_in(self, iqn: str) -> int:
        return 0


@dataclass(slots=True)
class Machine:
    """One box without its network faces. Commands run with the box's lock held."""

    state: State
    clock: Clock
    firmware: str
    plane: Plane = field(default_factory=NoPlane)
    copy_speed: float = 1.0
    prepare_seconds: float = 0.0
    stop_seconds: float = 0.0
    format_rate: float | None = None
    licensed_capacity: int | None = None
    expand_in_fcmap: bool | None = None
    header_when_unmapped: bool = False
    online: dict[int, bool] = field(default_factory=dict)

    @property
    def level(self) -> tuple[int, ...]:
        """The firmware as numbers: 7.8.1.5 of ``7.8.1.5 (build ...)``."""
        match = re.match(r"[0-9]+(?:\.[0-9]+)*", self.firmware)
        return tuple(int(part) for part in match[0].split(".")) if match else (0,)

    def luns_of(self, volume: Volume) -> dict[int, int]:
        return {one.host: one.lun for one in self.state.mappings_of_volume(volume)}

    def measure(self) -> None:
        """Bring what thin volumes use up to date."""
        for volume in self.state.volumes.values():
            volume.used = self.plane.used(volume)

    def is_formatting(self, volume: Volume) -> bool:
        return self.clock.now() < volume.formatting_until

    # FlashCopy

    def tick(self) -> None:
        """Let time that has passed do its work on FlashCopy mappings."""
        now = self.clock.now()
        for fc_map in list(self.state.fc_maps.values()):
            if fc_map.state is FcState.PREPARING and now >= fc_map.until:
                fc_map.state = FcState.PREPARED
                if fc_map.starts_when_prepared:
                    self.begin([fc_map], at=fc_map.until)
            if fc_map.state is FcState.COPYING:
                self._advance(fc_map, now)
            if fc_map.state is FcState.STOPPING and now >= fc_map.until:
                fc_map.state = FcState.STOPPED
        self.settle()

    def _advance(self, fc_map: FcMap, now: float) -> None:
        size = self.state.volumes[fc_map.source].size
        fc_map.copied += (now - fc_map.since) * self.bytes_per_second(fc_map.copy_rate)
        fc_map.since = now
        fc_map.progress = min(100, int(fc_map.copied * 100 / size))
        if fc_map.copied < size:
            return
        fc_map.progress = 100
        fc_map.state = FcState.IDLE
        fc_map.restoring = False
        if fc_map.autodelete:
            self.drop_map(fc_map)

    def drop_map(self, fc_map: FcMap) -> None:
        """Forget a mapping, and its group when that was told to go with its last one."""
        del self.state.fc_maps[fc_map.id]
        group = None if fc_map.group is None else self.state.fc_groups.get(fc_map.group)
        if group and group.autodelete and not self.maps_in(group.id):
            del self.state.fc_groups[group.id]

    def maps_in(self, group: int) -> list[FcMap]:
        return [one for one in self.state.fc_maps.values() if one.group == group]

    def bytes_per_second(self, rate: int) -> float:
        """0 never copies; 1 to 10 is 128 KiB/s and each further ten doubles: 50 is 2 MiB/s, 100 is 64."""
        if rate == 0:
            return 0.0
        return float(COPY_RATE_UNIT * 2 ** ((rate - 1) // 10) * self.copy_speed)

    def begin(self, maps: Sequence[FcMap], at: float | None = None) -> None:
        """Start prepared mappings: targets hold the sources' contents of one moment from now on."""
        since = self.clock.now() if at is None else at
        volumes = self.state.volumes
        pairs = [(volumes[one.source], volumes[one.target]) for one in maps]
        touched = {host for pair in pairs for volume in pair for host in self.luns_of(volume)}
        self.plane.copy(pairs, touched)
        for fc_map in maps:
            fc_map.state = FcState.COPYING
            fc_map.starts_when_prepared = False
            fc_map.copied, fc_map.progress, fc_map.since = 0.0, 0, since
            fc_map.start_time = time.strftime("%y%m%d%H%M%S")
        self.settle()

    def settle(self) -> None:
        """Take targets off or back on line at the data face as their mappings' states say."""
        for volume in self.state.volumes.values():
            is_online = self.state.is_online(volume)
            if self.online.get(volume.id, True) is not is_online:
                self.online[volume.id] = is_online
                self.plane.set_online(volume, self.luns_of(volume), is_online)
        for gone in self.online.keys() - self.state.volumes.keys():
            del self.online[gone]


Function = Callable[[Machine, Arguments], str]


@dataclass(frozen=True, slots=True)
class Registered:
    """A command of the box: from firmware ``since`` on, and before ``until``."""

    name: str
    syntax: Syntax
    function: Function
    changes: bool
    since: tuple[int, ...]
    until: tuple[int, ...] | None


registry: dict[str, Registered] = {}


def command(
    name: str,
    syntax: Syntax,
    *,
    changes: bool = False,
    since: tuple[int, ...] = (),
    until: tuple[int, ...] | None = None,
) -> Callable[[Function], Function]:
    """Register a function as a command of the box."""

    def register(function: Function) -> Function:
        registry[name] = Registered(name, syntax, function, changes, since, until)
        return function

    return register
