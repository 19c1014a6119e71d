# SPDX-License-Identifier: Apache-2.0
"""Volumes, FlashCopy and host mappings of one box.

Source of commands, columns and codes: IBM's CLI reference as noted in docs/arrays/v7000.md. Every operation
reads, works out what is missing, and runs that in one line; a session that breaks is no reason to fail, for
the same operation reads again what became of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sanstone.arrays.base import Abilities, Claim, NewVolume, Placement
from sanstone.arrays.v7000 import codes
from sanstone.arrays.v7000.codes import RefusedError
from sanstone.arrays.v7000.facts import TARGET_QUESTIONS, Facts, read_targets
from sanstone.arrays.v7000.flashcopy import FlashCopyMap, read_map, removal
from sanstone.arrays.v7000.terminal import Row, Terminal, command, listing, rows
from sanstone.errors import (
    ArrayError,
    BusyError,
    CapacityError,
    ConfigurationError,
    ConflictError,
    ConnectError,
    NotFoundError,
)
from sanstone.model import Capacity, Connection, Portal, Target, Volume
from sanstone.settings import Settings
from sanstone.transport.ssh import Login, SSHSession
from sanstone.transport.waiting import Deadline, pause

__all__ = ["V7000"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_STALE = 4  # rounds of "read, then change" before a state that keeps moving is an error


@dataclass(frozen=True, slots=True)
class _Found:
    """A volume with what only this module needs of it."""

    volume: Volume
    io_group: str


class V7000:
    """One box with the settings of one datastore."""

    abilities = Abilities()

    def __init__(self, settings: Settings, *, state: Path | None = None) -> None:
        """``state`` is the directory for session slots and remembered facts."""
        self.settings = settings
        self.name = settings.text("MGMT")
        self._terminal = Terminal(
            SSHSession(_login(settings, state)), timeout=settings.seconds("COMMAND_TIMEOUT")
        )
        self._facts = Facts(state / "facts" if state else None, self._terminal.session.login.name)

    @property
    def session(self) -> SSHSession:
        return self._terminal.session

    def close(self) -> None:
        self._terminal.session.close()

    def source(self, name: str) -> str:
        """As the existing add-on spells it; only what follows the last dot is ever read."""
        label = self.name.split(".", 1)[0]
        return f"{self.settings.text('BASE_IQN')}:2545.{label}.node1.{name}"

    # what is there

    def check(self) -> None:
        pools, groups = self._terminal.ask(listing("lsmdiskgrp", "-bytes"), listing("lsiogrp")).sections
        self._check(rows(pools), rows(groups))

    def capacity(self) -> Capacity:
        pools, groups = self._terminal.ask(listing("lsmdiskgrp", "-bytes"), listing("lsiogrp")).sections
        self._check(rows(pools), rows(groups))
        wanted = self.settings.words("MDISK_GROUP")
        chosen = [row for row in rows(pools) if row["name"] in wanted]
        total = sum(int(row["capacity"]) for row in chosen)
        free = sum(int(row["free_capacity"]) for row in chosen)
        return Capacity(total, total - free, free)

    def find(self, *names: str) -> tuple[Volume | None, ...]:
        found = self._look(*names)
        return tuple(each.volume if each else None for each in found)

    def find_wwid(self, wwid: str) -> Volume | None:
        uid = wwid[1:].upper()
        (section,) = self._terminal.ask(_volumes(f"vdisk_UID={uid}")).sections
        found = _read_volumes(section)
        return found[0].volume if found else None

    def mapped_hosts(self, name: str) -> tuple[str, ...]:
        (section,) = self._terminal.ask(listing("lsvdiskhostmap", name)).sections
        return tuple(row["host_name"] for row in rows(section))

    # volumes

    def create(self, new: NewVolume, *, claim: Claim, host: str | None = None) -> Placement:
        what = f"Volume {new.name} could not be made"
        return self._settle(what, lambda: self._create(new, claim=claim, host=host))

    def _create(self, new: NewVolume, *, claim: Claim, host: str | None) -> Placement | None:
        found, source = self._look(new.name, new.source) if new.source else (*self._look(new.name), None)
        if new.source and source is None:
            raise NotFoundError(
                f"Volume {new.source} is not on {self.name}.", "Was it deleted there by hand?"
            )
        claim(found.volume if found else None)
        size = source.volume.size if source else new.size
        if found and found.volume.size != size:
            self._delete(new.name, Deadline(0.0))
            return None
        steps: list[str] = []
        if not found:
            steps.append(self._make(new, size))
        if source:
            steps += self._missing_copy(new, found)
        if host is None:
            if steps:
                self._terminal.change(*steps)
                return None
            assert found is not None
            return Placement(found.volume)
        alias = self._alias(host)
        if self._targets() is None:
            self._remember_targets(read_targets(self._terminal.ask(*TARGET_QUESTIONS).sections))
        steps.append(command("mkvdiskhostmap", "-host", alias, new.name))
        if found:
            for step in steps[:-1]:
                self._terminal.change(step)
            connection = self.map(new.name, host)
        else:
            connection = self._connection(
                new.name, host, self._terminal.change(*steps, then=self._questions(new.name)).sections
            )
        volume = Volume(new.name, connection.wwid, connection.size, found.volume.pool if found else "")
        return Placement(volume, connection)

    def _make(self, new: NewVolume, size: int) -> str:
        """Spell the command that makes the volume, for the kind of pool that it goes to."""
        get = self.settings
        pools = get.words("MDISK_GROUP")
        rsize = get.integer("SNAPSHOT_RSIZE" if new.is_linked else "RSIZE")
        is_thin = get.flag("THIN_PROVISION") or new.is_linked
        known = self._pools()
        pool = (
            pools[0] if len(pools) == 1 else max(pools, key=lambda name: known.get(name, {}).get("free", 0))
        )
        if known.get(pool, {}).get("data_reduction") == "yes":
            thin = ["-thin", "-buffersize", f"{rsize}%"] if is_thin else []
            return command(
                "mkvolume", "-name", new.name, "-pool", pool, "-size", str(size), "-unit", "b",
                *thin, "-iogrp", get.text("IO_GROUP"),
            )  # fmt: skip
        copies = get.integer("COPIES")
        if copies == 2:
            pool = f"{pools[0]}:{pools[-1]}"
        thin = ["-rsize", f"{rsize}%", "-autoexpand", "-grainsize", get.text("GRAINSIZE")] if is_thin else []
        return command(
            "mkvdisk", "-name", new.name, "-mdiskgrp", pool, "-iogrp", get.text("IO_GROUP"),
            "-size", str(size), "-unit", "b", "-vtype", get.text("VTYPE"), *thin,
            "-copies", str(copies), "-syncrate", str(get.integer("SYNC_RATE")), "-cache", "readwrite",
        )  # fmt: skip

    def _missing_copy(self, new: NewVolume, found: _Found | None) -> list[str]:
        """Work out what a FlashCopy from the source still lacks; the map bears the target's name."""
        assert new.source is not None
        existing = self._map_named(new.name) if found else None
        steps = []
        if existing is None:
            rate = 0 if new.is_linked else self.settings.integer("COPYRATE")
            steps.append(self._make_map(new.source, new.name, rate))
        elif existing.source != new.source or existing.target != new.name:
            raise ConflictError(
                f"{self.name} has a FlashCopy map {new.name} from {existing.source} to {existing.target}.",
                "It is not the one that this action needs: see what it is for, then remove or rename it.",
            )
        if existing is None or existing.has_not_begun:
            steps.append(command("startfcmap", "-prep", new.name))
        return steps

    def _make_map(self, source: str, target: str, rate: int) -> str:
        independent = [] if rate == 0 else ["-autodelete"]
        return command(
            "mkfcmap", "-source", source, "-target", target, "-name", target, "-copyrate", str(rate),
            "-cleanrate", str(self.settings.integer("CLEANRATE")),
            "-grainsize", self.settings.text("GRAINSIZE"), *independent,
        )  # fmt: skip

    def copy(self, source: str, target: str) -> None:
        self._settle(f"Volume {source} could not be copied to {target}", lambda: self._copy(source, target))

    def _copy(self, source: str, target: str) -> bool:
        origin, found = self._look(source, target)
        for name, each in ((source, origin), (target, found)):
            if each is None:
                raise NotFoundError(f"Volume {name} is not on {self.name}.", "Was it deleted by hand?")
        assert origin
        assert found
        if origin.volume.size != found.volume.size:
            raise ConflictError(
                f"{source} has {origin.volume.size} bytes and {target} {found.volume.size}: "
                "the box copies between equal sizes only."
            )
        steps = []
        existing = self._map_named(target)
        if existing is not None and not existing.has_not_begun:
            if existing.is_independent:
                steps.append(command("rmfcmap", target))
                existing = None
            else:
                return True
        if existing is None:
            steps.append(self._make_map(source, target, self.settings.integer("COPYRATE")))
        steps.append(command("startfcmap", "-prep", target))
        self._terminal.change(*steps)
        return True

    def resize(self, name: str, size: int) -> None:
        self._settle(f"Volume {name} could not be expanded", lambda: self._resize(name, size))

    def _resize(self, name: str, size: int) -> bool | None:
        (found,) = self._look(name)
        if found is None:
            raise NotFoundError(f"Volume {name} is not on {self.name}.", "Was it deleted by hand?")
        missing = size - found.volume.size
        if missing <= 0:
            return True
        try:
            self._terminal.change(command("expandvdisksize", "-size", str(missing), "-unit", "b", name))
        except RefusedError as refused:
            if refused.code in codes.NO_EXTENTS:
                raise
            raise ConflictError(
                f"{self.name} cannot expand {name} in its present state: {refused.code} {refused.text}"
            ) from refused
        return None

    def delete(self, name: str, *, wait: float) -> None:
        deadline = Deadline(wait)
        self._settle(f"Volume {name} could not be deleted", lambda: self._delete(name, deadline))

    def _delete(self, name: str, deadline: Deadline) -> bool:
        """Delete a volume if it is there: its FlashCopy maps first, never a mapped one."""
        volumes, mappings, maps = self._terminal.ask(
            _volumes(f"name={name}"), listing("lsvdiskhostmap", name), listing("lsvdiskfcmappings", name)
        ).sections
        if not _read_volumes(volumes):
            return True
        hosts = [row["host_name"] for row in rows(mappings)]
        if hosts:
            raise ConflictError(
                f"Volume {name} is still mapped to {', '.join(hosts)} on {self.name}.",
                "Detach it there first.",
            )
        numbers = [row["id"] for row in rows(maps)]
        steps = [step for each in self._wait_for_readers(name, numbers, deadline) for step in removal(each)]
        self._terminal.change(*steps, command("rmvdisk", name))
        return True

    def _wait_for_readers(self, name: str, numbers: Sequence[str], deadline: Deadline) -> list[FlashCopyMap]:
        """Wait until no copy reads from the volume any more; return the maps that are left then."""
        interval = 0.1
        while True:
            maps = self._maps(numbers)
            reading = [each for each in maps if each.source == name and each.reads_source]
            if not reading:
                return maps
            bound = [each.target for each in reading if each.copy_rate == 0]
            if bound:
                raise ConflictError(
                    f"Volume {name} is what {', '.join(bound)} depends on.",
                    "Terminate the VMs that use those volumes first.",
                )
            if deadline.is_over:
                slowest = min(reading, key=lambda each: each.progress)
                raise BusyError(
                    f"Volume {name} is still being copied to {slowest.target} ({slowest.progress} %).",
                    "It can be deleted when that copy is complete.",
                )
            pause(min(interval, deadline.left))
            interval = min(interval * 1.5, 5.0)

    # mappings

    def map(self, name: str, host: str, *, is_shared: bool = False) -> Connection:
        what = f"Volume {name} could not be mapped to {host}"
        return self._settle(what, lambda: self._map(name, host, is_shared=is_shared))

    def _map(self, name: str, host: str, *, is_shared: bool) -> Connection:
        alias = self._facts.get(f"host {host}") or host
        force = ["-force"] if is_shared else []
        change = command("mkvdiskhostmap", *force, "-host", alias, name)
        answer = self._terminal.attempt(change, *self._questions(name))
        mappings, volumes = rows(answer.sections[1]), _read_volumes(answer.sections[2])
        if any(row["host_name"] == alias for row in mappings):
            return self._connection(name, host, answer.sections[1:], alias)
        if not volumes:
            raise NotFoundError(f"Volume {name} is not on {self.name}.", "Was it deleted there by hand?")
        refused = answer.codes()
        if codes.MAPPED_TO_OTHER in refused or (mappings and codes.MAPPED_OTHER_LUN in refused):
            others = ", ".join(row["host_name"] for row in mappings)
            raise ConflictError(
                f"Volume {name} is mapped to {others} already: {host} does not get it too.",
                "See whether a VM still runs there; if not, detach the volume from it first.",
            )
        if refused & codes.ABSENT and self._alias(host) != alias:
            return self._map(name, host, is_shared=is_shared)
        complaint = answer.complaints[0] if answer.complaints else "no reason given"
        code, text = codes.find_code(complaint) or ("", complaint)
        raise RefusedError(self.name, code, text, change)

    def unmap(self, name: str, host: str) -> None:
        self._settle(f"Volume {name} could not be unmapped from {host}", lambda: self._unmap(name, host))

    def _unmap(self, name: str, host: str) -> bool:
        alias = self._facts.get(f"host {host}") or host
        change = command("rmvdiskhostmap", "-host", alias, name)
        answer = self._terminal.attempt(change, listing("lsvdiskhostmap", name))
        left = {row["host_name"] for row in rows(answer.sections[1])}
        if alias not in left and not left & set(_spellings(host)):
            return True
        if alias not in left:
            self._facts.put(f"host {host}", (left & set(_spellings(host))).pop())
            return self._unmap(name, host)
        complaint = answer.complaints[0] if answer.complaints else "no reason given"
        code, text = codes.find_code(complaint) or ("", complaint)
        raise RefusedError(self.name, code, text, change)

    def _questions(self, name: str) -> list[str]:
        """What tells all about a mapping: LUNs, volume, and the targets if they are not known yet."""
        asked = [listing("lsvdiskhostmap", name), _volumes(f"name={name}")]
        return asked if self._targets() is not None else [*asked, *TARGET_QUESTIONS]

    def _connection(
        self, name: str, host: str, sections: Sequence[Sequence[str]], alias: str | None = None
    ) -> Connection:
        """Read the answers to ``_questions``."""
        if len(sections) > 2:
            self._remember_targets(read_targets(sections[2:]))
        alias = alias or self._alias(host)
        mapping = next((row for row in rows(sections[0]) if row["host_name"] == alias), None)
        volumes = _read_volumes(sections[1])
        if mapping is None or not volumes:
            raise ArrayError(
                f"{self.name} mapped {name} to {host} but does not list it.", "Run the action again."
            )
        found = volumes[0]
        groups = self._targets() or {}
        targets = groups.get(found.io_group) or [each for group in groups.values() for each in group]
        if not targets:
            self._facts.forget()
            raise ConfigurationError(
                f"{self.name} has no iSCSI address that serves hosts.",
                "Configure its iSCSI ports (cfgportip).",
            )
        volume = found.volume
        return Connection(name, volume.wwid, volume.size, int(mapping["SCSI_id"]), tuple(targets))

    def _alias(self, host: str) -> str:
        """Find what the box calls a host: the same name, or its first label, or the longer name.

        Raises: ConfigurationError when it is not registered.
        """
        known = self._facts.get(f"host {host}")
        if known:
            return str(known)
        (section,) = self._terminal.ask(listing("lshost")).sections
        there = [row["name"] for row in rows(section)]
        for name in _spellings(host):
            if name in there:
                self._facts.put(f"host {host}", name)
                return name
        longer = [name for name in there if name.split(".", 1)[0] == host]
        if len(longer) == 1:
            self._facts.put(f"host {host}", longer[0])
            return longer[0]
        raise ConfigurationError(
            f"Host {host} is not registered on {self.name}; it knows {', '.join(there) or 'no host'}.",
            f"Register it there: mkhost -iscsiname INITIATOR -name {host.split('.', 1)[0]}",
        )

    # facts

    def _targets(self) -> dict[str, list[Target]] | None:
        known = self._facts.get("targets")
        if known is None:
            return None
        return {
            group: [Target(iqn, tuple(Portal(each) for each in addresses)) for iqn, addresses in targets]
            for group, targets in known.items()
        }

    def _remember_targets(self, groups: dict[str, list[Target]]) -> None:
        self._facts.put(
            "targets",
            {
                group: [[each.iqn, [portal.address for portal in each.portals]] for each in targets]
                for group, targets in groups.items()
            },
        )

    def _pools(self) -> dict[str, Row]:
        known: dict[str, Row] | None = self._facts.get("pools")
        if known is None or len(self.settings.words("MDISK_GROUP")) > 1:
            (section,) = self._terminal.ask(listing("lsmdiskgrp", "-bytes")).sections
            self._check(rows(section), None)
            known = {row["name"]: row for row in rows(section)}
            self._facts.put("pools", known)
        return known

    def _check(self, pools: Sequence[Row], groups: Sequence[Row] | None) -> None:
        there = [row["name"] for row in pools]
        for wanted in self.settings.words("MDISK_GROUP"):
            if wanted not in there:
                raise ConfigurationError(
                    f"MDISK_GROUP={wanted}: {self.name} has no such pool; it has "
                    f"{', '.join(there) or 'none'}.",
                    "Change MDISK_GROUP of the datastore, or make the pool.",
                )
        group = self.settings.text("IO_GROUP")
        if groups is not None and group not in [row["name"] for row in groups]:
            raise ConfigurationError(
                f"IO_GROUP={group}: {self.name} has no such I/O group; it has "
                f"{', '.join(row['name'] for row in groups)}.",
                "Change IO_GROUP of the datastore.",
            )

    # reading

    def _look(self, *names: str) -> tuple[_Found | None, ...]:
        answer = self._terminal.ask(*(_volumes(f"name={name}") for name in names))
        found = []
        for name, section in zip(names, answer.sections, strict=True):
            match = [each for each in _read_volumes(section) if each.volume.name == name]
            found.append(match[0] if match else None)
        return tuple(found)

    def _map_named(self, name: str) -> FlashCopyMap | None:
        (section,) = self._terminal.ask(listing("lsfcmap", name)).sections
        return read_map(section)

    def _maps(self, numbers: Sequence[str]) -> list[FlashCopyMap]:
        if not numbers:
            return []
        sections = self._terminal.ask(*(listing("lsfcmap", number) for number in numbers)).sections
        return [each for each in map(read_map, sections) if each is not None]

    def _settle(self, what: str, attempt: Callable[[], T | None]) -> T:
        """Repeat ``attempt`` until the state it brings about is there (it returns something).

        A refusal means that the state was not as read; a broken session, that it is not known: both are
        answered by reading again, once each, and only then by an error.
        """
        excused: set[str] = set()
        for _ in range(_STALE):
            try:
                settled = attempt()
            except RefusedError as refused:
                if refused.code in excused or refused.code not in _MOVED:
                    if refused.code in codes.NO_EXTENTS:
                        raise CapacityError(
                            f"{what}: the pool on {self.name} is full ({refused.code}).",
                            "Free space in the pool or add storage to it.",
                            details=refused.line,
                        ) from refused
                    raise refused.as_error(what) from refused
                excused.add(refused.code)
                pause(0.2)
            except ConnectError:
                if "connection" in excused:
                    raise
                excused.add("connection")
            else:
                if settled is not None:
                    return settled
        raise BusyError(f"{what}: its state on {self.name} keeps changing.", "Run the action again.")


