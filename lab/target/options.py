# SPDX-License-Identifier: Apache-2.0
"""How LVM's commands read their words: options, sizes, names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lab.target.volumes import EXTENT, LVMError

__all__ = [
    "MISUSE",
    "MISUSED",
    "Arguments",
    "Syntax",
    "check_full_name",
    "check_name",
    "extents_of",
    "misuse",
    "read_size",
    "spell_size",
]

MISUSE = 3
MISUSED = "Error during parsing of command line."
SECTOR = 512
LONGEST_NAME = 128
UNITS = {unit: 1024**power for power, unit in enumerate("bkmgtpe")}
UNITS["s"] = SECTOR

_COMMON_FLAGS = {"yes": "y", "quiet": "q", "verbose": "v", "test": "t", "nolocking": "", "noudevsync": ""}
_COMMON_VALUES = {"config": "", "devices": "", "autobackup": "A", "commandprofile": "", "profile": ""}
_GROUPABLE = frozenset({"addtag", "deltag", "options", "select", "verbose", "quiet", "force", "devices"})

_RESERVED_STARTS = ("pvmove", "snapshot")
_RESERVED_PARTS = tuple(
    f"_{word}"
    for word in (
        "cdata", "cmeta", "corig", "cpool", "cvol", "iorig", "mimage", "mlog", "pmspare", "rimage", "rmeta",
        "tdata", "tmeta", "vdata", "vorigin", "wcorig",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Arguments:
    """What was given: options by their long names, all their values in order; and the other words."""

    options: Mapping[str, list[str]] = field(default_factory=dict)
    words: Sequence[str] = ()

    def __contains__(self, name: str) -> bool:
        return name in self.options

    def get(self, name: str, default: str = "") -> str:
        return self.options[name][-1] if name in self.options else default

    def all(self, name: str) -> list[str]:
        return list(self.options.get(name, ()))

    def yes(self, name: str, default: bool) -> bool:
        """Read a y or n."""
        value = self.get(name, "y" if default else "n")
        if value not in ("y", "n"):
            raise LVMError(f"Invalid argument for --{name}: {value}", MISUSED, code=MISUSE)
        return value == "y"


@dataclass(frozen=True, slots=True)
class Syntax:
    """The options of one command; the values of the mappings are their short forms."""

    command: str
    flags: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)

    def parse(self, argv: Sequence[str]) -> Arguments:
        """Read words as GNU getopt does: options may stand anywhere, long ones may be shortened.

        Raises: LVMError for what LVM refuses.
        """
        found: dict[str, list[str]] = {}
        words: list[str] = []
        left = list(argv)
        while left:
            word = left.pop(0)
            if word == "--":
                words += left
                break
            if word.startswith("--"):
                name, equals, value = word[2:].partition("=")
                name = self._long(name, word)
                self._take(found, name, word, value if equals else None, left)
            elif word.startswith("-") and word != "-":
                self._short(found, word[1:], left)
            else:
                words.append(word)
        return Arguments(found, tuple(words))

    def _short(self, found: dict[str, list[str]], letters: str, left: list[str]) -> None:
        shorts = {short: name for name, short in {**self._flags, **self._values}.items() if short}
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter not in shorts:
                raise self._misuse(f"invalid option -- '{letter}'")
            name = shorts[letter]
            if name in self._values and letters:
                self._take(found, name, letter, letters, left)
                return
            self._take(found, name, letter, None, left)

    def _take(
        self, found: dict[str, list[str]], name: str, word: str, value: str | None, left: list[str]
    ) -> None:
        if name in self._flags:
            if value is not None:
                raise self._misuse(f"option '--{name}' doesn't allow an argument")
            value = ""
        elif value is None:
            if not left:
                long = word.startswith("--")
                need = f"option '{word}' requires" if long else "option requires"
                raise self._misuse(f"{need} an argument{'' if long else f' -- {word!r}'}")
            value = left.pop(0)
        if name in found and name not in _GROUPABLE:
            short = {**self._flags, **self._values}[name]
            label = f"-{short}/--{name}" if short else f"--{name}"
            raise LVMError(f"Option {label} may not be repeated.", MISUSED, code=MISUSE)
        found.setdefault(name, []).append(value)

    def _long(self, name: str, word: str) -> str:
        known = {**self._flags, **self._values}
        if name in known:
            return name
        meant = [each for each in known if each.startswith(name)]
        if not meant:
            raise self._misuse(f"unrecognized option '{word.partition('=')[0]}'")
        if len(meant) > 1:
            several = " ".join(f"'--{each}'" for each in meant)
            raise self._misuse(f"option '{word}' is ambiguous; possibilities: {several}")
        return meant[0]

    def _misuse(self, words: str) -> LVMError:
        return LVMError(f"{self.command}: {words}", MISUSED, code=MISUSE)

    @property
    def _flags(self) -> Mapping[str, str]:
        return {**_COMMON_FLAGS, **self.flags}

    @property
    def _values(self) -> Mapping[str, str]:
        return {**_COMMON_VALUES, **self.values}


def read_size(text: str, option: str) -> int:
    """Read a size in bytes; without a unit it is MiB.

    Raises: LVMError.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([bskmgtpeBSKMGTPE]?)(?:[iI]?[bB])?", text)
    if match is None:
        why = "Can't parse size argument." if text[:1].isdigit() else "Size requires number argument."
        why = "Size may not be relative/signed." if text[:1] in ("-", "+") else why
        raise LVMError(why, f"Invalid argument for --{option}: {text}", MISUSED, code=MISUSE)
    number, unit = match[1], match[2].lower() or "m"
    size = int(number) * UNITS[unit] if number.isdigit() else int(float(number) * UNITS[unit])
    if size % SECTOR:
        low = size // SECTOR * SECTOR
        raise LVMError(
            f"Size is not a multiple of 512. Try using {low} or {low + SECTOR}.",
            f"Invalid argument for --{option}: {text}",
            MISUSED,
            code=MISUSE,
        )
    return size


