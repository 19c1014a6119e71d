# SPDX-License-Identifier: Apache-2.0
"""What a value may look like: each kind reads a text, says in words what it allows, and spells a value.

``parse`` gets printable text on one line without blanks at its ends and raises ValueError for anything else
than it allows.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, field
from typing import ClassVar

__all__ = [
    "HOSTNAME",
    "Arguments",
    "Choice",
    "Duration",
    "Flag",
    "HostName",
    "Integer",
    "Kind",
    "Path",
    "Percent",
    "Text",
    "Value",
    "Words",
    "format_seconds",
    "text_of",
]

Value = bool | int | float | str | tuple[str, ...]

HOSTNAME = "$HOSTNAME"
MAX_LENGTH = 4096


def text_of(raw: str) -> str:
    """Take the blanks off both ends.

    Raises: ValueError for more than one line, unprintable characters, or a text too long to be meant.
    """
    text = raw.replace("\t", " ").strip(" ")
    if not text.isprintable() or len(text) > MAX_LENGTH:
        raise ValueError(raw)
    return text


class Kind:
    """What every kind offers; ``label`` names it to the wizard."""

    __slots__ = ()
    label: ClassVar[str]

    @property
    def allowed(self) -> str:
        """Say what is allowed, to follow "is not allowed:"."""
        raise NotImplementedError

    @property
    def unit(self) -> str:
        return ""

    def parse(self, text: str) -> Value:
        raise NotImplementedError

    def spell(self, value: Value) -> str:
        """Write a value in the one form that ``Settings.text`` gives."""
        return " ".join(value) if isinstance(value, tuple) else str(value)

    def limits(self) -> dict[str, object]:
        """List what a form needs to check a field by itself."""
        return {}


@dataclass(frozen=True, slots=True)
class Flag(Kind):
    """1 or 0; OpenNebula's YES and NO are understood too."""

    label: ClassVar[str] = "flag"
    _words: ClassVar[dict[str, bool]] = {"1": True, "0": False, "YES": True, "NO": False}

    @property
    def allowed(self) -> str:
        return "1 (yes) or 0 (no)"

    def parse(self, text: str) -> bool:
        if text.upper() not in self._words:
            raise ValueError(text)
        return self._words[text.upper()]

    def spell(self, value: Value) -> str:
        return "1" if value else "0"

    def limits(self) -> dict[str, object]:
        return {"choices": ["1", "0"]}


