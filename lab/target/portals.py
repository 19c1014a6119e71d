# SPDX-License-Identifier: Apache-2.0
"""A portal of the target host: an address whose cable can be pulled while its neighbour goes on."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

__all__ = ["PORT", "Portal"]

PORT = 3260
CHUNK = 1 << 18
STOP_DEADLINE = 10.0
CONNECT_DEADLINE = 5.0


class Portal:
    """Passes connections to ``address:3260`` on to the port at which the daemon listens there."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._port = 0
        self._listener: socket.socket | None = None
        self._threads: set[threading.Thread] = set()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    @property
    def is_up(self) -> bool:
        return self._listener is not None

    def start(self, port: int = 0) -> None:
        """Listen; ``port`` is the daemon's, which is remembered."""
        self._port = port or self._port
        if self._listener is None:
            self._listener = socket.create_server((self.address, PORT), backlog=64)
            self._start(self._accept, self._listener)

    def stop(self) -> None:
        """Close the port, cut what goes through it and wait for the threads."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        with self._lock:
            for one in self._open:
                _shut(one)
            threads = list(self._threads)
        for thread in threads:
            thread.join(STOP_DEADLINE)

    def _start(self, function: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=self._run, args=(function, args), name="target-portal")
        with self._lock:
            self._threads = {one for one in self._threads if one.is_alive()} | {thread}
            thread.start()

    @staticmethod
    def _run(function: Callable[..., None], args: tuple[object, ...]) -> None:
        with contextlib.suppress(OSError):
            function(*args)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = listener.accept()
            self._start(self._lead, client)

    def _lead(self, client: socket.socket) -> None:
        with client, socket.create_connection((self.address, self._port), CONNECT_DEADLINE) as server:
            server.settimeout(None)
            with self._lock:
                if not self.is_up:
                    return
                self._open |= {client, server}
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=_pump, args=(server, client), name="target-portal-back")
            back.start()
            try:
                _pump(client, server)
            finally:
                back.join()
                with self._lock:
                    self._open -= {client, server}


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Carry bytes until either side ends, then end both."""
    buffer = memoryview(bytearray(CHUNK))
    with contextlib.suppress(OSError):
        while size := source.recv_into(buffer):
            target.sendall(buffer[:size])
    for one in (source, target):
        _shut(one)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
