# SPDX-License-Identifier: Apache-2.0
"""OpenNebula templates: attributes with one value or a vector of values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree

__all__ = ["Template", "TemplateError", "Value", "parse"]

Value = str | dict[str, str]

_NAME = re.compile(r"\s*(?:#[^\n]*\n\s*)*([A-Za-z0-9_.\-/]+)[ \t]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_BARE = re.compile(r"[^\n\"\[\],]*")


class TemplateError(ValueError):
    """The text is no template."""


class Template:
    """Attributes by name, names in upper case; written out sorted by name, as oned does."""

    def __init__(self, values: Mapping[str, list[Value]] | None = None) -> None:
        self.values: dict[str, list[Value]] = {k: list(v) for k, v in (values or {}).items()}

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __iter__(self) -> Iterator[tuple[str, Value]]:
        for name in sorted(self.values):
            for value in self.values[name]:
                yield name, value

    def copy(self) -> Template:
        """Give an independent copy."""
        return Template(
            {name: [dict(v) if isinstance(v, dict) else v for v in vs] for name, vs in self.values.items()}
        )

    def get(self, name: str, default: str = "") -> str:
        """Give the single value of ``name``."""
        for value in self.values.get(name, ()):
            if isinstance(value, str):
                return value
        return default

    def vector(self, name: str) -> dict[str, str] | None:
        """Give the first vector called ``name``."""
        return next(iter(self.vectors(name)), None)

    def vectors(self, name: str) -> list[dict[str, str]]:
        """Give every vector called ``name``, in the order of the template."""
        return [value for value in self.values.get(name, ()) if isinstance(value, dict)]

    def set(self, name: str, value: Value) -> None:
        """Replace whatever ``name`` was."""
        self.values[name] = [value]

    def add(self, name: str, value: Value) -> None:
        """Add one more ``name``."""
        self.values.setdefault(name, []).append(value)

    def remove(self, name: str) -> list[Value]:
        """Take ``name`` out and give what it was."""
        return self.values.pop(name, [])

    def merge(self, other: Template) -> None:
        """Let every attribute of ``other`` replace the one here."""
        for name, values in other.copy().values.items():
            self.values[name] = values


def parse(text: str) -> Template:
    """Read a template written in OpenNebula's own syntax or as XML."""
    if text.lstrip().startswith("<"):
        return _parse_xml(text)
    template = Template()
    position = 0
    while text[position:].strip():
        position = _attribute(text, position, template)
    return template


def _attribute(text: str, position: int, template: Template) -> int:
    name = _NAME.match(text, position)
    if name is None:
        raise TemplateError(_syntax_error(text, position, position + 1, "VARIABLE"))
    position = name.end()
    if not text.startswith("=", position):
        other = re.compile(r"\S+").match(text, position)
        end = other.end() if other else position + 1
        raise TemplateError(_syntax_error(text, position, end, "EQUAL or EQUAL_EMPTY"))
    position = _skip(text, position + 1)
    key = name.group(1).upper()
    if text.startswith("[", position):
        vector, position = _vector(text, position + 1)
        template.add(key, vector)
        return position
    value, position = _single(text, position)
    template.add(key, value)
    return position


def _vector(text: str, position: int) -> tuple[dict[str, str], int]:
    vector: dict[str, str] = {}
    while True:
        name = _NAME.match(text, position)
        if name is None:
            raise TemplateError(_syntax_error(text, position, position + 1, "VARIABLE"))
        position = _skip(text, name.end())
        if not text.startswith("=", position):
            raise TemplateError(_syntax_error(text, position, position + 1, "EQUAL or EQUAL_EMPTY"))
        value, position = _single(text, _skip(text, position + 1))
        vector[name.group(1).upper()] = value
        position = _skip(text, position, newlines=True)
        if text.startswith("]", position):
            return vector, position + 1
        if not text.startswith(",", position):
            raise TemplateError(_syntax_error(text, position, position + 1, "COMMA or CBRACKET"))
        position = _skip(text, position + 1, newlines=True)


def _single(text: str, position: int) -> tuple[str, int]:
    quoted = _QUOTED.match(text, position)
    if quoted is not None:
        return re.sub(r'\\(["\\])', r"\1", quoted.group(1)), quoted.end()
    bare = _BARE.match(text, position)
    assert bare is not None  # the pattern matches the empty text too
    return bare.group().strip(), bare.end()


def _skip(text: str, position: int, newlines: bool = False) -> int:
    blanks = " \t\r\n" if newlines else " \t"
    while position < len(text) and text[position] in blanks:
        position += 1
    return position


def _syntax_error(text: str, start: int, end: int, expecting: str) -> str:
    line = text.count("\n", 0, start) + 1
    column = start - (text.rfind("\n", 0, start) + 1)
    last = column + end - start
    return (
        f"Parse error: syntax error, unexpected VARIABLE, expecting {expecting} at line {line}, "
        f"columns {column + 1}:{last + 1}"
    )


def _parse_xml(text: str) -> Template:
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise TemplateError(f"Parse error: {error}") from error
    template = Template()
    for element in root:
        if len(element):
            template.add(element.tag.upper(), {child.tag.upper(): child.text or "" for child in element})
        else:
            template.add(element.tag.upper(), element.text or "")
    return template
