# SPDX-License-Identifier: Apache-2.0
"""A LUN as a plain file: ``qemu-storage-daemon`` logs in with libiscsi, ``nbdfuse`` shows it through FUSE.

The daemon could show the file itself, but its FUSE export reads the next request into the buffer of a write
that is still under way (QEMU 7.2): two writes at once end up with one another's bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lab.host.initiator import Chap

__all__ = [
    "Descriptor",
    "Export",
    "ExportError",
    "Janitor",
    "Spawner",
    "holders_of",
    "mounts_under",
    "unmount",
]

MNT_DETACH = 2
EXPORT_DEADLINE = 10.0

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


class ExportError(Exception):
    """The export did not come up; the text is the daemon's own."""


class Spawner:
    """Starts processes that die with this one, and with ``stop()``.

    The kernel sends the signal when the *thread* that forked ends, so one thread forks them all.
    """

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[tuple[Callable[[], object], Future[object]] | None] = (
            queue.SimpleQueue()
        )
        self._lock = threading.Lock()
        self._is_over = False
        self._thread = threading.Thread(target=self._work, name="lab-host-spawner", daemon=True)
        self._thread.start()

    def popen(
        self, argv: Sequence[str], stderr: Path, passed: socket.socket | None = None
    ) -> subprocess.Popen[bytes]:
        def start() -> object:
            with stderr.open("wb") as log:
                return subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=[] if passed is None else [passed.fileno()],
                )

        done: Future[object] = Future()
        with self._lock:
            if self._is_over:
                raise ExportError("the host is down")
            self._orders.put((start, done))
        process = done.result()
        assert isinstance(process, subprocess.Popen)
        return process

    def stop(self) -> None:
        with self._lock:
            self._is_over = True
            self._orders.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            start, done = order
            try:
                done.set_result(start())
            except OSError as err:
                done.set_exception(err)


class Janitor:
    """A small process that unmounts everything under ``root`` when this process is gone, however it went."""

    SCRIPT = (
        'read -r _; while read -r _ at _; do case "$at" in "$0"/*) at=$(printf %b "$at"); '
        'umount -l "$at" 2>/dev/null || fusermount3 -uzq "$at";; esac; done < /proc/self/mounts'
    )

    def __init__(self, root: Path) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", self.SCRIPT, _escape(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


class Export:
    """The file ``mountpoint`` with the bytes of one LUN, while the daemon lives."""

    def __init__(
        self,
        mountpoint: Path,
        state: Path,
        spawner: Spawner,
        *,
        portal: tuple[str, int],
        target: str,
        lun: int,
        initiator: str,
        chap: Chap | None,
        read_only: bool = False,
    ) -> None:
        self.mountpoint = mountpoint
        self.read_only = read_only
        self._log = state / f"{mountpoint.name}.log"
        self._secret = state / f"{mountpoint.name}.secret"
        self._pid_file = state / f"{mountpoint.name}.pid"
        self._spawner = spawner
        self._process: subprocess.Popen[bytes] | None = None
        self._viewer: subprocess.Popen[bytes] | None = None
        self._address = ""
        self._lock = threading.RLock()
        self._is_over = False
        self._chap = chap
        host, port = portal
        self._node: dict[str, object] = {
            "driver": "iscsi",
            "transport": "tcp",
            "portal": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            "target": target,
            "lun": lun,
            "initiator-name": initiator,
            "node-name": "lun",
        }

    @property
    def address(self) -> str:
        """The abstract socket of the daemon's NBD server, empty while there is none."""
        return self._address if self.is_running else ""

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start the daemon; ``wait()`` for the file. Raises ExportError, also after ``stop()``."""
        with self._lock:
            if self._is_over:
                raise ExportError("the disk is gone")
            if self._chap is not None:
                self._secret.touch(mode=0o600)
                self._secret.write_text(self._chap.password, encoding="utf-8")
            self.mountpoint.touch(mode=0o660)
            self._address = f"sanstone-{os.getpid()}-{secrets.token_hex(8)}"
            self._process = self._spawner.popen(self._argv(), self._log)

    def wait(self, deadline: float = EXPORT_DEADLINE) -> int:
        """Wait until the file shows the LUN and return its size. Raises ExportError."""
        assert self._process is not None
        until = time.monotonic() + deadline
        found = self._until(until, self._connect)
        if found is not None:
            with found:
                self._view(found)
            size = self._until(until, self._shown_size)
            if size is not None:
                self._secret.unlink(missing_ok=True)
                return size
        words = ""
        with contextlib.suppress(OSError):
            words = self._log.read_text(encoding="utf-8", errors="replace").strip()
        raise ExportError(words or "the export did not come up in time")

    def _until(self, end: float, look: Callable[[], T | None]) -> T | None:
        """Look until there is something, the daemon has ended or ``end`` has come."""
        clock, pause = threading.Event(), 0.002
        while time.monotonic() < end and self.is_running:
            if (found := look()) is not None:
                return found
            clock.wait(pause)
            pause = min(pause * 1.3, 0.02)
        return None

    def _connect(self) -> socket.socket | None:
        """Reach the daemon's NBD server; None while it is not up."""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.connect("\0" + self._address)
        except OSError:
            link.close()
            return None
        return link

    def _view(self, link: socket.socket) -> None:
        with self._lock:
            if self._is_over:
                raise ExportError("the disk is gone")
            argv = ["nbdfuse", *(["-r"] if self.read_only else []), str(self.mountpoint)]
            log = self._log.with_suffix(".view")
            self._viewer = self._spawner.popen([*argv, "--fd", str(link.fileno())], log, link)

    def _shown_size(self) -> int | None:
        with contextlib.suppress(OSError):
            found = self.mountpoint.stat()
            if found.st_dev != self.mountpoint.parent.stat().st_dev:
                return found.st_size
        return None

    def _argv(self) -> list[str]:
        argv = ["qemu-storage-daemon", "--pidfile", str(self._pid_file)]
        node = {**self._node, "read-only": self.read_only, "discard": "unmap"}
        if self._chap is not None:
            secret = {"qom-type": "secret", "id": "chap", "file": str(self._secret)}
            argv += ["--object", json.dumps(secret)]
            node |= {"user": self._chap.username, "password-secret": "chap"}
        server = {"addr": {"type": "unix", "path": self._address, "abstract": True}, "max-connections": 0}
        export = {
            "type": "nbd",
            "id": "export",
            "node-name": "disk",
            "name": "",
            "writable": not self.read_only,
        }
        # without a format above it the server refuses what is not whole sectors; a kernel takes any bytes
        disk = {
            "driver": "raw",
            "file": "lun",
            "node-name": "disk",
            "read-only": self.read_only,
            # a hole that is punched reads as zeros, as it does on a block device of a kernel
            "discard": "unmap",
        }
        argv += ["--blockdev", json.dumps(node), "--blockdev", json.dumps(disk)]
        argv += ["--nbd-server", json.dumps(server)]
        return [*argv, "--export", json.dumps(export)]

    def resize(self, size: int) -> None:
        """Show the LUN anew, which must have ``size`` bytes now; what is open breaks. Raises ExportError."""
        found = self._start_over()
        if found != size:
            raise ExportError(f"the LUN has {found} bytes, not {size}")

    def reopen(self, read_only: bool) -> None:
        """Start over with or without the right to write. Raises ExportError."""
        self.read_only = read_only
        self._start_over()

    def _start_over(self) -> int:
        with self._lock:
            self.kill()
            unmount(self.mountpoint)
            self.launch()
        return self.wait()

    def kill(self) -> None:
        """Let all I/O fail from now on; the dead mount point stays as a dead device node does."""
        with self._lock:
            for process in (self._viewer, self._process):
                if process is not None:
                    process.kill()
                    process.wait()

    def stop(self) -> None:
        """End the daemon and remove the file. What was written is on the LUN already: FUSE writes through."""
        with self._lock:
            self._is_over = True
            self.kill()
            unmount(self.mountpoint)
            for path in (
                self.mountpoint,
                self._log,
                self._log.with_suffix(".view"),
                self._secret,
                self._pid_file,
            ):
                path.unlink(missing_ok=True)


