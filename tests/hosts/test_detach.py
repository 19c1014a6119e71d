# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sanstone.errors import BusyError, DataSafetyError
from sanstone.hosts.ops import Detached
from sanstone.model import MIB, Connection

if TYPE_CHECKING:
    from tests.hosts.conftest import FakeHost

IQN = "iqn.1986-03.com.ibm:2145.box.node1"
WWID = "3600507680c80000a0000000000000011"
OTHER = "3600507680c80000a0000000000000022"
SIZE = 8 * MIB

pytestmark = pytest.mark.real("python3", "sh")


@pytest.fixture
def attached(host: FakeHost) -> Connection:
    """Attach a volume through two portals."""
    host.lun(1)
    connection = host.connection(host.portal(), host.portal())
    assert not host.attach(connection).is_degraded
    host.calls()
    return connection


def test_detach_flushes_then_removes_the_map_then_the_paths(host: FakeHost, attached: Connection) -> None:
    assert host.detach() == Detached(was_attached=True)

    assert (host.disks(), host.maps()) == (set(), {})
    calls = [call for call in host.calls() if not call.startswith("multipathd show")]
    assert calls[:3] == [
        f"sync -- /dev/mapper/{WWID}",
        f"blockdev --flushbufs /dev/mapper/{WWID}",
        f"multipath -f {WWID}",
    ]
    assert sorted(calls[3:]) == ["tee /sys/block/sda/device/delete", "tee /sys/block/sdb/device/delete"]
    assert host.sessions() == 2


def test_detaching_what_is_not_attached_is_quick_success(host: FakeHost) -> None:
    assert host.detach() == Detached(was_attached=False)
    assert host.calls() == []


def test_detach_leaves_other_volumes_alone(host: FakeHost, attached: Connection) -> None:
    host.lun(2, OTHER)
    portals = attached.targets[0].portals
    other = host.attach(host.connection(*portals, lun=2, wwid=OTHER))

    host.detach(log_out=True)

    assert host.maps() == {OTHER: {path.name for path in other.paths}}
    assert host.sessions() == 2


def test_the_last_volume_of_a_target_logs_out_and_forgets_the_record(
    host: FakeHost, attached: Connection
) -> None:
    assert host.detach(log_out=True).warnings == ()

    assert host.sessions() == 0
    calls = host.calls()
    forgotten = calls.index(f"iscsiadm -m node -T {IQN} -o delete")
    for portal in attached.targets[0].portals:
        assert calls.index(f"iscsiadm -m node -T {IQN} -p {portal} -u") < forgotten


def test_a_volume_held_open_is_refused_and_the_holder_named(
    host: FakeHost, attached: Connection, tmp_path: Path
) -> None:
    link = tmp_path / "disk.0"
    link.symlink_to(host.root / "dev/mapper" / WWID)

    with link.open("rb"), pytest.raises(BusyError) as caught:
        host.detach(link=link, deadline=6)

    assert f"(process {os.getpid()})" in caught.value.message
    assert link.is_symlink()
    assert len(host.disks()) == 2
    assert host.calls() == []


def test_a_map_that_stays_in_use_is_refused_and_the_link_stays(
    host: FakeHost, attached: Connection, tmp_path: Path
) -> None:
    link = tmp_path / "disk.0"
    link.symlink_to(host.root / "dev/mapper" / WWID)
    host.say(f"in-use/{WWID}", "9999")

    with pytest.raises(BusyError):
        host.detach(link=link, deadline=6)

    assert str(link.readlink()) == str(host.root / "dev/mapper" / WWID)
    assert len(host.disks()) == 2


def test_a_short_hold_of_udev_is_waited_for(host: FakeHost, attached: Connection) -> None:
    host.say(f"in-use/{WWID}", "3")

    assert host.detach().was_attached
    assert host.disks() == set()


def test_a_map_under_lvm_of_the_host_is_refused(host: FakeHost, attached: Connection) -> None:
    lvm = host.attribute("block", "dm-9", "dm")
    lvm.mkdir(parents=True)
    (lvm / "uuid").write_text("LVM-abc\n")
    (lvm / "name").write_text("guest-root\n")
    (host.attribute("block", "dm-0", "holders") / "dm-9").symlink_to(lvm.parent)

    with pytest.raises(BusyError, match="LVM guest-root"):
        host.detach(deadline=5)


def test_partition_maps_of_the_guest_are_no_use(host: FakeHost, attached: Connection) -> None:
    part = host.attribute("block", "dm-9", "dm")
    part.mkdir(parents=True)
    (part / "uuid").write_text(f"part1-mpath-{WWID}\n")
    (part / "name").write_text(f"{WWID}-part1\n")
    (host.attribute("block", "dm-0", "holders") / "dm-9").symlink_to(part.parent)

    assert host.detach().was_attached


def test_a_failed_flush_keeps_everything(host: FakeHost, attached: Connection, tmp_path: Path) -> None:
    link = tmp_path / "disk.0"
    link.symlink_to(host.root / "dev/mapper" / WWID)
    host.say("flush-fails")

    with pytest.raises(DataSafetyError, match="stays attached"):
        host.detach(link=link)

    assert link.is_symlink()
    assert len(host.disks()) == 2
    assert not [call for call in host.calls() if "delete" in call or call.startswith("multipath -f")]