_MOVED = frozenset(
    {
        *codes.ABSENT,
        codes.NAME_TAKEN,
        codes.VOLUME_IN_USE,
        codes.MAPPED_TO_HOST,
        codes.LUN_TAKEN,
        codes.MAP_WRONG_STATE,
        codes.MAP_ALREADY_COPYING,
        codes.MAP_ALREADY_STOPPED,
        codes.MAP_EXISTS,
        codes.FORCE_MISSING,
    }
)


def _spellings(host: str) -> tuple[str, ...]:
    return (host, host.split(".", 1)[0])


def _volumes(condition: str) -> str:
    return listing("lsvdisk", "-bytes", "-filtervalue", condition)


def _read_volumes(section: Sequence[str]) -> list[_Found]:
    return [
        _Found(
            Volume(
                row["name"],
                "3" + row["vdisk_UID"].lower(),
                int(row["capacity"]),
                row["mdisk_grp_name"],
                is_online=row["status"] != "offline",
            ),
            row.get("IO_group_name", ""),
        )
        for row in rows(section)
    ]


def _login(settings: Settings, state: Path | None) -> Login:
    key = settings.text("MGMT_KEY")
    return Login(
        settings.text("MGMT"),
        settings.integer("MGMT_PORT"),
        settings.text("MGMT_USER"),
        settings.secret("MGMT_PASSWORD"),
        Path(key).expanduser() if key else None,
        (settings.path("MGMT_KNOWN_HOSTS"),),
        settings.seconds("CONNECT_TIMEOUT"),
        settings.integer("ARRAY_SESSIONS"),
        state / "sessions" if state else None,
    )
