# SPDX-License-Identifier: Apache-2.0
"""The programs of a host's ``bin/`` and the socket over which they reach its resident part.

A stand-in is a few lines of Python that start in about ten milliseconds: only built-in modules, no ``site``.
Request: words ended by NUL, then standard input; answer: three numbers, then both outputs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shlex
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.host.calls import Answer, Call

__all__ = ["SUDOERS", "Journal", "Ran", "Switchboard", "write_clients", "write_programs"]

log = logging.getLogger(__name__)

SUDOERS = ("blockdev", "iscsiadm", "multipath", "multipathd", "tee", "udevadm")
SOCKET = "kernel"

CLIENT = """#!{python} -ISu
import posix, sys, _socket
root, name = {root!r}, {name!r}
here = [word.encode("utf-8", "surrogateescape") for word in sys.argv[1:]]
{prelude}given = b""
if {reads}:
    while chunk := posix.read(0, 65536):
        given += chunk
rights = b"root" if posix.geteuid() == 0 or b"SANSTONE_LAB_SUDO" in posix.environ else b"user"
words = [name.encode(), rights, posix.getcwdb(), *here]
body = b"".join(word + b"\\0" for word in words)
sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
try:
    run = posix.open(root + b"/run", posix.O_RDONLY)
    sock.connect("/proc/self/fd/%d/{socket}" % run)
except OSError:
    posix.write(2, name.encode() + b": the host is down\\n")
    sys.exit(1)
sock.sendall(b"%d %d\\n" % (len(body), len(given)) + body + given)
answer = b""
while chunk := sock.recv(65536):
    answer += chunk
if not answer:
    posix.write(2, name.encode() + b": the host went down\\n")
    sys.exit(1)
head, _, rest = answer.partition(b"\\n")
code, out, err = map(int, head.split())
for descriptor, text in ((1, rest[:out]), (2, rest[out:])):
    while text:
        text = text[posix.write(descriptor, text):]
sys.exit(code)
"""

# what is not for the kernel is for the real tee
PLAIN_TEE = """if name == "tee" and not any(word.startswith(root + b"/sys/") for word in here):
    posix.execv({real_tee!r}, [b"tee", *here])
"""

SUDO = """#!/bin/sh
# sudo of a host: without a password for what its sudoers file lists
while :; do
  case "$1" in
    -n|--non-interactive) shift ;;
    --) shift; break ;;
    -*) echo "sudo: invalid option $1" >&2; exit 1 ;;
    *) break ;;
  esac
done
program="${{1##*/}}"
case "$program" in
  {allowed}) ;;
  *) echo "sudo: a password is required" >&2; exit 1 ;;
esac
shift
SANSTONE_LAB_SUDO=1
export SANSTONE_LAB_SUDO
exec {bin}/"$program" "$@"
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """One command that reached the resident part; ``seconds`` do not count the program's start."""

    name: str
    argv: tuple[str, ...]
    stdin: bytes
    code: int
    seconds: float


