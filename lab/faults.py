# SPDX-License-Identifier: Apache-2.0
"""Things that go wrong on purpose, and the diary of all that was asked."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["Command", "Fault", "Faults", "Journal", "Line"]

SECRET_OPTIONS = re.compile(r"((?:-chapsecret|--password)[=\s]\s*)(\"[^\"]*\"|'[^']*'|\S+)")


@dataclass(slots=True)
class Fault:
    """What happens to the next ``times`` commands that match (None: to all).

    ``hang`` seconds come first. Then one of: ``drop`` the connection ``before`` or ``after`` the command
    was done; refuse it with ``code`` (one ending in W: the work is done all the same); end it with ``exit``,
    if ``is_done`` only after its work.
    """

    pattern: re.Pattern[str]
    times: int | None
    code: str | None = None
    drop: str | None = None
    hang: float = 0.0
    exit: int | None = None
    skip: int = 0
    is_done: bool = False
    hits: int = 0


class Faults:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(
        self,
        pattern: str,
        *,
        times: int | None = 1,
        code: str | None = None,
        drop: str | None = None,
        hang: float = 0.0,
        exit: int | None = None,
        skip: int = 0,
        is_done: bool = False,
    ) -> Fault:
        """Add a fault for single commands that the regular expression finds, after ``skip`` of them."""
        if drop not in (None, "before", "after"):
            raise ValueError(f"drop is 'before' or 'after', not {drop!r}")
        fault = Fault(re.compile(pattern), times, code, drop, hang, exit, skip, is_done)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def take(self, command: str) -> Fault | None:
        """Return the first fault that is due for this command and count it."""
        with self._lock:
            for fault in self._faults:
                if not fault.pattern.search(command):
                    continue
                if fault.skip:
                    fault.skip -= 1
                elif fault.times is None or fault.hits < fault.times:
                    fault.hits += 1
                    return fault
        return None


@dataclass(frozen=True, slots=True)
class Line:
    """One command line as a client sent it. ``connection`` is 0 when it did not come over SSH."""

    number: int
    connection: int
    user: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a line, how it ended and how many seconds it took; ``dropped``: nobody saw the end."""

    line: int
    text: str
    status: int
    code: str | None
    seconds: float
    dropped: bool = False


@dataclass(slots=True)
class Journal:
    """Everything that was asked, oldest first; optionally also one JSON object per line in ``path``."""

    path: Path | None = None
    now: Callable[[], float] = time.monotonic
    connections: int = 0
    lines: list[Line] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add_connection(self) -> None:
        with self._lock:
            self.connections += 1
            self._write("connection", {"number": self.connections})

    def add_line(self, connection: int, user: str, text: str) -> int:
        with self._lock:
            line = Line(len(self.lines) + 1, connection, user, hide(text))
            self.lines.append(line)
            self._write("line", asdict(line))
            return line.number

    def add_command(self, command: Command) -> None:
        with self._lock:
            self.commands.append(command)
            self._write("command", asdict(command))

    def clear(self) -> None:
        """Forget what is in memory; a file stays as it is."""
        with self._lock:
            self.connections = 0
            self.lines.clear()
            self.commands.clear()

    def _write(self, kind: str, entry: dict[str, object]) -> None:
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"at": round(self.now(), 6), "kind": kind, **entry}) + "\n")


def hide(text: str) -> str:
    """Take secrets out of a command line."""
    return SECRET_OPTIONS.sub(r"\1***", text)
