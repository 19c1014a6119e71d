# SPDX-License-Identifier: Apache-2.0
"""A user-space host as a machine: its SSH server, its rights, power cuts, and what is left of it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from lab.host import PROGRAMS, Timings, UserSpaceHost, ssh_config
from lab.tgt import Tgtd

pytestmark = pytest.mark.real(*PROGRAMS, "tgtd", "tgtadm")

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
INITIATOR = "iqn.1994-05.com.redhat:node1"
TARGET = "iqn.1986-03.com.ibm:2145.lab.node1"
UID = "600507680c8081adac00000000000001"
WWID = f"3{UID}"
DEADLINE = 20.0
QUICK = Timings(second=0.1)

LONE_HOST = """
import sys, threading
from pathlib import Path
from lab.host import UserSpaceHost
root, iqn, portal, target = sys.argv[1:]
host = UserSpaceHost("lone", Path(root), iqn, "")
host.boot()
node = ("iscsiadm", "-m", "node", "-T", target, "-p", portal)
codes = [host.call(*node, "-o", "new").code, host.call(*node, "-l").code]
while not host.devices():
    threading.Event().wait(0.01)
print(codes, flush=True)
threading.Event().wait(60)
"""


def until(condition: Callable[[], object], what: str = "it") -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"{what} did not come about"
        threading.Event().wait(0.005)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ssh") / "key"
    private = Ed25519PrivateKey.generate()
    path.touch(mode=0o600)
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    path.with_suffix(".pub").write_bytes(public)
    return path


@pytest.fixture
def host(tmp_path: Path, key: Path) -> Iterator[UserSpaceHost]:
    public = key.with_suffix(".pub").read_text()
    root = tmp_path / "node1"
    with UserSpaceHost("node1", root, INITIATOR, public, timings=QUICK, extra_env={"LAB": "yes"}) as one:
        yield one


@pytest.fixture
def array(tmp_path: Path) -> Iterator[Tgtd]:
    with Tgtd() as tgtd:
        tgtd.new_target(1, TARGET)
        tgtd.bind(1, INITIATOR)
        volume = tmp_path / "volume"
        with volume.open("wb") as file:
            file.truncate(8 * MIB)
        tgtd.add_lun(1, 1, volume, scsi_id=UID, scsi_sn=UID)
        yield tgtd


def portal_of(array: Tgtd) -> str:
    address, port = array.portal
    return f"{address}:{port}"


def log_in(host: UserSpaceHost, array: Tgtd, startup: str = "manual") -> None:
    node = ("iscsiadm", "-m", "node", "-T", TARGET, "-p", portal_of(array))
    assert host.call(*node, "-o", "new").code == 0
    assert host.call(*node, "-o", "update", "-n", "node.startup", "-v", startup).code == 0
    assert host.call(*node, "-l").code == 0
    until((host.root / "dev/mapper" / WWID).exists)


def ssh(host: UserSpaceHost, key: Path, *command: str) -> list[str]:
    config = key.parent / f"config-{host.ssh_port}"
    config.write_text(ssh_config([host], key))
    return ["ssh", "-F", str(config), host.name, *command]


def mounts_below(path: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line for line in lines if line.split()[1].startswith(str(path))]


def daemons_of(path: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if words.startswith("qemu-storage-daemon\0") and str(path) in words:
            found.append(words)
    return found


@pytest.mark.real("ssh")
def test_a_command_by_ssh_has_both_streams_and_its_exit_code(host: UserSpaceHost, key: Path) -> None:
    payload = os.urandom(3 * MIB)
    command = ssh(host, key, "cat; echo aside >&2; exit 42")
    done = subprocess.run(command, input=payload, capture_output=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stderr) == (42, b"aside\n")
    assert done.stdout == payload
    assert host.ssh_connections == 1
    assert host.ssh_log == ["cat; echo aside >&2; exit 42"]


@pytest.mark.real("ssh")
def test_a_command_that_does_not_read_ends_all_the_same(host: UserSpaceHost, key: Path) -> None:
    command = ssh(host, key, "echo first; exit 3")
    done = subprocess.run(command, input=bytes(8 * MIB), capture_output=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stdout) == (3, b"first\n")


@pytest.mark.real("ssh")
def test_a_command_finds_the_hosts_programs_and_tree(host: UserSpaceHost, key: Path) -> None:
    line = 'cd "$SANSTONE_HOST_ROOT"; command -v iscsiadm; echo "$PWD $HOME $LAB"; cat etc/iscsi/*.iscsi'
    done = subprocess.run(ssh(host, key, line), capture_output=True, timeout=DEADLINE, check=True)
    root = host.root
    expected = [f"{root}/bin/iscsiadm", f"{root} {host.home} yes", f"InitiatorName={INITIATOR}"]
    assert done.stdout.decode().splitlines() == expected


@pytest.mark.real("ssh")
def test_a_program_travels_over_standard_input(host: UserSpaceHost, key: Path) -> None:
    program = b"import sys; print(sys.version_info[0], end='')"
    command = ssh(host, key, "python3", "-I", "-")
    done = subprocess.run(command, input=program, capture_output=True, timeout=DEADLINE, check=True)
    assert done.stdout == b"3"


@pytest.mark.real("ssh")
def test_a_stranger_and_another_host_key_are_refused(host: UserSpaceHost, key: Path, tmp_path: Path) -> None:
    other = UserSpaceHost("node1", tmp_path / "other", INITIATOR, "", timings=QUICK)
    with other:
        done = subprocess.run(ssh(other, key, "true"), capture_output=True, timeout=DEADLINE, check=False)
        assert done.returncode == 255
        assert b"Permission denied" in done.stderr
        wrong = ssh(host, key, "true")
        known = key.parent / "known_hosts"
        known.write_text(other.known_hosts_line("node1") + "\n")
        done = subprocess.run(wrong, capture_output=True, timeout=DEADLINE, check=False)
        assert done.returncode == 255
        assert b"Host key verification failed" in done.stderr


@pytest.mark.real("ssh")
def test_a_command_dies_with_its_client(host: UserSpaceHost, key: Path) -> None:
    mark = host.home / "pid"
    with subprocess.Popen(ssh(host, key, f"echo $$ > {shlex.quote(str(mark))}; exec sleep 60")) as client:
        until(lambda: mark.exists() and mark.read_text().strip())
        pid = int(mark.read_text())
        client.kill()
    until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the command")


@pytest.mark.real("sudo", "tee")
def test_sudo_runs_what_its_list_has_and_nothing_else(host: UserSpaceHost, tmp_path: Path) -> None:
    assert host.run(["sudo", "-n", "multipath", "-ll"]).returncode == 0
    assert host.run(["sudo", "-n", "/usr/sbin/multipathd", "show", "daemon"]).stdout == b"pid 812 idle\n"
    refused = host.run(["sudo", "-n", "rm", "-r", str(tmp_path)])
    assert (refused.returncode, refused.stderr) == (1, b"sudo: a password is required\n")
    assert host.commands == {"multipath": 1, "multipathd": 1}


@pytest.mark.real("tee")
def test_tee_outside_sysfs_is_the_real_one(host: UserSpaceHost, tmp_path: Path) -> None:
    done = host.run(["tee", str(tmp_path / "copy")], stdin=b"text")
    assert done.stdout == b"text"
    assert (tmp_path / "copy").read_bytes() == b"text"
    assert host.commands == {}


@pytest.mark.real("multipath", "qemu-img")
def test_a_real_program_that_holds_a_device_keeps_the_map(host: UserSpaceHost, array: Tgtd) -> None:
    log_in(host, array)
    device = host.root / "dev/mapper" / WWID
    shown = host.run(["qemu-img", "info", "--output=json", str(device)])
    assert b'"virtual-size": 8388608' in shown.stdout
    with device.open("rb") as file:
        holder = subprocess.Popen(["sh", "-c", "kill -STOP $$"], stdin=file)
    with holder:
        done = host.run(["multipath", "-f", WWID])
        assert (done.returncode, done.stderr) == (1, f"{WWID}: map in use\n".encode())
        holder.kill()
    until(lambda: host.run(["multipath", "-f", WWID]).returncode == 0)


def test_a_crash_leaves_no_mount_and_no_memory(host: UserSpaceHost, array: Tgtd) -> None:
    log_in(host, array)
    port = host.ssh_port
    device = host.root / "dev/mapper" / WWID
    with device.open("r+b") as file:
        file.write(b"before the crash")
    assert len(mounts_below(host.root)) == 1
    assert len(daemons_of(host.root)) == 1
    host.crash()
    assert mounts_below(host.root) == []
    assert daemons_of(host.root) == []
    assert not (host.root / "sys").exists()
    until(lambda: array.sessions([1]) == [], "the end of the sessions on the array")
    host.boot()
    assert host.ssh_port == port
    assert host.sessions() == []
    assert host.leftovers() == []
    listed = host.call("iscsiadm", "-m", "node").out
    assert listed == f"{portal_of(array)},-1 {TARGET}\n"
    log_in(host, array)
    with device.open("rb") as file:
        assert file.read(16) == b"before the crash"


def test_automatic_records_log_in_at_boot(host: UserSpaceHost, array: Tgtd) -> None:
    log_in(host, array, startup="automatic")
    host.crash()
    host.boot()
    until(lambda: [one.target for one in host.sessions()] == [TARGET])
    until((host.root / "dev/mapper" / WWID).exists)


@pytest.mark.real("ssh")
def test_a_crash_cuts_the_commands_that_run(host: UserSpaceHost, key: Path) -> None:
    mark = host.home / "pid"
    line = f"echo $$ > {shlex.quote(str(mark))}; exec sleep 60"
    with subprocess.Popen(ssh(host, key, line), stderr=subprocess.PIPE) as client:
        until(lambda: mark.exists() and mark.read_text().strip())
        host.crash()
        assert client.wait(DEADLINE) == 255
    assert not Path("/proc", mark.read_text().strip()).exists()


def test_a_crash_ends_a_stand_in_that_waits(tmp_path: Path, array: Tgtd) -> None:
    host = UserSpaceHost("node1", tmp_path / "n", INITIATOR, "", timings=Timings(second=5))
    with host:
        log_in(host, array)
        array.stop()
        until(lambda: {one.state for one in host.sessions()} == {"FAILED"})
        host.call("udevadm", "settle")
        answers = []
        flush = threading.Thread(target=lambda: answers.append(host.call("multipath", "-f", WWID)))
        flush.start()
        flush.join(0.2)
        assert flush.is_alive()
    flush.join(DEADLINE)
    assert [one.code for one in answers] == [1]


@pytest.mark.real("python3")
def test_a_killed_process_leaves_neither_daemons_nor_mounts(tmp_path: Path, array: Tgtd) -> None:
    root = tmp_path / "lone host"
    argv = [sys.executable, "-c", LONE_HOST, str(root), INITIATOR, portal_of(array), TARGET]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"[0, 0]\n"
        assert len(daemons_of(root)) == 1
        process.send_signal(signal.SIGKILL)
    until(lambda: not daemons_of(root), "the end of the daemons")
    until(lambda: not mounts_below(tmp_path), "the end of the mounts")
    with UserSpaceHost("lone", root, INITIATOR, "", timings=QUICK) as again:
        assert again.devices() == []
        log_in(again, array)
