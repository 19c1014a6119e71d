# SPDX-License-Identifier: Apache-2.0
"""Time of a box: real, or moved by hand in tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "ManualClock", "RealClock"]


class Clock(Protocol):
    def now(self) -> float:
        """Seconds on a scale that never goes back."""
        ...

    def wait(self, seconds: float, interrupted: Callable[[], bool]) -> None:
        """Let ``seconds`` pass, less when ``interrupted`` becomes true."""
        ...


class RealClock:
    """The machine's own time."""

    def __init__(self) -> None:
        self._tick = threading.Event()

    def now(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float, interrupted: Callable[[], bool]) -> None:
        end = self.now() + seconds
        while (left := end - self.now()) > 0 and not interrupted():
            self._tick.wait(min(left, 0.05))


class ManualClock:
    """A clock that moves only when told to, or when somebody waits; ``waited`` sums the waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0.0
        self.waited = 0.0

    def now(self) -> float:
        with self._lock:
            return self._now

    def wait(self, seconds: float, interrupted: Callable[[], bool]) -> None:
        with self._lock:
            self._now += seconds
            self.waited += seconds

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds
