# SPDX-License-Identifier: Apache-2.0
"""The SSH server of the simulated boxes, seen by paramiko and by the OpenSSH client."""

from __future__ import annotations

import hashlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest

from lab.sshd import Exec, SSHServer, User

DEADLINE = 20.0
USERS = {"operator": User(password="canary")}
CLIENT_KEY = paramiko.ECDSAKey.generate()


def echo(request: Exec) -> int:
    """Answer with what came in; ``exit N`` ends with that code, ``hang`` lasts till the client leaves."""
    if request.command.startswith("exit "):
        return int(request.command.split()[1])
    if request.command == "hang":
        while not request.closed():
            request.stdout.write(b".")
            threading.Event().wait(0.01)
        return 0
    if request.command == "bug":
        raise ValueError("a bug of the box")
    if request.command == "digest":
        digest = hashlib.sha256()
        while chunk := request.stdin.read(1 << 16):
            digest.update(chunk)
        request.stdout.write(digest.hexdigest().encode())
        return 0
    if request.command == "cat":
        while chunk := request.stdin.read(1 << 16):
            request.stdout.write(chunk)
        return 0
    request.stdout.write(request.command.encode())
    request.stderr.write(b"aside")
    return 0


def until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.01)


def connect(server: SSHServer, password: str = "canary") -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    client.get_host_keys().add(f"[{server.host}]:{server.port}", server.host_key.get_name(), server.host_key)
    try:
        client.connect(
            server.host,
            server.port,
            "operator",
            password,
            allow_agent=False,
            look_for_keys=False,
            timeout=DEADLINE,
        )
    except BaseException:
        client.close()
        raise
    return client


def run(client: paramiko.SSHClient, command: str, stdin: bytes = b"") -> tuple[bytes, bytes, int]:
    to, out, err = client.exec_command(command, timeout=DEADLINE)
    try:
        to.write(stdin)
        to.channel.shutdown_write()
        return out.read(), err.read(), out.channel.recv_exit_status()
    finally:
        for stream in (to, out, err):
            stream.close()


@pytest.fixture
def server() -> Iterator[SSHServer]:
    with SSHServer(echo, users=USERS) as server:
        yield server


def test_a_command_gets_both_outputs_and_its_exit_code(server: SSHServer) -> None:
    with connect(server) as client:
        assert run(client, "lsvdisk -delim :") == (b"lsvdisk -delim :", b"aside", 0)
        assert run(client, "exit 7") == (b"", b"", 7)
    assert server.connections == 1


def test_streams_of_many_windows_flow_in_both_directions(server: SSHServer) -> None:
    block = bytes(range(256)) * (1 << 14)  # 4 MiB: twice the window
    with connect(server) as client:
        assert run(client, "digest", block)[0].decode() == hashlib.sha256(block).hexdigest()
        channel = client.get_transport().open_session()  # type: ignore[union-attr]
        with channel:
            channel.exec_command("cat")
            sender = threading.Thread(target=lambda: (channel.sendall(block), channel.shutdown_write()))
            sender.start()
            with channel.makefile("rb") as back:
                assert back.read() == block
            sender.join(DEADLINE)
            assert channel.recv_exit_status() == 0


def test_several_commands_run_at_once_on_one_connection(server: SSHServer) -> None:
    with connect(server) as client:
        transport = client.get_transport()
        assert transport is not None
        waiting = transport.open_session()
        with waiting:
            waiting.exec_command("cat")
            assert run(client, "exit 3")[2] == 3
            waiting.sendall(b"still here")
            waiting.shutdown_write()
            with waiting.makefile("rb") as back:
                assert back.read() == b"still here"
    assert server.connections == 1


def test_a_wrong_password_and_an_unknown_key_are_refused(server: SSHServer) -> None:
    with pytest.raises(paramiko.AuthenticationException):
        connect(server, "wrong")
    client = paramiko.SSHClient()
    client.get_host_keys().add(f"[{server.host}]:{server.port}", server.host_key.get_name(), server.host_key)
    with client, pytest.raises(paramiko.AuthenticationException):
        client.connect(
            server.host,
            server.port,
            "operator",
            pkey=CLIENT_KEY,
            allow_agent=False,
            look_for_keys=False,
            timeout=DEADLINE,
        )


