# SPDX-License-Identifier: Apache-2.0
"""The data face of the box, used by real initiators in user space."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.extents import copy_extents
from lab.tgt import Tgtd
from lab.v7000 import Box, BoxConfig, ManualClock
from lab.v7000.dataplane import DataPlane

HOST = "iqn.2020-01.org.example:{}"
MIB = 1 << 20
DEADLINE = 30
BOX = ("setpriv", "tgtd", "tgtadm")

real = pytest.mark.real(*BOX, "iscsi-ls", "iscsi-inq", "qemu-io", "qemu-img")


@pytest.fixture(scope="module")
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, clock: ManualClock) -> Iterator[Box]:
    config = BoxConfig(
        data_plane=True, directory=tmp_path_factory.mktemp("box"), clock=clock, pools={"p": 64 << 30}
    )
    with Box(config) as box:
        for host in ("h1", "h2"):
            box.add_host(host, HOST.format(host))
        yield box


@pytest.fixture
def box(running: Box) -> Iterator[Box]:
    yield running
    if running.is_dead:
        running.revive()
    for line in running.run("lsvdisk -nohdr -delim :")[0].splitlines():
        assert running.run(f"rmvdisk -force {line.split(':')[0]}")[2] == 0


def done(box: Box, line: str) -> str:
    stdout, stderr, code = box.run(line)
    assert (stderr, code) == ("", 0)
    return stdout


def make(box: Box, name: str, mib: int = 8, host: str = "") -> None:
    done(box, f"mkvdisk -name {name} -mdiskgrp p -iogrp 0 -size {mib} -unit mb -rsize 2% -autoexpand")
    if host:
        done(box, f"mkvdiskhostmap -force -host {host} {name}")


def run(*argv: str) -> tuple[str, int]:
    done = subprocess.run(argv, capture_output=True, timeout=DEADLINE, check=False)
    return (done.stdout + done.stderr).decode(errors="replace"), done.returncode


def seen(box: Box, host: str, portal: int = 0) -> list[tuple[str, str]]:
    """Return the disks that a host sees through one portal: target and LUN."""
    text, code = run("iscsi-ls", "-s", "-i", HOST.format(host), f"iscsi://{box.portals[portal]}")
    assert code == 0, text
    found, target = [], ""
    for line in text.splitlines():
        if match := re.match(r"Target:(\S+)", line):
            target = match[1]
        elif match := re.match(r"Lun:(\d+) +Type:DIRECT_ACCESS", line):
            found.append((target, match[1]))
    return sorted(found)


def io(box: Box, host: str, lun: int, *commands: str, node: int = 0) -> str:
    options = f"driver=iscsi,transport=tcp,portal={box.portals[node]},target={box.targets[node]},lun={lun}"
    argv = [word for command in commands for word in ("-c", command)]
    text, code = run("qemu-io", *argv, "--image-opts", f"{options},initiator-name={HOST.format(host)}")
    assert code == 0, text
    return text


def designators(box: Box, lun: int, node: int) -> bytes:
    url = f"iscsi://{box.portals[node]}/{box.targets[node]}/{lun}"
    argv = ["iscsi-inq", "-i", HOST.format("h1"), "-e", "1", "-c", "131", url]
    return subprocess.run(argv, capture_output=True, timeout=DEADLINE, check=True).stdout


@real
def test_each_host_sees_its_own_luns_on_both_targets(box: Box) -> None:
    make(box, "one-1", host="h1")
    make(box, "one-2", host="h1")
    make(box, "one-3", host="h2")
    first, second = box.targets
    for portal in (0, 1):
        assert seen(box, "h1", portal) == [(first, "1"), (first, "2"), (second, "1"), (second, "2")]
        assert seen(box, "h2", portal) == [(first, "1"), (second, "1")]
    done(box, "rmvdiskhostmap -host h1 one-1")
    assert seen(box, "h1") == [(first, "2"), (second, "2")]


@real
def test_discovery_tells_the_portals_of_the_box_and_nothing_else(box: Box) -> None:
    text, _ = run("iscsi-ls", "-i", HOST.format("h1"), f"iscsi://{box.portals[1]}")
    lines = sorted(text.splitlines())
    assert lines == sorted(
        f"Target:{target} Portal:{portal},{group}"
        for group, (target, portal) in enumerate(zip(box.targets, box.portals, strict=True), 1)
    )


@real
def test_an_unknown_initiator_is_refused(box: Box) -> None:
    make(box, "one-1", host="h1")
    for argv in (
        ("iscsi-ls", "-i", HOST.format("stranger"), f"iscsi://{box.portals[0]}"),
        ("iscsi-inq", "-i", HOST.format("stranger"), f"iscsi://{box.portals[0]}/{box.targets[0]}/1"),
    ):
        text, code = run(*argv)
        assert code == 10
        assert "Authorization failure" in text


@real
def test_a_portal_leads_to_its_own_nodes_target_only(box: Box) -> None:
    make(box, "one-1", host="h1")
    text, code = run("iscsi-inq", "-i", HOST.format("h1"), f"iscsi://{box.portals[0]}/{box.targets[1]}/1")
    assert code == 10
    assert "Target not found" in text


@real
def test_the_naa_identifier_is_the_uid_on_every_path(box: Box) -> None:
    make(box, "one-1", host="h1")
    uid = done(box, "lsvdisk -nohdr -delim :").split(":")[13]
    for node in (0, 1):
        answer = designators(box, 1, node)
        # the tool prints binary designators as C strings, which end at a zero byte
        head = bytes.fromhex(uid).split(b"\0")[0]
        assert b"Designator:[" + head + b"]" in answer
        assert f"Designator:[{uid[1:]}]".encode() in answer
    url = f"iscsi://{box.portals[0]}/{box.targets[0]}/1"
    text, _ = run("iscsi-inq", "-i", HOST.format("h1"), url)
    assert re.search(r"Vendor:IBM +\nProduct:2145 ", text)


@real
def test_bytes_land_in_the_volumes_file_and_count_as_used(box: Box) -> None:
    make(box, "one-1", host="h1")
    io(box, "h1", 1, "write -P 0x5a 1M 1M")
    path = box.volume_path("one-1")
    content = path.read_bytes()
    assert content == bytes(MIB) + b"\x5a" * MIB + bytes(6 * MIB)
    assert "used_capacity:1048576" in done(box, "lsvdisk -bytes -delim : one-1")
    io(box, "h1", 1, "read -P 0x5a 1M 1M", "read -P 0 0 1M", node=1)
    io(box, "h1", 1, "discard 1M 1M")
    assert "used_capacity:0" in done(box, "lsvdisk -bytes -delim : one-1")


@real
def test_rmvdisk_removes_the_file(box: Box) -> None:
    make(box, "one-1", host="h1")
    path = box.volume_path("one-1")
    assert path.exists()
    done(box, "rmvdisk -force one-1")
    assert not path.exists()
    assert seen(box, "h1") == []


@real
def test_a_flashcopy_target_holds_the_moment_at_once_and_then_goes_its_own_way(box: Box) -> None:
    make(box, "one-1", host="h1")
    make(box, "copy", host="h2")
    inode = box.volume_path("copy").stat().st_ino
    io(box, "h2", 1, "write -P 0xee 0 8M")
    io(box, "h1", 1, "write -P 0x5a 2M 1M")
    done(box, "mkfcmap -source one-1 -target copy -name m -copyrate 0; startfcmap -prep m")
    io(box, "h1", 1, "write -P 0x77 2M 1M")
    io(box, "h2", 1, "read -P 0x5a 2M 1M", "read -P 0 0 2M", "read -P 0 3M 5M")
    io(box, "h2", 1, "write -P 0x11 0 1M")
    io(box, "h1", 1, "read -P 0 0 1M", "read -P 0x77 2M 1M")
    assert box.volume_path("copy").stat().st_ino == inode


@real
def test_a_target_is_offline_while_prepared_and_when_stopped_early(box: Box) -> None:
    make(box, "one-1", host="h1")
    make(box, "copy", host="h2")
    done(box, "mkfcmap -source one-1 -target copy -name m -copyrate 0; prestartfcmap m")
    assert "Size" not in run("iscsi-ls", "-s", "-i", HOST.format("h2"), f"iscsi://{box.portals[0]}")[0]
    done(box, "startfcmap m")
    io(box, "h2", 1, "read -P 0 0 1M")
    done(box, "stopfcmap m")
    assert "Size" not in run("iscsi-ls", "-s", "-i", HOST.format("h2"), f"iscsi://{box.portals[0]}")[0]
    done(box, "rmfcmap -force m")
    io(box, "h2", 1, "read 0 1M")


@real
def test_what_was_not_copied_yet_is_lost_when_a_copy_is_stopped(box: Box, clock: ManualClock) -> None:
    make(box, "one-1", host="h1")
    make(box, "copy", host="h2")
    io(box, "h1", 1, "write -P 0x5a 0 8M")
    done(box, "mkfcmap -source one-1 -target copy -name m -copyrate 50; startfcmap -prep m")
    clock.advance(2)  # 2 MiB/s: half of it
    done(box, "stopfcmap m; rmfcmap -force m")
    io(box, "h2", 1, "read -P 0x5a 0 4M", "read -P 0 4M 4M")


@real
def test_a_grown_volume_is_larger_for_the_next_look(box: Box) -> None:
    make(box, "one-1", host="h1")
    io(box, "h1", 1, "write -P 0x5a 0 1M")
    done(box, "expandvdisksize -size 8 -unit mb one-1")
    assert box.volume_path("one-1").stat().st_size == 16 * MIB
    io(box, "h1", 1, "read -P 0x5a 0 1M", "write -P 0x66 15M 1M", node=1)


@real
def test_a_volume_mapped_to_two_hosts_is_one_volume(box: Box) -> None:
    make(box, "one-1", host="h1")
    done(box, "mkvdiskhostmap -force -host h2 one-1")
    io(box, "h1", 1, "write -P 0x5a 0 1M")
    io(box, "h2", 1, "read -P 0x5a 0 1M")


@real
def test_lun_0_is_not_to_be_had_with_a_data_face(box: Box) -> None:
    make(box, "one-1")
    assert box.run("mkvdiskhostmap -host h1 -scsi 0 one-1")[1].startswith("CMMVC5879E")


@real
def test_one_portal_down_leaves_the_other(box: Box) -> None:
    make(box, "one-1", host="h1")
    address, port = box.portals[0].split(":")
    box.portal_down(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, int(port)), DEADLINE)
    io(box, "h1", 1, "write -P 0x5a 0 1M", node=1)
    box.portal_up(1)
    io(box, "h1", 1, "read -P 0x5a 0 1M", node=0)


@real
def test_a_portal_that_goes_down_cuts_its_sessions(box: Box) -> None:
    make(box, "one-1", host="h1")
    options = f"driver=iscsi,transport=tcp,portal={box.portals[1]},target={box.targets[1]},lun=1"
    argv = ["qemu-io", "--image-opts", f"{options},initiator-name={HOST.format('h1')}"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"write -P 0x5a 0 64k\n")
        process.stdin.flush()
        while not process.stdout.readline().startswith(b"64 KiB"):
            assert process.poll() is None
        rows = done(box, "lshost -nohdr -delim :").splitlines()
        assert rows[0].split(":")[4] == "degraded"
        assert rows[1].split(":")[4] == "offline"
        box.portal_down(2)
        assert "node_logged_in_count:0" in done(box, "lshost -delim : h1")
        process.kill()
    box.portal_up(2)


@real
def test_a_new_port_of_a_host_sees_its_luns_and_a_removed_one_is_cut_off(box: Box) -> None:
    make(box, "one-1", host="h1")
    done(box, f"addhostport -iscsiname {HOST.format('more')} h1")
    assert len(seen(box, "more")) == 2
    done(box, f"rmhostport -iscsiname {HOST.format('more')} h1")
    assert run("iscsi-ls", "-i", HOST.format("more"), f"iscsi://{box.portals[0]}")[1] == 10


@real
def test_a_box_comes_back_from_the_dead_with_its_bytes_and_luns(box: Box) -> None:
    make(box, "one-1", host="h1")
    make(box, "one-2", host="h1")
    done(box, "rmvdiskhostmap -host h1 one-1")
    io(box, "h1", 2, "write -P 0x5a 0 1M")
    portals = box.portals
    box.die()
    address, port = portals[0].split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, int(port)), DEADLINE)
    box.revive()
    assert box.portals == portals
    assert [lun for _, lun in seen(box, "h1")] == ["2", "2"]
    io(box, "h1", 2, "read -P 0x5a 0 1M")


@pytest.mark.real(*BOX)
def test_stop_leaves_nothing_behind(tmp_path: Path) -> None:
    box = Box(BoxConfig(data_plane=True, directory=tmp_path, clock=ManualClock()))
    with box:
        box.add_host("h", HOST.format("h"))
        done(box, "mkvdisk -name v -mdiskgrp 0 -iogrp 0 -size 1; mkvdiskhostmap -host h v")
        assert [file.stat().st_size for file in (tmp_path / "volumes").iterdir()] == [MIB]
    assert list(tmp_path.iterdir()) == []


def test_copying_extents_makes_the_target_equal_and_keeps_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(2 * MIB)
        file.write(b"\x5a" * MIB)
    target.write_bytes(b"\xee" * 8 * MIB)
    copy_extents(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 <= 2 * MIB


def test_addresses_of_portals_are_free_and_distinct() -> None:
    addresses = DataPlane.free_addresses(2)
    assert len(set(addresses)) == 2
    assert all(address.startswith("127.") for address in addresses)


def test_a_daemon_that_was_never_started_can_be_stopped() -> None:
    Tgtd().stop()
