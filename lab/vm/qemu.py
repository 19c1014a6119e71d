# SPDX-License-Identifier: Apache-2.0
"""One QEMU process: its command line, its life, its monitor."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lab.vm import qmp
from lab.vm.errors import VMError
from lab.vm.image import Image
from lab.vm.waiting import until

__all__ = ["NETWORKS", "Qemu", "Wiring"]

NETWORKS = (1, 2)
START_DEADLINE = 30.0
END_DEADLINE = 15.0


@dataclass(frozen=True, slots=True)
class Wiring:
    """Who a machine is among the others: numbers up to 9 are arrays, from 11 on hosts.

    Each pair of machines has a link of its own in each network, two sockets below ``sockets``. No link needs
    the other end to be there, so that machines come and go in any order.
    """

    name: str
    role: str
    initiator: str
    numbers: Mapping[str, int]
    sockets: Path

    @property
    def number(self) -> int:
        return self.numbers[self.name]

    def address(self, network: int) -> str:
        return f"10.7.{network}.{self.number}"

    def kernel_arguments(self) -> str:
        peers = ",".join(f"{name}:{number}" for name, number in self.numbers.items())
        words = [f"lab.role={self.role}", f"lab.name={self.name}", f"lab.initiator={self.initiator}"]
        return " ".join([*words, f"lab.peers={peers}"])

    def network_arguments(self, ports: Mapping[int, int]) -> list[str]:
        """``ports``: port in the machine to port of loopback, 0 for any that is free."""
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{port}-:{inside}" for inside, port in ports.items())
        argv = ["-netdev", f"user,id=mgmt-net,restrict=on{forwards}"]
        argv += ["-device", f"virtio-net-pci,romfile=,netdev=mgmt-net,mac={_mac(0, self.number, 0)}"]
        for network in NETWORKS:
            for peer, number in self.numbers.items():
                if peer == self.name:
                    continue
                link, mac = link_name(network, peer), _mac(network, self.number, number)
                here, there = self._socket(network, self.name, peer), self._socket(network, peer, self.name)
                ends = f"local.type=unix,local.path={here},remote.type=unix,remote.path={there}"
                argv += [
                    "-netdev",
                    f"dgram,id={link}-net,{ends}",
                    "-device",
                    f"virtio-net-pci,romfile=,id={link},netdev={link}-net,mac={mac}",
                ]
        return argv

    def _socket(self, network: int, name: str, peer: str) -> Path:
        return self.sockets / f"{network}-{name}-{peer}"


def link_name(network: int, peer: str) -> str:
    """Return the id of the network card that leads to ``peer``."""
    return f"san{network}-{peer}"


def _mac(network: int, own: int, peer: int) -> str:
    return f"52:54:00:{network:02x}:{own:02x}:{peer:02x}"


class Qemu:
    """A QEMU for one machine; it may have been started by another process (``pid``).

    ``spawner`` starts it so that the kernel kills it when this process ends; the death signal follows the
    thread that started a process, so the spawner has to live as long. Without one QEMU stays.
    """

    def __init__(self, wiring: Wiring, folder: Path, image: Image, memory_mib: int) -> None:
        self.wiring = wiring
        self.folder = folder
        self.pid: int | None = None
        self._image = image
        self._memory_mib = memory_mib
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def monitor(self) -> Path:
        return self.wiring.sockets / f"qmp-{self.wiring.name}"

    @property
    def console(self) -> Path:
        """What the machine wrote to its console since it was started last."""
        return self.folder / "console.log"

    @property
    def is_running(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        return self.pid is not None and self._is_ours(self.pid)

    def _is_ours(self, pid: int) -> bool:
        try:
            return os.fsencode(self.monitor) in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    def start(
        self, ports: Mapping[int, int], disks: Sequence[str], spawner: ThreadPoolExecutor | None
    ) -> None:
        """Start it and wait until its monitor answers.

        Raises: VMError with what QEMU wrote.
        """
        if self.is_running:
            return
        self.monitor.unlink(missing_ok=True)
        argv = self._argv(ports, disks)
        log = self.folder / "qemu.log"
        if spawner is None:
            self._process = _spawn(argv, log)
        else:
            argv = ["setpriv", "--pdeathsig", "KILL", *argv]
            self._process = spawner.submit(_spawn, argv, log).result()
        self.pid = self._process.pid
        process = self._process
        try:
            until(lambda: process.poll() is not None or self._answers(), START_DEADLINE, "QEMU's monitor")
            if process.poll() is not None:
                raise VMError(f"QEMU of {self.wiring.name} ended at once.")
        except VMError as err:
            self.kill()
            raise VMError(f"{err} It wrote: {log.read_text(errors='replace')[-1000:]}") from err

    def _answers(self) -> bool:
        try:
            self.ask("query-status")
        except VMError:
            return False
        return True

    def _argv(self, ports: Mapping[int, int], disks: Sequence[str]) -> list[str]:
        argv = ["qemu-system-x86_64", "-name", self.wiring.name, "-nodefaults", "-no-user-config"]
        argv += ["-accel", "tcg,tb-size=256", "-cpu", "max", "-smp", "1", "-m", str(self._memory_mib)]
        argv += ["-display", "none", "-serial", f"file:{self.console}"]
        argv += ["-qmp", f"unix:{self.monitor},server=on,wait=off"]
        argv += ["-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd)]
        append = "root=/dev/vda rw rootfstype=ext4 init=/init.lab console=ttyS0 quiet net.ifnames=0 panic=5"
        append += " mitigations=off nokaslr random.trust_cpu=on no_timer_check"
        argv += ["-append", f"{append} {self.wiring.kernel_arguments()}", "-device", "virtio-rng-pci"]
        for disk in disks:
            argv += ["-drive", disk]
        return argv + self.wiring.network_arguments(ports)

    def ask(self, command: str, **arguments: object) -> object:
        return qmp.ask(self.monitor, command, **arguments)

    def forwarded_ports(self) -> dict[int, int]:
        """Return port in the machine to port of loopback."""
        text = str(self.ask("human-monitor-command", **{"command-line": "info usernet"}))
        found = re.findall(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)", text)
        return {int(inside): int(port) for port, inside in found}

    def processes(self) -> set[int]:
        """Return the ids of processes of its that this one started."""
        return {self._process.pid} if self._process is not None else set()

    def set_link(self, network: int, peer: str, is_up: bool) -> None:
        """Plug the cable to ``peer`` in or out at this machine."""
        self.ask("set_link", name=link_name(network, peer), up=is_up)

    def kill(self) -> None:
        """End the process at once, as if the power went away; return when it is gone."""
        process, self._process, pid, self.pid = self._process, None, self.pid, None
        if process is not None:
            process.kill()
            process.wait(END_DEADLINE)
        elif pid is not None:
            self._kill_foreign(pid)

    def _kill_foreign(self, pid: int) -> None:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            # looked at after it was taken hold of: the number cannot be another's any more
            if self._is_ours(pid):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], END_DEADLINE)
        finally:
            os.close(handle)


def _spawn(argv: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
