# SPDX-License-Identifier: Apache-2.0
"""OpenNebula's template form: NAME = value, NAME = "value", NAME = [ A = "b", C = "d" ].

The rules are those of oned's own scanner (src/parsers/template_parser.l, 7.4): an unquoted value ends at a
blank and holds none of = # , [ ]; a quoted one may run over lines, with ``\\"`` for a quotation mark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sanstone.errors import RequestError

__all__ = ["TemplateAttribute", "read_template"]

_SPACE = re.compile(r"(?:[ \t]*#[^\n]*|[ \t\n]+)*")
_NAME = re.compile(r"[A-Za-z0-9_]+")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
_QUOTED = re.compile(r'"((?:\\"|[^"])*)"')
_BARE = re.compile(r"[^=#\s,\[\]]+")
_OPEN = re.compile(r"\[[ \t\n]*")
_COMMA = re.compile(r"[ \t\n]*,[ \t\n]*")
_CLOSE = re.compile(r"[ \t\n]*\]")


@dataclass(frozen=True, slots=True)
class TemplateAttribute:
    """One attribute, its name in upper case, with the line on which it begins."""

    name: str
    value: str | Mapping[str, str]
    line: int


def read_template(text: str) -> list[TemplateAttribute]:
    """Read a template in the order of its lines.

    Raises: RequestError, with the line, for what oned would refuse.
    """
    scanner = _Scanner(text.replace("\r\n", "\n"))
    found = []
    while scanner.skip_to_next():
        line = scanner.line
        name = scanner.name()
        found.append(TemplateAttribute(name, scanner.value(name), line))
    return found


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    @property
    def line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1

    def skip_to_next(self) -> bool:
        self._take(_SPACE)
        return self._at < len(self._text)

    def name(self) -> str:
        name = self._take(_NAME)
        if name is None or self._take(_EQUALS) is None:
            if name is None and self._text.startswith("<", self._at):
                raise self._error("this is XML", "Write NAME = value lines.")
            what = f"{name} is not followed by =" if name else f"{self._here()} stands where a name belongs"
            raise self._error(what, "A value with a blank in it needs quotation marks.")
        return name.upper()

    def value(self, name: str) -> str | Mapping[str, str]:
        if self._at >= len(self._text) or self._text[self._at] == "\n":
            return ""
        return self._vector(name) if self._take(_OPEN) is not None else self._single(name)

    def _single(self, name: str) -> str:
        if quoted := _QUOTED.match(self._text, self._at):
            self._at = quoted.end()
            return quoted[1].replace('\\"', '"')
        if self._text.startswith('"', self._at):
            raise self._error(f"the quotation mark of {name} is never closed")
        bare = self._take(_BARE)
        if bare is None:
            raise self._error(
                f"{name} has a value that begins with {self._here()}", "Put the value in quotation marks."
            )
        return bare

    def _vector(self, name: str) -> Mapping[str, str]:
        parts: dict[str, str] = {}
        if self._take(_CLOSE) is not None:
            return parts
        while True:
            part = self.name()
            parts[part] = self._single(f"{name}/{part}")
            if self._take(_CLOSE) is not None:
                return parts
            if self._take(_COMMA) is None:
                self._take(_SPACE)
                raise self._error(f"in {name} a comma or ] is missing before {self._here()}")

    def _here(self) -> str:
        return repr(self._text[self._at]) if self._at < len(self._text) else "the end"

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        match = pattern.match(self._text, self._at)
        if match is None:
            return None
        self._at = match.end()
        return match[0]

    def _error(self, what: str, hint: str = "") -> RequestError:
        return RequestError(f"Line {self.line}: {what}.", hint)
