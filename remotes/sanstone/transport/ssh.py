# SPDX-License-Identifier: Apache-2.0
"""SSH sessions to a storage system's management address: kept open, checked, never too many.

A box allows only a few sessions at once, for all processes of a front-end together, so each session
takes one of ``limit`` slots first (a lock on a file, which the kernel gives back when a process dies).
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sanstone.errors import BusyError, ConfigurationError, ConnectError, DeadlineError
from sanstone.secret import Secret
from sanstone.transport.waiting import Deadline, wait_until

if TYPE_CHECKING:
    import paramiko

__all__ = ["Login", "Reply", "SSHSession"]

log = logging.getLogger(__name__)

_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Login:
    """Where and as whom to log in. ``connect_timeout`` in seconds; ``limit`` sessions at once per address."""

    address: str
    port: int = 22
    user: str = "oneadmin"
    password: Secret | None = None
    key_file: Path | None = None
    known_hosts: tuple[Path, ...] = ()
    connect_timeout: float = 15.0
    limit: int = 4
    slots: Path | None = field(default=None)

    @property
    def name(self) -> str:
        return self.address if self.port == 22 else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Reply:
    """What one command line answered: exit code, text of both outputs, seconds."""

    code: int
    stdout: str
    stderr: str
    seconds: float


class SSHSession:
    """One session, opened at the first command and opened again when the box dropped it between two.

    ``connections`` and ``executions`` count what was done, for measurements.
    """

    def __init__(self, login: Login) -> None:
        self.login = login
        self.connections = 0
        self.executions = 0
        self._client: paramiko.SSHClient | None = None
        self._slot: int | None = None

    def __enter__(self) -> SSHSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Log out and give the slot back."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._slot is not None:
            os.close(self._slot)
            self._slot = None

    def execute(self, line: str, *, deadline: Deadline) -> Reply:
        """Run one command line.

        Raises: ConnectError when the box cannot be reached or the session broke (then it is not known
        whether the line was carried out), DeadlineError when the answer did not come in time.
        """
        channel = self._channel(deadline)
        started = time.monotonic()
        self.executions += 1
        try:
            with _deadline_as_error(self.login.name, deadline):
                channel.exec_command(line)
                channel.shutdown_write()
                out, err = _drain(channel, deadline, self.login.name)
                code = channel.recv_exit_status() if channel.exit_status_ready() else -1
        except (OSError, EOFError, _ssh_error()) as err_:
            self.close()
            raise ConnectError(
                f"The connection to {self.login.name} broke while a command ran.",
                "See whether the box answers, then run the action again: it goes on where it stopped.",
                details=str(err_),
            ) from err_
        except DeadlineError:
            self.close()
            raise
        finally:
            channel.close()
        if code < 0:
            self.close()
            raise ConnectError(
                f"{self.login.name} closed the session in the middle of a command.",
                "See whether the box answers, then run the action again: it goes on where it stopped.",
            )
        return Reply(code, out, err, time.monotonic() - started)

    def _channel(self, deadline: Deadline) -> paramiko.Channel:
        """Open a channel, over a new connection when the old one has gone."""
        for is_last in (False, True):
            if self._client is None:
                self._client = self._connect(deadline)
            transport = self._client.get_transport()
            try:
                if transport is None or not transport.is_active():
                    raise EOFError("the session ended")
                return transport.open_session(timeout=max(deadline.left, 0.1))
            except (OSError, EOFError, _ssh_error()) as err:
                self.close()
                if is_last:
                    raise ConnectError(
                        f"{self.login.name} accepts no command on a new session.",
                        "It may have too many sessions open, or be on its way down.",
                        details=str(err),
                    ) from err
        raise AssertionError("unreachable")

    def _connect(self, deadline: Deadline) -> paramiko.SSHClient:
        import paramiko

        login = self.login
        self._slot = _take_slot(login, deadline)
        client = paramiko.SSHClient()
        known = [path for path in login.known_hosts if path.exists()]
        for path in known:
            client.load_host_keys(str(path))
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        timeout = max(0.1, min(login.connect_timeout, deadline.left))
        try:
            with socket.create_connection((login.address, login.port), timeout) as reach:
                reach.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                reach.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                client.connect(
                    login.address,
                    login.port,
                    login.user,
                    password=login.password.reveal() if login.password else None,
                    key_filename=str(login.key_file) if login.key_file else None,
                    look_for_keys=login.key_file is None and login.password is None,
                    allow_agent=login.key_file is None and login.password is None,
                    timeout=timeout,
                    banner_timeout=timeout,
                    auth_timeout=timeout,
                    channel_timeout=timeout,
                    sock=reach.dup(),
                )
        except paramiko.BadHostKeyException as err:
            client.close()
            raise ConnectError(
                f"The SSH host key of {login.name} is not the one in known_hosts.",
                "Somebody may be in between. If the box was replaced, check its fingerprint and put "
                f"the new key into "
                f"{_listed(login.known_hosts)}.",
            ) from err
        except paramiko.AuthenticationException as err:
            client.close()
            raise ConnectError(
                f"{login.name} does not let {login.user} log in.",
                "Check the user, its public key on the box, or the password in sanstone.conf.",
            ) from err
        except (OSError, EOFError, paramiko.SSHException) as err:
            client.close()
            if "not found in known_hosts" in str(err):
                raise ConnectError(
                    f"The SSH host key of {login.name} is not known.",
                    f"Check its fingerprint and add it to {_listed(login.known_hosts)} (ssh-keyscan).",
                ) from err
            raise ConnectError(
                f"{login.name} cannot be reached over SSH: {_reason(err)}.",
                "See whether the box and the network to it are up.",
                details=str(err),
            ) from err
        self.connections += 1
        log.debug("logged in to %s", login.name)
        return client


def _listed(paths: tuple[Path, ...]) -> str:
    return " or ".join(str(path) for path in paths) or "known_hosts"


def _reason(err: BaseException) -> str:
    if isinstance(err, socket.gaierror):
        return "its name cannot be resolved"
    if isinstance(err, TimeoutError):
        return "no answer in time"
    if isinstance(err, ConnectionRefusedError):
        return "connection refused"
    return str(err).strip().rstrip(".") or type(err).__name__


def _ssh_error() -> type[Exception]:
    import paramiko

    return paramiko.SSHException


@contextmanager
def _deadline_as_error(name: str, deadline: Deadline) -> Iterator[None]:
    try:
        yield
    except TimeoutError as err:
        raise _late(name, deadline) from err


def _late(name: str, deadline: Deadline) -> DeadlineError:
    return DeadlineError(
        f"{name} did not answer a command within {deadline.seconds:.0f} s.",
        "See whether the box is busy or on its way down, then run the action again.",
    )


def _drain(channel: paramiko.Channel, deadline: Deadline, name: str) -> tuple[str, str]:
    """Read both outputs to their end."""
    out, err = bytearray(), bytearray()
    while True:
        while channel.recv_ready():
            out += channel.recv(_CHUNK)
        while channel.recv_stderr_ready():
            err += channel.recv_stderr(_CHUNK)
        if channel.exit_status_ready() and channel.eof_received:
            if not channel.recv_ready() and not channel.recv_stderr_ready():
                break
            continue
        if channel.closed:
            break
        if deadline.is_over:
            raise _late(name, deadline)
        select.select([channel], [], [], min(deadline.left, 0.05))
    return out.decode("utf-8", "replace"), err.decode("utf-8", "replace")


def _take_slot(login: Login, deadline: Deadline) -> int | None:
    """Wait for one of the box's session slots; the open file is the slot."""
    if login.slots is None:
        return None
    try:
        login.slots.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as err:
        raise ConfigurationError(
            f"The state directory {login.slots} cannot be used: {err.strerror}.",
            "Set STATE_DIR in sanstone.conf to a directory of the user that runs oned.",
        ) from err
    stem = login.name.replace("/", "_").replace(":", "_")
    paths = [login.slots / f"{stem}.{number}" for number in range(login.limit)]

    def free() -> int | None:
        for path in paths:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
            else:
                return handle
        return None

    try:
        return wait_until(free, deadline, f"A free session on {login.name}", longest=0.2)
    except DeadlineError as err:
        raise BusyError(
            f"All {login.limit} sessions on {login.name} were in use for {deadline.seconds:.0f} s.",
            "Run the action again, or raise ARRAY_SESSIONS if the box allows more.",
        ) from err