def test_connections_over_the_limit_are_refused_until_one_ends() -> None:
    def refuse(request: Exec) -> int:
        request.stdout.write(b"too many")
        return 1

    with SSHServer(echo, users=USERS, session_limit=1, refuse=refuse) as server:
        with connect(server) as first:
            assert run(first, "exit 0")[2] == 0
            with connect(server) as second:
                assert run(second, "exit 0") == (b"too many", b"", 1)
            assert run(first, "exit 0")[2] == 0
        until(lambda: server.open_connections == 0)
        with connect(server) as third:
            assert run(third, "exit 0")[2] == 0


def test_a_handler_learns_that_its_client_went_away(server: SSHServer) -> None:
    with connect(server) as client:
        streams = client.exec_command("hang", timeout=DEADLINE)
        assert streams[1].read(1) == b"."
        server.drop_connections()
        assert streams[1].channel.recv_exit_status() == -1
        for stream in streams:
            stream.close()
    until(lambda: not [one for one in threading.enumerate() if one.name == "sshd-exec"])
    assert server.failures == []


def test_a_bug_of_a_handler_is_shown_and_kept(server: SSHServer) -> None:
    with connect(server) as client:
        _, stderr, code = run(client, "bug")
    assert b"a bug of the box" in stderr
    assert code == 255
    assert [str(one) for one in server.failures] == ["a bug of the box"]


def test_stop_leaves_no_thread_and_start_takes_the_same_port() -> None:
    before = set(threading.enumerate())
    server = SSHServer(echo, users=USERS)
    server.start()
    port = server.port
    client = connect(server)
    streams = client.exec_command("hang", timeout=DEADLINE)
    assert streams[1].read(1) == b"."
    server.stop()
    with client:
        for stream in streams:
            stream.close()
    until(lambda: not set(threading.enumerate()) - before)
    with pytest.raises(OSError, match=r"refused|Unable to connect"):
        connect(server)
    with server:
        assert server.port == port
        with connect(server) as again:
            assert run(again, "exit 5")[2] == 5
    until(lambda: not set(threading.enumerate()) - before)


def test_a_shell_is_served_only_where_the_box_has_one() -> None:
    def shell(request: Exec) -> int:
        request.stdout.write(b"group1> " + request.stdin.readline())
        return 0

    with (
        SSHServer(echo, users=USERS) as plain,
        connect(plain) as client,
        pytest.raises(paramiko.SSHException),
    ):
        client.invoke_shell()
    with (
        SSHServer(echo, users=USERS, shell=shell) as server,
        connect(server) as client,
        client.invoke_shell() as channel,
    ):
        channel.sendall(b"show\r\n")
        with channel.makefile("rb") as answer:
            assert answer.read() == b"group1> show\r\n"


@pytest.mark.real("ssh")
def test_the_openssh_client_logs_in_by_key_and_streams(tmp_path: Path) -> None:
    key = tmp_path / "key"
    CLIENT_KEY.write_private_key_file(str(key))
    key.chmod(0o600)
    users = {"operator": User(keys=(f"{CLIENT_KEY.get_name()} {CLIENT_KEY.get_base64()} somebody",))}
    with SSHServer(echo, users=users) as server:
        known = tmp_path / "known_hosts"
        known.write_text(server.known_hosts_line("box-a") + "\n")
        argv = [
            "ssh",
            *("-F", "none", "-i", str(key), "-p", str(server.port), "-l", "operator"),
            *("-o", f"UserKnownHostsFile={known}", "-o", "HostKeyAlias=box-a", "-o", "BatchMode=yes"),
            *("-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR"),
            server.host,
        ]
        block = bytes(range(256)) * (1 << 14)
        done = subprocess.run([*argv, "cat"], input=block, capture_output=True, timeout=60, check=False)
        assert (done.stderr, done.returncode) == (b"", 0)
        assert done.stdout == block
        done = subprocess.run([*argv, "exit", "9"], capture_output=True, timeout=60, check=False)
        assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 9)
