# SPDX-License-Identifier: Apache-2.0
"""One way to run a command: argument lists, a deadline, the exit codes that are expected."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import IO

from sanstone.errors import DeadlineError, HostError

__all__ = ["Command", "Completed", "quote", "run"]

log = logging.getLogger(__name__)

_CHUNK = 1 << 18
_TICK = 0.2
"""How long an ended command's pipes may stay open: a background child (an ssh master, say) can hold them."""
_TERM_WAIT = 1.5
"""How long a command that is told to end may clean up after itself."""
_KILL_WAIT = 2.0
"""How long a killed process may take to go; one in an uninterruptible wait on a dead disk never does."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. ``stdin`` never appears in a log or an error: it is the place for secrets.

    ``deadline`` is in seconds, ``ok`` the exit codes that are no failure.
    """

    argv: tuple[str, ...]
    deadline: float
    stdin: bytes = field(default=b"", repr=False)
    ok: Collection[int] = (0,)
    where: str = "front-end"

    @classmethod
    def of(
        cls,
        argv: Sequence[str],
        *,
        deadline: float,
        stdin: bytes = b"",
        ok: Collection[int] = (0,),
        where: str = "front-end",
    ) -> Command:
        return cls(tuple(argv), deadline, stdin, ok, where)


@dataclass(frozen=True, slots=True)
class Completed:
    """How it ended: exit code, both outputs, seconds."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def text(self) -> str:
        return self.stdout.decode("utf-8", "replace")


def quote(argv: Sequence[str]) -> str:
    """One shell word per argument: the only place where a command line becomes a string."""
    for word in argv:
        if "\0" in word:
            raise HostError(f"A command argument holds a NUL character: {word!r}.")
    return shlex.join(argv)


def run(
    command: Command,
    *,
    upload: IO[bytes] | None = None,
    on_output: Callable[[bytes], None] | None = None,
) -> Completed:
    """Run ``command`` on this machine, in a process group of its own that ends with it.

    ``upload`` is streamed to standard input behind ``stdin`` while both outputs are read; ``on_output`` gets
    standard output as it comes. What it raises ends the command and is passed on, as is what ``upload`` does.

    Raises: HostError for a missing program or an unexpected exit code, DeadlineError when time is up.
    """
    name = command.argv[0]
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            command.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError as err:
        raise HostError(f"{name} is not installed on {command.where}.", "Install it and try again.") from err
    except PermissionError as err:
        raise HostError(
            f"{name} may not be run on {command.where}.", "See who may execute it, and its directory."
        ) from err
    feeder = _Feeder(process, command.stdin, upload)
    try:
        stdout, stderr = _drain(process, command, started, feeder, on_output)
    finally:
        _end(process)
        feeder.end()
    if feeder.error is not None:
        raise feeder.error
    seconds = time.monotonic() - started
    log.debug("%s on %s: exit %d in %.3f s", name, command.where, process.returncode, seconds)
    completed = Completed(command.argv, process.returncode, stdout, stderr, seconds)
    if completed.code not in command.ok:
        words = stderr.decode("utf-8", "replace").strip()
        last = words.splitlines()[-1] if words else "no message"
        raise HostError(
            f"{name} failed on {command.where} (exit code {completed.code}): {last}",
            details=words,
        )
    return completed


class _Feeder:
    """Write standard input from a thread, so that a reader or a source that stalls holds up nothing else.

    The thread owns the pipe. It is left behind only when the source itself never returns from a read.
    """

    def __init__(self, process: subprocess.Popen[bytes], head: bytes, upload: IO[bytes] | None) -> None:
        assert process.stdin is not None
        self._stdin, process.stdin = process.stdin, None
        self._head = head
        self._upload = upload
        self._is_over = threading.Event()
        self.error: Exception | None = None
        self._thread: threading.Thread | None = None
        if head or upload is not None:
            self._thread = threading.Thread(target=self._feed, name="command-stdin", daemon=True)
            self._thread.start()
        else:
            self._stdin.close()

    def _feed(self) -> None:
        # A reader that went away shows in its exit code.
        with contextlib.suppress(BrokenPipeError), self._stdin:
            self._stdin.write(self._head)
            self._stdin.flush()
            while self._upload is not None and not self._is_over.is_set():
                chunk = self._read(self._upload)
                if not chunk:
                    break
                self._stdin.write(chunk)

    def _read(self, upload: IO[bytes]) -> bytes:
        try:
            return upload.read(_CHUNK)
        # Whatever a source can raise belongs to the caller, who waits in another thread.
        except Exception as err:
            self.error = err
            return b""

    def end(self) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(_KILL_WAIT)


def _drain(
    process: subprocess.Popen[bytes],
    command: Command,
    started: float,
    feeder: _Feeder,
    on_output: Callable[[bytes], None] | None,
) -> tuple[bytes, bytes]:
    """Read both outputs until the process has ended; never wait past the deadline."""
    assert process.stdout is not None
    assert process.stderr is not None
    collected: dict[int, bytearray] = {
        process.stdout.fileno(): bytearray(),
        process.stderr.fileno(): bytearray(),
    }
    stdout, stderr = collected.values()
    ended: float | None = None
    with selectors.DefaultSelector() as selector:
        for fd in collected:
            os.set_blocking(fd, False)
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            left = _left(command, started)
            if not left:
                raise _too_late(command)
            if feeder.error is not None:
                return bytes(stdout), bytes(stderr)
            if process.poll() is not None and ended is None:
                ended = time.monotonic()
            ready = selector.select(min(left, _TICK))
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK)
                if not chunk:
                    selector.unregister(key.fd)
                    continue
                collected[key.fd] += chunk
                if on_output is not None and collected[key.fd] is stdout:
                    on_output(chunk)
            if ended is not None and not ready and time.monotonic() - ended >= _TICK:
                break
    try:
        process.wait(_left(command, started))
    except subprocess.TimeoutExpired as err:
        raise _too_late(command) from err
    return bytes(stdout), bytes(stderr)


def _too_late(command: Command) -> DeadlineError:
    return DeadlineError(
        f"{command.argv[0]} on {command.where} did not finish within {command.deadline:.0f} s.",
        "See whether the host and its storage answer, then run the action again.",
    )


def _left(command: Command, started: float) -> float:
    return max(0.0, command.deadline - (time.monotonic() - started))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave no process behind, whichever way the run ended; let it clean up first."""
    for signal_, patience in ((signal.SIGTERM, _TERM_WAIT), (signal.SIGKILL, _KILL_WAIT)):
        if process.poll() is not None:
            break
        # Not ours any more after sudo; then its closed pipes have to end it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal_)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    else:
        if process.poll() is None:
            log.warning("process %d (%s) does not go away", process.pid, process.args)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
