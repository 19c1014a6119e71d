# SPDX-License-Identifier: Apache-2.0
"""What the demonstration shows while it runs: steps with their times, progress, a table."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

__all__ = ["Screen", "size"]

_TICK = 0.2


def size(count: float) -> str:
    """Spell bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


class Screen:
    """Lines for a terminal, or plainer ones for a file."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._is_terminal = self._out.isatty()
        self._lock = threading.Lock()
        self._live = ""

    def heading(self, text: str) -> None:
        self._print(f"\n{self._bold(text)}")

    def line(self, text: str = "") -> None:
        """Print a line of detail below the present step."""
        self._print(f"      {text}" if text else "")

    @contextmanager
    def step(self, text: str, progress: Callable[[], str] | None = None) -> Iterator[None]:
        """Show that something runs, how far it is, and how long it took."""
        started = time.monotonic()
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(text, progress, done, started), daemon=True)
        if self._is_terminal:
            watcher.start()
        try:
            yield
        except BaseException:
            self._stop(watcher, done)
            self._print(f"  {self._colour('✗', 31)}  {text}  ({time.monotonic() - started:.1f} s)")
            raise
        self._stop(watcher, done)
        seconds = time.monotonic() - started
        self._print(f"  {self._colour('✓', 32)}  {text}  {self._colour(f'{seconds:.1f} s', 2)}")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print columns, all but the first to the right."""
        widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

        def spell(row: Sequence[str]) -> str:
            cells = [
                cell.ljust(width) if not column else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            return "  " + "   ".join(cells)

        self._print(self._bold(spell(head)))
        self._print("  " + "─" * (sum(widths) + 3 * (len(widths) - 1)))
        for row in rows:
            self._print(spell(row))

    def _watch(
        self, text: str, progress: Callable[[], str] | None, done: threading.Event, started: float
    ) -> None:
        turn = 0
        while not done.wait(_TICK):
            turn += 1
            more = f"  {progress()}" if progress else ""
            line = f"  {'⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏'[turn % 10]}  {text}{more}  {time.monotonic() - started:.0f} s"
            with self._lock:
                self._live = line[: shutil.get_terminal_size().columns - 1]
                self._out.write(f"\r\x1b[K{self._live}")
                self._out.flush()

    def _stop(self, watcher: threading.Thread, done: threading.Event) -> None:
        done.set()
        if watcher.is_alive():
            watcher.join()
        with self._lock:
            self._live = ""

    def _print(self, text: str) -> None:
        with self._lock:
            clear = "\r\x1b[K" if self._is_terminal else ""
            self._out.write(f"{clear}{text}\n{self._live}")
            self._out.flush()

    def _bold(self, text: str) -> str:
        return self._colour(text, 1)

    def _colour(self, text: str, code: int) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._is_terminal else text
