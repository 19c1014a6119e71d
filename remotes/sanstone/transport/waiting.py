# SPDX-License-Identifier: Apache-2.0
"""Wait for the thing itself, with a deadline: the only place of the library that pauses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from sanstone.errors import DeadlineError

__all__ = ["Deadline", "pause", "wait_until"]

T = TypeVar("T")


class Deadline:
    """A point in time, ``seconds`` from now, that is handed down instead of time-outs that add up."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    @property
    def is_over(self) -> bool:
        return self.left <= 0.0


def pause(seconds: float) -> None:
    """Let ``seconds`` pass between two looks at something."""
    threading.Event().wait(seconds)


def wait_until(
    look: Callable[[], T | None],
    deadline: Deadline,
    what: str,
    *,
    first: float = 0.02,
    longest: float = 1.0,
) -> T:
    """Look again and again, at growing intervals, until ``look`` returns something; return that.

    Raises: DeadlineError naming ``what``.
    """
    interval = first
    while (seen := look()) is None:
        if deadline.is_over:
            raise DeadlineError(f"{what} did not come about within {deadline.seconds:.0f} s.")
        pause(min(interval, deadline.left))
        interval = min(interval * 1.5, longest)
    return seen
