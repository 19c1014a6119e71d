# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sanstone.errors import ConflictError, ConnectError, DataSafetyError, HostError, RequestError
from sanstone.hosts.ops import Attach, Attached
from sanstone.model import MIB, Connection, Portal, Target

if TYPE_CHECKING:
    from tests.hosts.conftest import FakeHost

IQN = "iqn.1986-03.com.ibm:2145.box.node1"
WWID = "3600507680c80000a0000000000000011"
OTHER = "3600507680c80000a0000000000000022"
SIZE = 8 * MIB

pytestmark = pytest.mark.real("python3", "sh")


def test_attach_logs_in_scans_one_lun_and_links_the_map(host: FakeHost, tmp_path: Path) -> None:
    portals = host.portal(), host.portal()
    host.lun(4)
    host.lun(5, OTHER)
    link = tmp_path / "datastores/0/7/disk.0"

    device = host.attach(host.connection(*portals, lun=4), link=link)

    assert device.path == f"{host.root}/dev/mapper/{WWID}"
    assert str(link.readlink()) == device.path
    assert (device.wwid, device.size, device.expected_paths) == (WWID, SIZE, 2)
    assert {path.portal for path in device.paths} == {str(portal) for portal in portals}
    assert {path.state for path in device.paths} == {"running"}
    assert not device.is_degraded
    assert host.maps() == {WWID: {path.name for path in device.paths}}
    calls = host.calls()
    assert sum(call.startswith("scan ") for call in calls) == 2
    assert all(call.endswith(" 0 4") for call in calls if call.startswith("scan "))
    for portal in portals:
        assert any(f"-p {portal} -o update -n node.session.scan -v manual" in call for call in calls)


def test_attach_again_runs_no_command(host: FakeHost, tmp_path: Path) -> None:
    portals = host.portal(), host.portal()
    host.lun(4)
    connection = host.connection(*portals, lun=4)
    link = tmp_path / "disk.0"
    first = host.attach(connection, link=link)
    host.calls()

    assert host.attach(connection, link=link) == first
    assert host.calls() == []


def test_a_second_volume_uses_the_sessions_that_are_there(host: FakeHost) -> None:
    portal = host.portal()
    host.lun(1)
    host.lun(2, OTHER)
    host.attach(host.connection(portal))
    host.calls()

    host.attach(host.connection(portal, lun=2, wwid=OTHER))

    assert not [call for call in host.calls() if call.startswith("iscsiadm")]
    assert set(host.maps()) == {WWID, OTHER}


def test_a_wrong_volume_at_the_lun_is_refused_and_not_left_behind(host: FakeHost, tmp_path: Path) -> None:
    portal = host.portal()
    host.lun(1, OTHER)
    link = tmp_path / "disk.0"

    with pytest.raises(DataSafetyError) as caught:
        host.attach(host.connection(portal), link=link)

    assert WWID in caught.value.message
    assert OTHER in caught.value.message
    assert not link.is_symlink()
    assert (host.disks(), host.maps()) == (set(), {})


def test_a_wrong_volume_on_one_of_two_paths_is_refused(host: FakeHost) -> None:
    good, bad = host.portal(), host.portal()
    host.lun(1)
    host.lun(1, OTHER, portal=bad)

    with pytest.raises(DataSafetyError, match=OTHER):
        host.attach(host.connection(good, bad))


def test_a_stale_disk_at_the_lun_is_purged_before_the_scan(host: FakeHost) -> None:
    portal = host.portal()
    stale = host.disk(host.session(portal), 1, OTHER)
    assert host.maps() == {OTHER: {stale}}
    host.lun(1)

    device = host.attach(host.connection(portal))

    assert host.maps() == {WWID: {device.paths[0].name}}
    calls = host.calls()
    delete = calls.index(f"tee /sys/block/{stale}/device/delete")
    assert delete < next(index for index, call in enumerate(calls) if call.startswith("scan "))


def test_a_stale_disk_that_is_open_is_not_touched(host: FakeHost) -> None:
    portal = host.portal()
    stale = host.disk(host.session(portal), 1, OTHER)
    host.lun(1)

    with (
        (host.root / "dev" / stale).open("rb"),
        pytest.raises(DataSafetyError, match=rf"\(process {os.getpid()}\)"),
    ):
        host.attach(host.connection(portal))

    assert host.disks() == {stale}
    assert not [call for call in host.calls() if call.endswith("/delete")]


