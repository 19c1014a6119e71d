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
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sanstone.errors import (
    BusyError,
    ConfigurationError,
    ConnectError,
    DeadlineError,
    SanstoneError,
    UnreachableError,
)
from sanstone.secret import Secret
from sanstone.transport.waiting import Deadline, wait_until

if TYPE_CHECKING:
    import paramiko

__all__ = ["Login", "Reply", "SSHSession"]

log = logging.getLogger(__name__)

_CHUNK = 1 << 16
_RSA = ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa")
_HOST_KEYS = (
    "ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", *_RSA, "ssh-dss",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Login:
    """Where and as whom to log in.

    ``connect_timeout`` in seconds; ``limit`` sessions at once per address, for one of which this waits
    ``slot_timeout`` seconds.
    """

    address: str
    port: int = 22
    user: str = "oneadmin"
    password: Secret | None = None
    key_file: Path | None = None
    known_hosts: tuple[Path, ...] = ()
    connect_timeout: float = 15.0
    limit: int = 4
    slots: Path | None = field(default=None)
    slot_timeout: float = 600.0

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
        self._release()

    def reserve(self) -> None:
        """Wait for one of the slots, unless there is a session already.

        Raises: BusyError.
        """
        if self._slot is None:
            self._slot = _take_slot(self.login)

    def _release(self) -> None:
        if self._slot is not None:
            os.close(self._slot)
            self._slot = None

    def execute(self, line: str, *, deadline: Deadline) -> Reply:
        """Run one command line.

        Raises: UnreachableError when there is no session, so that nothing was done; ConnectError when the
        session broke (then it is not known whether the line was carried out), DeadlineError when the answer
        did not come in time.
        """
        channel = self._channel(deadline)
        started = time.monotonic()
        self.executions += 1
        try:
            with _deadline_as_error(self.login.name, deadline):
                with _cut_off(channel.get_transport(), deadline):
                    channel.exec_command(line)
                    channel.shutdown_write()
                out, err = _drain(channel, deadline, self.login.name)
                code = channel.recv_exit_status() if channel.exit_status_ready() else -1
        except (OSError, EOFError, _ssh_error()) as err_:
            self.close()
            if deadline.is_over:
                raise _late(self.login.name, deadline) from err_
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
                    raise UnreachableError(
                        f"{self.login.name} accepts no command on a new session.",
                        "It may have too many sessions open, or be on its way down.",
                        details=str(err),
                    ) from err
        raise AssertionError("unreachable")

    def _connect(self, deadline: Deadline) -> paramiko.SSHClient:
        _import_paramiko()
        import paramiko

        login = self.login
        client = paramiko.SSHClient()
        types = _load_host_keys(client, login)
        _check_key_file(login.key_file)
        self.reserve()
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
                    # an encrypted key file is of use through the agent that holds it
                    allow_agent=login.password is None,
                    timeout=timeout,
                    banner_timeout=timeout,
                    auth_timeout=timeout,
                    channel_timeout=timeout,
                    # of several host keys the server shall show one that can be checked
                    disabled_algorithms={
                        "keys": [kind for kind in _HOST_KEYS if types and kind not in types]
                    },
                    sock=reach.dup(),
                )
        except (OSError, EOFError, paramiko.SSHException) as err:
            transport = client.get_transport()
            was_heard = transport is not None and transport.initial_kex_done
            client.close()
            self._release()
            raise _refusal(login, types, err, was_heard=was_heard) from err
        except BaseException:
            client.close()
            self._release()
            raise
        self.connections += 1
        log.debug("logged in to %s", login.name)
        return client


def _load_host_keys(client: paramiko.SSHClient, login: Login) -> list[str]:
    """Let the client know the box's host keys; return their types as they are negotiated."""
    for path in login.known_hosts:
        try:
            client.load_host_keys(str(path))
        except FileNotFoundError:
            continue
        except Exception as err:  # paramiko raises whatever an odd line leads it to
            reason = err.strerror if isinstance(err, OSError) else type(err).__name__
            raise ConfigurationError(
                f"The known hosts in {path} cannot be read: {reason}.",
                "The user that runs oned needs to read it, and its lines must be those of ssh-keyscan.",
            ) from err
    name = login.address if login.port == 22 else f"[{login.address}]:{login.port}"
    known = client.get_host_keys().lookup(name)
    return [each for kind in known or () for each in (_RSA if kind == "ssh-rsa" else (kind,))]


def _check_key_file(path: Path | None) -> None:
    if path is None:
        return
    try:
        path.open("rb").close()
    except OSError as err:
        raise ConfigurationError(
            f"The private key {path} cannot be read: {err.strerror}.", "See MGMT_KEY in sanstone.conf."
        ) from err


