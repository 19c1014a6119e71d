# SPDX-License-Identifier: Apache-2.0
"""An SSH server on loopback whose commands are Python functions.

A simulated box hands in a handler and gets what a real one has: logins by key or password, several exec
channels on one connection, streams in both directions, exit codes, and a death that cuts everything.
"""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, BinaryIO, cast

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
    OPEN_SUCCEEDED,
)

__all__ = ["Exec", "Handler", "SSHServer", "User", "generate_host_key"]

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())

MSG_CHANNEL_REQUEST = 98
STOP_DEADLINE = 10.0


@dataclass(slots=True)
class Exec:
    """One command of one client. Outputs are unbuffered; a write after the client left is BrokenPipeError.

    ``closed`` tells that the client went away, ``disconnect`` cuts its whole connection as a dying box
    does, ``connection`` numbers connections from 1.
    """

    user: str
    command: str
    stdin: BinaryIO
    stdout: BinaryIO
    stderr: BinaryIO
    closed: Callable[[], bool]
    disconnect: Callable[[], None] = lambda: None
    connection: int = 0


Handler = Callable[[Exec], int]


@dataclass(frozen=True, slots=True)
class User:
    """How one user may log in. ``keys`` holds authorized_keys lines or bare base64 key blobs."""

    password: str | None = field(default=None, repr=False)
    keys: tuple[str, ...] = ()

    def accepts(self, key: paramiko.PKey) -> bool:
        return any(key.get_base64() in line.split() for line in self.keys)


def generate_host_key() -> paramiko.PKey:
    """Make an Ed25519 key."""
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return paramiko.Ed25519Key.from_private_key(io.StringIO(pem.decode()))


class SSHServer:
    """Serve ``handler`` on a loopback address; a context manager.

    ``session_limit`` counts connections that opened a channel: each command on one over the limit goes to
    ``refuse``. ``shell`` serves clients that ask for a shell instead of a command (``Exec.command`` is
    then empty). ``handshake_latency`` (seconds before the server's first byte) and ``session_limit`` can
    be set at any time. ``on_connect`` is called for each accepted connection. Exceptions of a handler are
    kept in ``failures``.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        users: Mapping[str, User],
        address: str = "127.0.0.1",
        port: int = 0,
        host_key: paramiko.PKey | None = None,
        handshake_latency: float = 0.0,
        session_limit: int | None = None,
        refuse: Handler | None = None,
        shell: Handler | None = None,
        on_connect: Callable[[], None] | None = None,
    ) -> None:
        self.handler = handler
        self.shell = shell
        self.refuse = refuse or _refuse
        self.users = dict(users)
        self.host_key = host_key or generate_host_key()
        self.handshake_latency = handshake_latency
        self.session_limit = session_limit
        self.failures: list[BaseException] = []
        self._on_connect = on_connect
        self._address = address
        self._port = port
        self._listener: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._links: dict[int, _Link] = {}
        self._threads: set[threading.Thread] = set()
        self._connections = 0

    @property
    def host(self) -> str:
        return self._address

    @property
    def port(self) -> int:
        """The port that was bound; it stays the same after stop() and start()."""
        return self._port

    @property
    def connections(self) -> int:
        """TCP connections accepted since the server was made."""
        return self._connections

    @property
    def open_connections(self) -> int:
        with self._lock:
            return sum(1 for link in self._links.values() if link.is_alive())

    def known_hosts_line(self, name: str) -> str:
        """Return a known_hosts line for ``name``, which is written as given (``[host]:port`` or an alias)."""
        return f"{name} {self.host_key.get_name()} {self.host_key.get_base64()}"

    def start(self) -> None:
        if self._listener is not None:
            return
        self._stopping.clear()
        listener = socket.create_server((self._address, self._port), backlog=128)
        self._port = listener.getsockname()[1]
        self._listener = listener
        self._accepting = threading.Thread(target=self._accept, args=(listener,), name="sshd-accept")
        self._accepting.start()

    def stop(self) -> None:
        """Close the port, cut all connections and wait for every thread.

        Raises: RuntimeError when a handler does not return after its client went away.
        """
        listener, self._listener = self._listener, None
        if listener is None:
            return
        self._stopping.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        if self._accepting is not None:
            self._accepting.join(STOP_DEADLINE)
        self.drop_connections()
        deadline = time.monotonic() + STOP_DEADLINE
        for thread in self._running():
            thread.join(max(0.0, deadline - time.monotonic()))
        left = [thread.name for thread in self._running()]
        if left:
            raise RuntimeError(f"The SSH server's threads did not end: {', '.join(left)}.")

    def drop_connections(self) -> None:
        """Cut every connection in the middle of whatever it does."""
        with self._lock:
            links = list(self._links.values())
        for link in links:
            link.cut()

    def __enter__(self) -> SSHServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._links = {number: link for number, link in self._links.items() if not link.is_over()}
                self._connections += 1
                link = _Link(self, client, self._connections)
                self._links[link.number] = link
            if self._on_connect is not None:
                self._on_connect()
            if self.handshake_latency > 0:
                self._spawn(link.greet_late, "sshd-greet", self.handshake_latency)
            else:
                link.greet()

    def _spawn(self, target: Callable[..., None], name: str, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name=name)
        with self._lock:
            self._threads = {one for one in self._threads if one.is_alive() or one.ident is None}
            self._threads.add(thread)
        thread.start()

    def _running(self) -> list[threading.Thread]:
        with self._lock:
            links = [link.transport for link in self._links.values() if link.transport is not None]
            threads = [*self._threads, *links]
        return [thread for thread in threads if thread.is_alive()]

    def _admit(self, link: _Link) -> bool:
        with self._lock:
            others = sum(1 for one in self._links.values() if one.is_admitted and one.is_alive())
            return self.session_limit is None or others < self.session_limit


class _Transport(paramiko.Transport):
    """Starts a command only after the client was told that its request is granted."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.pending: list[Callable[[], None]] = []
        table: dict[int, Callable[[paramiko.Channel, paramiko.Message], None]]
        table = dict(getattr(self, "_channel_handler_table"))  # noqa: B009
        answer = table[MSG_CHANNEL_REQUEST]

        def answer_then_start(channel: paramiko.Channel, message: paramiko.Message) -> None:
            answer(channel, message)
            while self.pending:
                self.pending.pop(0)()

        table[MSG_CHANNEL_REQUEST] = answer_then_start
        self._channel_handler_table = table


