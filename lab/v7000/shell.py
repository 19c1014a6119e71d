# SPDX-License-Identifier: Apache-2.0
"""The restricted shell of the box: runs chains of commands, slowly if so set, and fails on request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lab.faults import Command, Fault, Faults, Journal, hide
from lab.v7000 import (
    commands_flashcopy,
    commands_hosts,
    commands_system,
    commands_volume_listings,
    commands_volumes,
)
from lab.v7000.errors import CommandError, ShellError, text_of
from lab.v7000.grammar import Statement, parse
from lab.v7000.machine import Machine, Registered, registry

__all__ = ["DropError", "Session", "Shell"]

# imported for what they register
COMMAND_MODULES = (
    commands_flashcopy,
    commands_hosts,
    commands_system,
    commands_volume_listings,
    commands_volumes,
)
PREFIXES = ("svcinfo", "svctask")
NOT_FOUND = 127
SIGPIPE_STATUS = 141


class DropError(Exception):
    """The connection is to be cut here, and nothing that follows on the line is done."""


@dataclass(slots=True)
class Session:
    """One command line on its way through the shell: where its output goes, whether its client is there."""

    line: int
    write: Callable[[str], None]
    complain: Callable[[str], None]
    is_gone: Callable[[], bool]
    stops_at_failure: bool = False


@dataclass(frozen=True, slots=True)
class _Outcome:
    stdout: str = ""
    stderr: str = ""
    status: int = 0
    code: str | None = None


class Shell:
    """Runs command lines on a machine. ``lock`` guards the machine's state."""

    def __init__(self, machine: Machine, faults: Faults, journal: Journal, latency: float) -> None:
        self.machine = machine
        self.faults = faults
        self.journal = journal
        self.latency = latency
        self.is_dead = True
        self.lock = threading.RLock()
        self._turn = threading.Lock()

    def run(self, session: Session, line: str) -> int:
        """Run a line and return the exit status of the last command that ran.

        Raises: DropError when a fault or the death of the box cuts it off.
        """
        try:
            statements = parse(line)
        except ShellError as err:
            session.complain(f"{err}\n")
            return err.status
        status = 0
        for statement in statements:
            if statement.words[0] == "exit":
                given = statement.words[1:2]
                return int(given[0]) & 0xFF if given and given[0].isdigit() else status
            status = self._run_statement(session, statement)
            if status and session.stops_at_failure:
                break
        return status

    def _run_statement(self, session: Session, statement: Statement) -> int:
        clock = self.machine.clock
        started = clock.now()
        outcome = _Outcome(status=255)
        is_dropped = True
        fault = self.faults.take(statement.text)
        try:
            if fault is not None and fault.hang:
                self._wait(session, fault.hang)
            if self.is_dead or (fault is not None and fault.drop == "before"):
                raise DropError
            outcome = self._perform(session, statement, fault)
            if fault is not None and fault.drop == "after":
                raise DropError
            is_dropped = False
        finally:
            seconds = clock.now() - started
            text = hide(statement.text)
            self.journal.add_command(
                Command(session.line, text, outcome.status, outcome.code, seconds, is_dropped)
            )
        return self._show(session, outcome)

    @staticmethod
    def _show(session: Session, outcome: _Outcome) -> int:
        try:
            if outcome.stdout:
                session.write(outcome.stdout)
            if outcome.stderr:
                session.complain(outcome.stderr + "\n")
        except BrokenPipeError:
            return SIGPIPE_STATUS  # a shell without a terminal goes on although nobody listens
        return outcome.status

    def _perform(self, session: Session, statement: Statement, fault: Fault | None) -> _Outcome:
        """Do one statement, or refuse it as its fault says."""
        if fault is not None and fault.exit is not None:
            if fault.is_done:
                self._dispatch(session, statement)
            return _Outcome(status=fault.exit)
        code = fault.code if fault is not None else None
        if code is not None and not code.endswith("W"):
            return _Outcome(stderr=text_of(code), status=1, code=code)
        try:
            stdout = self._dispatch(session, statement)
        except CommandError as err:
            return _Outcome(stderr=str(err), status=1, code=err.code)
        except ShellError as err:
            return _Outcome(stderr=str(err), status=err.status)
        if code is not None:
            return _Outcome(stderr=text_of(code), status=1, code=code)
        return _Outcome(stdout)

    def _dispatch(self, session: Session, statement: Statement) -> str:
        name, *rest = statement.words
        if name == "set":
            if rest not in (["-e"], ["+e"]):
                raise ShellError(f"set: {' '.join(rest)}: restricted", 1)
            session.stops_at_failure = rest == ["-e"]
            return ""
        if name == "echo":
            return " ".join(rest) + "\n"
        if name == "sleep":
            return self._sleep(session, rest)
        if name in PREFIXES:
            if not rest:
                raise CommandError("CMMVC5707E")
            return self._command(session, rest[0], rest[1:], prefix=name)
        return self._command(session, name, rest, prefix="")

    def _sleep(self, session: Session, rest: Sequence[str]) -> str:
        if len(rest) != 1 or not rest[0].replace(".", "", 1).isdigit():
            raise ShellError("sleep: invalid time interval", 1)
        self._wait(session, float(rest[0]))
        return ""

    def _wait(self, session: Session, seconds: float) -> None:
        self.machine.clock.wait(seconds, lambda: self.is_dead or session.is_gone())

    def _command(self, session: Session, name: str, words: Sequence[str], *, prefix: str) -> str:
        entry = registry.get(name)
        known = entry is not None and entry.since <= self.machine.level
        if entry is None or not known or (prefix and (prefix == "svctask") is not entry.changes):
            if prefix:
                raise CommandError("CMMVC5987E", name)
            raise ShellError(f"{name}: command not found", NOT_FOUND)
        if not entry.changes:
            return self._call(session, entry, words)
        # changing commands run one after the other
        with self._turn:
            return self._call(session, entry, words)

    def _call(self, session: Session, entry: Registered, words: Sequence[str]) -> str:
        if self.latency > 0:
            self._wait(session, self.latency)
        if entry.until is not None and self.machine.level >= entry.until:
            raise CommandError("CMMVC7205E")
        args = entry.syntax.parse(words, self.machine.level)
        with self.lock:
            if self.is_dead:
                raise DropError
            self.machine.tick()
            return entry.function(self.machine, args)
