# SPDX-License-Identifier: Apache-2.0
"""The lab's machines together: arrays, hosts, two storage networks, and what can befall them.

Everything stays on loopback and in Unix sockets; no root network set-up.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from lab.vm.array import Array
from lab.vm.box import BOX_PORT, V7000, start_box
from lab.vm.errors import VMError
from lab.vm.image import Image, find_image
from lab.vm.machine import Machine, ssh_lines
from lab.vm.qemu import NETWORKS, Wiring

__all__ = ["PROGRAMS", "STATE", "Lab"]

# What the lab starts, for pytest.mark.real(*PROGRAMS).
PROGRAMS = ("qemu-system-x86_64", "qemu-img", "setpriv", "ssh")
MIB = 1 << 20
FIRST_HOST = 11
STATE = "state.json"
LONGEST_SOCKET = 100


@dataclass(frozen=True, slots=True)
class _Size:
    arrays: int
    hosts: int


class Lab:
    """Machines ``array1``, ... and ``node1``, ...; a context manager that leaves nothing running.

    ``directory`` gets their disks and consoles, and ``ssh_config`` (as oneadmin) and ``root_ssh_config`` for
    all of them: ``ssh -F directory/ssh_config node1``. ``array_disk`` is the size of each array's data disk,
    in bytes. With ``stays`` the machines go on after this process has ended; ``Lab.open`` finds them again.
    """

    def __init__(
        self,
        directory: Path,
        arrays: int = 1,
        hosts: int = 2,
        *,
        array_disk: int = 1024 * MIB,
        memory_mib: int = 512,
        stays: bool = False,
    ) -> None:
        self.directory = directory
        self.arrays: dict[str, Array] = {}
        self.hosts: dict[str, Machine] = {}
        self._size = _Size(arrays, hosts)
        self._array_disk = array_disk
        self._memory_mib = memory_mib
        self._stays = stays
        self._image: Image | None = None
        self._sockets: Path | None = None
        # one of its own for each lab, so that its thread can be told from others
        self._parent = f"qemu-parent-{id(self)}"
        self._spawner = None if stays else ThreadPoolExecutor(1, self._parent)

    @property
    def machines(self) -> dict[str, Machine]:
        return {**self.arrays, **self.hosts}

    @property
    def array(self) -> Array:
        """The first array."""
        return self.arrays["array1"]

    @property
    def ssh_config(self) -> Path:
        """For ssh -F: into all machines as oneadmin."""
        return self.directory / "ssh_config"

    @property
    def root_ssh_config(self) -> Path:
        return self.directory / "root_ssh_config"

    # life

    def start(self) -> None:
        """Boot all machines at once and wait for them.

        Raises: VMError when the image was not built yet (``build_image``) or a machine does not come up.
        """
        image = find_image()
        if image is None:
            raise VMError("The image of the lab's machines is not there yet: make lab ARGS=build")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._image = image
        # short, because the path of a socket may have no more than 107 characters
        self._sockets = Path(tempfile.mkdtemp(prefix="lab-vm-"))
        try:
            if len(str(self._sockets)) > LONGEST_SOCKET - 40:
                raise VMError(f"{self._sockets} is too long for sockets: set TMPDIR to a shorter one.")
            self._make_machines({}, {})
            for machine in self.machines.values():
                machine.power_on()
                self._save()
            for machine in self.machines.values():
                machine.wait()
            self._write_ssh_configs()
        except BaseException:
            self.stop()
            raise

    def _make_machines(self, pids: dict[str, int | None], ports: dict[str, dict[int, int]]) -> None:
        assert self._image is not None
        assert self._sockets is not None
        numbers = {f"array{at}": at for at in range(1, self._size.arrays + 1)}
        numbers |= {f"node{at + 1}": FIRST_HOST + at for at in range(self._size.hosts)}
        for name, number in numbers.items():
            is_array = number < FIRST_HOST
            wiring = Wiring(
                name=name,
                role="array" if is_array else "host",
                initiator=f"iqn.1993-08.org.debian:01:{name}",
                numbers=numbers,
                sockets=self._sockets,
            )
            kind = Array if is_array else Machine
            machine = kind(
                wiring,
                self.directory / name,
                self._image,
                memory_mib=self._memory_mib,
                data_disk=self._array_disk if is_array else None,
                inside=(BOX_PORT,) if is_array else (),
                spawner=self._spawner,
                pid=pids.get(name),
                ports=ports.get(name),
            )
            if isinstance(machine, Array):
                self.arrays[name] = machine
            else:
                self.hosts[name] = machine

    def stop(self) -> None:
        """End all machines at once; a lab started in this directory later goes on with their disks."""
        for machine in self.machines.values():
            machine.power_cut()
        if self._spawner is not None:
            self._spawner.shutdown()
            self._spawner = None
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
        (self.directory / STATE).unlink(missing_ok=True)

    def __enter__(self) -> Lab:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def running_ids(self) -> set[int]:
        """Return the ids of the processes and threads that this process has for the lab at this moment."""
        threads = {one.ident for one in threading.enumerate() if one.name.startswith(self._parent)}
        processes = {number for machine in self.machines.values() for number in machine.processes()}
        return processes | {number for number in threads if number is not None}

    def close(self) -> None:
        """End what this process has for the lab; machines that stay go on."""
        for machine in self.machines.values():
            machine.close()
        self._save()

    # found again by another process

    def _save(self) -> None:
        assert self._image is not None
        state = {
            "sockets": str(self._sockets),
            "image": [str(path) for path in (self._image.folder, self._image.kernel, self._image.initrd)],
            "arrays": self._size.arrays,
            "hosts": self._size.hosts,
            "machines": {
                name: {
                    "pid": machine.qemu.pid,
                    "ports": list(machine.ports.items()),
                    "unplugged": sorted(machine.unplugged),
                }
                for name, machine in self.machines.items()
            },
        }
        fresh = self.directory / f"{STATE}.new"
        fresh.write_text(json.dumps(state, indent=1) + "\n")
        fresh.rename(self.directory / STATE)

    @classmethod
    def open(cls, directory: Path) -> Lab:
        """Return the lab that another process started with ``stays`` in ``directory``.

        Raises: VMError when there is none.
        """
        try:
            state = json.loads((directory / STATE).read_text())
        except OSError:
            raise VMError("The lab is not up: make lab") from None
        lab = cls(directory, state["arrays"], state["hosts"], stays=True)
        lab._image = Image(*(Path(path) for path in state["image"]))
        lab._sockets = Path(state["sockets"])
        stored = state["machines"]
        lab._make_machines(
            {name: one["pid"] for name, one in stored.items()},
            {name: dict(one["ports"]) for name, one in stored.items()},
        )
        for name, one in stored.items():
            lab.machines[name].unplugged = {(network, peer) for network, peer in one["unplugged"]}
        return lab

    def _write_ssh_configs(self) -> None:
        for path, user in ((self.ssh_config, "oneadmin"), (self.root_ssh_config, "root")):
            text = []
            for machine in self.machines.values():
                text += [f"Host {machine.name}"]
                text += [f"    {name} {value}" for name, value in ssh_lines(machine, user).items()]
            path.write_text("\n".join(text) + "\n")

    # what can befall it

    def lose_path(self, host: str, network: int, array: str = "array1", *, is_silent: bool = False) -> None:
        """Cut the cable between a host and an array in storage network 1 or 2.

        The host sees its link go down; with ``is_silent`` the cable is cut at the array's end, as behind a
        switch, and the host sees nothing but that no answer comes.
        """
        self._plug(host, network, array, is_silent=is_silent, is_up=False)

    def restore_path(self, host: str, network: int, array: str = "array1") -> None:
        """Mend what ``lose_path`` cut, at both ends."""
        for is_silent in (False, True):
            self._plug(host, network, array, is_silent=is_silent, is_up=True)

    def _plug(self, host: str, network: int, array: str, *, is_silent: bool, is_up: bool) -> None:
        if host not in self.hosts or array not in self.arrays or network not in NETWORKS:
            raise VMError(f"There is no path from {host} to {array} in network {network}.")
        here, peer = (self.arrays[array], host) if is_silent else (self.hosts[host], array)
        if is_up:
            here.unplugged.discard((network, peer))
        else:
            here.unplugged.add((network, peer))
        if here.is_running:
            here.qemu.set_link(network, peer, is_up)

    @contextlib.contextmanager
    def lost_path(
        self, host: str, network: int, array: str = "array1", *, is_silent: bool = False
    ) -> Iterator[None]:
        """Have a path cut for a while."""
        self.lose_path(host, network, array, is_silent=is_silent)
        try:
            yield
        finally:
            self.restore_path(host, network, array)

    def fill_pool(self, array: str = "array1") -> None:
        """Leave no room in an array's thin pool."""
        self.arrays[array].fill_pool()

    def empty_pool(self, array: str = "array1") -> None:
        """Give back what ``fill_pool`` took."""
        self.arrays[array].empty_pool()

    # a simulated box on an array

    def v7000(
        self,
        name: str = "v7000-a",
        *,
        array: str = "array1",
        pools: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> V7000:
        """Start a simulated V7000 on an array, with all hosts registered; the one that ran there is gone.

        ``pools``: names to sizes like ``100G``, as the box tells them; what it can really store is limited by
        the array's thin pool. ``options`` are further ones of ``python -m lab.v7000``.
        """
        hosts = {host.name: host.initiator for host in self.hosts.values()}
        return start_box(self.arrays[array], name, hosts, pools or {"mdiskgrp0": "100G"}, *options)