def test_a_stale_disk_that_is_open_stays_refused_however_often_it_is_tried(host: FakeHost) -> None:
    """A rescan would give it our identity, and its holder would write to our volume."""
    portal = host.portal()
    host.say("no-multipathd")
    stale = host.disk(host.session(portal), 1, OTHER)
    host.lun(1)

    with (host.root / "dev" / stale).open("rb"):
        for _ in range(3):
            with pytest.raises(DataSafetyError, match=OTHER):
                host.attach(host.connection(portal))

    assert host.disks() == {stale}


def test_a_path_of_ours_in_the_map_of_another_volume_counts_as_that_volume(host: FakeHost) -> None:
    """Somebody rescanned a LUN that was used again; multipath does not look at identities anew."""
    portal = host.portal()
    stale = host.disk(host.session(portal), 1, OTHER)
    host.lun(1)
    host.attribute("block", stale, "device", "wwid").write_text(f"naa.{WWID[1:]}\n")

    with (host.root / "dev" / stale).open("rb"), pytest.raises(DataSafetyError, match=OTHER):
        host.attach(host.connection(portal))
    assert host.maps() == {OTHER: {stale}}
    device = host.attach(host.connection(portal))

    assert host.maps() == {WWID: {device.paths[0].name}}


def test_a_stale_disk_under_lvm_is_not_touched(host: FakeHost) -> None:
    portal = host.portal()
    host.say("no-multipathd")
    stale = host.disk(host.session(portal), 1, OTHER)
    lvm = host.attribute("block", "dm-9", "dm")
    lvm.mkdir(parents=True)
    (lvm / "uuid").write_text("LVM-abc\n")
    (lvm / "name").write_text("vg-root\n")
    (host.attribute("block", stale, "holders") / "dm-9").symlink_to(lvm.parent)

    with pytest.raises(DataSafetyError, match="LVM vg-root"):
        host.attach(host.connection(portal))

    assert stale in host.disks()


def test_a_stale_disk_in_a_busy_map_is_not_touched(host: FakeHost) -> None:
    portal = host.portal()
    stale = host.disk(host.session(portal), 1, OTHER)
    host.say(f"in-use/{OTHER}", "9999")

    with pytest.raises(DataSafetyError, match="in use"):
        host.attach(host.connection(portal), deadline=8)

    assert host.disks() == {stale}


def test_an_old_path_of_ours_at_another_lun_is_purged(host: FakeHost) -> None:
    portal = host.portal()
    host.disk(host.session(portal), 9, WWID)
    host.lun(1)
    host.lun(9, OTHER)

    device = host.attach(host.connection(portal))

    assert [path.hctl.split(":")[3] for path in device.paths] == ["1"]
    assert host.maps() == {WWID: {device.paths[0].name}}


def test_a_dead_portal_degrades_and_is_not_asked_again_at_once(host: FakeHost) -> None:
    alive, dead = host.portal(), host.portal(is_alive=False)
    host.lun(1)
    connection = host.connection(alive, dead)

    device = host.attach(connection)

    assert device.is_degraded
    assert [path.portal for path in device.paths] == [str(alive)]
    assert not [call for call in host.calls() if f"-p {dead}" in call]
    assert host.attach(connection) == device
    assert host.calls() == []


def test_a_portal_that_was_silent_is_used_as_soon_as_it_is_back(host: FakeHost) -> None:
    alive, dead = host.portal(), host.portal(is_alive=False)
    host.lun(1)
    assert host.attach(host.connection(alive, dead)).is_degraded

    host.listeners.append(socket.create_server((dead.address, dead.port)))

    assert not host.attach(host.connection(alive, dead)).is_degraded


def test_a_portal_that_took_no_login_a_moment_ago_is_not_even_connected_to(host: FakeHost) -> None:
    alive, dead = host.portal(), host.portal()
    host.say(f"login/{dead}", "8")
    host.lun(1)
    assert host.attach(host.connection(alive, dead)).is_degraded
    host.calls()

    (result,) = host.run(Attach(host.connection(alive, dead)))

    assert isinstance(result, Attached)
    assert result.device.is_degraded
    assert result.warnings == (
        f"no path by {dead} ({IQN}): did not answer a moment ago and was not asked again",
    )
    assert host.calls() == []


def test_a_portal_that_came_back_is_used_when_nothing_else_is_left(host: FakeHost) -> None:
    portal = host.portal(is_alive=False)
    host.lun(1)
    with pytest.raises(ConnectError):
        host.attach(host.connection(portal))
    back = host.portal()
    with pytest.raises(ConnectError):
        host.attach(host.connection(portal))

    assert host.attach(host.connection(portal, back)).is_degraded


