# SPDX-License-Identifier: Apache-2.0
"""Run a program of ours on another machine: one ssh, over which the program travels.

Nothing has to be installed there but Python, and nothing of ours stays. What goes to standard input is a line
with two lengths, the compressed program (``transport.remote`` and a package of the caller's), the request as
JSON, the upload.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import secrets
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from sanstone import errors
from sanstone.errors import (
    ConfigurationError,
    ConnectError,
    DeadlineError,
    HostError,
    SanstoneError,
    UnreachableError,
)
from sanstone.secret import Secret
from sanstone.transport.command import Command, Completed, quote, run

__all__ = ["RemoteProgram"]

log = logging.getLogger(__name__)

_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_\[:][A-Za-z0-9_.:%\]-]*")
_BOOTSTRAP = (
    "import sys,zlib;i=sys.stdin.buffer;a,b=map(int,i.readline().split());"
    "exec(zlib.decompress(i.read(a)));sys.exit(start(i,b))"
)
# A machine that lost its power says nothing: without questions a copy would wait a day for it, its deadline.
_KEEP_ALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
_SSH_FAILED = 255
_NOT_EXECUTABLE = (126, 127)
_ANY_CODE = range(-64, 256)
_ROOT = Path(__file__).resolve().parents[2]
_COMMON = "sanstone.transport.remote"

_LOADER = """
import json, sys

class Modules:
    def find_spec(self, name, path=None, target=None):
        if name in SOURCES:
            return type(sys.__spec__)(name, self, is_package=name in PACKAGES)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        name = module.__name__
        exec(compile(SOURCES[name], "<%s>" % name, "exec"), module.__dict__)

def start(stdin, length):
    if sys.version_info < (3, 9):
        sys.stderr.write("Python 3.9 or newer is needed, this is %d.%d" % sys.version_info[:2])
        return 3
    sys.meta_path.insert(0, Modules())
    request = json.loads(stdin.read(length))
    from sanstone.transport.remote.main import main
    return main(PROGRAM, request, stdin)
