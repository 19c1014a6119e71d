# SPDX-License-Identifier: Apache-2.0
"""Sessions to a box: host keys, logins, deadlines and slots, over real SSH on loopback."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import paramiko
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab.sshd import Exec, SSHServer, User, generate_host_key
from sanstone.errors import BusyError, ConfigurationError, ConnectError, DeadlineError, UnreachableError
from sanstone.secret import Secret
from sanstone.transport.ssh import Login, SSHSession
from sanstone.transport.waiting import Deadline

PASSWORD = Secret("secret-word")
RSA = paramiko.RSAKey.generate(2048)


def answer(request: Exec) -> int:
    request.stdout.write(request.command.encode())
    return 0


@pytest.fixture
def server() -> Iterator[SSHServer]:
    with SSHServer(answer, users={"oneadmin": User(password="secret-word")}) as server:
        yield server


@pytest.fixture
def known(server: SSHServer, tmp_path: Path) -> Path:
    path = tmp_path / "known_hosts"
    path.write_text(server.known_hosts_line(f"[{server.host}]:{server.port}") + "\n")
    return path


def login(server: SSHServer, known: Path, **fields: object) -> Login:
    wanted = {
        "address": server.host,
        "port": server.port,
        "password": PASSWORD,
        "known_hosts": (known,),
        "connect_timeout": 5.0,
        **fields,
    }
    return Login(**wanted)  # type: ignore[arg-type]


def say(wanted: Login, line: str = "lssystem", seconds: float = 10.0) -> str:
    with SSHSession(wanted) as session:
        return session.execute(line, deadline=Deadline(seconds)).stdout


class _Permissive(paramiko.ServerInterface):
    """Lets everybody in; grants no request for as long as ``stall`` is not set."""

    def __init__(self, stall: threading.Event | None) -> None:
        self.stall = stall

    def check_auth_password(self, username: str, password: str) -> int:
        return paramiko.AUTH_SUCCESSFUL  # type: ignore[attr-defined, no-any-return]

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED  # type: ignore[attr-defined, no-any-return]

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if self.stall is not None:
            self.stall.wait(20)
            return False
        channel.sendall(b"fine")
        channel.send_exit_status(0)
        channel.shutdown_write()
        return True


class Sshd:
    """An SSH server with any host keys, for one client after the other."""

    def __init__(self, keys: Sequence[paramiko.PKey], stall: threading.Event | None = None) -> None:
        self.keys = keys
        self.stall = stall
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.transports: list[paramiko.Transport] = []
        self.thread = threading.Thread(target=self._serve, name="test-sshd")

    def __enter__(self) -> Sshd:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.stall is not None:
            self.stall.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()
        for transport in self.transports:
            transport.close()
            transport.join()
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):  # paramiko's watch over a handshake that failed
                thread.cancel()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(client)
            transport.set_log_channel("test.sshd")
            for key in self.keys:
                transport.add_server_key(key)
            self.transports.append(transport)
            transport.start_server(threading.Event(), _Permissive(self.stall))

    def known(self, path: Path, *keys: paramiko.PKey, is_hashed: bool = False) -> Path:
        name = f"[127.0.0.1]:{self.port}"
        shown = paramiko.HostKeys.hash_host(name) if is_hashed else name
        path.write_text("".join(f"{shown} {key.get_name()} {key.get_base64()}\n" for key in keys))
        return path

    def login(self, known: Path) -> Login:
        return Login("127.0.0.1", self.port, password=PASSWORD, known_hosts=(known,), connect_timeout=5.0)


def test_a_command_is_answered(server: SSHServer, known: Path) -> None:
    assert say(login(server, known)) == "lssystem"


def test_of_several_host_keys_the_known_one_is_asked_for(tmp_path: Path) -> None:
    with Sshd([generate_host_key(), RSA]) as sshd:
        assert say(sshd.login(sshd.known(tmp_path / "known_hosts", RSA))) == "fine"


def test_a_known_key_of_a_type_that_the_box_lacks_is_not_called_a_change(tmp_path: Path) -> None:
    with Sshd([generate_host_key()]) as sshd:
        wanted = sshd.login(sshd.known(tmp_path / "known_hosts", RSA))
        with pytest.raises(ConnectError, match="no SSH host key of a type that is known: rsa-sha2-512"):
            say(wanted)


def test_a_hashed_known_host_with_a_port_is_found(tmp_path: Path) -> None:
    key = generate_host_key()
    with Sshd([key]) as sshd:
        assert say(sshd.login(sshd.known(tmp_path / "known_hosts", key, is_hashed=True))) == "fine"


def test_a_changed_host_key_is_refused_before_a_password_is_sent(tmp_path: Path) -> None:
    with Sshd([generate_host_key()]) as sshd:
        wanted = sshd.login(sshd.known(tmp_path / "known_hosts", generate_host_key()))
        with pytest.raises(ConnectError, match="is not the one in known_hosts"):
            say(wanted)
        assert not any(transport.is_authenticated() for transport in sshd.transports)


@pytest.mark.parametrize("line", ["box ssh-ed25519 @@@\n", "\udcff".encode("utf-8", "surrogateescape")])
def test_an_unreadable_known_hosts_file_is_a_matter_of_configuration(
    server: SSHServer, known: Path, line: str | bytes
) -> None:
    known.write_bytes(line if isinstance(line, bytes) else line.encode())
    with pytest.raises((ConfigurationError, UnreachableError), match="known"):
        say(login(server, known))


def test_a_known_hosts_file_that_is_not_there_knows_nobody(server: SSHServer, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=r"host key of .* is not known"):
        say(login(server, tmp_path / "none"))


def test_a_missing_private_key_is_named(server: SSHServer, known: Path, tmp_path: Path) -> None:
    wanted = login(server, known, password=None, key_file=tmp_path / "id_none")
    with pytest.raises(ConfigurationError, match="id_none cannot be read: No such file"):
        say(wanted)


def test_an_encrypted_private_key_is_said_to_be_one(server: SSHServer, known: Path, tmp_path: Path) -> None:
    key = tmp_path / "id_locked"
    key.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.BestAvailableEncryption(b"pass-phrase"),
        )
    )
    with pytest.raises(UnreachableError, match="is encrypted, and no SSH agent has it"):
        say(login(server, known, password=None, key_file=key))


def test_a_file_that_is_no_key_is_not_called_a_dead_box(
    server: SSHServer, known: Path, tmp_path: Path
) -> None:
    key = tmp_path / "id_odd"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nhello\n-----END OPENSSH PRIVATE KEY-----\n")
    with pytest.raises(ConnectError) as caught:
        say(login(server, known, password=None, key_file=key))
    assert "cannot be reached" not in str(caught.value)


def test_a_wrong_password_is_in_no_error(server: SSHServer, known: Path) -> None:
    with pytest.raises(ConnectError, match="does not let oneadmin log in") as caught:
        say(login(server, known, password=Secret("other-word")))
    assert "other-word" not in f"{caught.value} {caught.value.details}"


def test_a_box_that_never_grants_a_request_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    key = generate_host_key()
    with Sshd([key], stall=threading.Event()) as sshd:
        started = time.monotonic()
        with pytest.raises(DeadlineError, match="did not answer a command within 1 s"):
            say(sshd.login(sshd.known(tmp_path / "known_hosts", key)), seconds=1.0)
        assert time.monotonic() - started < 30


def test_a_login_that_fails_gives_its_slot_back(server: SSHServer, known: Path, tmp_path: Path) -> None:
    slots = {"slots": tmp_path / "slots", "limit": 1, "slot_timeout": 0.5}
    with SSHSession(login(server, known, password=Secret("other-word"), **slots)) as session:
        for _ in range(2):
            with pytest.raises(ConnectError, match="does not let oneadmin log in"):
                session.execute("lssystem", deadline=Deadline(5))
        assert say(login(server, known, **slots)) == "lssystem"


def test_a_session_waits_for_a_slot_and_then_has_all_its_time(
    server: SSHServer, known: Path, tmp_path: Path
) -> None:
    wanted = login(server, known, slots=tmp_path / "slots", limit=1, slot_timeout=10.0)
    first = SSHSession(wanted)
    first.execute("lssystem", deadline=Deadline(5))
    timer = threading.Timer(1.0, first.close)
    timer.start()
    with SSHSession(wanted) as second:
        second.reserve()
        assert second.execute("lssystem", deadline=Deadline(0.9)).code == 0
    timer.join()


def test_when_no_slot_comes_free_the_box_is_busy(server: SSHServer, known: Path, tmp_path: Path) -> None:
    wanted = login(server, known, slots=tmp_path / "slots", limit=1, slot_timeout=0.2)
    with SSHSession(wanted) as first:
        first.execute("lssystem", deadline=Deadline(5))
        with pytest.raises(BusyError, match=r"All 1 sessions on .* were in use"):
            say(wanted)


def test_a_state_directory_that_cannot_be_written_is_named(
    server: SSHServer, known: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="state directory cannot be used"):
        say(login(server, known, slots=tmp_path / "file" / "slots"))