class Journal:
    """What was run on the host, in order of ending."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ran: list[Ran] = []

    def add(self, ran: Ran) -> None:
        with self._lock:
            self._ran.append(ran)

    def entries(self) -> list[Ran]:
        with self._lock:
            return list(self._ran)

    def counts(self) -> Counter[str]:
        """Count commands by name."""
        return Counter(ran.name for ran in self.entries())

    def clear(self) -> None:
        with self._lock:
            self._ran.clear()


class Switchboard:
    """Answers stand-ins, each call in a thread of its own."""

    def __init__(
        self, root: Path, programs: Mapping[str, Callable[[Call], Answer]], journal: Journal
    ) -> None:
        self._root = root
        self._programs = programs
        self._journal = journal
        self._listener: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()

    def start(self) -> None:
        folder = os.open(self._root / "run", os.O_RDONLY)
        try:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            # a socket's path may have 107 bytes only; this one never has more
            self._listener.bind(f"/proc/self/fd/{folder}/{SOCKET}")
        finally:
            os.close(folder)
        self._listener.listen(128)
        self._accepting = threading.Thread(
            target=self._accept, args=(self._listener,), name="lab-host-calls", daemon=True
        )
        self._accepting.start()

    def stop(self) -> None:
        """Hang up on every caller. What still runs must end by itself: the kernel has halted."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        with self._lock:
            calls, threads = list(self._open), list(self._threads)
        for call in calls:
            with contextlib.suppress(OSError):
                call.shutdown(socket.SHUT_RDWR)
        for thread in [*threads, self._accepting]:
            if thread is not None:
                thread.join(10)

    def run(self, call: Call) -> Answer:
        """Run a command and write it down."""
        started = time.monotonic()
        try:
            answer = self._programs[call.name](call)
        except Exception as err:
            log.exception("%s %s", call.name, call.argv)
            answer = Answer(70, "", f"{call.name}: the stand-in failed: {type(err).__name__}: {err}\n")
        self._journal.add(Ran(call.name, call.argv, call.stdin, answer.code, time.monotonic() - started))
        return answer

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(caller,), name="lab-host-call", daemon=True)
            with self._lock:
                self._open.add(caller)
                self._threads = {one for one in self._threads if one.is_alive()}
                thread.start()
                self._threads.add(thread)

    def _serve(self, caller: socket.socket) -> None:
        with caller, contextlib.suppress(OSError, ValueError):
            answer = self.run(_read_call(caller))
            out, err = (text.encode("utf-8", "surrogateescape") for text in (answer.out, answer.err))
            caller.sendall(b"%d %d %d\n" % (answer.code, len(out), len(err)) + out + err)
        with self._lock:
            self._open.discard(caller)


def _read_call(caller: socket.socket) -> Call:
    received = b""
    while b"\n" not in received:
        received += _chunk(caller)
    head, _, rest = received.partition(b"\n")
    length, given = map(int, head.split())
    while len(rest) < length + given:
        rest += _chunk(caller)
    name, rights, cwd, *argv = rest[:length].decode("utf-8", "surrogateescape").split("\0")[:-1]
    pid, _, _ = struct.unpack("3i", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Call(name, tuple(argv), rights == "root", cwd, rest[length:], lambda: _is_gone(caller), pid)


def _chunk(caller: socket.socket) -> bytes:
    chunk = caller.recv(65536)
    if not chunk:
        raise ConnectionResetError("the caller went away")
    return chunk


def _is_gone(caller: socket.socket) -> bool:
    poll = select.poll()
    poll.register(caller, select.POLLRDHUP)
    return bool(poll.poll(0))


def write_programs(root: Path, names: Iterable[str], sudoers: Iterable[str]) -> None:
    """Fill ``bin/``: the stand-ins, ``sudo``, and this Python as ``python3``."""
    folder = root / "bin"
    real_tee = next(path for path in ("/usr/bin/tee", "/bin/tee") if Path(path).exists())
    write_clients(root, names, 'name == "tee"', PLAIN_TEE.format(real_tee=real_tee))
    allowed = "|".join(shlex.quote(name) for name in sudoers) or "''"
    _write_program(folder / "sudo", SUDO.format(allowed=allowed, bin=shlex.quote(str(folder))))


def write_clients(root: Path, names: Iterable[str], reads: str, prelude: str = "") -> None:
    """Fill ``bin/`` with programs that hand their call to the switchboard, and this Python as ``python3``.

    ``reads`` is the Python expression that tells whether standard input goes along; the words are ``here``.
    """
    folder = root / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    for name in names:
        text = CLIENT.format(
            python=python, root=os.fsencode(root), name=name, socket=SOCKET, reads=reads, prelude=prelude
        )
        _write_program(folder / name, text)
    _write_program(folder / "python3", f'#!/bin/sh\nexec {shlex.quote(str(python))} "$@"\n')


def _write_program(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}")
    new.write_text(text, encoding="utf-8")
    new.chmod(0o755)
    new.replace(path)
