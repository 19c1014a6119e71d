# SPDX-License-Identifier: Apache-2.0
"""What a machine in user space does with command lines that come by ssh, and how a client finds it."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, cast

from lab.sshd import Exec

__all__ = ["Login", "Reachable", "kill", "ssh_config"]

CHUNK = 1 << 16


class Reachable(Protocol):
    """A machine with an SSH server of its own on loopback."""

    name: str
    user: str

    @property
    def ssh_host(self) -> str: ...

    @property
    def ssh_port(self) -> int: ...

    def known_hosts_line(self, name: str) -> str: ...


class Login:
    """Runs command lines by ``/bin/sh -c``; each ends with its client. ``lines`` are those that came."""

    def __init__(self, environment: Callable[[], Mapping[str, str]], home: Path) -> None:
        self.lines: list[str] = []
        self._environment = environment
        self._home = home
        self._running: dict[subprocess.Popen[bytes], Exec] = {}
        self._lock = threading.Lock()

    def __call__(self, request: Exec) -> int:
        self.lines.append(request.command)
        process = subprocess.Popen(
            ["sh", "-c", request.command],
            executable="/bin/sh",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**self._environment(), "SSH_CONNECTION": "127.0.0.1 0 127.0.0.1 22"},
            cwd=self._home,
            start_new_session=True,
        )
        with self._lock:
            self._running[process] = request
        try:
            return _relay(process, request)
        finally:
            with self._lock:
                self._running.pop(process)

    def kill_all(self) -> None:
        """Kill what runs; its clients hear of it."""
        with self._lock:
            running = list(self._running)
        for process in running:
            kill(process)

    def connection_of(self, pid: int) -> int:
        """Return the number of the connection in which a process was started, 0 when it was in none."""
        found = self._started(pid)
        return found[1].connection if found else 0

    def cut(self, pid: int) -> None:
        """Cut the connection in which a process was started, and kill the command line."""
        if found := self._started(pid):
            process, request = found
            request.disconnect()
            kill(process)

    def _started(self, pid: int) -> tuple[subprocess.Popen[bytes], Exec] | None:
        with self._lock:
            running = {process.pid: (process, request) for process, request in self._running.items()}
        while pid > 1:
            if pid in running:
                return running[pid]
            pid = _parent(pid)
        return None


def _parent(pid: int) -> int:
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(words.rpartition(")")[2].split()[1])


def _relay(process: subprocess.Popen[bytes], request: Exec) -> int:
    """Pass streams both ways; kill the command when its client goes away."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    ended = threading.Event()
    feeding = threading.Thread(
        target=_feed,
        args=(cast(io.BufferedReader, request.stdin), process.stdin),
        name="lab-host-stdin",
        daemon=True,
    )
    telling = threading.Thread(
        target=_pass_on, args=(process.stderr.fileno(), request.stderr.write, request.closed), daemon=True
    )
    watching = threading.Thread(target=_watch, args=(process, request, ended), daemon=True)
    for thread in (feeding, telling, watching):
        thread.start()
    try:
        _pass_on(process.stdout.fileno(), request.stdout.write, request.closed)
        telling.join()
        code = process.wait()
    finally:
        ended.set()
        watching.join()
        kill(process)
        telling.join()
        process.stdout.close()
        process.stderr.close()
    return code if code >= 0 else 128 - code


def _feed(source: io.BufferedReader, sink: io.BufferedWriter) -> None:
    """Copy until either side ends; the server ends the source when the command is over."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        while chunk := source.read1(CHUNK):
            sink.write(chunk)
            sink.flush()
    with contextlib.suppress(OSError):
        sink.close()


def _pass_on(source: int, write: Callable[[bytes], object], closed: Callable[[], bool]) -> None:
    """Copy until the source ends; what no client takes any more is dropped."""
    while chunk := os.read(source, CHUNK):
        with contextlib.suppress(OSError):
            write(chunk)


def _watch(process: subprocess.Popen[bytes], request: Exec, ended: threading.Event) -> None:
    """Kill a command whose client went away: with the connection goes what it started."""
    while not ended.wait(0.05):
        if request.closed():
            kill(process)
            return


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a command with all that it started in its session, and reap it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def ssh_config(machines: Iterable[Reachable], key_path: Path) -> str:
    """Write an ssh client configuration that knows ``machines`` by name.

    Their host keys go to ``known_hosts`` beside ``key_path``; other entries there stay.
    """
    known = key_path.parent / "known_hosts"
    lines = known.read_text(encoding="utf-8").splitlines() if known.exists() else []
    machines = list(machines)
    names = {machine.name: machine.known_hosts_line(machine.name) for machine in machines}
    lines = [line for line in lines if line.partition(" ")[0] not in names]
    known.write_text("\n".join([*lines, *names.values(), ""]), encoding="utf-8")
    blocks = [
        f"Host {machine.name}\n"
        f"    HostName {machine.ssh_host}\n"
        f"    Port {machine.ssh_port}\n"
        f"    HostKeyAlias {machine.name}\n"
        f"    User {machine.user}\n"
        f'    IdentityFile "{key_path}"\n'
        "    IdentitiesOnly yes\n"
        f'    UserKnownHostsFile "{known}"\n'
        "    GlobalKnownHostsFile /dev/null\n"
        "    StrictHostKeyChecking yes\n"
        "    BatchMode yes\n"
        for machine in machines
    ]
    return "\n".join(blocks)
