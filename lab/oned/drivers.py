# SPDX-License-Identifier: Apache-2.0
"""Running driver actions as oned's driver processes run them, and keeping a record of every call."""

from __future__ import annotations

import base64
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Answer", "Builtin", "DriverCall", "Drivers"]

#: A driver's output is read for this long after the process has ended, then it is dropped.
GRACE = 0.1
_TIME_TO_DIE = 5.0
_CHUNK = 65536


@dataclass(frozen=True, slots=True)
class Answer:
    """How an action ended."""

    rc: int = 0
    stdout: str = ""
    stderr: str = ""


@dataclass(frozen=True, slots=True)
class DriverCall:
    """One call of a driver: ``stdin`` decoded, ``stdin_encoding`` as on the wire: base64, raw, empty."""

    kind: str
    driver: str
    action: str
    where: str
    argv: tuple[str, ...]
    stdin_encoding: str
    stdin: str
    rc: int
    stdout: str
    stderr: str
    seconds: float


Builtin = Callable[[tuple[str, ...], str], Answer]


class Drivers:
    """Runs actions below ``remotes``, at most ``concurrency`` of each kind at once, and records them.

    ``environment`` is the whole environment of the actions. ``builtins`` answers for a driver's action when
    there is no executable: it is given driver and action and gives a function of argv and stdin, or None.
    """

    def __init__(
        self,
        remotes: Path,
        environment: Mapping[str, str],
        concurrency: int,
        deadline: float,
        builtins: Callable[[str, str], Builtin | None],
    ) -> None:
        self.remotes = remotes
        self.environment = dict(environment)
        self.calls: list[DriverCall] = []
        self._deadline = deadline
        self._builtins = builtins
        self._concurrency = concurrency
        self._slots: dict[str, threading.Semaphore] = {}
        self._lock = threading.Lock()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._is_stopping = False

    @contextmanager
    def slot(self, kind: str) -> Iterator[None]:
        """Take one of the places that the driver process ``kind`` has."""
        with self._lock:
            semaphore = self._slots.setdefault(kind, threading.Semaphore(self._concurrency))
        with semaphore:
            yield

    def resolve(self, kind: str, driver: str, action: str) -> str:
        """Give the action without its suffix when there is nothing of that name."""
        if "." not in action or (self.remotes / kind / driver / action).exists():
            return action
        return action.split(".")[0]

    def run(
        self,
        kind: str,
        driver: str,
        action: str,
        argv: tuple[str, ...],
        stdin: str = "",
        encoding: str = "empty",
    ) -> Answer:
        """Run ``<remotes>/<kind>/<driver>/<action>`` on the front-end."""
        action = self.resolve(kind, driver, action)
        started = time.monotonic()
        program = self.remotes / kind / driver / action
        builtin = None if program.exists() else self._builtins(driver, action)
        record = self._reserve()
        if builtin is not None and kind == "tm":
            answer = builtin(argv, stdin)
        else:
            data = base64.b64encode(stdin.encode()) if encoding == "base64" else stdin.encode()
            answer = self.execute((str(program), *argv), data)
        self._fill(
            record,
            DriverCall(
                kind,
                driver,
                action,
                "frontend",
                argv,
                encoding,
                stdin,
                answer.rc,
                answer.stdout,
                answer.stderr,
                time.monotonic() - started,
            ),
        )
        return answer

    def record(self, call: DriverCall) -> None:
        """Add a call that something else has made."""
        with self._lock:
            self.calls.append(call)

    def finished(self) -> list[DriverCall]:
        """Give the calls that have ended, in the order in which they began."""
        with self._lock:
            return [call for call in self.calls if call is not _PENDING]

    @property
    def is_busy(self) -> bool:
        """Tell whether an action is running."""
        with self._lock:
            return bool(self._running)

    def _reserve(self) -> int:
        """Keep a place in the order of calls: an action that calls another comes before it."""
        with self._lock:
            self.calls.append(_PENDING)
            return len(self.calls) - 1

    def _fill(self, index: int, call: DriverCall) -> None:
        with self._lock:
            self.calls[index] = call

    def execute(self, command: tuple[str, ...], stdin: bytes) -> Answer:
        """Run a program in a process group of its own; what it has not said 0.1 s after its end is lost."""
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self.remotes.parent,
                env=self.environment,
                start_new_session=True,
            )
        except OSError as error:
            return Answer(
                127 if isinstance(error, FileNotFoundError) else 126, "", f"{command[0]}: {error.strerror}\n"
            )
        with self._lock:
            self._running[process.pid] = process
            is_stopping = self._is_stopping
        try:
            if is_stopping:
                _kill(process)
            out, err = _Conversation(process, stdin, time.monotonic() + self._deadline).hold()
        finally:
            with self._lock:
                self._running.pop(process.pid, None)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        return Answer(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))

    def stop(self) -> None:
        """End every process that is still running."""
        with self._lock:
            self._is_stopping = True
            running = list(self._running.values())
        for process in running:
            _kill(process)


_PENDING = DriverCall("", "", "", "", (), "empty", "", 0, "", "", 0.0)


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


class _Conversation:
    """Feeds a process and reads what it says until it has ended."""

    def __init__(self, process: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._input = process.stdin
        self._pending = memoryview(data)
        self._outputs = [process.stdout.fileno(), process.stderr.fileno()]
        self._said: dict[int, list[bytes]] = {fd: [] for fd in self._outputs}
        self._open = set(self._outputs)
        self._until = deadline
        self._has_ended = False

    def hold(self) -> tuple[bytes, bytes]:
        """Give stdout and stderr; a process that goes on beyond the deadline is killed."""
        ended = os.pidfd_open(self._process.pid)
        try:
            with selectors.DefaultSelector() as selector:
                for fd in (*self._outputs, ended):
                    selector.register(fd, selectors.EVENT_READ)
                os.set_blocking(self._input.fileno(), False)
                selector.register(self._input.fileno(), selectors.EVENT_WRITE)
                while self._open or not self._has_ended:
                    if not self._step(selector, ended):
                        break
        finally:
            os.close(ended)
            self._process.wait()
        out, err = (b"".join(self._said[fd]) for fd in self._outputs)
        return out, err

    def _step(self, selector: selectors.BaseSelector, ended: int) -> bool:
        """Wait for the next thing to happen; tell whether there is more to wait for."""
        left = self._until - time.monotonic()
        events = selector.select(max(left, 0))
        if not events and left <= 0:
            if self._has_ended:
                return False
            _kill(self._process)
            self._until = time.monotonic() + _TIME_TO_DIE
        for key, _ in events:
            if key.fd == ended:
                selector.unregister(ended)
                self._has_ended = True
                self._until = time.monotonic() + GRACE
            elif key.fd in self._said:
                self._hear(selector, key.fd)
            else:
                self._feed(selector, key.fd)
        return True

    def _hear(self, selector: selectors.BaseSelector, fd: int) -> None:
        chunk = os.read(fd, _CHUNK)
        self._said[fd].append(chunk)
        if not chunk:
            selector.unregister(fd)
            self._open.discard(fd)

    def _feed(self, selector: selectors.BaseSelector, fd: int) -> None:
        try:
            self._pending = (
                self._pending[os.write(fd, self._pending[:_CHUNK]) :] if self._pending else self._pending
            )
        except BrokenPipeError:
            self._pending = self._pending[:0]
        if not self._pending:
            selector.unregister(fd)
            self._input.close()
