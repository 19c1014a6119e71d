# SPDX-License-Identifier: Apache-2.0
"""A user-space host against real targets: sessions, scans, maps, data, and how they go wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.host import PROGRAMS, Answer, AttachedDisk, Timings, UserSpaceHost
from lab.tgt import Tgtd

pytestmark = pytest.mark.real(*PROGRAMS, "tgtd", "tgtadm")

MIB = 1024 * 1024
INITIATOR = "iqn.1994-05.com.redhat:node1"
TARGET = "iqn.1986-03.com.ibm:2145.lab.node1"
DEADLINE = 15.0
QUICK = Timings(second=0.1)


def uid(number: int) -> str:
    return f"600507680c8081adac{number:014x}"


def wwid(number: int) -> str:
    return f"3{uid(number)}"


class Canisters:
    """Two portals of one array: the same volumes behind both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        octets = os.urandom(2)
        self.nodes = [Tgtd(f"127.{octets[0] or 1}.{octets[1]}.{number}") for number in (11, 12)]

    def start(self) -> None:
        for node in self.nodes:
            node.start()
            node.new_target(1, TARGET)
            node.bind(1, INITIATOR)

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def file(self, number: int) -> Path:
        return self.folder / f"volume-{number}"

    def map(self, number: int, lun: int, size: int = 8 * MIB) -> None:
        if not self.file(number).exists():
            with self.file(number).open("wb") as file:
                file.truncate(size)
        for node in self.nodes:
            node.add_lun(1, lun, self.file(number), scsi_id=uid(number), scsi_sn=uid(number))

    def unmap(self, lun: int) -> None:
        for node in self.nodes:
            node.delete_lun(1, lun)

    @property
    def portals(self) -> list[str]:
        return [f"{address}:{port}" for address, port in (node.portal for node in self.nodes)]


@pytest.fixture
def array(tmp_path: Path) -> Iterator[Canisters]:
    canisters = Canisters(tmp_path)
    try:
        canisters.start()
        yield canisters
    finally:
        canisters.stop()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[UserSpaceHost]:
    with UserSpaceHost("node1", tmp_path / "node 1", INITIATOR, "", timings=QUICK) as one:
        yield one


def until(condition: Callable[[], object], what: str = "it") -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"{what} did not come about"
        threading.Event().wait(0.005)


def node(host: UserSpaceHost, portal: str, *argv: str) -> Answer:
    return host.call("iscsiadm", "-m", "node", "-T", TARGET, "-p", portal, *argv)


def log_in(host: UserSpaceHost, portal: str, **settings: str) -> Answer:
    assert node(host, portal, "-o", "new").code == 0
    for name, value in {"node.session.scan": "manual", **settings}.items():
        assert node(host, portal, "-o", "update", "-n", name, "-v", value).code == 0
    return node(host, portal, "-l")


def write_sysfs(host: UserSpaceHost, path: str, value: str) -> Answer:
    return host.call("tee", str(host.root / "sys" / path), stdin=value.encode())


def scan(host: UserSpaceHost, lun: int | str) -> None:
    for name in sorted(path.name for path in (host.root / "sys/class/scsi_host").iterdir()):
        assert write_sysfs(host, f"class/scsi_host/{name}/scan", f"0 0 {lun}\n").code == 0
    host.call("udevadm", "settle", "--timeout=10")


def attach(host: UserSpaceHost, array: Canisters, number: int, lun: int) -> Path:
    array.map(number, lun)
    for portal in array.portals:
        if not any(one.portal == portal for one in host.sessions()):
            assert log_in(host, portal).code == 0
    scan(host, lun)
    device = host.root / "dev/mapper" / wwid(number)
    assert device.exists()
    return device


def delete(host: UserSpaceHost, name: str) -> None:
    assert write_sysfs(host, f"block/{name}/device/delete", "1\n").code == 0
    until(lambda: not (host.root / "sys/block" / name).exists())