"""


@functools.cache
def bundle(package: str) -> bytes:
    """Return the program of ``package``: a loader and the sources of its modules, compressed."""
    sources: dict[str, str] = {}
    packages: set[str] = set()
    for name in (_COMMON, package):
        parts = name.split(".")
        above = [".".join(parts[: number + 1]) for number in range(len(parts) - 1)]
        sources.update(dict.fromkeys(above, ""))
        packages.update([*above, name])
    for name in (_COMMON, package):
        for path in sorted(_ROOT.joinpath(*name.split(".")).glob("*.py")):
            sources[name if path.stem == "__init__" else f"{name}.{path.stem}"] = path.read_text("utf-8")
    program = f"SOURCES = {sources!r}\nPACKAGES = {sorted(packages)!r}\nPROGRAM = {package!r}\n{_LOADER}"
    return zlib.compress(program.encode(), 9)


class RemoteProgram:
    """The program of ``package`` on one machine, reached by ssh, or this machine itself.

    May be used by several threads at once. ``ssh_options`` stand before the machine's name, as for ssh(1);
    ``connect_timeout`` is in seconds. ``round_trips`` counts the connections made.
    """

    def __init__(
        self,
        package: str,
        name: str,
        *,
        ssh_options: Sequence[str] = (),
        is_local: bool = False,
        connect_timeout: float = 15,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"{name!r} is not a host's name or address.")
        self.name = name
        self.round_trips = 0
        self._package = package
        self._ssh_options = tuple(ssh_options)
        self._is_local = is_local
        self._connect_timeout = connect_timeout
        self._lock = threading.Lock()

    def run(
        self,
        operations: Sequence[Mapping[str, Any]],
        *,
        deadline: float,
        upload: BinaryIO | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> list[Any]:
        """Do ``operations`` in order until one fails, in one round trip and ``deadline`` seconds.

        Each has its name as ``op`` and fields that are JSON, or a Secret. What comes back are their results.
        ``progress`` gets what a long operation has to say of itself.

        Raises: what the program answers (DataSafetyError, BusyError, ...), ConnectError, HostError,
        DeadlineError.
        """
        answer = _Answer(f"@sanstone-{secrets.token_hex(8)}", progress)
        command = Command(
            tuple(self._argv()),
            deadline,
            self._request(operations, deadline, answer.mark),
            _ANY_CODE,
            self.name,
        )
        with self._lock:
            self.round_trips += 1
        try:
            completed = run(command, upload=upload, on_output=answer.feed)
        except DeadlineError as err:
            raise DeadlineError(
                f"{self.name}: {_name(operations, answer.step)} did not end within {deadline:.0f} s.",
                "See whether the host and its storage answer, then run the action again.",
            ) from err
        if answer.result is None:
            raise self._silence(completed, answer, operations)
        if "error" in answer.result:
            raise self.error(answer.result["error"])
        log.debug("%s: %d operations in %.3f s", self.name, len(operations), completed.seconds)
        results: list[Any] = answer.result["results"]
        return results

    def _argv(self) -> list[str]:
        python = ["python3", "-I", "-S", "-c", _BOOTSTRAP]
        if self._is_local:
            return python
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, round(self._connect_timeout))}"]
        # Behind the user's own options, which count first
        return ["ssh", *options, *self._ssh_options, *_KEEP_ALIVE, self.name, quote(python)]

    def _request(self, operations: Sequence[Mapping[str, Any]], deadline: float, mark: str) -> bytes:
        """Return the head of standard input. The host gets a little less time, so that it still answers."""
        request = json.dumps(
            {
                "mark": mark,
                "deadline": max(deadline - min(3.0, 0.2 * deadline), 0.1),
                "operations": list(operations),
            },
            default=_reveal,
        ).encode()
        program = bundle(self._package)
        return b"%d %d\n" % (len(program), len(request)) + program + request

    def error(self, error: dict[str, str]) -> SanstoneError:
        """Make an error of ours out of what the program says of one."""
        family = getattr(errors, error["family"], HostError)
        if not (isinstance(family, type) and issubclass(family, SanstoneError)):
            family = HostError
        found: SanstoneError = family(f"{self.name}: {error['message']}", error["hint"], error["details"])
        return found

    def _silence(
        self, completed: Completed, answer: _Answer, operations: Sequence[Mapping[str, Any]]
    ) -> SanstoneError:
        """Say why there was no answer."""
        words = completed.stderr.decode("utf-8", "replace").strip()
        if completed.code in _NOT_EXECUTABLE:
            return HostError(
                f"{self.name}: python3 cannot be run there.",
                "Install Python 3.9 or newer on the host.",
                words,
            )
        if answer.step is not None:
            doing = _name(operations, answer.step)
            if completed.code == _SSH_FAILED and not self._is_local:
                return ConnectError(
                    f"{self.name}: the connection was lost during {doing}.",
                    "See whether the host is up; the action can be run again.",
                    words,
                )
            return HostError(
                f"{self.name}: the host program ended during {doing} with exit code {completed.code}.",
                "See whether something on the host kills processes; the action can be run again.",
                words,
            )
        if completed.code == _SSH_FAILED and not self._is_local:
            return _not_connected(self.name, words)
        if "Python 3.9 or newer" in words:
            return HostError(
                f"{self.name}: its Python is too old.", "Install Python 3.9 or newer on the host.", words
            )
        noise = answer.noise.decode("utf-8", "replace").strip()
        return HostError(
            f"{self.name}: the host program did not start (exit code {completed.code}).",
            f"Try: ssh {self.name} python3 --version",
            "\n".join(part for part in (words, noise) if part),
        )


class _Answer:
    """The frames of the node program, out of whatever a login shell prints around them."""

    def __init__(self, mark: str, progress: Callable[[str], None] | None) -> None:
        self.mark = mark
        self.step: int | None = None
        self.result: dict[str, Any] | None = None
        self.noise = b""
        self._progress = progress
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            head, _, content = line.partition(b" ")
            if head != self.mark.encode():
                self.noise = (self.noise + line + b"\n")[-2000:]
                continue
            self._take(*content.split(b" ", 1))

    def _take(self, kind: bytes, content: bytes) -> None:
        value = json.loads(content)
        if kind == b"step":
            self.step = value
        elif kind == b"result":
            self.result = value
        elif kind == b"progress" and self._progress is not None:
            self._progress(value)


def _reveal(value: object) -> str:
    """Write a secret where it is needed: standard input of ssh."""
    if isinstance(value, Secret):
        return value.reveal()
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _name(operations: Sequence[Mapping[str, Any]], step: int | None) -> str:
    return "reaching the host" if step is None else str(operations[step]["op"])


def _not_connected(name: str, words: str) -> UnreachableError:
    """Say in our words what ssh meant."""
    low = words.lower()
    last = words.splitlines()[-1] if words else "ssh gave no reason"
    if "host identification has changed" in low:
        return UnreachableError(
            f"{name}: its SSH host key has changed.",
            f"If the host was reinstalled: ssh-keygen -R {name}, then connect once as this user. "
            "If not, somebody may be in between.",
            words,
        )
    if (
        "host key verification failed" in low
        or "no host key is known" in low
        or "no matching host key" in low
    ):
        return UnreachableError(
            f"{name}: its SSH host key is not known.",
            f"Compare and accept it once as this user: ssh {name}",
            words,
        )
    if "permission denied" in low or "too many authentication failures" in low:
        return UnreachableError(
            f"{name}: SSH login refused.",
            "Put this user's public key into authorized_keys on the host.",
            words,
        )
    return UnreachableError(
        f"{name}: cannot be reached: {last}", "See whether the host is up and its sshd runs.", words
    )
