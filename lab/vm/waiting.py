# SPDX-License-Identifier: Apache-2.0
"""Wait for the thing itself, with a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from lab.vm.errors import VMError

__all__ = ["until"]

T = TypeVar("T")


def until(look: Callable[[], T], seconds: float, what: str, *, longest: float = 0.5) -> T:
    """Look again and again, at growing intervals, until ``look`` returns something true; return that.

    Raises: VMError naming ``what``.
    """
    end = time.monotonic() + seconds
    pause, nothing = 0.01, threading.Event()
    while not (seen := look()):
        if time.monotonic() > end:
            raise VMError(f"{what} did not come about within {seconds:.0f} s.")
        nothing.wait(pause)
        pause = min(pause * 1.5, longest)
    return seen
