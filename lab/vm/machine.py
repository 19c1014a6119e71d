# SPDX-License-Identifier: Apache-2.0
"""A virtual machine of the lab: boot it, run commands in it, take its power away."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lab.vm.errors import VMError
from lab.vm.image import HOST_KEY_ALIAS, Image
from lab.vm.qemu import Qemu, Wiring
from lab.vm.waiting import until

__all__ = ["LateError", "Machine", "Ran"]

BOOT_DEADLINE = 240.0
GREETING_DEADLINE = 20.0
DEADLINE = 60.0
STEP_DEADLINE = 60.0
SSH_PORT = 22


class LateError(VMError):
    """A command did not end in time. It may still run in the machine."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command in a machine ended; both outputs as text."""

    code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


class Machine:
    """One machine. Its disks keep what was written when the power goes away, as far as it was flushed.

    ``data_disk`` is the size in bytes of a second disk, None for none. ``inside`` are further ports of the
    machine that can be reached from loopback, see ``ports``.
    """

    def __init__(
        self,
        wiring: Wiring,
        folder: Path,
        image: Image,
        *,
        memory_mib: int = 512,
        data_disk: int | None = None,
        inside: Sequence[int] = (),
        spawner: ThreadPoolExecutor | None = None,
        pid: int | None = None,
        ports: Mapping[int, int] | None = None,
    ) -> None:
        self.wiring = wiring
        self.folder = folder
        self.image = image
        self.qemu = Qemu(wiring, folder, image, memory_mib)
        self.qemu.pid = pid
        self.ports: dict[int, int] = dict(ports or dict.fromkeys((SSH_PORT, *inside), 0))
        """Port in the machine to port of 127.0.0.1. They stay the same when it is booted again."""
        self.unplugged: set[tuple[int, str]] = set()
        """Networks and peers whose cable is out at this machine."""
        self._data_disk = data_disk
        self._spawner = spawner
        self._boots_at = 0  # where in the console's file the present boot begins
        self._masters: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def name(self) -> str:
        return self.wiring.name

    @property
    def initiator(self) -> str:
        """Its initiator's name (IQN)."""
        return self.wiring.initiator

    @property
    def is_running(self) -> bool:
        """Whether it has power."""
        return self.qemu.is_running

    def address(self, network: int) -> str:
        """Return its address in storage network 1 or 2."""
        return self.wiring.address(network)

    # power

    def boot(self) -> None:
        """Give it power and wait until it can be logged in to."""
        self.power_on()
        self.wait()

    def power_on(self) -> None:
        """Start it without waiting for anything in it."""
        if self.is_running:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._boots_at = 0
        self.qemu.start(self.ports, self._disks(), self._spawner)
        self.ports = self.qemu.forwarded_ports()
        for network, peer in self.unplugged:
            self.qemu.set_link(network, peer, False)

    def _disks(self) -> list[str]:
        root = self.folder / "root.qcow2"
        if not root.exists():
            # written under another name first: a layer that was cut off while it was made is no disk
            fresh = root.with_suffix(".new")
            subprocess.run(
                [
                    "qemu-img",
                    "create",
                    "-q",
                    "-f",
                    "qcow2",
                    "-F",
                    "raw",
                    "-b",
                    str(self.image.disk),
                    str(fresh),
                ],
                check=True,
                timeout=STEP_DEADLINE,
                stdin=subprocess.DEVNULL,
            )
            fresh.rename(root)
        disks = [f"file={root},if=virtio,format=qcow2,discard=unmap"]
        if self._data_disk is not None:
            disk = self.folder / "data.img"
            with disk.open("ab") as file:
                if file.tell() == 0:
                    file.truncate(self._data_disk)
            # raw: what QEMU has taken is in the file at once, whatever becomes of QEMU
            disks.append(f"file={disk},if=virtio,format=raw,cache=unsafe,discard=unmap,detect-zeroes=unmap")
        return disks

    def wait(self, deadline: float = BOOT_DEADLINE) -> None:
        """Wait until its sshd answers, the last thing that it starts."""
        try:
            until(lambda: not self.is_running or self._greets(), deadline, f"A login to {self.name}")
        except VMError as err:
            raise VMError(f"{err} Its console ends with:\n{self.console_tail()}") from err
        if not self.is_running:
            raise VMError(
                f"{self.name} went away while it booted. Its console ends with:\n{self.console_tail()}"
            )

    def _greets(self) -> bool:
        # QEMU takes every connection: only what sshd says tells that it is there. Then it may need its time
        patience = GREETING_DEADLINE if self._says_up() else 1.0
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.ports[SSH_PORT]), patience) as sock,
        ):
            return sock.recv(4) == b"SSH-"
        return False

    def _says_up(self) -> bool:
        with contextlib.suppress(OSError), self.qemu.console.open("rb") as console:
            console.seek(self._boots_at)
            return b"lab: " in console.read()
        return False

    def console_tail(self, lines: int = 20) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.qemu.console.read_text(errors="replace").splitlines()[-lines:])
        return ""

    def power_cut(self) -> None:
        """Take its power away; what it had not flushed to its disks is lost."""
        self.qemu.kill()
        self._leave()

    def reset(self) -> None:
        """Press its reset button, and wait until it can be logged in to again."""
        with contextlib.suppress(OSError):
            self._boots_at = self.qemu.console.stat().st_size
        self.qemu.ask("system_reset")
        self._leave()
        self.wait()

    def hang(self) -> None:
        """Let it do nothing any more; connections to it stay open and silent."""
        self.qemu.ask("stop")

    def go_on(self) -> None:
        """End what ``hang`` began."""
        self.qemu.ask("cont")

    # commands

    def ssh(
        self, command: str, user: str = "root", deadline: float = DEADLINE, stdin: bytes | None = None
    ) -> Ran:
        """Run a shell command line in the machine as ``user`` (root or oneadmin).

        Raises: LateError when it takes longer than ``deadline`` seconds; VMError when there is no connection.
        """
        self._connect(user)
        argv = ["ssh", *self._options(user), self.name, command]
        try:
            done = subprocess.run(
                argv,
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                timeout=deadline,
                check=False,
            )
        except subprocess.TimeoutExpired as err:
            raise LateError(f"{self.name} did not end within {deadline:.0f} s: {command[:200]}") from err
        ran = Ran(
            done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
        )
        if ran.code == 255 and not self.is_running:
            raise VMError(f"{self.name} has no power.")
        return ran

    def run(
        self, command: str, user: str = "root", deadline: float = DEADLINE, stdin: bytes | None = None
    ) -> str:
        """Run a shell command line that has to succeed; return its standard output.

        Raises: VMError when its exit code is not 0.
        """
        ran = self.ssh(command, user, deadline, stdin)
        if ran.code:
            raise VMError(f"{self.name}: exit code {ran.code}: {command[:500]}\n{ran.output[-2000:]}")
        return ran.stdout

    def _connect(self, user: str) -> None:
        """Have one connection per user that commands share: a handshake costs a second in emulation."""
        master = self._masters.get(user)
        if master is not None and master.poll() is None:
            return
        control = self._control(user)
        control.unlink(missing_ok=True)
        argv = ["ssh", "-M", "-N", "-o", "ServerAliveInterval=10", *self._options(user), self.name]
        if self._spawner is None:
            master = _start(argv)
        else:
            master = self._spawner.submit(_start, ["setpriv", "--pdeathsig", "KILL", *argv]).result()
        self._masters[user] = master
        started = master
        try:
            until(
                lambda: control.exists() or started.poll() is not None,
                STEP_DEADLINE,
                f"A login to {self.name}",
            )
            if started.poll() is not None:
                raise VMError(f"There is no login as {user} to {self.name}.")
        except VMError:
            self._leave()
            raise

    def share(self, user: str) -> Path:
        """Have a connection of ``user`` and return its ControlPath: another ssh that names it is quick."""
        self._connect(user)
        return self._control(user)

    def _control(self, user: str) -> Path:
        return self.wiring.sockets / f"ssh-{self.name}-{user}"

    def _options(self, user: str) -> list[str]:
        lines = ssh_lines(self, user)
        options = [word for name, value in lines.items() for word in ("-o", f"{name}={value}")]
        return ["-F", "/dev/null", *options, "-S", str(self._control(user))]

    def _leave(self) -> None:
        for master in self._masters.values():
            master.kill()
            master.wait(STEP_DEADLINE)
        self._masters.clear()

    def processes(self) -> set[int]:
        """Return the ids of the processes that run for it as children of this one."""
        return self.qemu.processes() | {master.pid for master in self._masters.values()}

    def close(self) -> None:
        """End what this process has for the machine; the machine itself goes on."""
        self._leave()


def _start(argv: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def ssh_lines(machine: Machine, user: str) -> dict[str, str]:
    """Return the settings for ssh(1) to get into a machine; its key is checked."""
    return {
        "HostName": "127.0.0.1",
        "Port": str(machine.ports[SSH_PORT]),
        "User": user,
        "HostKeyAlias": HOST_KEY_ALIAS,
        "IdentityFile": str(machine.image.key),
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": str(machine.image.known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
        "LogLevel": "ERROR",
    }
