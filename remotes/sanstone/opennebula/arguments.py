# SPDX-License-Identifier: Apache-2.0
"""The arguments and the standard input of one call of a driver, each checked as it is taken."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any

from sanstone.errors import RequestError
from sanstone.opennebula.documents import VmDocument, read_vm
from sanstone.opennebula.markup import MAX_DOCUMENT, Element
from sanstone.opennebula.paths import DiskPath

__all__ = ["DRIVER_NAME", "MAX_SOURCE", "UNPRINTABLE", "Call"]

MAX_ARGUMENTS = 1024  # context passes one for each file
MAX_ARGUMENT = 128 * 1024  # the kernel's limit for one word
MAX_SOURCE = 8192

DRIVER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BLANK = re.compile(r"\s")


class Call:
    """Arguments and standard input of one call, taken one by one, each checked as it is taken."""

    def __init__(self, kind: str, driver: str, action: str, argv: Sequence[str], stdin: bytes) -> None:
        self.name = f"{kind}/{driver}/{action}"
        self.driver = driver
        self.action, _, suffix = action.partition(".")
        self.system_tm = suffix or None
        if len(argv) > MAX_ARGUMENTS:
            raise RequestError(f"{self.name}: {len(argv)} arguments are too many.")
        if any(len(word) > MAX_ARGUMENT for word in argv):
            raise RequestError(f"{self.name}: an argument is longer than {MAX_ARGUMENT} characters.")
        self.argv = argv
        self.stdin = stdin
        self._next = 0

    def expect(self, *counts: int) -> None:
        if len(self.argv) not in counts:
            wanted = " or ".join(str(count) for count in counts)
            raise RequestError(f"{self.name} takes {wanted} arguments, not {len(self.argv)}.")

    def word(self, what: str) -> str:
        """Take the next argument: printable, not empty, without a blank."""
        text = self.argv[self._next]
        self._next += 1
        if not text:
            raise RequestError(f"{self.name}: the argument {what} is empty.")
        if UNPRINTABLE.search(text) or _BLANK.search(text):
            raise RequestError(f"{self.name}: {what} {text[:60]!r} holds a blank or control character.")
        return text

    def number(self, what: str, least: int = 0) -> int:
        text = self.word(what)
        if not re.fullmatch(r"[0-9]{1,15}", text) or int(text) < least:
            raise RequestError(f"{self.name}: {what} should be a number from {least}, not {text[:40]!r}.")
        return int(text)

    def number_or_none(self, what: str, none: str = "-1") -> int | None:
        if self.argv[self._next] == none:
            self._next += 1
            return None
        return self.number(what)

    def numbers(self, what: str) -> tuple[int, ...]:
        words = self.word(what).split(":")
        if not all(re.fullmatch(r"[0-9]{1,9}", word) for word in words):
            raise RequestError(f"{self.name}: {what} should be numbers with colons between.")
        return tuple(int(word) for word in words)

    def place(self, what: str) -> DiskPath:
        try:
            return DiskPath.parse(self.word(what))
        except RequestError as err:
            raise RequestError(f"{self.name}: {what}: {err.message}") from err

    def source(self) -> str:
        text = self.word("SOURCE")
        if len(text) > MAX_SOURCE:
            raise RequestError(f"{self.name}: SOURCE is longer than {MAX_SOURCE} characters.")
        return text

    def transfer(self, **places: DiskPath) -> dict[str, Any]:
        """Take what all transfer actions end with, and hold the VM's number against that in the paths."""
        vm_id, datastore_id = self.number("the VM's id"), self.number("the datastore's id")
        self.hold(vm_id, *places.values())
        return {**self.common(), "vm_id": vm_id, "datastore_id": datastore_id, **places}

    def common(self) -> dict[str, Any]:
        return {"driver": self.driver, "system_tm": self.system_tm}

    def hold(self, vm_id: int, *places: DiskPath) -> None:
        for place in places:
            if place.vm_id not in (None, vm_id):
                raise RequestError(f"{self.name}: {place.path} does not belong to VM {vm_id}.")

    def document(self, *roots: str, text: str | None = None) -> Element:
        """Read the XML of standard input or ``text``, base64 or not; its root has to be one of ``roots``."""
        raw = self.stdin if text is None else text.encode("utf-8", "backslashreplace")
        if len(raw) > 2 * MAX_DOCUMENT:
            raise RequestError(f"{self.name}: standard input is larger than {2 * MAX_DOCUMENT} bytes.")
        raw = raw.strip()
        if not raw:
            raise RequestError(f"{self.name}: there should be a {roots[0]} document on standard input.")
        if not raw.startswith(b"<"):
            try:
                raw = base64.b64decode(b"".join(raw.split()), validate=True)
            except (binascii.Error, ValueError) as err:
                raise RequestError(f"{self.name}: standard input is neither XML nor base64.") from err
        try:
            element = Element.parse(raw)
        except RequestError as err:
            raise RequestError(f"{self.name}: {err.message}") from err
        if element.tag not in roots:
            raise RequestError(f"{self.name}: the document is {element.tag[:40]}, not {roots[0]}.")
        return element

    def vm(self) -> VmDocument:
        return read_vm(self.document("VM"))