@dataclass(frozen=True, slots=True)
class Integer(Kind):
    """A whole number between two limits, or one of a few."""

    label: ClassVar[str] = "integer"
    minimum: int = 0
    maximum: int = 0
    choices: tuple[int, ...] = ()
    of: str = ""

    @property
    def allowed(self) -> str:
        if self.choices:
            return _one_of(tuple(map(str, self.choices)))
        return f"a whole number from {self.minimum} to {self.maximum}"

    @property
    def unit(self) -> str:
        return self.of

    def parse(self, text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise ValueError(text)
        number = int(text)
        is_there = number in self.choices if self.choices else self.minimum <= number <= self.maximum
        if not is_there:
            raise ValueError(text)
        return number

    def limits(self) -> dict[str, object]:
        if self.choices:
            return {"choices": [str(each) for each in self.choices]}
        return {"minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class Percent(Kind):
    """0 to 100, with or without the sign."""

    label: ClassVar[str] = "percent"

    @property
    def allowed(self) -> str:
        return "a whole number from 0 to 100 (%)"

    @property
    def unit(self) -> str:
        return "%"

    def parse(self, text: str) -> int:
        return Integer(0, 100).parse(text.removesuffix("%").rstrip(" "))

    def limits(self) -> dict[str, object]:
        return {"minimum": 0, "maximum": 100}


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of a few words, whatever their case."""

    label: ClassVar[str] = "choice"
    choices: tuple[str, ...]

    @property
    def allowed(self) -> str:
        return _one_of(self.choices)

    def parse(self, text: str) -> str:
        for choice in self.choices:
            if text.lower() == choice.lower():
                return choice
        raise ValueError(text)

    def limits(self) -> dict[str, object]:
        return {"choices": list(self.choices)}


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """What a regular expression matches; ``says`` is the expression in words."""

    label: ClassVar[str] = "text"
    pattern: str
    says: str

    @property
    def allowed(self) -> str:
        return self.says

    def parse(self, text: str) -> str:
        if not re.fullmatch(self.pattern, text):
            raise ValueError(text)
        return text

    def limits(self) -> dict[str, object]:
        return {"pattern": self.pattern}


@dataclass(frozen=True, slots=True)
class HostName(Kind):
    """A host name (RFC 1123, and underscores, which exist) or a numeric address."""

    label: ClassVar[str] = "host"
    _label: ClassVar[str] = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"

    @property
    def allowed(self) -> str:
        return "a host name or address"

    def parse(self, text: str) -> str:
        if re.fullmatch(r"[0-9.]+|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*", text):
            from ipaddress import ip_address

            return str(ip_address(text))
        labels = text.split(".")
        if len(text) > 253 or not all(re.fullmatch(self._label, label) for label in labels):
            raise ValueError(text)
        return text


@dataclass(frozen=True, slots=True)
class Path(Kind):
    """An absolute path, or one below the home directory; no blanks, for lists of paths are split there."""

    label: ClassVar[str] = "path"
    _pattern: ClassVar[str] = r"(/|~(?=/|$))[\w/.,:=@+%~-]*"

    @property
    def allowed(self) -> str:
        return "an absolute path without blanks"

    def parse(self, text: str) -> str:
        if not re.fullmatch(self._pattern, text) or ".." in text.split("/"):
            raise ValueError(text)
        return text


@dataclass(frozen=True, slots=True)
class Duration(Kind):
    """Seconds between two limits, or a number with s, min, h or d behind it."""

    label: ClassVar[str] = "duration"
    minimum: float
    maximum: float
    _seconds: ClassVar[dict[str, int]] = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86400}

    @property
    def allowed(self) -> str:
        least, most = format_seconds(self.minimum), format_seconds(self.maximum)
        return f"seconds, or a number with s, min, h or d, from {least} to {most}"

    @property
    def unit(self) -> str:
        return "s"

    def parse(self, text: str) -> float:
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) *(s|min|h|d|)", text)
        if match is None:
            raise ValueError(text)
        seconds = float(match[1]) * self._seconds[match[2]]
        if not self.minimum <= seconds <= self.maximum:
            raise ValueError(text)
        return seconds

    def spell(self, value: Value) -> str:
        return f"{value:g}"

    def limits(self) -> dict[str, object]:
        return {"minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class Words(Kind):
    """One or more items of another kind with blanks (or ``separator``) between them.

    ``$HOSTNAME`` stands for this machine where ``knows_hostname``.
    """

    label: ClassVar[str] = "words"
    item: Kind
    says: str
    separator: str = field(default="", kw_only=True)
    knows_hostname: bool = field(default=False, kw_only=True)

    @property
    def allowed(self) -> str:
        return self.says

    def parse(self, text: str) -> tuple[str, ...]:
        words = text.replace(self.separator, " ").split() if self.separator else text.split()
        if not words:
            raise ValueError(text)
        items: list[str] = []
        for word in words:
            if self.knows_hostname and word == HOSTNAME:
                items += _own_names()
            else:
                items.append(self.item.spell(self.item.parse(word)))
        return tuple(items)

    def limits(self) -> dict[str, object]:
        return {"item": {"kind": self.item.label, **self.item.limits()}}


@dataclass(frozen=True, slots=True)
class Arguments(Kind):
    """Options for a command line, quoted as in a shell where one holds a blank."""

    label: ClassVar[str] = "arguments"

    @property
    def allowed(self) -> str:
        return "options such as -o ConnectTimeout=5"

    def parse(self, text: str) -> tuple[str, ...]:
        words = tuple(shlex.split(text))
        if not words or not words[0].startswith("-"):
            raise ValueError(text)
        return words

    def spell(self, value: Value) -> str:
        assert isinstance(value, tuple)
        return shlex.join(value)


def format_seconds(seconds: float) -> str:
    """Write a time as an administrator would: 600 is 10 min."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"


def _own_names() -> list[str]:
    """List what this machine may be called: as the kernel has it, and without its domain."""
    name = os.uname().nodename
    return list(dict.fromkeys((name, name.split(".", 1)[0])))


def _one_of(words: tuple[str, ...]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else f"only {last}"
