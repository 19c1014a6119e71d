# SPDX-License-Identifier: Apache-2.0
"""A portal of the box: looks at each login and leads it to the daemon that serves this initiator."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from lab.v7000.iscsi import AUTHORIZATION_FAILURE, TARGET_NOT_FOUND, answer_discovery, read_pdu, refuse

__all__ = ["Door", "Front", "Gate"]

CHUNK = 1 << 18
LOGIN_DEADLINE = 10.0
STOP_DEADLINE = 10.0


class Gate:
    """Holds requests of one host back while its LUNs change."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._lock = threading.RLock()
        self._depth = 0

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        with self._lock:
            self._depth += 1
            self._open.clear()
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    self._open.set()

    def wait(self) -> None:
        self._open.wait()


@dataclass(frozen=True, slots=True)
class Door:
    """Where an initiator's sessions go, and the gate before it."""

    portal: tuple[str, int]
    gate: Gate


@dataclass(slots=True)
class _Link:
    """One connection through a front; ``initiator`` once it is known, normal sessions only."""

    client: socket.socket
    server: socket.socket | None = None
    initiator: str = ""
    threads: list[threading.Thread] = field(default_factory=list)

    def cut(self) -> None:
        for sock in (self.client, self.server):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


class Front:
    """Listens at ``address:port`` for the target ``iqn``.

    ``find`` maps an initiator's name to its door, None for a stranger; ``targets`` is what discovery tells.
    """

    def __init__(
        self,
        address: str,
        port: int,
        iqn: str,
        targets: Sequence[tuple[str, str]],
        find: Callable[[str], Door | None],
    ) -> None:
        self._place = (address, port)
        self._iqn = iqn
        self._targets = targets
        self._find = find
        self._listener: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self._links: list[_Link] = []
        self._lock = threading.Lock()

    @property
    def is_up(self) -> bool:
        return self._listener is not None

    def initiators(self) -> list[str]:
        """Return the names that are logged in, one per session."""
        with self._lock:
            return [link.initiator for link in self._links if link.initiator]

    def start(self) -> None:
        if self._listener is None:
            listener = socket.create_server(self._place, backlog=64)
            self._listener = listener
            self._accepting = threading.Thread(target=self._accept, args=(listener,), name="portal-accept")
            self._accepting.start()

    def stop(self) -> None:
        """Close the port, cut all sessions and wait for the threads."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        if self._accepting is not None:
            self._accepting.join(STOP_DEADLINE)
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cut()
        for link in links:
            for thread in link.threads:
                thread.join(STOP_DEADLINE)

    def cut(self, initiator: str) -> None:
        """End the sessions of one initiator."""
        with self._lock:
            links = [link for link in self._links if link.initiator == initiator]
        for link in links:
            link.cut()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client)
            thread = threading.Thread(target=self._serve, args=(link,), name="portal-session")
            link.threads.append(thread)
            with self._lock:
                self._links.append(link)
            thread.start()

    def _serve(self, link: _Link) -> None:
        try:
            self._lead(link)
        except OSError:
            pass
        finally:
            link.cut()
            for thread in link.threads[1:]:
                thread.join()
            with self._lock:
                self._links.remove(link)
            link.client.close()
            if link.server is not None:
                link.server.close()

    def _lead(self, link: _Link) -> None:
        link.client.settimeout(LOGIN_DEADLINE)
        login = read_pdu(link.client)
        if login is None or login.opcode != 0x03:
            return
        keys = login.keys
        door = self._find(keys.get("InitiatorName", ""))
        if door is None:
            refuse(link.client, login, AUTHORIZATION_FAILURE)
        elif keys.get("SessionType", "Normal") == "Discovery":
            answer_discovery(link.client, login, self._targets)
        elif keys.get("TargetName") != self._iqn:
            refuse(link.client, login, TARGET_NOT_FOUND)
        else:
            self._splice(link, door, login.raw, keys["InitiatorName"])

    def _splice(self, link: _Link, door: Door, first: bytes, initiator: str) -> None:
        server = socket.create_connection(door.portal, LOGIN_DEADLINE)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.settimeout(None)
        link.client.settimeout(None)
        link.server = server
        back = threading.Thread(target=_pump, args=(server, link.client, None), name="portal-back")
        link.threads.append(back)
        back.start()
        with self._lock:
            link.initiator = initiator
        if not self.is_up:
            return
        door.gate.wait()
        server.sendall(first)
        _pump(link.client, server, door.gate)


def _pump(source: socket.socket, target: socket.socket, gate: Gate | None) -> None:
    """Carry bytes until either side ends, then end both."""
    buffer = memoryview(bytearray(CHUNK))
    with contextlib.suppress(OSError):
        while size := source.recv_into(buffer):
            if gate is not None:
                gate.wait()
            target.sendall(buffer[:size])
    for sock in (source, target):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
