# SPDX-License-Identifier: Apache-2.0
"""The CLI's error codes by name, and the errors of ours that they become."""

from __future__ import annotations

import re

from sanstone.errors import (
    ArrayError,
    BusyError,
    CapacityError,
    ConfigurationError,
    ConflictError,
    NotFoundError,
    SanstoneError,
)

OBJECT_ABSENT_ID = "CMMVC5753E"
OBJECT_ABSENT_NAME = "CMMVC5754E"
OBJECT_NAMED_ABSENT = "CMMVC5804E"
VOLUME_ABSENT = "CMMVC8957E"
NAME_TAKEN = "CMMVC6035E"
VOLUME_IN_USE = "CMMVC5840E"
NOT_MAPPED = "CMMVC5842E"
MAPPED_TO_HOST = "CMMVC5878E"
LUN_TAKEN = "CMMVC5879E"
MAPPED_TO_OTHER = "CMMVC6071E"
MAPPED_OTHER_LUN = "CMMVC9375E"
EXPAND_IN_FLASHCOPY = "CMMVC5837E"
NO_EXTENTS_EXPAND = "CMMVC5860E"
NO_EXTENTS_CREATE = "CMMVC8710E"
MAP_WRONG_STATE = "CMMVC5903E"
MAP_ALREADY_COPYING = "CMMVC5907E"
MAP_ALREADY_STOPPED = "CMMVC5912E"
MAP_EXISTS = "CMMVC6466E"
SIZES_DIFFER = "CMMVC5924E"
FORMATTING = "CMMVC8587E"
TOO_MANY_SESSIONS = "CMMVC7017E"
FORCE_MISSING = "CMMVC6045E"
LICENCE_WARNING = "CMMVC6372W"
NOT_STABLE = "CMMVC5786E"

ABSENT = frozenset({OBJECT_ABSENT_ID, OBJECT_ABSENT_NAME, OBJECT_NAMED_ABSENT, VOLUME_ABSENT})
NO_EXTENTS = frozenset({NO_EXTENTS_CREATE, NO_EXTENTS_EXPAND})
UNKNOWN_COMMAND = frozenset({"CMMVC7205E", "CMMVC5987E"})

_CODE = re.compile(r"\b(CMMVC\d{4}[EWI])\b[ :]*(.*)")

_FAMILIES: dict[str, tuple[type[SanstoneError], str]] = {
    **dict.fromkeys(ABSENT, (NotFoundError, "Look at the box: an object that was named is not there.")),
    NAME_TAKEN: (ConflictError, "Something on the box has that name already."),
    VOLUME_IN_USE: (ConflictError, "See its host mappings and FlashCopy maps on the box."),
    MAPPED_TO_HOST: (ConflictError, "Run the action again."),
    LUN_TAKEN: (ConflictError, "Run the action again."),
    MAPPED_TO_OTHER: (ConflictError, "Detach it from the other host first."),
    **dict.fromkeys(NO_EXTENTS, (CapacityError, "Free space in the pool or add storage to it.")),
    MAP_WRONG_STATE: (BusyError, "Wait for the FlashCopy map to settle, then run the action again."),
    FORMATTING: (BusyError, "Wait until the box has formatted the volume, then run the action again."),
    NOT_STABLE: (BusyError, "Run the action again when the box is stable."),
    TOO_MANY_SESSIONS: (BusyError, "Close other logins on the box, or lower ARRAY_SESSIONS."),
    "CMMVC5709E": (ConfigurationError, "The box's firmware does not know an option that was used."),
    "CMMVC5738E": (ConfigurationError, "A name is longer than the box allows."),
    "CMMVC6527E": (ConfigurationError, "A name has characters that the box does not allow."),
}


class RefusedError(Exception):
    """The box refused a command line: its code, its words, the line, how many objects it had made."""

    def __init__(self, box: str, code: str, text: str, line: str, *, made: int = 0) -> None:
        super().__init__(f"{code} {text}")
        self.box = box
        self.code = code
        self.text = text
        self.line = line
        self.made = made

    @property
    def is_warning(self) -> bool:
        """The work was done all the same."""
        return self.code.endswith("W")

    def as_error(self, what: str) -> SanstoneError:
        """Say what failed (``what``, a whole clause) in terms of the family the code belongs to."""
        family, hint = _FAMILIES.get(self.code, (ArrayError, "See the box's event log."))
        said = f"{self.code} {self.text}".strip()
        return family(f"{what}: {self.box} says {said}", hint, details=self.line)


def find_code(text: str) -> tuple[str, str] | None:
    """Find the first error code of an answer, with its words."""
    match = _CODE.search(text)
    return (match.group(1), match.group(2).strip()) if match else None