def extents_of(size: int) -> int:
    """Return the bytes of as many extents as hold ``size``."""
    return -(-size // EXTENT) * EXTENT


def check_name(name: str) -> None:
    """Refuse what LVM takes for no name of a new volume.

    Raises: LVMError.
    """
    for start in _RESERVED_STARTS:
        if name.startswith(start):
            raise misuse(f'Names starting "{start}" are reserved. Please choose a different LV name.')
    for part in _RESERVED_PARTS:
        if part in name:
            raise misuse(f'Names including "{part}" are reserved. Please choose a different LV name.')
    if not re.fullmatch(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,126}", name) or name in (".", ".."):
        raise misuse(f'Logical volume name "{name}" is invalid.')


def check_full_name(group: str, name: str) -> None:
    """Refuse a name that is too long together with its group's.

    Raises: LVMError.
    """
    length = len(group) + len(name) + 3
    if length > LONGEST_NAME:
        raise LVMError(
            f'Full LV name "{group}/{name}" is too long.',
            f'Internal error: LV name "{group}/{name}" length {length} is not supported.',
        )


def misuse(*lines: str) -> LVMError:
    """Make the error for words that are none of the command's."""
    return LVMError(*lines, "Run the command with --help for more information.", code=MISUSE)


def spell_size(size: int, units: str = "r", *, has_suffix: bool = True) -> str:
    """Spell bytes as a report or message of LVM does; ``h`` and ``r`` choose a unit that fits."""
    if not size:
        return "0 " if has_suffix else "0"
    if units.lower() in "hr":
        unit = next((each for each in "eptgm" if size >= UNITS[each]), "k")
        scaled = size / UNITS[unit]
        text = f"{scaled:.2f}"
        mark = "<" if units == "r" and float(text) > scaled else ""
        return f"{mark}{text}{unit if has_suffix else ''}"
    suffix = (units.upper() if units in "bs" else units) if has_suffix else ""
    if units.lower() in "bs":
        return f"{size // UNITS[units.lower()]}{suffix}"
    base = 1000 if units.isupper() else 1024
    scaled = size / base ** "bkmgtpe".index(units.lower())
    return f"{math.floor(scaled * 100 + 0.5) / 100:.2f}{suffix}"