def test_no_portal_at_all_names_each_with_its_reason(host: FakeHost) -> None:
    refused, wrong = host.portal(is_alive=False), host.portal()
    host.say(f"login/{wrong}", "24")
    host.lun(1)

    with pytest.raises(ConnectError) as caught:
        host.attach(host.connection(refused, wrong))

    assert f"{refused} ({IQN}): connection refused" in caught.value.message
    assert f"{wrong} ({IQN}): CHAP name or secret is wrong" in caught.value.message
    assert caught.value.message.startswith("node1: ")


def test_a_session_made_meanwhile_is_success(host: FakeHost) -> None:
    portal = host.portal()
    host.say(f"login/{portal}", "15")
    host.session(portal, "iqn.other")
    host.session(portal)
    host.lun(1)

    assert host.attach(host.connection(portal)).paths


def test_a_host_that_must_not_log_in_uses_what_is_there(host: FakeHost) -> None:
    there, missing = host.portal(), host.portal()
    host.lun(1)
    host.session(there)

    (result,) = host.run(Attach(host.connection(there, missing), log_in=False))

    assert isinstance(result, Attached)
    assert [path.portal for path in result.device.paths] == [str(there)]
    assert host.sessions() == 1


def test_a_dead_session_is_not_waited_for(host: FakeHost) -> None:
    alive, dead = host.portal(), host.portal()
    host.lun(1)
    number = host.session(dead)
    host.attribute("class", "iscsi_session", f"session{number}", "state").write_text("FAILED\n")
    started = time.monotonic()

    device = host.attach(host.connection(alive, dead))

    assert [path.portal for path in device.paths] == [str(alive)]
    assert time.monotonic() - started < 30


def test_a_scan_that_hangs_is_not_waited_for_when_another_path_is_there(host: FakeHost) -> None:
    good, silent = host.portal(), host.portal()
    host.lun(1)
    host.say(f"scan-hangs/{silent}")
    started = time.monotonic()

    device = host.attach(host.connection(good, silent), deadline=40)

    assert [path.portal for path in device.paths] == [str(good)]
    assert time.monotonic() - started < 30
    assert sum(call.startswith("tee ") for call in host.calls()) == 2


def test_scans_that_all_hang_name_the_portals(host: FakeHost) -> None:
    silent = host.portal()
    host.lun(1)
    host.say(f"scan-hangs/{silent}")

    with pytest.raises(ConnectError, match=f"{silent} does not answer"):
        host.attach(host.connection(silent), deadline=4)


def test_a_volume_that_has_grown_needs_all_paths(host: FakeHost) -> None:
    portals = host.portal(), host.portal()
    host.lun(1)
    host.attach(host.connection(*portals))
    host.lun(1, size=2 * SIZE)
    host.attribute("block", "sdb", "device", "state").write_text("transport-offline\n")

    with pytest.raises(HostError, match=r"Path sdb .* does not answer"):
        host.attach(host.connection(*portals, size=2 * SIZE))

    assert not [call for call in host.calls() if call.startswith("multipathd resize")]


def test_a_grown_volume_is_read_anew_on_every_path_and_the_map(host: FakeHost) -> None:
    portals = host.portal(), host.portal()
    host.lun(1)
    host.attach(host.connection(*portals))
    host.lun(1, size=2 * SIZE)
    host.calls()

    device = host.attach(host.connection(*portals, size=2 * SIZE))

    assert device.size == 2 * SIZE
    calls = host.calls()
    assert sum(call.endswith("/device/rescan") for call in calls) == 2
    assert calls[-1] == f"multipathd resize map {WWID}"