class _Link(paramiko.ServerInterface):
    """One connection."""

    def __init__(self, server: SSHServer, sock: socket.socket, number: int) -> None:
        self.server = server
        self.number = number
        self.is_admitted: bool | None = None
        self.transport: _Transport | None = None
        self._sock = sock
        self._user = ""
        self._cut = threading.Event()

    def greet_late(self, latency: float) -> None:
        if not self._cut.wait(latency):
            self.greet()

    def greet(self) -> None:
        transport = _Transport(self._sock)
        transport.set_log_channel(f"{__name__}.transport")
        transport.add_server_key(self.server.host_key)
        self.transport = transport
        transport.start_server(event=threading.Event(), server=self)
        if self._cut.is_set():
            self.cut()

    def is_over(self) -> bool:
        transport = self.transport
        return self._cut.is_set() if transport is None else not transport.is_alive()

    def is_alive(self) -> bool:
        """A connection that reached the handshake and has not ended."""
        return self.transport is not None and self.transport.is_active() and not self._cut.is_set()

    def cut(self) -> None:
        self._cut.set()
        with contextlib.suppress(OSError):
            # closing with a reset, not with a farewell
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._sock.shutdown(socket.SHUT_RDWR)
        if self.transport is not None:
            self.transport.close()
        self._sock.close()

    def get_allowed_auths(self, username: str) -> str:
        return "publickey,password"

    def check_auth_password(self, username: str, password: str) -> int:
        user = self.server.users.get(username)
        if user is None or user.password is None or user.password != password:
            return AUTH_FAILED
        self._user = username
        return AUTH_SUCCESSFUL

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        user = self.server.users.get(username)
        if user is None or not user.accepts(key):
            return AUTH_FAILED
        self._user = username
        return AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if kind != "session":
            return OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
        if self.is_admitted is None:
            self.is_admitted = self.server._admit(self)
        return OPEN_SUCCEEDED

    def check_channel_env_request(self, channel: paramiko.Channel, name: bytes, value: bytes) -> bool:
        return False

    def check_channel_pty_request(
        self,
        channel: paramiko.Channel,
        term: bytes,
        width: int,
        height: int,
        pixelwidth: int,
        pixelheight: int,
        modes: bytes,
    ) -> bool:
        return self.server.shell is not None

    def check_channel_shell_request(self, channel: paramiko.Channel) -> bool:
        return self.server.shell is not None and self._begin(self.server.shell, channel, "")

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        return self._begin(self.server.handler, channel, command.decode("utf-8", "surrogateescape"))

    def _begin(self, handler: Handler, channel: paramiko.Channel, command: str) -> bool:
        transport = self.transport
        if transport is None:
            return False
        chosen = handler if self.is_admitted else self.server.refuse
        transport.pending.append(
            lambda: self.server._spawn(self._serve, "sshd-exec", chosen, channel, command)
        )
        return True

    def _serve(self, handler: Handler, channel: paramiko.Channel, command: str) -> None:
        stdin = io.BufferedReader(_ChannelReader(channel), 1 << 16)
        stderr = cast(BinaryIO, _ChannelWriter(channel, channel.sendall_stderr))
        request = Exec(
            user=self._user,
            command=command,
            stdin=cast(BinaryIO, stdin),
            stdout=cast(BinaryIO, _ChannelWriter(channel, channel.sendall)),
            stderr=stderr,
            closed=lambda: channel.closed or not self.is_alive(),
            disconnect=self.cut,
            connection=self.number,
        )
        code = 255
        try:
            code = handler(request)
        except (BrokenPipeError, ConnectionError, EOFError) as err:
            log.debug("the client of %r went away: %s", command, err)
        except Exception as err:
            self.server.failures.append(err)
            with contextlib.suppress(OSError):
                stderr.write(traceback.format_exc().encode())
        finally:
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                if not channel.closed:
                    channel.send_exit_status(code)
                    channel.close()


class _ChannelReader(io.RawIOBase):
    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._channel.recv(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)


class _ChannelWriter(io.RawIOBase):
    """Writes all it is given, or raises BrokenPipeError."""

    def __init__(self, channel: paramiko.Channel, send: Callable[[bytes], None]) -> None:
        self._channel = channel
        self._send = send

    def writable(self) -> bool:
        return True

    def write(self, chunk: Any) -> int:
        payload = bytes(chunk)
        if self._channel.closed:
            raise BrokenPipeError("the client went away")
        try:
            self._send(payload)
        except OSError as err:
            raise BrokenPipeError("the client went away") from err
        return len(payload)


def _refuse(request: Exec) -> int:
    request.stderr.write(b"Too many sessions.\n")
    return 1
