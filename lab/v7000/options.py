# SPDX-License-Identifier: Apache-2.0
"""Options of a command: which there are, which take a value, and what is refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from lab.v7000.errors import CommandError

__all__ = ["Arguments", "Syntax"]

UNITS: dict[str, int] = {unit: 1024**power for power, unit in enumerate(("b", "kb", "mb", "gb", "tb", "pb"))}
MAX_NAME = 63


@dataclass(frozen=True, slots=True)
class Arguments:
    """A command line that was found to be well formed. Option names are without their dash."""

    values: Mapping[str, str]
    flags: frozenset[str]
    target: str | None

    def has(self, name: str) -> bool:
        return name in self.values or name in self.flags

    def require(self, *names: str) -> None:
        """Raise CMMVC5707E unless all options are there."""
        if not all(self.has(name) for name in names):
            raise CommandError("CMMVC5707E")

    def require_target(self, code: str = "CMMVC5701E") -> str:
        """Return the object that the command is about."""
        if self.target is None:
            raise CommandError(code)
        return self.target

    def exclude(self, *names: str) -> None:
        """Raise CMMVC5713E when more than one of these is there."""
        if sum(self.has(name) for name in names) > 1:
            raise CommandError("CMMVC5713E")

    def only_with(self, needed: str, *names: str) -> None:
        """Raise CMMVC5731E when one of ``names`` is there and ``needed`` is not."""
        for name in names:
            if self.has(name) and not self.has(needed):
                raise CommandError("CMMVC5731E", f"-{name}", f"-{needed}")

    def number(self, name: str, default: int, low: int, high: int) -> int:
        value = self.values.get(name)
        if value is None:
            return default
        if not (value.isascii() and value.removeprefix("-").isdigit()):
            raise CommandError("CMMVC5716E", f"-{name}")
        number = int(value)
        if not low <= number <= high:
            raise CommandError("CMMVC5742E", f"-{name}")
        return number

    def choice(self, name: str, default: str, allowed: Collection[str]) -> str:
        value = self.values.get(name, default)
        if value not in allowed and name in self.values:
            raise CommandError("CMMVC5742E", f"-{name}")
        return value

    def unit(self, default: str = "mb") -> int:
        unit = self.values.get("unit", default)
        if unit not in UNITS:
            raise CommandError("CMMVC5717E")
        return UNITS[unit]

    def size(self) -> int:
        """Return -size in bytes, at least one, rounded up to whole blocks of 512."""
        blocks: int = -(-self.number("size", 0, 1, 1 << 62) * self.unit() // 512)
        return blocks * 512

    def new_name(self, name: str = "name") -> str | None:
        """Return a name that is about to be given, checked against the naming rules."""
        value = self.values.get(name)
        if value is not None:
            check_new_name(value)
        return value


def check_new_name(value: str) -> None:
    if len(value) > MAX_NAME:
        raise CommandError("CMMVC5738E", value)
    if not is_name(value):
        raise CommandError("CMMVC6527E")


def is_name(value: str) -> bool:
    """Tell whether a word meets the naming rules (those that CMMVC6527E spells out, and 63 characters)."""
    if not value or len(value) > MAX_NAME or not value.isascii():
        return False
    first, last = value[0], value[-1]
    return (
        (first.isalpha() or first == "_") and last != " " and all(c.isalnum() or c in " .-_" for c in value)
    )


@dataclass(frozen=True, slots=True)
class Syntax:
    """The options of one command. ``target`` says whether it takes an object, which then comes last."""

    flags: frozenset[str] = frozenset()
    values: frozenset[str] = frozenset()
    target: bool = False
    since: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, flags: str = "", values: str = "", *, target: bool = False, **since: tuple[int, ...]
    ) -> Syntax:
        """Build from blank-separated names; ``since`` maps an option to the firmware that brought it."""
        return cls(frozenset(flags.split()), frozenset(values.split()), target, since)

    def parse(self, words: Sequence[str], firmware: tuple[int, ...]) -> Arguments:
        values: dict[str, str] = {}
        flags: set[str] = set()
        target: str | None = None
        rest = list(words)
        if not all(word.isascii() for word in rest):
            raise CommandError("CMMVC6017E")
        while rest:
            word = rest.pop(0)
            if not self._is_option(word):
                if rest or not self.target:
                    raise CommandError("CMMVC5709E", word if not rest else rest[0])
                target = word
                continue
            name = word[1:]
            if name not in self.flags | self.values or self.since.get(name, ()) > firmware:
                raise CommandError("CMMVC5709E", word)
            if name in values or name in flags:
                raise CommandError("CMMVC5737E", word)
            if name in self.flags:
                flags.add(name)
            elif not rest or (rest[0].startswith("-") and rest[0][1:] in self.flags | self.values):
                raise CommandError("CMMVC5708E", word)
            else:
                values[name] = rest.pop(0)
        return Arguments(values, frozenset(flags), target)

    @staticmethod
    def _is_option(word: str) -> bool:
        return len(word) > 1 and word[0] == "-"
