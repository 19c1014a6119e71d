# SPDX-License-Identifier: Apache-2.0
"""Driver processes that start in a hundredth of a second and can be killed at a given step.

A server that has imported the library forks for each call. oned's stand-in starts a small client in the
place of the driver's script, which hands over its arguments, environment and streams, and ends as the process
ended.
``python -m lab.killing.drivers REMOTES FOLDER`` is the server.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from lab.killing.steps import Kill, Step, Watch, order, read_steps, watch

__all__ = ["DriverServer"]

_START_SECONDS = 30.0
_PRELOADED = (
    "sanstone.driver", "sanstone.actions", "sanstone.settings", "sanstone.arrays",
    "sanstone.arrays.iscsi.array", "sanstone.opennebula.api",
    "sanstone.cli", "paramiko", "pyone", "xmlrpc.client", "tempfile", "shutil",
)  # fmt: skip

_CLIENT = """#!{python} -ISu
import array, os, signal, sys, _socket
sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
folder = os.open({folder!r}, os.O_RDONLY)
sock.connect("/proc/self/fd/%d/socket" % folder)
words = [*sys.argv, ""] + ["%s=%s" % pair for pair in os.environ.items()]
body = b"".join(os.fsencode(word) + b"\\0" for word in words)
rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
sock.sendmsg([b"%010d" % len(body)], rights)
sock.sendall(body)
code = int(sock.recv(16) or b"-9")
if code < 0:
    os.kill(os.getpid(), -code)
os._exit(code)
"""


class DriverServer:
    """Driver processes for oned's stand-in; a context manager.

    ``entries`` is what oned is told as its remotes. ``folder`` also holds what an action may put into its
    temporary directory (``tmp``).
    """

    def __init__(self, remotes: Path, folder: Path) -> None:
        self.folder = folder
        self.entries = folder / "remotes"
        self._remotes = remotes
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DriverServer:
        (self.folder / "tmp").mkdir(parents=True)
        self._write_entries()
        ours, theirs = os.pipe()
        try:
            argv = [
                sys.executable,
                "-m",
                "lab.killing.drivers",
                str(self._remotes),
                str(self.folder),
                str(theirs),
            ]
            self._server = subprocess.Popen(
                argv,
                cwd=Path(__file__).parents[2],
                stdin=subprocess.PIPE,  # its end tells the server that this process is no more
                pass_fds=[theirs],
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        with os.fdopen(ours, "rb") as ready, selectors.DefaultSelector() as selector:
            selector.register(ready, selectors.EVENT_READ)
            if not selector.select(_START_SECONDS) or not ready.read(1):
                self.__exit__(None, None, None)
                raise RuntimeError("the server of driver processes did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            self._server.wait(_START_SECONDS)

    def _write_entries(self) -> None:
        """Put the client in the place of each entry point: its name and folder are the call."""
        text = _CLIENT.format(python=sys.executable, folder=str(self.folder))
        for entry in self._remotes.glob("*/*/*"):
            if entry.is_symlink():
                path = self.entries / entry.relative_to(self._remotes)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                path.chmod(0o755)

    # orders

    def arm(self, kill: Kill) -> None:
        """Let the next call that fits be killed."""
        order(self.folder / "kill", kill)

    def disarm(self) -> None:
        (self.folder / "kill").unlink(missing_ok=True)

    def take_steps(self) -> list[Step]:
        """Give the steps since the last time."""
        steps = read_steps(self.folder)
        (self.folder / "steps").unlink(missing_ok=True)
        return steps


class _Fork:
    """The server: one process per call."""

    def __init__(self, remotes: Path, folder: Path) -> None:
        self._remotes = remotes
        self._folder = folder
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        handle = os.open(folder, os.O_RDONLY)
        self._listener.bind(f"/proc/self/fd/{handle}/socket")
        os.close(handle)
        self._listener.listen(128)
        self._listener.setblocking(False)

    def serve(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is self._listener:
                    with contextlib.suppress(OSError):
                        self._begin(self._listener.accept()[0])
                elif key.data is not None:
                    key.data()

    def _begin(self, caller: socket.socket) -> None:
        caller.setblocking(True)
        head, streams, _, _ = socket.recv_fds(caller, 10, 3)
        body = b""
        while len(body) < int(head):
            body += caller.recv(65536)
        words = [os.fsdecode(word) for word in body.split(b"\0")[:-1]]
        end = words.index("")
        child = os.fork()
        if child == 0:
            self._be(words[:end], dict(word.split("=", 1) for word in words[end + 1 :]), streams)
        for stream in streams:
            os.close(stream)
        handle = os.pidfd_open(child)

        def over() -> None:
            self._selector.unregister(handle)
            with contextlib.suppress(KeyError):
                self._selector.unregister(caller)
            os.close(handle)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with contextlib.suppress(OSError):
                caller.sendall(b"%d" % code)
            caller.close()

        def given_up() -> None:
            self._selector.unregister(caller)
            os.kill(child, signal.SIGKILL)

        self._selector.register(handle, selectors.EVENT_READ, over)
        self._selector.register(caller, selectors.EVENT_READ, given_up)

    def _be(self, argv: list[str], environment: dict[str, str], streams: list[int]) -> None:
        """Be the driver's process, in a session of its own as oned's are."""
        code = 1
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            os.closerange(3, 1024)
            os.environ.clear()
            os.environ.update(environment, SANSTONE_DRIVER="1", TMPDIR=str(self._folder / "tmp"))
            entry = Path(argv[0]).relative_to(self._folder / "remotes")
            _current.append(Watch(self._folder, f"{entry.parts[0]}/{entry.name}"))
            sys.argv = [str(self._remotes / entry), *argv[1:]]
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


_current: list[Watch] = []


@contextmanager
def _ready(number: int) -> Iterator[None]:
    try:
        yield
        os.write(number, b"1")
    finally:
        os.close(number)


def _main(remotes: str, folder: str, ready: str) -> None:
    with _ready(int(ready)):
        sys.path.insert(0, remotes)
        watch(lambda: _current[-1])
        for name in _PRELOADED:
            importlib.import_module(name)
        server = _Fork(Path(remotes), Path(folder))
    server.serve()


if __name__ == "__main__":
    _main(*sys.argv[1:])
