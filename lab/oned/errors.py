# SPDX-License-Identifier: Apache-2.0
"""What goes wrong: refused requests, and how a driver's stderr becomes the text that a person reads."""

from __future__ import annotations

import re
from enum import IntEnum

__all__ = ["Code", "DriverError", "RefusedError", "driver_error_text", "vm_error_text"]

_TAGGED = re.compile(r"(?:ERROR|INFO|WARN|DEBUG):\s")
_VM_ERROR_LENGTH = 100


class Code(IntEnum):
    """Error codes of the XML-RPC interface."""

    AUTHENTICATION = 256
    AUTHORIZATION = 512
    NO_EXISTS = 1024
    ACTION = 2048
    INTERNAL = 8192


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, code: Code, text: str, object_id: int = -1) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.object_id = object_id


class DriverError(Exception):
    """A driver or hypervisor action that failed, with the text for the object's ERROR attribute."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


def driver_error_text(stderr: str, version: tuple[int, int]) -> str:
    """Form the error text that oned of ``version`` keeps of a driver's stderr.

    From 7.0 on tagged lines are only logged and the others glued together; before, all of it is kept and
    ends of lines become blanks.
    """
    if version < (7, 0):
        return " ".join(stderr.splitlines()).strip()
    return "".join(line.strip() for line in stderr.splitlines() if not _TAGGED.match(line.strip() + " "))


def vm_error_text(prefix: str, text: str) -> str | None:
    """Form the value of a VM's ERROR attribute without its date, None when there is nothing to say."""
    if not text:
        return None
    message = f"{prefix}: {text}"
    if len(message) > _VM_ERROR_LENGTH:
        return f"{message[:_VM_ERROR_LENGTH]}... see more details in VM log"
    return message
