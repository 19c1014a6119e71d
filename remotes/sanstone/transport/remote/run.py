# SPDX-License-Identifier: Apache-2.0
"""Commands, waiting and deadlines on a far machine. Standard library only, Python 3.9 or newer."""

from __future__ import annotations

import contextlib
import math
import os
import re
import select
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sanstone.transport.remote.errors import NodeError

__all__ = ["ROOT", "Completed", "Context", "Deadline", "in_parallel", "run", "wait_until"]

Json = dict[str, Any]

ROOT = Path(os.environ.get("SANSTONE_HOST_ROOT") or "/")
"""Stands before /dev and /sys. Machines in user space, as tests have them, have trees of their own."""

privileged: set[str] = set()
"""What is run through ``sudo -n`` unless we are root; ``main`` fills it from the program's own package."""

rights = "etc/sudoers.d/sanstone"
"""Where the add-on ships these rights."""

# sudo says this on a host whose own name cannot be looked up, and goes on all the same.
_SUDO_REMARK = re.compile(r"^sudo: unable to resolve host .*\n?", re.MULTILINE)
_SUDO_REFUSED = re.compile(r"sudo: |Sorry, user |\S+ is not (?:in the sudoers file|allowed to run sudo)")

_SEARCH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_CHUNK = 65536
_TICK = 0.2
_KILL_WAIT = 1.0


class Deadline:
    """A moment, and how far away it is."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(0.0, self._end - time.monotonic())

    def within(self, seconds: float) -> Deadline:
        """Return a deadline ``seconds`` from now, or this one if that is sooner."""
        return Deadline(min(seconds, self.left()))

    def check(self, doing: str) -> None:
        if not self.left():
            raise NodeError("DeadlineError", f"Time was up while {doing}.")


class Context(NamedTuple):
    """What an operation gets beside its own fields."""

    deadline: Deadline
    progress: Callable[[str], None]
    upload: BinaryIO
    is_last_upload: bool


class Completed(NamedTuple):
    code: int
    stdout: str
    stderr: str

    @property
    def words(self) -> str:
        """Return what the command had to say, for a log."""
        return "\n".join(part for part in (self.stderr.strip(), self.stdout.strip()) if part)


def wait_until(condition: Callable[[], object], deadline: Deadline, *, first: float = 0.004) -> bool:
    """Look at growing distances of at most 0.25 s until ``condition`` holds or time is up.

    On a machine that is so busy that a look itself takes its time, the distances are longer.
    """
    pause = first
    while True:
        began = time.monotonic()
        if condition():
            return True
        left = deadline.left()
        if not left:
            return False
        busy = min(2 * (time.monotonic() - began), 1.0)
        time.sleep(min(max(pause, busy), left))
        pause = min(pause * 1.6, 0.25)


def search_path() -> str:
    """Return PATH with the system directories behind it: an ssh session of a plain user often lacks sbin."""
    return os.pathsep.join(part for part in (os.environ.get("PATH", ""), _SEARCH) if part)


def run(
    argv: Sequence[str],
    deadline: Deadline,
    *,
    stdin: bytes = b"",
    ok: Collection[int] | None = (0,),
    on_output: Callable[[bytes], None] | None = None,
    ends_with_caller: bool = False,
) -> Completed:
    """Run a command in a process group of its own; ``ok`` None accepts every exit code.

    ``ends_with_caller`` stops it when nobody listens to us any more: a copy that goes on unseen would write
    to a volume that the front-end believes to be idle.

    Raises NodeError: HostError for a missing program, a missing right or another exit code; DeadlineError.
    """
    name = argv[0]
    words = list(argv)
    if name in privileged and os.geteuid() != 0:
        words = ["sudo", "-n", *words]
    environment = dict(os.environ, PATH=search_path(), LC_ALL="C")
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise NodeError("HostError", f"{words[0]} is not installed.", "Install it and try again.") from None
    except OSError as err:
        raise NodeError("HostError", f"{words[0]} could not be started: {err.strerror}.") from None
    try:
        stdout, stderr = _drain(process, words, stdin, deadline, on_output, ends_with_caller)
    finally:
        _end(process)
    completed = Completed(
        process.returncode, stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace")
    )
    if words[0] == "sudo":
        completed = completed._replace(stderr=_SUDO_REMARK.sub("", completed.stderr))
        if completed.code == 1:
            _check_sudo(name, completed)
    if ok is not None and process.returncode not in ok:
        last = (completed.words.splitlines() or ["no message"])[0]
        raise NodeError(
            "HostError", f"{name} failed (exit code {process.returncode}): {last}", "", completed.words
        )
    return completed


def _check_sudo(name: str, completed: Completed) -> None:
    """Raise NodeError if it was sudo that failed: the command's own exit code may be 1 as well."""
    said = completed.stderr.strip()
    if said == f"sudo: {name}: command not found":
        raise NodeError("HostError", f"{name} is not installed.", "Install it and try again.", said)
    if _SUDO_REFUSED.match(said) and not completed.stdout:
        raise NodeError(
            "HostError",
            f"This user may not run {name} through sudo.",
            f"Install {rights} of the add-on as /{rights} on that machine.",
            said,
        )


