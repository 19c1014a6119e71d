# SPDX-License-Identifier: Apache-2.0
"""Volumes, FlashCopy and host mappings of one box.

Source of commands, columns and codes: IBM's CLI reference as noted in docs/arrays/v7000.md. Every operation
reads, works out what is missing, and runs that in one line; a session that breaks is no reason to fail, for
the same operation reads again what became of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from sanstone.arrays.base import Abilities, Claim, Extent, NameTakenError, NewVolume, Placement
from sanstone.arrays.v7000 import codes
from sanstone.arrays.v7000.codes import RefusedError
from sanstone.arrays.v7000.copies import MOST_MAPS, Copies
from sanstone.arrays.v7000.facts import TARGET_QUESTIONS, read_targets
from sanstone.arrays.v7000.flashcopy import FlashCopyMap, read_map, read_maps, removal
from sanstone.arrays.v7000.mappings import Mappings
from sanstone.arrays.v7000.reading import Found, read_volumes, volumes_where
from sanstone.arrays.v7000.settling import rest, settle
from sanstone.arrays.v7000.terminal import Answer, Row, Terminal, command, listing, rows
from sanstone.errors import (
    BusyError,
    CapacityError,
    ConfigurationError,
    ConflictError,
    ConnectError,
    DeadlineError,
    NotFoundError,
    NotSupportedError,
)
from sanstone.model import MIB, Capacity, Connection, Volume
from sanstone.names import is_snapshot_of
from sanstone.settings import Settings
from sanstone.transport.facts import Facts
from sanstone.transport.ssh import Login, SSHSession
from sanstone.transport.waiting import Deadline

__all__ = ["V7000"]

log = logging.getLogger(__name__)


class V7000:
    """One box with the settings of one datastore."""

    def __init__(self, settings: Settings, *, state: Path | None = None) -> None:
        """``state`` is the directory for session slots and remembered facts."""
        self.settings = settings
        self.name = settings.text("MGMT")
        self.abilities = Abilities(
            zeroes_new_volumes=settings.flag("THIN_PROVISION"), links_clones=settings.flag("SNAPSHOT")
        )
        self._terminal = Terminal(
            SSHSession(_login(settings, state)),
            timeout=settings.seconds("COMMAND_TIMEOUT"),
            patience=settings.seconds("SESSION_TIMEOUT"),
        )
        self._facts = Facts(state / "facts" if state else None, self._terminal.session.login.name)
        self._mappings = Mappings(self._terminal, self._facts)
        self._copies = Copies(self._terminal, self._facts, settings)

    @property
    def session(self) -> SSHSession:
        return self._terminal.session

    def close(self) -> None:
        self._terminal.session.close()

    def refresh(self) -> None:
        self._facts.forget()

    def source(self, name: str) -> str:
        """As the existing add-on spells it; only what follows the last dot is ever read."""
        label = self.name.split(".", 1)[0]
        return f"{self.settings.text('BASE_IQN')}:2545.{label}.node1.{name}"

    # what is there

    def capacity(self) -> Capacity:
        pools, groups = self._terminal.ask(listing("lsmdiskgrp", "-bytes"), listing("lsiogrp")).sections
        self._check(rows(pools), rows(groups))
        wanted = self.settings.words("MDISK_GROUP")
        chosen = [row for row in rows(pools) if row["name"] in wanted]
        total = sum(int(row["capacity"]) for row in chosen)
        free = sum(int(row["free_capacity"]) for row in chosen)
        return Capacity(total, total - free, free)

    def needed(self, *, size: int, data: int) -> int:
        written = data if self.settings.flag("THIN_PROVISION") else size
        return written * self.settings.integer("COPIES")

    def find(self, *names: str) -> tuple[Volume | None, ...]:
        found = self._look(*names)
        return tuple(each.volume if each else None for each in found)

    def find_wwid(self, wwid: str) -> Volume | None:
        uid = wwid[1:].upper()
        (section,) = self._terminal.ask(volumes_where(f"vdisk_UID={uid}")).sections
        found = read_volumes(section)
        return found[0].volume if found else None

    def snapshots(self, name: str) -> tuple[Volume, ...]:
        sections = self._terminal.ask(*(volumes_where(f"name={name}-{kind}*") for kind in "sb")).sections
        found = [each.volume for section in sections for each in read_volumes(section)]
        return tuple(each for each in found if is_snapshot_of(name, each.name))

    def changes(self, older: str, newer: str) -> tuple[Extent, ...]:
        raise NotSupportedError(f"{self.name} does not tell where {older} and {newer} differ.")

    def mapped_hosts(self, name: str) -> tuple[str, ...]:
        (section,) = self._terminal.ask(listing("lsvdiskhostmap", name)).sections
        return tuple(row["host_name"] for row in rows(section))

    # volumes

    def create(self, new: NewVolume, *, claim: Claim, host: str | None = None) -> Placement:
        is_sent = False

        def send(steps: Sequence[str], then: Sequence[str]) -> Answer:
            """Send what begins with making the volume, and know whether it may be ours now."""
            nonlocal is_sent
            try:
                return self._terminal.change(*steps, then=then)
            except RefusedError as refused:
                if refused.code == codes.NAME_TAKEN and not refused.made and not is_sent:
                    raise NameTakenError(
                        f"Somebody else has just made a volume {new.name} on {self.name}.",
                        "Rename it there, or delete it if nobody needs it, then run the action again.",
                        details=refused.line,
                    ) from refused
                is_sent = is_sent or bool(refused.made) or refused.is_warning
                raise
            except (ConnectError, DeadlineError):
                is_sent = True
                raise

        what = f"Volume {new.name} could not be made"
        return settle(
            self._terminal, self._facts, what, lambda: self._create(new, claim=claim, host=host, send=send)
        )

    def _create(
        self,
        new: NewVolume,
        *,
        claim: Claim,
        host: str | None,
        send: Callable[[Sequence[str], Sequence[str]], Answer],
    ) -> Placement | None:
        names = (new.name, new.source) if new.source else (new.name,)
        found, source = (*self._look(*names, new=new, host=host), None)[:2]
        if new.source and source is None:
            raise NotFoundError(
                f"Volume {new.source} is not on {self.name}.", "Was it deleted there by hand?"
            )
        if source is not None and not found and (source.maps or 0) >= MOST_MAPS:
            raise ConflictError(
                f"Volume {new.source} is in {source.maps} FlashCopy maps, and {self.name} lets a volume be "
                f"the source of {MOST_MAPS} at most.",
                "Delete snapshots or disks that were made from it first.",
            )
        size = source.volume.size if source else new.size
        if not found:
            self._check_room(new.needs)
        making = [] if found else [self._make(new, size)]
        alias = self._mappings.alias(host) if host else None
        claim(found.volume if found else None)
        if found and found.volume.size != size:
            self._delete(new.name, Deadline(0.0), wwid=found.volume.wwid)
            return None
        steps = [*making, *(self._copies.missing(new, is_there=found is not None) if source else [])]
        if found:
            for step in steps:
                self._terminal.change(step)
            self._copies.wait_for_start(new, None)
            return Placement(found.volume, self.map(new.name, host) if host else None)
        if alias:
            steps.append(command("mkvdiskhostmap", "-host", alias, new.name))
        asked = [listing("lsvdiskhostmap", new.name), volumes_where(f"name={new.name}")]
        if new.source:
            asked.append(listing("lsfcmap", "-filtervalue", f"source_vdisk_name={new.source}"))
        mappings, volumes, *maps = send(steps, asked).sections
        made = next(iter(read_volumes(volumes)), None)
        if made is None:
            return None
        self._copies.wait_for_start(new, read_maps(maps[0]) if maps else [])
        return Placement(
            made.volume, self._mappings.connection(new.name, host, [mappings, volumes]) if host else None
        )

    def _make(self, new: NewVolume, size: int) -> str:
        """Spell the command that makes the volume, for the kind of pool that it goes to."""
        get = self.settings
        pools = get.words("MDISK_GROUP")
        rsize = get.integer("SNAPSHOT_RSIZE" if new.is_linked else "RSIZE")
        is_thin = get.flag("THIN_PROVISION") or new.is_linked
        known = self._pools()
        copies = get.integer("COPIES")
        pool = max(pools, key=lambda name: int(known.get(name, {}).get("free_capacity", 0)))
        if known.get(pool, {}).get("data_reduction") == "yes":
            if copies == 2:
                raise NotSupportedError(
                    f"COPIES=2 in the data reduction pool {pool} is not supported yet.",
                    "Use a standard pool, or COPIES=1.",
                )
            thin = ["-thin", "-buffersize", f"{rsize}%"] if is_thin else []
            return command(
                "mkvolume", "-name", new.name, "-pool", pool, "-size", str(size), "-unit", "b",
                *thin, "-iogrp", get.text("IO_GROUP"),
            )  # fmt: skip
        if copies == 2:
            pool = f"{pools[0]}:{pools[-1]}"
        thin = ["-rsize", f"{rsize}%", "-autoexpand", "-grainsize", get.text("GRAINSIZE")] if is_thin else []
        if new.source and not is_thin:
            thin = ["-nofmtdisk"]  # all of it is copied, and a map waits for no formatting
        return command(
            "mkvdisk", "-name", new.name, "-mdiskgrp", pool, "-iogrp", get.text("IO_GROUP"),
            "-size", str(size), "-unit", "b", "-vtype", get.text("VTYPE"), *thin,
            "-copies", str(copies), "-syncrate", str(get.integer("SYNC_RATE")), "-cache", "readwrite",
        )  # fmt: skip

    def copy(self, source: str, target: str) -> None:
        self._copies.copy(source, target)

    def resize(self, name: str, size: int, *, wait: float = 0.0) -> None:
        settle(
            self._terminal,
            self._facts,
            f"Volume {name} could not be expanded",
            lambda: self._resize(name, size, wait),
        )

    def _resize(self, name: str, size: int, wait: float) -> bool | None:
        (found,) = self._look(name)
        if found is None:
            raise NotFoundError(f"Volume {name} is not on {self.name}.", "Was it deleted by hand?")
        missing = size - found.volume.size
        if missing <= 0:
            return True
        try:
            self._terminal.change(command("expandvdisksize", "-size", str(missing), "-unit", "b", name))
        except RefusedError as refused:
            if refused.code in codes.NO_EXTENTS or refused.code == codes.FORMATTING:
                raise
            if refused.code == codes.EXPAND_IN_FLASHCOPY and wait:
                self._free_of_maps(name, wait)
                return None
            raise ConflictError(
                f"{self.name} cannot expand {name} in its present state: {refused.code} {refused.text}"
            ) from refused
        return True

    def _free_of_maps(self, name: str, wait: float) -> None:
        """Let a volume be in no FlashCopy map: older code levels expand none that is.

        Raises: ConflictError when snapshots depend on it, BusyError when copies take longer than ``wait``.
        """
        deadline = Deadline(wait)
        maps = self._copies.of(name)
        bound = [each.target for each in maps if each.source == name and each.is_for_ever]
        if bound:
            raise ConflictError(
                f"Volume {name} cannot grow while {', '.join(bound)} depend on it: the code level of "
                f"{self.name} expands no volume that is in a FlashCopy map ({codes.EXPAND_IN_FLASHCOPY}).",
                "Delete the snapshots of the disk, then run the action again.",
            )
        for each in maps:
            self._copies.finish(each, deadline.left)

    def delete(self, name: str, *, wait: float, host: str | None = None, wwid: str | None = None) -> bool:
        deadline = Deadline(wait)
        is_thorough = False

        def attempt() -> bool | None:
            nonlocal is_thorough
            try:
                return self._delete(name, deadline, host, wwid, is_thorough=is_thorough)
            except RefusedError:
                is_thorough = True
                raise

        return settle(self._terminal, self._facts, f"Volume {name} could not be deleted", attempt, deadline)

    def _delete(
        self,
        name: str,
        deadline: Deadline,
        host: str | None = None,
        wwid: str | None = None,
        *,
        is_thorough: bool = False,
    ) -> bool | None:
        """Delete a volume if it is there: its FlashCopy maps first, never a mapped one."""
        # the map of our own copies bears the name of its target
        asked = [volumes_where(f"name={name}"), listing("lsvdiskhostmap", name), listing("lsfcmap", name)]
        if host is None:
            volumes, mappings, own = self._terminal.ask(*asked).sections
        else:
            change = self._mappings.unmapping(name, host)
            answer = self._terminal.attempt(change, *asked)
            _, volumes, mappings, own = answer.sections
            if not self._mappings.is_unmapped(host, answer, mappings, change):
                return None
        found = next(iter(read_volumes(volumes)), None)
        if found is None:
            return True
        if wwid is not None and found.volume.wwid != wwid:
            return False
        hosts = [row["host_name"] for row in rows(mappings)]
        if hosts:
            raise ConflictError(
                f"Volume {name} is still mapped to {', '.join(hosts)} on {self.name}.",
                "Detach it there first.",
            )
        known = None if is_thorough else self._known_maps(found, read_map(own))
        maps = self._wait_for_readers(name, self._copies.of(name) if known is None else known, deadline)
        self._terminal.change(*(step for each in maps for step in removal(each)), command("rmvdisk", name))
        return True

    @staticmethod
    def _known_maps(found: Found, own: FlashCopyMap | None) -> list[FlashCopyMap] | None:
        """List a volume's FlashCopy maps without a further question: ``own`` is what bears its name."""
        is_own = own is not None and found.volume.name in (own.source, own.target)
        if found.maps == 0 and not is_own:
            return []
        return [own] if found.maps in (0, 1) and own is not None and is_own else None

    def _wait_for_readers(
        self, name: str, maps: list[FlashCopyMap], deadline: Deadline
    ) -> list[FlashCopyMap]:
        """Wait until no copy reads from the volume and none is stopping; return the maps that are left."""
        interval = 0.1
        while True:
            stopping = [each for each in maps if each.is_stopping]
            reading = [each for each in maps if each.source == name and each.reads_source]
            if not reading and not stopping:
                return maps
            bound = [each.target for each in reading if each.copy_rate == 0 and not each.is_stopping]
            if bound:
                raise ConflictError(
                    f"Volume {name} is what {', '.join(bound)} depends on.",
                    "Terminate the VMs that use those volumes first.",
                )
            if deadline.is_over:
                slowest = min(reading or stopping, key=lambda each: each.progress)
                raise BusyError(
                    f"Volume {name} is still being copied to {slowest.target} ({slowest.progress} %)."
                    if reading
                    else f"The copy from {slowest.source} to {slowest.target} is still being stopped.",
                    "It can be deleted when that copy is complete.",
                )
            rest(self._terminal, min(interval, deadline.left))
            interval = min(interval * 1.5, 5.0)
            maps = self._copies.of(name)

    # mappings

    def map(self, name: str, host: str, *, is_shared: bool = False) -> Connection:
        return self._mappings.map(name, host, is_shared=is_shared)

    def unmap(self, name: str, host: str) -> None:
        self._mappings.unmap(name, host)

    # facts

    def _pools(self) -> dict[str, Row]:
        known: dict[str, Row] | None = self._facts.get("pools")
        if known is None:
            (section,) = self._terminal.ask(listing("lsmdiskgrp", "-bytes")).sections
            known = self._remember_pools(rows(section))
        return known

    def _remember_pools(self, pools: Sequence[Row]) -> dict[str, Row]:
        self._check(pools, None)
        known = {row["name"]: row for row in pools}
        self._facts.put("pools", known)
        return known

    def _check_room(self, needs: int) -> None:
        if not needs:
            return
        known = self._pools()
        free = sum(int(known[name]["free_capacity"]) for name in set(self.settings.words("MDISK_GROUP")))
        if needs > free:
            raise CapacityError(
                f"The pool on {self.name} has {free // MIB} MiB free, "
                f"the image needs {-(-needs // MIB)} MiB.",
                "Free space in the pool or choose another datastore.",
            )

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

    def _look(
        self, *names: str, new: NewVolume | None = None, host: str | None = None
    ) -> tuple[Found | None, ...]:
        """Look volumes up; learn in the same line what making ``new`` and mapping it to ``host`` takes."""
        asked = [volumes_where(f"name={name}") for name in names]
        further: list[tuple[Sequence[str], Callable[[Sequence[Sequence[str]]], object]]] = []
        if host is not None and self._mappings.targets() is None:
            further.append(
                (TARGET_QUESTIONS, lambda found: self._mappings.remember_targets(read_targets(found)))
            )
        if host is not None and self._facts.get(f"host {host}") is None:
            further.append(([listing("lshost")], lambda found: self._mappings.find_alias(host, found[0])))
        if new is not None and (
            new.needs or self._facts.get("pools") is None or len(self.settings.words("MDISK_GROUP")) > 1
        ):
            pools = [listing("lsmdiskgrp", "-bytes")]
            further.append((pools, lambda found: self._remember_pools(rows(found[0]))))
        more = [question for questions, _ in further for question in questions]
        sections = list(self._terminal.ask(*asked, *more).sections)
        answers, rest = sections[: len(names)], sections[len(names) :]
        for questions, learn in further:
            learn(rest[: len(questions)])
            rest = rest[len(questions) :]
        return tuple(
            next((each for each in read_volumes(section) if each.volume.name == name), None)
            for name, section in zip(names, answers, strict=True)
        )


def _login(settings: Settings, state: Path | None) -> Login:
    return Login(
        settings.text("MGMT"),
        settings.integer("MGMT_PORT"),
        settings.text("MGMT_USER"),
        settings.secret("MGMT_PASSWORD"),
        settings.path("MGMT_KEY") if settings.text("MGMT_KEY") else None,
        (settings.path("MGMT_KNOWN_HOSTS"),),
        settings.seconds("CONNECT_TIMEOUT"),
        settings.integer("ARRAY_SESSIONS"),
        state / "sessions" if state else None,
        settings.seconds("SESSION_TIMEOUT"),
    )