def by_name(host: UserSpaceHost) -> dict[str, AttachedDisk]:
    return {one.name: one for one in host.devices()}


def attribute(host: UserSpaceHost, path: str) -> str:
    return (host.root / "sys" / path).read_text().strip()


def test_two_portals_give_two_paths_in_one_map(host: UserSpaceHost, array: Canisters) -> None:
    attach(host, array, 7, 3)
    maps = json.loads(host.call("multipathd", "show", "maps", "json").out)["maps"]
    assert [(one["name"], one["paths"]) for one in maps] == [(wwid(7), 2)]
    slaves = sorted(path.name for path in (host.root / "sys/block/dm-0/slaves").iterdir())
    assert slaves == ["sdb", "sdc"]
    assert {one.portal for one in host.devices()} == set(array.portals)
    assert attribute(host, "block/dm-0/dm/uuid") == f"mpath-{wwid(7)}"
    for name in slaves:
        assert attribute(host, f"block/{name}/device/wwid") == f"naa.{uid(7)}"
        assert attribute(host, f"block/{name}/size") == str(8 * MIB // 512)
        assert uid(7) in (host.root / f"sys/block/{name}/device/vpd_pg83").read_bytes().hex()
        assert (host.root / f"sys/block/{name}/holders/dm-0").is_dir()


def test_sysfs_leads_from_a_session_to_its_disk(host: UserSpaceHost, array: Canisters) -> None:
    attach(host, array, 1, 1)
    session = host.sessions()[0]
    sysfs = host.root / "sys"
    assert attribute(host, f"class/iscsi_session/session{session.sid}/targetname") == TARGET
    connection = f"class/iscsi_connection/connection{session.sid}:0"
    address, port = array.nodes[0].portal
    assert attribute(host, f"{connection}/persistent_address") == address
    assert attribute(host, f"{connection}/persistent_port") == str(port)
    found = list((sysfs / "class/iscsi_host/host2/device").glob("session1/target2:0:0/2:0:0:1/block/*"))
    assert [path.name for path in found] == ["sdb"]
    assert (sysfs / "block/sdb/device").resolve().name == "2:0:0:1"
    link = host.root / f"dev/disk/by-path/ip-{address}:{port}-iscsi-{TARGET}-lun-1"
    assert link.readlink().name == "sdb"
    assert (host.root / f"dev/disk/by-id/dm-uuid-mpath-{wwid(1)}").readlink().name == "dm-0"
    assert (host.root / f"dev/disk/by-id/wwn-0x{uid(1)}").exists()


def test_bytes_written_to_the_map_are_on_the_volume(host: UserSpaceHost, array: Canisters) -> None:
    device = attach(host, array, 1, 0x21)
    assert device.stat().st_size == 8 * MIB
    pattern = os.urandom(MIB)
    with device.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(pattern)
    assert host.call("blockdev", "--flushbufs", str(device)).code == 0
    with array.file(1).open("rb") as file:
        file.seek(3 * MIB)
        assert file.read(MIB) == pattern
    assert host.call("blockdev", "--getsize64", str(device)).out == f"{8 * MIB}\n"


@pytest.mark.real("sudo", "iscsiadm", "tee")
def test_an_attach_is_quick(host: UserSpaceHost, array: Canisters) -> None:
    array.map(1, 1)
    array.map(2, 2)
    portal = array.portals[0]
    iscsiadm = ["sudo", "-n", "iscsiadm", "-m", "node", "-T", TARGET, "-p", portal]
    assert host.run([*iscsiadm, "-o", "new"]).returncode == 0
    update = [*iscsiadm, "-o", "update", "-n", "node.session.scan", "-v", "manual"]
    assert host.run(update).returncode == 0
    tee = ["sudo", "-n", "tee", str(host.root / "sys/class/scsi_host/host2/scan")]
    seconds = []
    for steps, number in (([[*iscsiadm, "-l"], tee], 1), ([tee], 2)):
        started = time.monotonic()
        for step in steps:
            done = host.run(step, stdin=f"0 0 {number}\n".encode() if step is tee else b"")
            assert done.returncode == 0, done.stderr
        until((host.root / "dev/mapper" / wwid(number)).exists)
        seconds.append(time.monotonic() - started)
    # about 0.1 s and 0.06 s on an idle machine
    assert seconds[0] < 2.0
    assert seconds[1] < 1.5
    assert host.commands["iscsiadm"] == 3
    assert host.commands["tee"] == 2


def test_a_scan_of_one_lun_finds_no_other(host: UserSpaceHost, array: Canisters) -> None:
    array.map(1, 1)
    array.map(2, 2)
    assert log_in(host, array.portals[0]).code == 0
    scan(host, 2)
    assert [one.wwid for one in host.devices()] == [wwid(2)]
    scan(host, "-")
    assert {one.wwid for one in host.devices()} == {wwid(1), wwid(2)}


def test_manual_sessions_find_nothing_and_automatic_ones_all(host: UserSpaceHost, array: Canisters) -> None:
    array.map(1, 1)
    assert log_in(host, array.portals[0]).code == 0
    assert log_in(host, array.portals[1], **{"node.session.scan": "auto"}).code == 0
    until(host.devices)
    assert [one.portal for one in host.devices()] == [array.portals[1]]


def test_a_reused_lun_keeps_the_old_identity_with_the_new_data(host: UserSpaceHost, array: Canisters) -> None:
    attach(host, array, 1, 4)
    array.unmap(4)
    array.file(2).write_bytes(b"N" * 8 * MIB)
    array.map(2, 4)
    scan(host, 4)
    assert {one.wwid for one in host.devices()} == {wwid(1)}
    assert attribute(host, "block/sdb/device/wwid") == f"naa.{uid(1)}"
    with (host.root / "dev/mapper" / wwid(1)).open("rb") as file:
        assert file.read(4) == b"NNNN"
    ghosts = [line for line in host.leftovers(expected=[wwid(1)]) if line.startswith("ghost")]
    assert len(ghosts) == 2
    assert all(wwid(2) in line for line in ghosts)


def test_a_rescan_of_a_reused_lun_moves_the_path_to_the_right_map(
    host: UserSpaceHost, array: Canisters
) -> None:
    attach(host, array, 1, 4)
    array.unmap(4)
    array.map(2, 4, 16 * MIB)
    for name in by_name(host):
        assert write_sysfs(host, f"block/{name}/device/rescan", "1\n").code == 0
    host.call("udevadm", "settle")
    assert {(one.wwid, one.size, one.map) for one in host.devices()} == {(wwid(2), 16 * MIB, wwid(2))}
    assert not (host.root / "dev/mapper" / wwid(1)).exists()


def test_a_grown_volume_shows_after_rescan_and_resize(host: UserSpaceHost, array: Canisters) -> None:
    device = attach(host, array, 1, 1)
    array.unmap(1)
    os.truncate(array.file(1), 24 * MIB)
    array.map(1, 1)
    assert write_sysfs(host, "block/sdb/device/rescan", "1\n").code == 0
    assert host.call("multipathd", "resize", "map", wwid(1)).out == "fail\n"
    assert write_sysfs(host, "block/sdc/device/rescan", "1\n").code == 0
    assert attribute(host, "block/dm-0/size") == str(8 * MIB // 512)
    until(lambda: host.call("multipathd", "resize", "map", wwid(1)).out == "ok\n")
    assert attribute(host, "block/dm-0/size") == str(24 * MIB // 512)
    assert device.stat().st_size == 24 * MIB
    with device.open("r+b") as file:
        file.seek(20 * MIB)
        file.write(b"beyond")
    with array.file(1).open("rb") as file:
        file.seek(20 * MIB)
        assert file.read(6) == b"beyond"


def test_a_detach_in_the_right_order_leaves_nothing(host: UserSpaceHost, array: Canisters) -> None:
    attach(host, array, 1, 1)
    attach(host, array, 2, 2)
    assert host.leftovers(expected=[wwid(1), wwid(2)]) == []
    assert host.call("multipath", "-f", wwid(1)).code == 0
    for one in host.devices():
        if one.wwid == wwid(1):
            delete(host, one.name)
    host.call("udevadm", "settle")
    assert not [path for path in (host.root / "dev").rglob("*") if uid(1) in path.name]
    assert host.leftovers(expected=[wwid(2)]) == []
    assert host.call("multipath", "-f", wwid(2)).code == 0
    for one in host.devices():
        delete(host, one.name)
    idle = [f"session {one.sid} to {TARGET} without disks" for one in host.sessions()]
    assert host.leftovers() == idle
    for portal in array.portals:
        assert node(host, portal, "-u").code == 0
        assert node(host, portal, "-o", "delete").code == 0
    assert host.leftovers() == []
    assert [path.name for path in (host.root / "sys/block").iterdir()] == ["sda"]
    assert host.call("iscsiadm", "-m", "node").code == 21


def test_a_map_in_use_is_not_flushed(host: UserSpaceHost, array: Canisters) -> None:
    device = attach(host, array, 1, 1)
    with device.open("rb"):
        answer = host.call("multipath", "-f", wwid(1))
        assert (answer.code, answer.err) == (1, f"{wwid(1)}: map in use\n")
        assert device.exists()
    assert host.call("multipath", "-f", wwid(1)).code == 0
    assert not device.is_symlink()
    assert set(by_name(host)) == {"sdb", "sdc"}


def test_a_map_with_a_device_above_it_is_in_use(host: UserSpaceHost, array: Canisters) -> None:
    attach(host, array, 1, 1)
    holder = host.root / "sys/block/dm-0/holders/dm-9"
    holder.touch()
    assert "map in use" in host.call("multipath", "-f", wwid(1)).err
    holder.unlink()
    assert host.call("multipath", "-f", wwid(1)).code == 0


def test_a_deletion_takes_its_time_and_a_scan_before_its_end_finds_nothing_new(
    tmp_path: Path, array: Canisters
) -> None:
    timings = Timings(second=0.1, delete=0.6)
    with UserSpaceHost("node1", tmp_path / "slow", INITIATOR, "", timings=timings) as host:
        attach(host, array, 1, 1)
        assert write_sysfs(host, "block/sdb/device/delete", "1").code == 0
        assert "sdb" in by_name(host)
        scan(host, 1)
        until(lambda: "sdb" not in by_name(host))
        assert set(by_name(host)) == {"sdc"}
        scan(host, 1)
        assert set(by_name(host)) == {"sdb", "sdc"}


def test_a_map_goes_with_its_last_path_unless_it_is_held(host: UserSpaceHost, array: Canisters) -> None:
    device = attach(host, array, 1, 1)
    second = attach(host, array, 2, 2)
    held = os.open(second, os.O_RDONLY)
    try:
        for name in by_name(host):
            delete(host, name)
        host.call("udevadm", "settle")
        assert not device.is_symlink()
        assert second.is_symlink()
        left = [line for line in host.leftovers(with_sessions=False) if line.startswith("map")]
        assert left == [f"map {wwid(2)} (dm-1) without paths"]
        host.call("multipathd", "disablequeueing", "map", wwid(2))
    finally:
        # what was behind it is gone, and closing may say so
        with contextlib.suppress(OSError):
            os.close(held)
    host.call("multipathd", "disablequeueing", "map", wwid(2))
    assert host.call("multipath", "-f", wwid(2)).code == 0


def test_logging_out_takes_every_disk_of_the_session(host: UserSpaceHost, array: Canisters) -> None:
    attach(host, array, 1, 1)
    attach(host, array, 2, 2)
    assert node(host, array.portals[0], "-u").code == 0
    assert {one.portal for one in host.devices()} == {array.portals[1]}
    assert len(host.devices()) == 2


def test_without_multipathd_no_map_is_made(host: UserSpaceHost, array: Canisters) -> None:
    array.map(1, 1)
    host.multipathd_running = False
    assert log_in(host, array.portals[0]).code == 0
    scan(host, 1)
    assert [one.map for one in host.devices()] == [None]
    refused = host.call("multipathd", "show", "maps", "json")
    assert refused.code == 1
    assert refused.out == ""
    assert host.call("multipath", "-v2").code == 0
    assert [one.map for one in host.devices()] == [wwid(1)]


@pytest.mark.parametrize("way", ["add path", "whitelist"])
def test_a_strict_host_maps_what_it_is_told_to(tmp_path: Path, array: Canisters, way: str) -> None:
    root = tmp_path / "strict"
    with UserSpaceHost("n", root, INITIATOR, "", timings=QUICK, find_multipaths="strict") as host:
        array.map(1, 1)
        assert log_in(host, array.portals[0]).code == 0
        if way == "whitelist":
            assert host.call("multipath", "-a", wwid(1)).out == f"wwid '{wwid(1)}' added\n"
        scan(host, 1)
        if way == "add path":
            assert [one.map for one in host.devices()] == [None]
            assert host.call("multipathd", "add", "path", "sdb").out == "ok\n"
        assert [one.map for one in host.devices()] == [wwid(1)]


def test_formats_of_multipathd_are_filled_in(host: UserSpaceHost, array: Canisters) -> None:
    attach(host, array, 1, 1)
    shown = host.call("multipathd", "show", "paths", "format", "%w %d %t %o").out.splitlines()
    assert [line.split() for line in shown] == [
        ["uuid", "dev", "dm_st", "dev_st"],
        [wwid(1), "sdb", "active", "running"],
        [wwid(1), "sdc", "active", "running"],
    ]
    raw = host.call("multipathd", "-kshow paths raw format %d|%i").out
    assert raw == "sdb|2:0:0:1\nsdc|3:0:0:1\n"
    listed = host.call("multipath", "-ll", wwid(1)).out.splitlines()
    assert listed[0] == f"{wwid(1)} dm-0 IBM,2145"
    assert listed[-1] == "  `- 3:0:0:1 sdc 8:32 active ready running"


def test_no_program_touches_the_hosts_own_disk(host: UserSpaceHost, array: Canisters) -> None:
    assert write_sysfs(host, "block/sda/device/delete", "1").code == 1
    assert (host.root / "sys/block/sda").exists()
    assert write_sysfs(host, "class/scsi_host/host9/scan", "0 0 1").err.endswith(
        "No such file or directory\n"
    )
    assert log_in(host, array.portals[0]).code == 0
    refused = write_sysfs(host, "class/scsi_host/host2/scan", "0 0")
    assert (refused.code, refused.out) == (1, "0 0")


def test_two_hosts_have_the_same_volume_for_a_migration(tmp_path: Path, array: Canisters) -> None:
    for tgtd in array.nodes:
        tgtd.bind(1, f"{INITIATOR}b")
    with (
        UserSpaceHost("a", tmp_path / "a", INITIATOR, "", timings=QUICK) as one,
        UserSpaceHost("b", tmp_path / "b", f"{INITIATOR}b", "", timings=QUICK) as other,
    ):
        first = attach(one, array, 1, 1)
        assert log_in(other, array.portals[0]).code == 0
        scan(other, 1)
        with first.open("r+b") as file:
            file.write(b"moved")
        with (other.root / "dev/mapper" / wwid(1)).open("rb") as file:
            assert file.read(5) == b"moved"


class TestExitCodes:
    """Those that a driver decides by."""

    def test_of_an_empty_host(self, host: UserSpaceHost, array: Canisters) -> None:
        portal = array.portals[0]
        none = host.call("iscsiadm", "-m", "session")
        assert (none.code, none.err) == (21, "iscsiadm: No active sessions.\n")
        assert host.call("iscsiadm", "-m", "node").code == 21
        for argv in (
            ["-l"],
            ["-u"],
            ["-o", "delete"],
            ["-o", "update", "-n", "node.startup", "-v", "manual"],
        ):
            answer = node(host, portal, *argv)
            assert (answer.code, answer.err) == (21, "iscsiadm: No records found\n")

    def test_of_sessions(self, host: UserSpaceHost, array: Canisters) -> None:
        portal = array.portals[0]
        assert log_in(host, portal).code == 0
        assert node(host, portal, "-l").code == 15
        assert node(host, portal, "-o", "delete").code == 15
        address = f"{portal},1"
        listed = host.call("iscsiadm", "-m", "session").out
        assert listed == f"tcp: [1] {address} {TARGET} (non-flash)\n"
        assert host.call("iscsiadm", "-m", "session", "-r", "7", "-u").code == 21
        assert host.call("iscsiadm", "-m", "session", "-r", "1", "--rescan").code == 0
        assert node(host, portal, "-u").code == 0
        assert node(host, portal, "-u").code == 21

    def test_of_discovery(self, host: UserSpaceHost, array: Canisters) -> None:
        portal = array.portals[0]
        found = host.call("iscsiadm", "-m", "discovery", "-t", "st", "-p", portal)
        assert found.out == f"{portal},1 {TARGET}\n"
        assert host.call("iscsiadm", "-m", "node").out == f"{portal},1 {TARGET}\n"
        assert node(host, portal, "-o", "update", "-n", "node.startup", "-v", "automatic").code == 0
        host.call("iscsiadm", "-m", "discovery", "-t", "st", "-p", portal)
        assert "node.startup = manual\n" in node(host, portal, "-o", "show").out

    def test_of_a_mistake_in_a_name(self, host: UserSpaceHost, array: Canisters) -> None:
        node(host, array.portals[0], "-o", "new")
        wrong = node(host, array.portals[0], "-o", "update", "-n", "node.sesion.scan", "-v", "manual")
        assert wrong.code == 7
        assert host.call("iscsiadm", "-m", "node", "--logn").code == 7

    def test_of_a_target_that_does_not_know_us(self, tmp_path: Path, array: Canisters) -> None:
        with UserSpaceHost("n", tmp_path / "n", f"{INITIATOR}x", "", timings=QUICK) as stranger:
            answer = log_in(stranger, array.portals[0])
            assert answer.code in (19, 24)
            assert "Could not log into all portals" in answer.err
            assert stranger.sessions() == []

    def test_of_chap(self, host: UserSpaceHost, array: Canisters) -> None:
        tgtd = array.nodes[0]
        account = ("--user", "one", "--password", "a long secret")
        tgtd._admin("--op", "new", "--mode", "account", *account)
        tgtd._admin("--op", "bind", "--mode", "account", "--tid", "1", "--user", "one")
        portal = array.portals[0]
        assert log_in(host, portal).code == 24
        auth = "node.session.auth"
        right = {f"{auth}.authmethod": "CHAP", f"{auth}.username": "one", f"{auth}.password": "a long secret"}
        wrong = log_in(host, portal, **right | {f"{auth}.password": "not the secret"})
        assert wrong.code == 24
        assert "(24 - iSCSI login failed due to authorization failure)" in wrong.err
        assert log_in(host, portal, **right).code == 0
        array.map(1, 1)
        scan(host, 1)
        with (host.root / "dev/mapper" / wwid(1)).open("rb") as file:
            assert file.read(4) == bytes(4)
        assert "a long secret" not in node(host, portal, "-o", "show").out

    def test_of_a_dead_portal(self, host: UserSpaceHost, array: Canisters) -> None:
        array.nodes[1].stop()
        portal = array.portals[1]
        retries = {"node.session.initial_login_retry_max": "2"}
        assert log_in(host, portal, **retries).code == 4
        refused = host.call("iscsiadm", "-m", "discovery", "-t", "st", "-p", portal)
        assert refused.code == 4
        assert "cannot make connection" in refused.err

    def test_of_a_portal_that_hangs(self, host: UserSpaceHost, array: Canisters) -> None:
        pid = array.nodes[1].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            settings = {"node.session.initial_login_retry_max": "2", "node.conn[0].timeo.login_timeout": "3"}
            assert log_in(host, array.portals[1], **settings).code == 8
            # twice iscsid's 3 seconds, which are 0.3 here, and the second between them
            assert 0.6 < time.monotonic() - started < 20
        finally:
            os.kill(pid, signal.SIGCONT)


class TestDeadPaths:
    def test_one_dead_portal_leaves_one_faulty_path(self, host: UserSpaceHost, array: Canisters) -> None:
        device = attach(host, array, 1, 1)
        array.nodes[0].stop()
        until(lambda: "FAILED" in {one.state for one in host.sessions()})
        until(lambda: " faulty " in host.call("multipath", "-ll").out)
        states = {one.name: one.state for one in host.devices()}
        assert states["sdc"] == "running"
        assert states["sdb"] != "running"
        assert attribute(host, "class/iscsi_session/session1/state") == "FAILED"
        assert host.call("multipath", "-C", wwid(1)).code == 0
        with device.open("r+b") as file:
            file.write(b"survived")
        assert array.file(1).read_bytes()[:8] == b"survived"

    def test_a_session_comes_back_with_its_portal(self, host: UserSpaceHost, array: Canisters) -> None:
        attach(host, array, 1, 1)
        pid = array.nodes[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: "FAILED" in {one.state for one in host.sessions()})
        finally:
            os.kill(pid, signal.SIGCONT)
        until(lambda: {one.state for one in host.sessions()} == {"LOGGED_IN"})
        until(lambda: " faulty " not in host.call("multipath", "-ll").out)
        for name in ("sdb", "sdc"):
            with (host.root / "dev" / name).open("rb") as file:
                assert file.read(4) == bytes(4)

    def test_a_flush_without_paths_waits_until_queueing_ends(self, tmp_path: Path, array: Canisters) -> None:
        slow = Timings(second=0.3)
        with UserSpaceHost("node1", tmp_path / "n", INITIATOR, "", timings=slow) as host:
            attach(host, array, 1, 1)
            array.stop()
            until(lambda: {one.state for one in host.sessions()} == {"FAILED"})
            host.call("udevadm", "settle")
            assert host.call("multipath", "-C", wwid(1)).code == 1
            answers: list[Answer] = []
            flush = threading.Thread(target=lambda: answers.append(host.call("multipath", "-f", wwid(1))))
            flush.start()
            flush.join(0.3)
            assert flush.is_alive()
            assert host.call("multipathd", "disablequeueing", "map", wwid(1)).out == "ok\n"
            flush.join(DEADLINE)
            assert [one.code for one in answers] == [0]

    def test_a_dead_path_can_be_deleted(self, host: UserSpaceHost, array: Canisters) -> None:
        for portal in array.portals:
            assert log_in(host, portal, **{"node.session.timeo.replacement_timeout": "5"}).code == 0
        attach(host, array, 1, 1)
        array.stop()
        until(lambda: {one.state for one in host.sessions()} == {"FAILED"})
        host.call("multipathd", "disablequeueing", "map", wwid(1))
        assert host.call("multipath", "-f", wwid(1)).code == 0
        for name in by_name(host):
            delete(host, name)
        for portal in array.portals:
            assert node(host, portal, "-u").code == 0
        assert host.leftovers() == []