def test_a_wrong_size_is_refused(host: FakeHost) -> None:
    portal = host.portal()
    host.lun(1, size=SIZE // 2)

    with pytest.raises(DataSafetyError, match=f"{SIZE // 2} bytes; expected {SIZE}"):
        host.attach(host.connection(portal))


def test_a_single_path_that_multipathd_left_alone_gets_a_map(host: FakeHost) -> None:
    portal = host.portal()
    host.say("strict")
    host.lun(1)

    device = host.attach(host.connection(portal))

    assert device.path.endswith(f"/dev/mapper/{WWID}")
    assert f"multipath -a {WWID}" in host.calls()


def test_multipathd_is_left_in_peace_until_udev_has_announced_the_path(host: FakeHost) -> None:
    portal = host.portal()
    host.say("strict")
    host.lun(1)
    database = host.root / "run/udev/data"
    database.mkdir(parents=True)
    started = time.monotonic()
    udev = threading.Timer(2, (database / "b8:16").touch)
    udev.start()

    host.attach(host.connection(portal))

    udev.join()
    assert time.monotonic() - started > 2.9
    assert f"multipath -a {WWID}" in host.calls()


def test_a_path_missing_in_the_map_is_added(host: FakeHost) -> None:
    portals = host.portal(), host.portal()
    host.lun(1)
    host.say("no-slave-sdb")

    assert len(host.attach(host.connection(*portals)).paths) == 2
    assert "multipathd add path sdb" in host.calls()


def test_without_multipathd_a_single_path_is_used_by_its_id(host: FakeHost) -> None:
    portal = host.portal()
    host.say("no-multipathd")
    host.lun(1)

    assert host.attach(host.connection(portal)).path == f"{host.root}/dev/disk/by-id/scsi-{WWID}"


def test_without_multipathd_two_paths_are_refused_with_a_hint(host: FakeHost) -> None:
    host.say("no-multipathd")
    host.lun(1)

    with pytest.raises(HostError) as caught:
        host.attach(host.connection(host.portal(), host.portal()))

    assert "multipathd" in caught.value.hint


def test_a_map_with_a_stranger_among_its_paths_is_refused(host: FakeHost) -> None:
    portal = host.portal()
    host.lun(1)
    host.lun(2, OTHER)
    host.attach(host.connection(portal))
    other = host.attach(host.connection(portal, lun=2, wwid=OTHER)).paths[0].name
    (host.attribute("block", "dm-0", "slaves") / other).symlink_to(host.root / "sys/block" / other)

    with pytest.raises(DataSafetyError, match=OTHER):
        host.attach(host.connection(portal))


def test_a_disk_cached_as_read_only_is_made_writable(host: FakeHost) -> None:
    portal = host.portal()
    host.lun(1, ro=1)
    host.say("no-multipathd")
    name = host.attach(host.connection(portal)).paths[0].name

    assert host.attribute("block", name, "ro").read_text() == "0\n"


def test_a_lun_beyond_255_is_asked_for_with_flat_addressing(host: FakeHost) -> None:
    portal = host.portal()
    host.lun(300 | 0x4000)

    assert host.attach(host.connection(portal, lun=300)).paths[0].hctl.endswith(f":{300 | 0x4000}")


def test_a_lun_that_does_not_show_up_says_what_each_portal_had(host: FakeHost) -> None:
    alive, dead = host.portal(), host.portal(is_alive=False)

    with pytest.raises(HostError) as caught:
        host.attach(host.connection(alive, dead), deadline=6)

    assert f"{alive}: nothing at this LUN" in caught.value.message
    assert f"{dead}: connection refused" in caught.value.message


def test_the_link_replaces_a_link_but_never_a_file(host: FakeHost, tmp_path: Path) -> None:
    portal = host.portal()
    host.lun(1)
    link, file = tmp_path / "disk.0", tmp_path / "disk.1"
    link.symlink_to("/dev/mapper/gone")
    file.write_text("bytes of somebody")

    device = host.attach(host.connection(portal), link=link)
    assert str(link.readlink()) == device.path
    with pytest.raises(ConflictError):
        host.attach(host.connection(portal), link=file)
    assert file.read_text() == "bytes of somebody"


def test_a_disk_that_the_kernel_gave_up_is_found_anew(host: FakeHost) -> None:
    portals = host.portal(), host.portal()
    host.lun(1)
    host.attach(host.connection(*portals))
    host.attribute("block", "sdb", "device", "state").write_text("offline\n")

    device = host.attach(host.connection(*portals))

    assert {path.state for path in device.paths} == {"running"}
    assert not device.is_degraded
    assert host.maps() == {WWID: {path.name for path in device.paths}}


def test_a_stale_disk_behind_a_dead_session_is_purged_without_asking_it(host: FakeHost) -> None:
    alive, dead = host.portal(), host.portal()
    number = host.session(dead)
    stale = host.disk(number, 1, OTHER)
    host.attribute("class", "iscsi_session", f"session{number}", "state").write_text("FAILED\n")
    host.lun(1)

    host.attach(host.connection(alive, dead))

    assert OTHER not in host.maps()
    assert f"tee /sys/block/{stale}/device/rescan" not in host.calls()


@pytest.mark.parametrize(
    ("wwid", "iqn", "address"),
    [
        ("-a", IQN, "127.0.0.1"),
        ("3600; id", IQN, "127.0.0.1"),
        (WWID, "--help", "127.0.0.1"),
        (WWID, IQN, "-p"),
        (WWID, IQN, "a b"),
    ],
)
def test_what_is_no_name_of_the_field_is_refused(host: FakeHost, wwid: str, iqn: str, address: str) -> None:
    connection = Connection("one-img-7", wwid, SIZE, 1, (Target(iqn, (Portal(address, 3260),)),))

    with pytest.raises(RequestError):
        host.attach(connection)
    assert host.calls() == []
