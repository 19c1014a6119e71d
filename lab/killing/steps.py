# SPDX-License-Identifier: Apache-2.0
"""The remote steps of a driver action: written down, and the point at which the process is killed.

This runs in the driver's own process, around the two places where something leaves the front-end: a command
line for an array, and an ssh to a host.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sanstone.transport import command, ssh

__all__ = ["Kill", "Step", "Watch", "order", "read_steps", "watch"]

T = TypeVar("T")

_IDLE = frozenset({"", "set -e", "echo"})


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill a call of ``action`` (``tm/ln``) at its remote step ``at`` (from 1), ``before`` or ``after``.

    ``after`` is after the other side has done it and before the driver knows. ``skip``: how many calls of
    the action go by before.
    """

    action: str
    at: int
    when: str
    skip: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """A remote step that call ``call`` (its process) of ``action`` has reached; ``is_killed``: no further."""

    call: int
    action: str
    number: int
    name: str
    when: str
    is_killed: bool


class Watch:
    """Counts the steps of one call. ``folder`` holds the order to kill and the list of steps."""

    def __init__(self, folder: Path, action: str) -> None:
        self._list = folder / "steps"
        self._action = action
        self._count = 0
        self._kill = take(folder / "kill", action)

    def around(self, name: str, work: Callable[[], T]) -> T:
        """Do ``work``, which is one remote step, unless the process shall not live as long."""
        self._count += 1
        self._reach(name, "before")
        try:
            return work()
        finally:
            self._reach(name, "after")

    def _reach(self, name: str, when: str) -> None:
        kill = self._kill
        is_due = kill is not None and (kill.at, kill.when) == (self._count, when)
        step = Step(os.getpid(), self._action, self._count, name, when, is_due)
        with self._list.open("a") as file:
            file.write(json.dumps(asdict(step)) + "\n")
        if is_due:
            os.kill(os.getpid(), signal.SIGKILL)


def take(path: Path, action: str) -> Kill | None:
    """Take the order to kill when it is for this action; of several processes one gets it."""
    try:
        kill = Kill(**json.loads(path.read_text()))
        if kill.action != action:
            return None
        path.unlink()
    except (FileNotFoundError, ValueError):
        return None
    if kill.skip:
        order(path, replace(kill, skip=kill.skip - 1))
        return None
    return kill


def order(path: Path, kill: Kill) -> None:
    """Write the order down, for the next call that fits."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(asdict(kill)))
    new.replace(path)


def read_steps(folder: Path) -> list[Step]:
    path = folder / "steps"
    return [Step(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def watch(watched: Callable[[], Watch]) -> None:
    """Have all remote steps of this process counted; to be called before the library is imported further."""
    execute, run = ssh.SSHSession.execute, command.run

    def execute_watched(self: ssh.SSHSession, line: str, *, deadline: Any) -> ssh.Reply:
        return watched().around(f"array: {_commands(line)}", lambda: execute(self, line, deadline=deadline))

    def run_watched(wanted: command.Command, **options: Any) -> command.Completed:
        if wanted.argv[0] != "ssh":
            return run(wanted, **options)
        name = f"{wanted.where}: {_operations(wanted.stdin)}"
        return watched().around(name, lambda: run(wanted, **options))

    ssh.SSHSession.execute = execute_watched  # type: ignore[method-assign]
    command.run = run_watched  # type: ignore[assignment]


def _commands(line: str) -> str:
    """Name the commands of a line for an array."""
    found = [each.strip() for each in line.split(";")]
    return " ".join(each.split()[0] for each in found if each not in _IDLE)


def _operations(stdin: bytes) -> str:
    """Name the operations of a request for a host."""
    head, _, rest = stdin.partition(b"\n")
    lengths = re.fullmatch(rb"(\d+) (\d+)", head)
    if lengths is None:
        return "a command"
    begin = int(lengths[1])
    request = json.loads(rest[begin : begin + int(lengths[2])])
    return " ".join(each["op"] for each in request["operations"])