def test_a_dead_path_among_good_ones_is_a_warning(host: FakeHost, attached: Connection) -> None:
    host.attribute("block", "sda", "device", "state").write_text("offline\n")

    result = host.detach()

    assert len(result.warnings) == 1
    assert "sda" in result.warnings[0]
    assert host.disks() == set()


def test_with_no_path_left_queueing_ends_first_and_the_volume_goes(
    host: FakeHost, attached: Connection
) -> None:
    for name in host.disks():
        host.attribute("block", name, "device", "state").write_text("transport-offline\n")
    host.say("flush-fails")

    result = host.detach()

    assert host.disks() == set()
    assert any("was not written" in warning for warning in result.warnings)
    assert host.calls()[0] == f"multipathd disablequeueing map {WWID}"


def test_a_flush_that_hangs_ends_within_the_deadline(host: FakeHost, attached: Connection) -> None:
    host.say("flush-hangs")
    started = time.monotonic()

    with pytest.raises(DataSafetyError, match="sync -- "):
        host.detach(deadline=6)

    assert time.monotonic() - started < 30
    assert f"multipathd disablequeueing map {WWID}" in host.calls()


def test_a_failed_path_that_is_no_slave_is_removed_too(host: FakeHost, attached: Connection) -> None:
    host.attribute("block", "dm-0", "slaves", "sdb").unlink()
    host.attribute("block", "sdb", "holders", "dm-0").unlink()

    host.detach()

    assert host.disks() == set()


def test_a_path_that_multipathd_kept_is_taken_from_its_list(host: FakeHost, attached: Connection) -> None:
    host.say("sticky/sdb")

    host.detach()

    assert host.calls()[-1] == "multipathd del path sdb"


def test_a_path_that_does_not_go_away_ends_within_the_deadline(host: FakeHost, attached: Connection) -> None:
    host.say("blocked")
    started = time.monotonic()

    with pytest.raises(Exception, match="sda"):
        host.detach(deadline=5)

    assert time.monotonic() - started < 30


def test_the_link_goes_only_if_it_is_this_volumes(
    host: FakeHost, attached: Connection, tmp_path: Path
) -> None:
    ours, dangling, others = tmp_path / "ours", tmp_path / "dangling", tmp_path / "others"
    ours.symlink_to(host.root / "dev/mapper" / WWID)
    dangling.symlink_to(tmp_path / "nowhere")
    others.symlink_to(host.root / "dev/mapper" / OTHER)

    assert host.detach(link=others).warnings
    assert others.is_symlink()
    host.detach(link=dangling)
    assert not dangling.is_symlink()
    host.detach(link=ours)
    assert not ours.is_symlink()


def test_a_file_where_the_link_should_be_is_left_alone(host: FakeHost, tmp_path: Path) -> None:
    file = tmp_path / "disk.0"
    file.write_text("bytes")

    assert host.detach(link=file).warnings
    assert file.read_text() == "bytes"


def test_a_single_path_without_map_is_flushed_and_removed(host: FakeHost) -> None:
    host.say("no-multipathd")
    host.lun(1)
    host.attach(host.connection(host.portal()))
    host.calls()

    assert host.detach() == Detached(was_attached=True)
    assert host.calls() == [
        "sync -- /dev/sda",
        "blockdev --flushbufs /dev/sda",
        "tee /sys/block/sda/device/delete",
    ]


def test_after_a_detach_the_lun_can_be_another_volumes(host: FakeHost, attached: Connection) -> None:
    host.detach()
    host.lun(1, OTHER)
    portals = attached.targets[0].portals

    device = host.attach(host.connection(*portals, wwid=OTHER))

    assert host.maps() == {OTHER: {path.name for path in device.paths}}


def test_a_crowd_attaches_and_detaches_without_races(host: FakeHost) -> None:
    portals = host.portal(), host.portal()
    wwids = [f"3600507680c80000a00000000000001{number:02x}" for number in range(6)]
    for number, wwid in enumerate(wwids):
        host.lun(number, wwid)
    connections = [host.connection(*portals, lun=number, wwid=wwid) for number, wwid in enumerate(wwids)]

    with ThreadPoolExecutor(6) as pool:
        devices = list(pool.map(lambda connection: host.attach(connection, deadline=50), connections))
        assert host.sessions() == 2
        assert [device.wwid for device in devices] == wwids
        assert all(len(device.paths) == 2 for device in devices)
        list(pool.map(lambda wwid: host.detach(wwid, log_out=True, deadline=50), wwids))

    assert (host.disks(), host.maps(), host.sessions()) == (set(), {}, 0)


def test_locks_leave_no_files_behind(host: FakeHost, attached: Connection) -> None:
    host.detach(log_out=True)

    folder = host.root / f"var/tmp/sanstone-{os.geteuid()}"
    assert [path.name for path in folder.glob("*.lock") if not path.name.startswith("target-")] == []
    shutil.rmtree(folder)


def test_a_logout_that_was_cut_off_is_made_up_for(host: FakeHost, attached: Connection) -> None:
    (host.root / "fake/no-logout").write_text("")
    assert host.detach(log_out=True).warnings
    assert host.sessions() == 2
    (host.root / "fake/no-logout").unlink()

    assert host.detach(log_out=True) == Detached(was_attached=False)
    assert host.sessions() == 0


def test_a_path_that_never_told_its_identity_goes_with_its_map(host: FakeHost, attached: Connection) -> None:
    host.attribute("block", "sdb", "device", "wwid").unlink()

    host.detach()

    assert host.disks() == set()
