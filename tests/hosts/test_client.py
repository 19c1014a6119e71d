# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import io
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sanstone.errors import (
    ConfigurationError,
    ConflictError,
    ConnectError,
    DeadlineError,
    HostError,
    NotFoundError,
    RequestError,
)
from sanstone.hosts.client import Host
from sanstone.hosts.ops import (
    Attach,
    DiskUsage,
    Filesystem,
    Link,
    LinkState,
    MakeFilesystem,
    MakeImageFile,
    MovePath,
    PutFile,
    ReadLink,
    RemovePath,
)
from sanstone.model import Connection, Portal, Target

LIBRARY = Path(__file__).resolve().parents[2] / "remotes/sanstone"
NODE = [*LIBRARY.glob("*/node/*.py"), *LIBRARY.glob("*/*/node/*.py"), *LIBRARY.glob("transport/remote/*.py")]
COMMON = "sanstone.transport.remote"

Ssh = Callable[[str], Host]


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ssh:
    """Return a function that puts an ``ssh`` into PATH which does what a shell script says."""

    def make(script: str) -> Host:
        folder = tmp_path / "ssh-bin"
        folder.mkdir(exist_ok=True)
        program = folder / "ssh"
        program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {tmp_path}/argv\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return Host("node3", ssh_options=("-o", "ControlPath=none"))

    return make


RUN_LAST = 'for last; do :; done; eval "$last"'


@pytest.mark.real("ssh")
def test_ssh_gets_conventional_arguments(ssh: Ssh, tmp_path: Path) -> None:
    host = ssh(RUN_LAST)

    assert isinstance(host.run([DiskUsage("/")], deadline=20)[0], Filesystem)

    *options, name, command = (tmp_path / "argv").read_text().removesuffix("\n").split("\n")
    assert [word for word in options if word != "--"] == [
        "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ControlPath=none",
        "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4",
    ]  # fmt: skip
    assert name == "node3"
    assert command.startswith("python3 -I ")


@pytest.mark.real("ssh")
@pytest.mark.parametrize(
    "noise", ["Welcome to node3", "no line end", '{"results": []}', "@sanstone-0 result {}"]
)
def test_noise_of_the_login_shell_does_no_harm(ssh: Ssh, noise: str) -> None:
    host = ssh(f"printf '%s' '{noise}'; echo noise >&2; {RUN_LAST}; code=$?; echo bye; exit $code")

    assert isinstance(host.run([DiskUsage("/")], deadline=20)[0], Filesystem)


@pytest.mark.real("python3")
def test_a_list_of_operations_is_one_round_trip(tmp_path: Path) -> None:
    host = Host("here", is_local=True)
    file, link = tmp_path / "a/b/c/file", tmp_path / "a/b/c/link"

    results = host.run(
        [
            PutFile(str(file), 5, 0o600),
            Link(str(link), str(file)),
            ReadLink(str(link)),
            DiskUsage(str(tmp_path)),
            MovePath(str(file), f"{file}.moved"),
            RemovePath(str(link)),
        ],
        deadline=20,
        upload=io.BytesIO(b"hello"),
    )

    assert host.round_trips == 1
    assert results[2] == LinkState(str(file), None, True)
    moved = Path(f"{file}.moved")
    assert moved.read_bytes() == b"hello"
    assert stat.S_IMODE(moved.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["file.moved"]


@pytest.mark.real("python3")
def test_the_list_stops_at_the_first_failure(tmp_path: Path) -> None:
    host = Host("node1", is_local=True)

    with pytest.raises(NotFoundError, match=r"^node1: "):
        host.run([DiskUsage(f"{tmp_path}/none"), Link(f"{tmp_path}/link", "/dev/null")], deadline=20)

    assert not (tmp_path / "link").is_symlink()


def test_no_operation_is_no_round_trip() -> None:
    host = Host("node1")

    assert host.run([], deadline=1) == []
    assert host.round_trips == 0


@pytest.mark.parametrize("name", ["-oProxyCommand=x", "", "a b", "a;b", "$(x)", "node\n", "a@-b", "@host"])
def test_a_name_that_ssh_could_misread_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError):
        Host(name)


@pytest.mark.parametrize(
    "name", ["node1", "node-1.example.org", "10.0.0.1", "fe80::1%eth0", "oneadmin@node_1"]
)
def test_usual_names_are_taken(name: str) -> None:
    assert Host(name).name == name


@pytest.mark.real("ssh")
@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("ssh: connect to host node3 port 22: No route to host", "cannot be reached: .*No route", "sshd"),
        ("Host key verification failed.", "not known", "ssh node3"),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "changed",
            "-R node3",
        ),
        ("oneadmin@node3: Permission denied (publickey).", "login refused", "authorized_keys"),
    ],
)
def test_a_failed_connection_says_why(ssh: Ssh, words: str, message: str, hint: str) -> None:
    host = ssh(f"cat > /dev/null; echo '{words}' >&2; exit 255")

    with pytest.raises(ConnectError, match=message) as caught:
        host.run([DiskUsage("/")], deadline=20)

    assert caught.value.message.startswith("node3: ")
    assert hint in caught.value.hint


