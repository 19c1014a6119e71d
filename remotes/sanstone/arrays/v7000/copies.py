# SPDX-License-Identifier: Apache-2.0
"""FlashCopy: from a volume to a new one, onto one that is there, and back from a snapshot.

A map of ours bears the name of its target, for the box lets a volume be the target of one map only. A map
with rate 0 is a snapshot: the target needs its source for ever.
"""

from __future__ import annotations

from collections.abc import Sequence

from sanstone.arrays.base import NewVolume
from sanstone.arrays.v7000.flashcopy import FlashCopyMap, finish, read_map, start
from sanstone.arrays.v7000.reading import read_volumes, volumes_where
from sanstone.arrays.v7000.settling import rest, settle
from sanstone.arrays.v7000.terminal import Terminal, command, listing, rows
from sanstone.errors import BusyError, ConflictError, NotFoundError
from sanstone.names import is_snapshot_of
from sanstone.settings import Settings
from sanstone.transport.facts import Facts
from sanstone.transport.waiting import Deadline

__all__ = ["MOST_MAPS", "Copies"]

MOST_MAPS = 256
"""Maps that one source may have (events of a map, IBM's Storwize implementation guides)."""

_COPY_RATE = 50  # the box's own default
_URGENT_RATE = 100
"""For a copy that an action waits for; every code level knows rates up to 100."""


class Copies:
    """The FlashCopy maps of one box, with the settings of one datastore."""

    def __init__(self, terminal: Terminal, facts: Facts, settings: Settings) -> None:
        self.name = terminal.name
        self.settings = settings
        self._terminal = terminal
        self._facts = facts

    def missing(self, new: NewVolume, *, is_there: bool) -> list[str]:
        """Work out what a copy from the source still lacks."""
        assert new.source is not None
        existing = self.named(new.name) if is_there else None
        steps = []
        if existing is None:
            rate = 0 if new.is_linked else self.settings.integer("COPYRATE")
            steps.append(self._make(new.source, new.name, rate))
        elif existing.source != new.source or existing.target != new.name:
            raise ConflictError(
                f"{self.name} has a FlashCopy map {new.name} from {existing.source} to {existing.target}.",
                "It is not the one that this action needs: see what it is for, then remove or rename it.",
            )
        if existing is None or existing.has_not_begun:
            steps.append(start(new.name, existing))
        return steps

    def _make(self, source: str, target: str, rate: int) -> str:
        independent = [] if rate == 0 else ["-autodelete"]
        return command(
            "mkfcmap", "-source", source, "-target", target, "-name", target, "-copyrate", str(rate),
            "-cleanrate", str(self.settings.integer("CLEANRATE")),
            "-grainsize", self.settings.text("GRAINSIZE"), *independent,
        )  # fmt: skip

    def copy(self, source: str, target: str) -> None:
        settle(
            self._terminal,
            self._facts,
            f"Volume {source} could not be copied to {target}",
            lambda: self._copy(source, target),
        )

    def _copy(self, source: str, target: str) -> bool:
        *volumes, mappings, section = self._terminal.ask(
            volumes_where(f"name={source}"),
            volumes_where(f"name={target}"),
            listing("lsvdiskhostmap", target),
            listing("lsfcmap", target),
        ).sections
        origin, found = (next(iter(read_volumes(each)), None) for each in volumes)
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
        if rows(mappings):
            raise ConflictError(f"{target} is in use: the box does not copy to it.")
        is_restore = is_snapshot_of(target, source)
        existing = read_map(section)
        if existing is not None and (existing.source, existing.target) != (source, target):
            if not is_restore or existing.target != target:
                raise ConflictError(
                    f"{self.name} has a FlashCopy map {target} from {existing.source} to {existing.target}."
                )
            self.finish(existing, self.settings.seconds("COPY_TIMEOUT"))
            existing = None
        elif existing is not None and not existing.has_not_begun:
            if not is_restore and not existing.is_independent:
                return True
            # Somebody may have written to the target since that copy began: it is of an earlier moment.
            self.finish(existing, self.settings.seconds("COPY_TIMEOUT"))
            existing = None
        steps = []
        if existing is None:
            # a saved disk outlives its VM, so that it may not depend on it
            steps.append(self._make(source, target, self.settings.integer("COPYRATE") or _COPY_RATE))
        steps.append(start(target, existing, is_restore=is_restore))
        self._terminal.change(*steps)
        self.wait_for_start(NewVolume(target, source=source), None)
        return True

    def finish(self, existing: FlashCopyMap, wait: float) -> None:
        """Let a copy become complete and its map go, so that the target depends on nothing.

        It is never stopped: what depends on its target would be lost with it.

        Raises: BusyError after ``wait`` seconds.
        """
        deadline, interval = Deadline(wait), 0.1
        found: FlashCopyMap | None = existing
        while found is not None and found.target == existing.target:
            if found.is_independent or found.has_not_begun:
                self._terminal.change(*finish(found))
                return
            if found.copy_rate < _URGENT_RATE and not found.is_stopping:
                rate = ("-copyrate", str(_URGENT_RATE), "-autodelete", "on")
                self._terminal.change(command("chfcmap", *rate, found.name))
            if deadline.is_over:
                raise BusyError(
                    f"Volume {found.target} is still being copied from {found.source} ({found.progress} %).",
                    "Run the action again when that copy is complete.",
                )
            rest(self._terminal, min(interval, deadline.left))
            interval = min(interval * 1.5, 5.0)
            found = self.named(existing.name)

    def wait_for_start(self, new: NewVolume, maps: Sequence[FlashCopyMap] | None) -> None:
        """Wait until a copy has begun: before that its target is offline.

        ``maps`` is what was read a moment ago, None for nothing.

        Raises: BusyError.
        """
        if new.source is None:
            return
        deadline, interval = Deadline(self._terminal.timeout), 0.1
        found = self.named(new.name) if maps is None else _of_target(maps, new.name)
        while found is not None and found.is_starting:
            if deadline.is_over:
                raise BusyError(
                    f"The copy from {new.source} to {new.name} has not begun after {deadline.seconds:.0f} s.",
                    "See its FlashCopy map on the box, then run the action again.",
                )
            rest(self._terminal, min(interval, deadline.left))
            interval = min(interval * 1.5, 5.0)
            found = self.named(new.name)
        if found is not None and (found.status == "stopped" or found.is_stopping):
            raise BusyError(
                f"The copy from {new.source} to {new.name} was stopped by {self.name}.",
                "See its event log, then run the action again.",
            )

    def named(self, name: str) -> FlashCopyMap | None:
        (section,) = self._terminal.ask(listing("lsfcmap", name)).sections
        return read_map(section)

    def of(self, name: str) -> list[FlashCopyMap]:
        """Ask for a volume's FlashCopy maps; what bears one of their names by now may be another one."""
        (section,) = self._terminal.ask(listing("lsvdiskfcmappings", name)).sections
        names = [row.get("name") or row.get("fc_name", "") for row in rows(section)]
        return [each for each in self._named_each(names) if name in (each.source, each.target)]

    def _named_each(self, names: Sequence[str]) -> list[FlashCopyMap]:
        if not names:
            return []
        sections = self._terminal.ask(*(listing("lsfcmap", name) for name in names)).sections
        return [each for each in map(read_map, sections) if each is not None]


def _of_target(maps: Sequence[FlashCopyMap], target: str) -> FlashCopyMap | None:
    return next((each for each in maps if each.target == target), None)
