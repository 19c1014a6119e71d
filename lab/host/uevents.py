# SPDX-License-Identifier: Apache-2.0
"""Events that the kernel sends and udev handles, one after another, a moment later."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Uevents"]

log = logging.getLogger(__name__)

Handler = Callable[[str, str], None]


class Uevents:
    """A queue with one worker. Handlers get (action, device name)."""

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.handlers: list[Handler] = []
        self._queue: deque[tuple[float, str, str]] = deque()
        self._is_busy = False
        self._is_stopping = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._is_stopping = False
        self._thread = threading.Thread(target=self._work, name="lab-host-udev", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._is_stopping = True
            self._queue.clear()
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(10)
            self._thread = None

    def send(self, action: str, name: str) -> None:
        with self._changed:
            if not self._is_stopping:
                self._queue.append((time.monotonic() + self.latency, action, name))
                self._changed.notify_all()

    def settle(self, timeout: float) -> bool:
        """Wait until no event is left. Returns whether that came about in time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._is_stopping or not (self._queue or self._is_busy), timeout
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_stopping or bool(self._queue))
                if self._is_stopping:
                    return
                due, action, name = self._queue[0]
                if self._changed.wait_for(lambda: self._is_stopping, max(0.0, due - time.monotonic())):
                    return
                self._queue.popleft()
                self._is_busy = True
            try:
                for handle in self.handlers:
                    handle(action, name)
            except Exception:
                log.exception("event %s of %s", action, name)
            finally:
                with self._changed:
                    self._is_busy = False
                    self._changed.notify_all()
