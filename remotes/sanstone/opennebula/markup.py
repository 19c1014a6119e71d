# SPDX-License-Identifier: Apache-2.0
"""Read the XML that oned writes: bounded, without document types and so without entities of their own."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from sanstone.errors import RequestError

__all__ = ["MAX_DOCUMENT", "Element"]

MAX_DOCUMENT = 16 * 1024 * 1024  # bytes; a VM with a hundred disks has less than a hundredth of it

_NUMBER = re.compile(r"-?[0-9]{1,15}")


class _Builder(ET.TreeBuilder):
    def doctype(self, *_unused: str | None) -> None:
        raise RequestError("The XML document declares a document type, which OpenNebula never does.")


class Element:
    """One element with what is asked of it most: texts, numbers, children. Absent and empty are the same.

    ``where`` names the element in errors.
    """

    __slots__ = ("_node", "where")

    def __init__(self, node: ET.Element, where: str) -> None:
        self._node = node
        self.where = where

    @classmethod
    def parse(cls, document: str | bytes, limit: int = MAX_DOCUMENT) -> Element:
        """Parse a whole document of at most ``limit`` bytes (characters for str).

        Raises: RequestError for anything but one well-formed document without a document type.
        """
        if len(document) > limit:
            raise RequestError(f"The XML document is larger than {limit // 1024} KiB.")
        parser = ET.XMLParser(target=_Builder(), encoding="utf-8")
        try:
            parser.feed(document)
            root = parser.close()
        except ET.ParseError as err:
            raise RequestError(f"The XML document is not well-formed: {err}.") from err
        except (ValueError, LookupError) as err:
            raise RequestError(f"The XML document's characters cannot be read: {err}.") from err
        return cls(root, root.tag)

    @property
    def tag(self) -> str:
        return self._node.tag

    @property
    def value(self) -> str:
        return self._node.text or ""

    @property
    def children(self) -> Iterator[Element]:
        for node in self._node:
            yield Element(node, f"{self.where}/{node.tag}")

    def child(self, tag: str) -> Element | None:
        node = self._node.find(tag)
        return None if node is None else Element(node, f"{self.where}/{tag}")

    def required(self, tag: str) -> Element:
        """Find the child ``tag``.

        Raises: RequestError when it is missing.
        """
        found = self.child(tag)
        if found is None:
            raise RequestError(f"The {self.where} document has no {tag} element.")
        return found

    def all(self, tag: str) -> Iterator[Element]:
        for node in self._node.findall(tag):
            yield Element(node, f"{self.where}/{tag}")

    def text(self, tag: str) -> str:
        """Read a child's text as it stands, entities decoded once by the parser."""
        return self._node.findtext(tag) or ""

    def number(self, tag: str) -> int | None:
        """Read a child as a whole number; -1 is oned's way of saying none.

        Raises: RequestError for text that is no number.
        """
        return _number(self.text(tag), f"{self.where}/{tag}")

    def numbers(self, *path: str) -> tuple[int, ...]:
        """Read all elements at ``path`` as numbers, for instance VMS/ID."""
        found = (_number(node.text or "", self.where) for node in self._node.findall("/".join(path)))
        return tuple(number for number in found if number is not None)

    def count(self, tag: str) -> int:
        """Read a number that is there and not negative.

        Raises: RequestError when it is missing or something else.
        """
        number = self.number(tag)
        if number is None:
            raise RequestError(f"The {self.where} document has no number in {tag}.")
        return number

    def flag(self, tag: str) -> bool | None:
        """Read YES, NO, 1 or 0 in any case; None for anything else."""
        return {"YES": True, "1": True, "NO": False, "0": False}.get(self.text(tag).strip().upper())

    def attributes(self) -> dict[str, str]:
        """Flatten a template: upper-case keys, the parts of a vector as ``KEY/PART``, the first of equals."""
        found: dict[str, str] = {}
        for node in self._node:
            key = node.tag.upper()
            if len(node):
                for part in node:
                    found.setdefault(f"{key}/{part.tag.upper()}", part.text or "")
            else:
                found.setdefault(key, node.text or "")
        return found


def _number(text: str, where: str) -> int | None:
    text = text.strip()
    if not text or text == "-1":
        return None
    if not _NUMBER.fullmatch(text):
        raise RequestError(f"{where} should be a number, and is {text[:40]!r}.")
    if (number := int(text)) < 0:
        raise RequestError(f"{where} is {number}; it cannot be negative.")
    return number