def _drain(
    process: subprocess.Popen[bytes],
    words: Sequence[str],
    stdin: bytes,
    deadline: Deadline,
    on_output: Callable[[bytes], None] | None,
    ends_with_caller: bool,
) -> tuple[bytes, bytes]:
    assert process.stdout is not None
    assert process.stderr is not None
    if process.stdin is not None:
        # A few bytes, which fit into the pipe; a command that does not want them shows in its exit code.
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(stdin)
    stdout, stderr = bytearray(), bytearray()
    ended = 0.0
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, stdout)
        selector.register(process.stderr, selectors.EVENT_READ, stderr)
        while selector.get_map():
            left = deadline.left()
            if not left:
                raise _too_late(words, deadline)
            if ends_with_caller and caller_is_gone():
                raise NodeError(
                    "ConnectError", f"The front-end went away while {words[0]} ran; it was stopped."
                )
            if process.poll() is not None and not ended:
                ended = time.monotonic()
            ready = selector.select(min(left, _TICK))
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK)
                if not chunk:
                    selector.unregister(key.fileobj)
                elif key.data is stdout and on_output is not None:
                    on_output(chunk)
                else:
                    key.data.extend(chunk)
            if ended and not ready and time.monotonic() - ended >= _TICK:
                break
    try:
        process.wait(deadline.left())
    except subprocess.TimeoutExpired:
        raise _too_late(words, deadline) from None
    return bytes(stdout), bytes(stderr)


def _too_late(words: Sequence[str], deadline: Deadline) -> NodeError:
    command = " ".join(word for word in words if word not in ("sudo", "-n"))[:200]
    return NodeError("DeadlineError", f"{command} did not finish within {deadline.seconds:.0f} s.")


def caller_is_gone() -> bool:
    """Tell whether the other end of our standard output has been closed."""
    poll = select.poll()
    poll.register(1, 0)
    return bool(poll.poll(0))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what still runs. A command in an uninterruptible wait is left behind: nothing can end that."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_KILL_WAIT)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def in_parallel(
    calls: Sequence[Callable[[], None]], *, is_enough: Callable[[], bool] | None = None
) -> list[NodeError | None]:
    """Make the calls at once; return for each its NodeError, or None. Every call keeps its own deadline.

    When ``is_enough`` holds, the calls that have not returned are left to themselves and count as done.
    """
    outcomes: list[NodeError | None] = [None] * len(calls)

    def make(index: int) -> None:
        try:
            calls[index]()
        except NodeError as fault:
            outcomes[index] = fault
        except Exception as err:  # a thread's failure must not look like success
            outcomes[index] = NodeError("HostError", f"{type(err).__name__}: {err}")

    threads = [threading.Thread(target=make, args=(index,), daemon=True) for index in range(len(calls))]
    if is_enough is not None:
        for thread in threads:
            thread.start()
        wait_until(
            lambda: not any(thread.is_alive() for thread in threads) or is_enough(), Deadline(math.inf)
        )
        return list(outcomes)
    for thread in threads[1:]:
        thread.start()
    if threads:
        make(0)
    for thread in threads[1:]:
        thread.join()
    return outcomes
