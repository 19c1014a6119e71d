# SPDX-License-Identifier: Apache-2.0
"""What a real box does that a simulator on its best behaviour does not: late, in between, half refused."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from lab.v7000 import Box
from sanstone.arrays import NameTakenError
from sanstone.arrays.base import NewVolume
from sanstone.arrays.v7000 import V7000
from sanstone.arrays.v7000.facts import read_targets
from sanstone.errors import (
    ArrayError,
    BusyError,
    ConflictError,
    ConnectError,
    NotSupportedError,
    SanstoneError,
)
from sanstone.model import Portal, Volume
from tests.arrays.test_v7000 import (
    GIB,
    SIZE,
    Opener,
    array,
    box,
    claim_all,
    listed,
    make,
    opened,
    state,
)

__all__ = ["array", "box", "opened"]

SNAPSHOT = NewVolume("one-1-7-0", source="one-1", is_linked=True)


def with_box(**fields: object) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("box", [fields], indirect=True)


def counted(box: Box, command: str) -> int:
    return sum(each.text.startswith(command) for each in box.journal.commands)


# warnings, and refusals that pass


@with_box(licensed_capacity=1)
def test_a_warning_about_the_licence_is_no_failure(box: Box, array: V7000) -> None:
    make(array)
    array.create(SNAPSHOT, claim=claim_all, host="node1")
    assert state(box) == (["one-1", "one-1-7-0"], ["one-1-7-0"], [("node1", "one-1-7-0")])


@pytest.mark.parametrize("command", ["mkfcmap", "startfcmap"])
def test_a_volume_that_is_being_formatted_is_waited_for(box: Box, array: V7000, command: str) -> None:
    make(array)
    box.faults.add(f"^{command}", code="CMMVC8587E", times=3)
    array.create(SNAPSHOT, claim=claim_all)
    assert listed(box, "lsfcmap")[0]["status"] == "copying"


def test_a_lun_that_others_take_meanwhile_is_tried_again(box: Box, array: V7000) -> None:
    make(array)
    box.faults.add("^mkvdiskhostmap", code="CMMVC5879E", times=4)
    array.map("one-1", "node1")
    assert state(box)[2] == [("node1", "one-1")]


def test_a_wrong_password_is_tried_once(box: Box, opened: Opener) -> None:
    with pytest.raises(ConnectError):
        opened(password="other-word").map("one-1", "node1")
    assert box.journal.connections == 1


# FlashCopy takes its time


@with_box(stop_seconds=1.0)
def test_a_snapshot_that_is_slow_to_stop_is_deleted_all_the_same(box: Box, array: V7000) -> None:
    make(array)
    array.create(SNAPSHOT, claim=claim_all)
    array.delete("one-1-7-0", wait=20)
    assert state(box) == (["one-1"], [], [])


@with_box(stop_seconds=60.0)
def test_who_does_not_wait_for_a_stop_is_told_soon_and_can_come_back(box: Box, array: V7000) -> None:
    make(array)
    array.create(SNAPSHOT, claim=claim_all)
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(BusyError, match="one-1 to one-1-7-0 is still being stopped"):
            array.delete("one-1-7-0", wait=0)
        assert time.monotonic() - started < 30
    with pytest.raises(BusyError, match="one-1 is still being copied"):
        array.delete("one-1", wait=0)
    assert state(box)[0] == ["one-1", "one-1-7-0"]


@with_box(prepare_seconds=1.0)
def test_a_copy_is_handed_out_when_it_has_begun(box: Box, array: V7000) -> None:
    make(array)
    for new in (SNAPSHOT, NewVolume("one-2", source="one-1")):
        array.create(new, claim=claim_all)
        (volume,) = array.find(new.name)
        assert volume is not None
        assert volume.is_online


@with_box(prepare_seconds=1.0)
@pytest.mark.parametrize("left_at", ["preparing", "prepared", "stopped"])
def test_a_copy_that_was_left_in_between_is_brought_on(box: Box, array: V7000, left_at: str) -> None:
    make(array)
    make(array, "one-1-7-0")
    box.run("mkfcmap -source one-1 -target one-1-7-0 -name one-1-7-0 -copyrate 0")
    box.run("startfcmap -prep one-1-7-0" if left_at == "preparing" else "prestartfcmap one-1-7-0")
    if left_at == "stopped":
        box.run("stopfcmap one-1-7-0")
    elif left_at == "prepared":
        box.run("sleep 1.2")
    assert listed(box, "lsfcmap")[0]["status"] == left_at
    array.create(SNAPSHOT, claim=claim_all, host="node1")
    assert listed(box, "lsfcmap")[0]["status"] == "copying"


@with_box(copy_speed=0.0001)
def test_the_box_is_left_to_others_while_a_copy_is_waited_for(box: Box, opened: Opener) -> None:
    box.session_limit = 1
    first, second = opened(COPYRATE="1"), opened()
    make(first)
    first.create(NewVolume("one-2", source="one-1"), claim=claim_all)
    failures: list[SanstoneError] = []

    def delete() -> None:
        try:
            first.delete("one-1", wait=8)
        except SanstoneError as err:
            failures.append(err)

    thread = threading.Thread(target=delete)
    thread.start()
    assert second.capacity().total == 10 * GIB
    second.close()
    thread.join()
    assert [type(each) for each in failures] == [BusyError]
    assert "still being copied" in str(failures[0])


def test_a_saved_disk_is_copied_even_where_clones_are_not(box: Box, opened: Opener) -> None:
    array = opened(COPYRATE="0")
    make(array, "one-1")
    make(array, "one-2")
    array.copy("one-1", "one-2")
    assert listed(box, "lsfcmap")[0]["copy_rate"] == "50"


def test_nothing_is_copied_onto_a_volume_in_use(box: Box, array: V7000) -> None:
    make(array, "one-1")
    make(array, "one-2")
    array.map("one-2", "node1")
    with pytest.raises(ConflictError, match="one-2 is in use"):
        array.copy("one-1", "one-2")
    assert state(box)[1] == []


def test_a_thick_clone_is_not_formatted_first(box: Box, opened: Opener) -> None:
    array = opened(THIN_PROVISION="0", SNAPSHOT="0")
    make(array)
    array.create(NewVolume("one-2", source="one-1"), claim=claim_all)
    (made,) = [each.text for each in box.journal.commands if "-name one-2 -mdiskgrp" in each.text]
    assert "-nofmtdisk" in made


# what cannot be read is not absent


@pytest.mark.parametrize("command", ["lsvdisk", "lsvdiskhostmap"])
def test_a_volume_is_not_gone_because_the_box_does_not_answer(box: Box, array: V7000, command: str) -> None:
    make(array)
    array.map("one-1", "node1")
    box.faults.add(f"^{command} ", code="CMMVC5786E", times=None)
    with pytest.raises(SanstoneError, match="CMMVC5786E"):
        array.delete("one-1", wait=0)
    with pytest.raises(SanstoneError, match="CMMVC5786E"):
        array.mapped_hosts("one-1") if command == "lsvdiskhostmap" else array.find("one-1")
    box.faults.clear()
    assert state(box) == (["one-1"], [], [("node1", "one-1")])


def test_a_host_is_not_off_because_the_box_does_not_answer(box: Box, array: V7000) -> None:
    make(array)
    array.map("one-1", "node1")
    box.faults.add("^(rmvdiskhostmap|lsvdiskhostmap) ", code="CMMVC5786E", times=None)
    with pytest.raises(SanstoneError, match="CMMVC5786E"):
        array.unmap("one-1", "node1")
    box.faults.clear()
    assert state(box)[2] == [("node1", "one-1")]


@pytest.mark.parametrize("command", ["lsmdiskgrp", "lsiogrp"])
def test_a_pool_is_not_said_to_be_missing_because_the_box_does_not_answer(
    box: Box, array: V7000, command: str
) -> None:
    box.faults.add(f"^{command} ", code="CMMVC5786E", times=None)
    with pytest.raises(SanstoneError, match="CMMVC5786E"):
        array.capacity()


@with_box(header_when_unmapped=True)
def test_a_header_without_rows_is_nothing(box: Box, array: V7000) -> None:
    make(array)
    assert array.mapped_hosts("one-1") == ()
    array.unmap("one-1", "node1")
    array.delete("one-1", wait=0)
    assert state(box)[0] == []


# other people's volumes


def test_a_volume_that_somebody_makes_at_the_same_moment_is_not_ours(box: Box, array: V7000) -> None:
    def too_late(found: Volume | None) -> None:
        if found is None:
            box.run("mkvdisk -name one-1 -mdiskgrp other -iogrp io_grp0 -size 5 -unit gb")

    with pytest.raises(NameTakenError, match="Somebody else has just made a volume one-1"):
        array.create(NewVolume("one-1", SIZE), claim=too_late, host="node1")
    (volume,) = array.find("one-1")
    assert volume is not None
    assert (volume.size, volume.pool) == (5 * GIB, "other")
    assert array.mapped_hosts("one-1") == ()


def test_a_volume_whose_making_was_cut_off_is_known_again(box: Box, array: V7000) -> None:
    box.faults.add("^mkvdisk ", drop="after", times=1)
    seen: list[Volume | None] = []
    array.create(NewVolume("one-1", SIZE), claim=seen.append)
    assert [each is None for each in seen] == [True, False]
    assert state(box)[0] == ["one-1"]


def test_only_the_volume_that_is_meant_is_deleted(box: Box, array: V7000) -> None:
    make(array)
    assert array.delete("one-1", wait=0, wwid="3600507680280809ab0000000000fffff") is False
    assert state(box)[0] == ["one-1"]


def test_a_flashcopy_map_of_others_with_our_name_is_left_alone(box: Box, array: V7000) -> None:
    for name in ("one-1", "theirs", "copy-of-theirs"):
        make(array, name)
    box.run("mkfcmap -source theirs -target copy-of-theirs -name one-1 -copyrate 0")
    box.run("startfcmap -prep one-1")
    array.delete("one-1", wait=0)
    assert [row["status"] for row in listed(box, "lsfcmap")] == ["copying"]


def test_a_volume_on_two_hosts_is_refused_to_who_wants_it_alone(box: Box, array: V7000) -> None:
    make(array)
    array.map("one-1", "node1")
    array.map("one-1", "node2", is_shared=True)
    with pytest.raises(ConflictError, match="is mapped to node1 already: node2"):
        array.map("one-1", "node2")
    assert array.mapped_hosts("one-1") == ("node1", "node2")


def test_an_offline_volume_is_said_to_be_offline_and_not_left_mapped(box: Box, array: V7000) -> None:
    make(array)
    array.create(SNAPSHOT, claim=claim_all)
    box.run("stopfcmap one-1-7-0")
    with pytest.raises(ArrayError, match="one-1-7-0 is offline"):
        array.map("one-1-7-0", "node1")
    assert state(box)[2] == []


# names, LUNs, pools, addresses


def test_a_host_known_by_a_longer_name_is_unmapped_by_a_fresh_process(
    box: Box, opened: Opener, tmp_path: Path
) -> None:
    box.add_host("node3.example.com", "iqn.1994-05.com.redhat:node3")
    array = opened()
    make(array)
    array.map("one-1", "node3")
    array.close()
    for path in (tmp_path / "state" / "facts").iterdir():
        path.unlink()
    opened().unmap("one-1", "node3")
    assert state(box)[2] == []


def test_a_host_that_was_renamed_on_the_box_is_found_again(box: Box, array: V7000) -> None:
    make(array)
    array.map("one-1", "node1.example.com")
    array.unmap("one-1", "node1.example.com")
    box.run("chhost -name node1.example.com node1")
    array.map("one-1", "node1.example.com")
    assert array.mapped_hosts("one-1") == ("node1.example.com",)


def test_one_lun_for_all_hosts_where_the_firmware_wants_it(box: Box, array: V7000) -> None:
    make(array, "one-1")
    make(array, "one-2")
    array.map("one-2", "node1")
    first = array.map("one-1", "node1")
    box.faults.add("^mkvdiskhostmap -force -host", code="CMMVC9375E", times=1)
    second = array.map("one-1", "node2", is_shared=True)
    assert first.lun == second.lun == 1


def test_a_new_volume_goes_to_the_pool_with_most_room(box: Box, opened: Opener) -> None:
    box.run("mkvdisk -name big -mdiskgrp mdiskgrp0 -iogrp io_grp0 -size 5 -unit gb")
    make(opened(MDISK_GROUP="mdiskgrp0 other"))
    (row,) = [row for row in listed(box, "lsvdisk") if row["name"] == "one-1"]
    assert row["mdisk_grp_name"] == "other"


@with_box(firmware="8.6.0.0 (build 169.6.2305171232000)", data_reduction=frozenset({"mdiskgrp0"}))
def test_a_mirror_that_cannot_be_made_is_refused_not_left_out(opened: Opener) -> None:
    with pytest.raises(NotSupportedError, match="COPIES=2 in the data reduction pool mdiskgrp0"):
        make(opened(COPIES="2"))


def test_a_memory_that_cannot_be_written_is_no_failure(opened: Opener, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "facts").write_text("")
    array = opened()
    make(array)
    array.map("one-1", "node1")
    array.refresh()
    assert array.mapped_hosts("one-1") == ("node1",)


CANISTERS = (
    "id!name!IO_group_name!iscsi_name",
    "1!node1!io_grp0!iqn.1986-03.com.ibm:2145.v7k.node1",
    "2!node2!io_grp0!iqn.1986-03.com.ibm:2145.v7k.node2",
)


def portals(*sections: tuple[str, ...]) -> dict[str, list[tuple[Portal, ...]]]:
    found = read_targets(sections)
    return {group: [target.portals for target in targets] for group, targets in found.items()}


def test_addresses_of_both_families_are_found() -> None:
    ports = (
        "id!node_id!node_name!IP_address!IP_address_6!state!failover!host!host_6",
        "1!1!node1!10.0.0.1!!configured!no!yes!",
        "1!2!node2!!fd00::2!configured!no!!yes",
        "1!2!node2!10.0.0.1!!configured!yes!yes!",
        "2!2!node2!10.0.0.9!!configured!no!no!",
        "2!2!node2!10.0.0.10!!unconfigured!no!yes!",
    )
    assert portals(CANISTERS, ports, (), ()) == {"io_grp0": [(Portal("10.0.0.1"),), (Portal("fd00::2"),)]}
    assert str(Portal("fd00::2")) == "[fd00::2]:3260"


def test_addresses_belong_to_nodes_by_number() -> None:
    addresses = ("id!node_id!node_name!IP_address", "0!1!!10.0.0.1", "1!2!!10.0.0.2")
    assert portals(CANISTERS, (), addresses, ()) == {
        "io_grp0": [(Portal("10.0.0.1"),), (Portal("10.0.0.2"),)]
    }


def test_a_cluster_without_canisters_has_nodes() -> None:
    addresses = ("id!node_id!node_name!IP_address", "0!1!node1!10.0.0.1")
    assert portals((), (), addresses, CANISTERS) == {"io_grp0": [(Portal("10.0.0.1"),)]}
