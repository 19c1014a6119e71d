# SPDX-License-Identifier: Apache-2.0
"""Bring about a state on a box that others change as well, and whose answer may be lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from sanstone.arrays.v7000 import codes
from sanstone.arrays.v7000.codes import RefusedError
from sanstone.arrays.v7000.terminal import Terminal
from sanstone.errors import BusyError, CapacityError, ConnectError, UnreachableError
from sanstone.transport.facts import Facts
from sanstone.transport.waiting import Deadline, pause

__all__ = ["rest", "settle"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_STALE = 4  # rounds of "read, then change" before a state that keeps moving is an error
_LONG = 1.0  # a pause, in seconds, in which a session is better left to others
_EXCUSED = {
    **dict.fromkeys(codes.ABSENT, 1),
    codes.NAME_TAKEN: 1,
    codes.VOLUME_IN_USE: 1,
    codes.MAPPED_TO_HOST: 1,
    # each action that maps to the same host at the same time may take it
    codes.LUN_TAKEN: 8,
    codes.MAP_WRONG_STATE: 1,
    codes.MAP_ALREADY_COPYING: 1,
    codes.MAP_ALREADY_STOPPED: 1,
    codes.MAP_EXISTS: 1,
    codes.FORCE_MISSING: 1,
}
"""How often a state may have moved between reading and changing it."""
_PASSING = frozenset({codes.MAP_WRONG_STATE, codes.FORMATTING})


def rest(terminal: Terminal, seconds: float) -> None:
    """Let time pass between two looks."""
    if seconds >= _LONG:
        terminal.session.close()
    pause(seconds)


def settle(
    terminal: Terminal,
    facts: Facts,
    what: str,
    attempt: Callable[[], T | None],
    deadline: Deadline | None = None,
) -> T:
    """Repeat ``attempt`` until the state it brings about is there (it returns something).

    A refusal means that the state was not as read; a broken session, that it is not known: both are
    answered by reading again, once each, and only then by an error. A state that passes by itself is
    waited for until ``deadline``; a warning says that the thing was done. ``what`` names a failure.
    """
    deadline = deadline or Deadline(terminal.timeout)
    excused: dict[str, int] = {}
    rounds = 0
    while rounds < _STALE:
        try:
            settled = attempt()
        except RefusedError as refused:
            count = excused[refused.code] = excused.get(refused.code, 0) + 1
            _excuse(terminal.name, what, refused, count, deadline)
            if refused.code in codes.ABSENT:
                facts.forget()
            if not refused.is_warning:
                rest(terminal, min(0.2 * 1.5**count, 5.0))
        except UnreachableError:
            raise
        except ConnectError:
            if "connection" in excused:
                raise
            excused["connection"] = 1
        else:
            if settled is not None:
                return settled
            rounds += 1
    raise BusyError(f"{what}: its state on {terminal.name} keeps changing.", "Run the action again.")


def _excuse(box: str, what: str, refused: RefusedError, count: int, deadline: Deadline) -> None:
    """Let a refusal pass, or raise what it means."""
    if refused.is_warning:
        log.warning("%s: %s", box, refused)
    if refused.code in _PASSING and not deadline.is_over:
        return
    if count <= _EXCUSED.get(refused.code, int(refused.is_warning)):
        return
    if refused.code in codes.NO_EXTENTS:
        raise CapacityError(
            f"{what}: the pool on {box} is full ({refused.code}).",
            "Free space in the pool or add storage to it.",
            details=refused.line,
        ) from refused
    raise refused.as_error(what) from refused
