# SPDX-License-Identifier: Apache-2.0
"""One simulated Storwize V7000: its shell, its SSH face, its data face, its life and death."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import paramiko

from lab.faults import Faults, Journal
from lab.sshd import Exec, SSHServer, User
from lab.v7000.clock import Clock, RealClock
from lab.v7000.dataplane import DataPlane
from lab.v7000.errors import text_of
from lab.v7000.machine import Machine, NoPlane
from lab.v7000.shell import DropError, Session, Shell
from lab.v7000.state import Node, Pool, State

__all__ = ["Box", "BoxConfig"]

GB = 1024**3
FIRMWARE = "7.8.1.5 (build 135.9.1803291125000)"


@dataclass(slots=True)
class BoxConfig:
    """What a box is like. Sizes are bytes, times are seconds.

    ``latency`` is taken by each command, ``handshake_latency`` by each connection. ``data_reduction`` names
    pools that are data reduction pools. ``copy_speed`` multiplies FlashCopy's copy rates, ``format_rate``
    (bytes per second, None: at once) is that of background formatting. ``licensed_capacity`` is where mkvdisk
    begins to answer CMMVC6372W. ``addresses`` are the portals' (by default free ones of 127/8), port 3260.
    """

    name: str = "v7000-a"
    pools: Mapping[str, int] = field(default_factory=lambda: {"mdiskgrp0": 100 * GB})
    data_reduction: frozenset[str] = frozenset()
    extent_size: int = 256 * 1024**2
    firmware: str = FIRMWARE
    users: Mapping[str, User] = field(default_factory=dict)
    listen: tuple[str, int] = ("127.0.0.1", 0)
    host_key: paramiko.PKey | None = None
    latency: float = 0.0
    handshake_latency: float = 0.0
    session_limit: int | None = None
    data_plane: bool = False
    directory: Path | None = None
    addresses: tuple[str, str] | None = None
    first_lun: int | None = None
    copy_speed: float = 1.0
    prepare_seconds: float = 0.0
    stop_seconds: float = 0.0
    format_rate: float | None = None
    licensed_capacity: int | None = None
    expand_in_fcmap: bool | None = None
    header_when_unmapped: bool = False
    journal: Path | None = None
    clock: Clock = field(default_factory=RealClock)


class Box:
    """A box that can be reached over SSH and, with a data plane, over iSCSI; a context manager."""

    def __init__(self, config: BoxConfig) -> None:
        self.config = config
        self.faults = Faults()
        self.journal = Journal(config.journal, config.clock.now)
        addresses = config.addresses or DataPlane.free_addresses(2)
        nodes = [
            Node(
                at, f"node{at}", f"iqn.1986-03.com.ibm:2145.{config.name.lower()}.node{at}", address, at == 1
            )
            for at, address in enumerate(addresses, 1)
        ]
        pools = [
            Pool(at, name, size, config.extent_size, name in config.data_reduction)
            for at, (name, size) in enumerate(config.pools.items())
        ]
        # LUN 0 of a tgt target is its controller: with a data plane LUNs begin at 1
        first_lun = config.first_lun if config.first_lun is not None else int(config.data_plane)
        state = State(config.name, pools, nodes, first_lun)
        self._plane: DataPlane | None = None
        if config.data_plane:
            if config.directory is None:
                raise ValueError("a data plane needs a directory")
            self._plane = DataPlane(config.directory, nodes)
        self.machine = Machine(
            state,
            config.clock,
            config.firmware,
            self._plane or NoPlane(),
            config.copy_speed,
            config.prepare_seconds,
            config.stop_seconds,
            config.format_rate,
            config.licensed_capacity,
            config.expand_in_fcmap,
            config.header_when_unmapped,
        )
        self.shell = Shell(self.machine, self.faults, self.journal, config.latency)
        self.ssh = SSHServer(
            self._serve,
            users=config.users,
            address=config.listen[0],
            port=config.listen[1],
            host_key=config.host_key,
            handshake_latency=config.handshake_latency,
            session_limit=config.session_limit,
            refuse=_refuse,
            on_connect=self.journal.add_connection,
        )

    # life

    def start(self) -> None:
        if not self.is_dead:
            return
        try:
            if self._plane:
                self._plane.start()
            self.shell.is_dead = False
            self.ssh.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything and remove what was made on disk."""
        self.die()
        if self._plane:
            self._plane.remove()

    def die(self) -> None:
        """Be gone at once: connections cut, ports closed, nothing answers. What was stored stays."""
        self.shell.is_dead = True
        self.ssh.stop()
        if self._plane:
            with self.shell.lock:
                self._plane.stop()

    def revive(self) -> None:
        """Come back at the same addresses with everything that was stored."""
        if not self.is_dead:
            return
        with self.shell.lock:
            if self._plane:
                self._plane.start()
                self._restore_luns()
            self.machine.online.clear()
            self.machine.tick()
        self.shell.is_dead = False
        self.ssh.start()

    def _restore_luns(self) -> None:
        state = self.machine.state
        for host in state.hosts.values():
            self.machine.plane.add_host(host)
            for mapping in state.mappings_of_host(host):
                self.machine.plane.map(host, state.volumes[mapping.volume], mapping.lun, True)

    def __enter__(self) -> Box:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def is_dead(self) -> bool:
        return self.shell.is_dead

    # where it is

    @property
    def ssh_host(self) -> str:
        return self.ssh.host

    @property
    def ssh_port(self) -> int:
        return self.ssh.port

    @property
    def portals(self) -> tuple[str, ...]:
        """Addresses with port at which the data plane listens, one per node."""
        return tuple(f"{node.address}:3260" for node in self.machine.state.nodes)

    @property
    def targets(self) -> tuple[str, ...]:
        """The nodes' target names, in the order of ``portals``."""
        return tuple(node.iqn for node in self.machine.state.nodes)

    def known_hosts_line(self, name: str) -> str:
        return self.ssh.known_hosts_line(name)

    def volume_path(self, name: str) -> Path:
        """Return the file that holds a volume's bytes."""
        if self._plane is None:
            raise LookupError("a box without a data plane has no files")
        with self.shell.lock:
            return self._plane.path(self.machine.state.find(self.machine.state.volumes, name))

    def add_host(self, name: str, iqn: str) -> None:
        """Register a host, as an administrator does before a box is used."""
        answer = self.run(f'mkhost -name "{name}" -iscsiname {iqn}')
        if answer[2]:
            raise ValueError(answer[1].strip())

    # what can happen to it

    @property
    def latency(self) -> float:
        """Seconds that each command takes."""
        return self.shell.latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        self.shell.latency = seconds

    @property
    def handshake_latency(self) -> float:
        return self.ssh.handshake_latency

    @handshake_latency.setter
    def handshake_latency(self, seconds: float) -> None:
        self.ssh.handshake_latency = seconds

    @property
    def session_limit(self) -> int | None:
        return self.ssh.session_limit

    @session_limit.setter
    def session_limit(self, sessions: int | None) -> None:
        self.ssh.session_limit = sessions

    def portal_down(self, number: int) -> None:
        """Take the portal of node ``number`` (from 1) away, with the sessions through it."""
        self._need_plane().portal_down(number)

    def portal_up(self, number: int) -> None:
        self._need_plane().portal_up(number)

    def _need_plane(self) -> DataPlane:
        if self._plane is None:
            raise LookupError("a box without a data plane has no portals")
        return self._plane

    def run(self, line: str) -> tuple[str, str, int]:
        """Run a command line as one that came over SSH: standard output, standard error, exit status.

        Raises: ConnectionError when a fault cuts the connection or the box is dead.
        """
        if self.is_dead:
            raise ConnectionRefusedError(f"{self.config.name} is dead")
        stdout: list[str] = []
        stderr: list[str] = []
        number = self.journal.add_line(0, "", line)
        session = Session(number, stdout.append, stderr.append, lambda: False)
        try:
            status = self.shell.run(session, line)
        except DropError:
            raise ConnectionResetError(f"{self.config.name} cut the connection") from None
        return "".join(stdout), "".join(stderr), status

    def _serve(self, request: Exec) -> int:
        number = self.journal.add_line(request.connection, request.user, request.command)

        def write(text: str) -> None:
            request.stdout.write(text.encode("utf-8", "surrogateescape"))

        def complain(text: str) -> None:
            request.stderr.write(text.encode("utf-8", "surrogateescape"))

        try:
            return self.shell.run(Session(number, write, complain, request.closed), request.command)
        except DropError:
            request.disconnect()
            return 255


def _refuse(request: Exec) -> int:
    """Answer a session over the limit."""
    request.stdout.write(text_of("CMMVC7017E").encode() + b"\n")
    return 1