def _refusal(login: Login, types: list[str], err: Exception, *, was_heard: bool) -> SanstoneError:
    """Say why there is no session; ``was_heard``: the box and we understood one another."""
    import paramiko

    places = " or ".join(str(path) for path in login.known_hosts) or "known_hosts"
    if isinstance(err, paramiko.BadHostKeyException):
        return UnreachableError(
            f"The SSH host key of {login.name} is not the one in known_hosts.",
            "Somebody may be in between. If the box was replaced, check its fingerprint and put the new key "
            f"into {places}.",
        )
    if isinstance(err, paramiko.PasswordRequiredException):
        return UnreachableError(
            f"The private key for {login.name} is encrypted, and no SSH agent has it.",
            f"Give a key without a passphrase ({login.key_file or 'MGMT_KEY'}), or load it into an agent.",
        )
    if isinstance(err, paramiko.AuthenticationException):
        return UnreachableError(
            f"{login.name} does not let {login.user} log in.",
            "Check the user, its public key on the box, or the password in sanstone.conf.",
            details=str(err),
        )
    if "not found in known_hosts" in str(err):
        return UnreachableError(
            f"The SSH host key of {login.name} is not known.",
            f"Check its fingerprint and add it to {places} (ssh-keyscan).",
        )
    if types and isinstance(err, paramiko.ssh_exception.IncompatiblePeer) and "host key" in str(err):
        return UnreachableError(
            f"{login.name} has no SSH host key of a type that is known: {', '.join(types)}.",
            f"Check its fingerprint and add its keys to {places} (ssh-keyscan).",
            details=str(err),
        )
    if was_heard:
        return UnreachableError(
            f"{login.name} ended the login of {login.user}: {_reason(err)}.",
            "See its log; it may allow fewer login attempts than there are keys in the SSH agent.",
            details=str(err),
        )
    return UnreachableError(
        f"{login.name} cannot be reached over SSH: {_reason(err)}.",
        "See whether the box and the network to it are up.",
        details=str(err),
    )


def _reason(err: BaseException) -> str:
    if isinstance(err, socket.gaierror):
        return "its name cannot be resolved"
    if isinstance(err, TimeoutError):
        return "no answer in time"
    if isinstance(err, ConnectionRefusedError):
        return "connection refused"
    return str(err).strip().rstrip(".") or type(err).__name__


def _import_paramiko() -> None:
    """Import paramiko without invoke, which costs a third of its start-up time.

    paramiko can do without it: only ``Match exec`` in an ssh_config takes it, and none is read here.
    """
    if "paramiko" in sys.modules or "invoke" in sys.modules:
        return
    sys.modules["invoke"] = None  # type: ignore[assignment]  # makes the import of it fail
    try:
        import paramiko  # noqa: F401
    finally:
        del sys.modules["invoke"]


def _ssh_error() -> type[Exception]:
    import paramiko

    return paramiko.SSHException


@contextmanager
def _cut_off(transport: paramiko.Transport, deadline: Deadline) -> Iterator[None]:
    """End the session at the deadline: paramiko waits for ever until a server grants a request."""
    timer = threading.Timer(deadline.left, transport.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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
    """Read both outputs to their end, and wait for the exit status that may come after it."""
    out, err = bytearray(), bytearray()
    while True:
        # what came before the end is there once the end is seen
        is_over = channel.eof_received or channel.closed
        while channel.recv_ready():
            out += channel.recv(_CHUNK)
        while channel.recv_stderr_ready():
            err += channel.recv_stderr(_CHUNK)
        if is_over:
            break
        if deadline.is_over:
            raise _late(name, deadline)
        # readable at bytes of either output, at their end, and when the session breaks
        select.select([channel], [], [], deadline.left)
    if not channel.status_event.wait(deadline.left):
        raise _late(name, deadline)
    return out.decode("utf-8", "replace"), err.decode("utf-8", "replace")


def _take_slot(login: Login) -> int | None:
    """Wait for one of the box's session slots; the open file is the slot."""
    if login.slots is None:
        return None
    try:
        login.slots.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as err:
        raise _unusable(login.slots, err) from err
    stem = login.name.replace("/", "_").replace(":", "_")
    paths = [login.slots / f"{stem}.{number}" for number in range(login.limit)]

    def free() -> int | None:
        for path in paths:
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as err:
                raise _unusable(path, err) from err
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
            else:
                return handle
        return None

    try:
        return wait_until(free, Deadline(login.slot_timeout), f"A free session on {login.name}", longest=0.2)
    except DeadlineError as err:
        raise BusyError(
            f"All {login.limit} sessions on {login.name} were in use for {login.slot_timeout:.0f} s.",
            "Run the action again, or raise ARRAY_SESSIONS if the box allows more.",
        ) from err


def _unusable(path: Path, err: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"The state directory cannot be used ({path}): {err.strerror}.",
        "Set STATE_DIR in sanstone.conf to a directory of the user that runs oned.",
    )