@pytest.mark.real("ssh")
def test_a_failed_connection_that_reads_nothing_says_why_too(ssh: Ssh, tmp_path: Path) -> None:
    host = ssh("echo 'ssh: connect to host node3 port 22: Connection refused' >&2; exit 255")

    with pytest.raises(ConnectError, match="refused"):
        host.run([PutFile(f"{tmp_path}/a", 10 << 20)], deadline=20, upload=io.BytesIO(bytes(10 << 20)))


@pytest.mark.real("ssh")
def test_a_host_without_python_says_so(ssh: Ssh) -> None:
    host = ssh("echo 'sh: 1: python3: not found' >&2; exit 127")

    with pytest.raises(HostError, match="python3"):
        host.run([DiskUsage("/")], deadline=20)


@pytest.mark.real("ssh")
def test_a_lost_connection_names_the_operation(ssh: Ssh, tmp_path: Path) -> None:
    host = ssh(f"{RUN_LAST} > {tmp_path}/out < /dev/stdin; grep -v result {tmp_path}/out; exit 255")

    with pytest.raises(ConnectError, match="lost during DiskUsage"):
        host.run([DiskUsage("/")], deadline=20)


@pytest.mark.real("ssh")
def test_a_silent_host_meets_the_deadline(ssh: Ssh) -> None:
    host = ssh("exec sleep 60")
    started = time.monotonic()

    with pytest.raises(DeadlineError, match=r"node3: reaching the host did not end within 1 s"):
        host.run([DiskUsage("/")], deadline=1)

    assert time.monotonic() - started < 30


@pytest.mark.real("python3")
def test_the_host_ends_by_itself_before_the_deadline_and_names_what_hung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin/qemu-img"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with pytest.raises(DeadlineError, match="qemu-img create"):
        Host("node1", is_local=True).run([MakeImageFile(f"{tmp_path}/image", 1 << 20)], deadline=3)

    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


@pytest.mark.real("python3")
def test_a_source_that_fails_leaves_no_file(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise ConnectionResetError("the marketplace hung up")
            return super().read(100)

    with pytest.raises(ConnectionResetError):
        Host("here", is_local=True).run(
            [PutFile(f"{tmp_path}/image", 200)], deadline=20, upload=Broken(bytes(200))
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real("python3")
@pytest.mark.parametrize("length", [99, 101])
def test_an_upload_of_another_length_leaves_no_file(tmp_path: Path, length: int) -> None:
    with pytest.raises((ConnectError, ConflictError), match="upload"):
        Host("here", is_local=True).run(
            [PutFile(f"{tmp_path}/image", 100)], deadline=20, upload=io.BytesIO(bytes(length))
        )
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_upload_is_refused() -> None:
    with pytest.raises(RequestError):
        Host("here", is_local=True).run([PutFile("/tmp/a", 5)], deadline=5)


@pytest.mark.real("python3")
def test_two_files_share_one_upload(tmp_path: Path) -> None:
    Host("here", is_local=True).run(
        [PutFile(f"{tmp_path}/one", 3), PutFile(f"{tmp_path}/none", 0), PutFile(f"{tmp_path}/two", 4)],
        deadline=20,
        upload=io.BytesIO(b"onetwo!"),
    )

    contents = [(tmp_path / name).read_bytes() for name in ("one", "none", "two")]
    assert contents == [b"one", b"", b"two!"]


@pytest.mark.parametrize("path", sorted(NODE), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_the_node_program_is_python_3_9_of_the_standard_library(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))

    for part in ast.walk(tree):
        if isinstance(part, ast.Import):
            names = [alias.name for alias in part.names]
        elif isinstance(part, ast.ImportFrom) and part.level == 0:
            own = "sanstone." + ".".join(path.relative_to(LIBRARY).parent.parts)
            names = [part.module or ""] if not f"{part.module}.".startswith((f"{COMMON}.", f"{own}.")) else []
        else:
            continue
        assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names | {"__future__"}


HOSTILE = [
    "a'b", 'a"b', "a b", "a;touch pwned", "$(touch pwned)", "`touch pwned`", "a\nb", "-rf", "--help", "*",
    "~", "a|b", "a&b", "ä€", "a\\b", "%s", "a=b", "a,b", "json:{}", "nbd:unix:x",
]  # fmt: skip


@pytest.mark.real("ssh")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_reach_no_shell(
    ssh: Ssh, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    host = ssh(RUN_LAST)
    folder = tmp_path / "deep" / name
    connection = Connection(name, name, 1, 1, (Target(name, (Portal("127.0.0.1", 1),)),))

    host.run(
        [
            PutFile(f"{folder}/{name}", 1),
            Link(f"{folder}/l", name),
            MovePath(f"{folder}/{name}", f"{folder}/{name}2"),
            DiskUsage(f"{folder}"),
            ReadLink(f"{folder}/l"),
        ],
        deadline=20,
        upload=io.BytesIO(b"x"),
    )
    assert sorted([path.name for path in folder.iterdir()]) == sorted(["l", f"{name}2"])
    monkeypatch.setenv("SANSTONE_HOST_ROOT", str(tmp_path / "root"))
    with pytest.raises(RequestError):
        host.run([Attach(connection, link=f"{folder}/l")], deadline=20)
    with pytest.raises(RequestError):
        host.run([MakeFilesystem(name, name, name)], deadline=20)
    host.run([RemovePath(str(folder))], deadline=20)
    assert not folder.exists()
    assert not list(tmp_path.rglob("pwned"))