def unmount(path: Path) -> None:
    """Detach a mount lazily, with or without root, stale or not. No mount there is success."""
    while _is_mount(path):
        if _libc.umount2(os.fsencode(path), MNT_DETACH) == 0:
            continue
        done = subprocess.run(
            ["fusermount3", "-uz", "--", str(path)], capture_output=True, timeout=10, check=False
        )
        if done.returncode:
            return


def _is_mount(path: Path) -> bool:
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except FileNotFoundError:
        return False
    except OSError:
        return True


def mounts_under(root: Path) -> list[Path]:
    """List mount points below ``root``, innermost first."""
    prefix = f"{root}/"
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    points = (line.split()[4].encode("utf-8", "surrogateescape") for line in lines)
    found = [point.decode("unicode_escape").encode("latin-1").decode("utf-8") for point in points]
    return [Path(point) for point in reversed(found) if point.startswith(prefix)]


@dataclass(frozen=True, slots=True)
class Descriptor:
    """An open file of a process; ``mount`` tells it from another that gets its number later."""

    pid: int
    number: int
    mount: int

    def is_open(self) -> bool:
        return _mount_of(self.pid, self.number) == self.mount


def holders_of(files: Iterable[Path]) -> dict[Path, set[Descriptor]]:
    """Find which processes hold which of ``files`` open (those that this user may look at)."""
    wanted = {str(path): path for path in files}
    found: dict[Path, set[Descriptor]] = {}
    if not wanted:
        return found
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for link in os.scandir(f"/proc/{entry.name}/fd"):
                with contextlib.suppress(OSError):
                    path = wanted.get(os.readlink(link.path))  # noqa: PTH115 (thousands of them)
                    if path is not None:
                        pid, number = int(entry.name), int(link.name)
                        descriptor = Descriptor(pid, number, _mount_of(pid, number))
                        found.setdefault(path, set()).add(descriptor)
    return found


def _mount_of(pid: int, number: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/fdinfo/{number}").read_text(encoding="ascii").splitlines()
    except OSError:
        return -1
    return next((int(line.split()[1]) for line in lines if line.startswith("mnt_id:")), -1)


def _escape(path: Path) -> str:
    """Write a path as /proc/self/mounts does; ``*``, ``?`` and ``[`` are quoted there by the shell."""
    table = {" ": "\\040", "\t": "\\011", "\n": "\\012", "\\": "\\134"}
    return "".join(table.get(letter, letter) for letter in str(path))
