# SPDX-License-Identifier: Apache-2.0
"""Going back to a snapshot, and growing, where the box binds volumes by FlashCopy maps."""

from __future__ import annotations

import pytest

from lab.v7000 import Box
from sanstone.arrays.base import NewVolume
from sanstone.arrays.v7000 import V7000
from sanstone.arrays.v7000.copies import MOST_MAPS
from sanstone.errors import BusyError, ConflictError
from tests.arrays.test_v7000 import SIZE, array, box, claim_all, listed, make, opened
from tests.arrays.test_v7000_more import with_box

__all__ = ["array", "box", "opened"]


def snapshot(array: V7000, number: int, of: str = "one-1") -> str:
    name = f"{of}-s{number}"
    array.create(NewVolume(name, source=of, is_linked=True), claim=claim_all)
    return name


def pairs(box: Box) -> set[tuple[str, str]]:
    return {(row["source_vdisk_name"], row["target_vdisk_name"]) for row in listed(box, "lsfcmap")}


def test_snapshots_are_listed_by_the_name_of_their_volume(array: V7000) -> None:
    make(array)
    make(array, "one-11")
    names = [snapshot(array, 0), snapshot(array, 12)]
    snapshot(array, 1, "one-11")
    assert [each.name for each in array.snapshots("one-1")] == names


def test_a_volume_goes_back_to_its_snapshot_by_a_restoring_map(box: Box, array: V7000) -> None:
    make(array)
    first, second = snapshot(array, 0), snapshot(array, 1)
    array.copy(first, "one-1")
    (row,) = (row for row in listed(box, "lsfcmap") if row["target_vdisk_name"] == "one-1")
    assert (row["source_vdisk_name"], row["status"], row["restoring"]) == (first, "copying", "yes")
    assert pairs(box) == {("one-1", first), ("one-1", second), (first, "one-1")}


@with_box(copy_speed=10_000.0)
def test_a_second_restoration_begins_when_the_first_is_complete(box: Box, array: V7000) -> None:
    make(array)
    first, second = snapshot(array, 0), snapshot(array, 1)
    array.copy(first, "one-1")
    array.copy(first, "one-1")  # somebody may have written meanwhile: this is no repetition to be left out
    array.copy(second, "one-1")
    started = [each.text for each in box.journal.commands if "startfcmap -prep -restore" in each.text]
    assert len(started) == 3
    assert ("one-1", first) in pairs(box)


@with_box(copy_speed=10_000.0)
def test_what_is_a_snapshot_itself_gets_all_its_contents_before_it_goes_back(box: Box, array: V7000) -> None:
    make(array)
    array.create(NewVolume("one-1-7-0", source="one-1", is_linked=True), claim=claim_all)
    kept = snapshot(array, 0, "one-1-7-0")
    array.copy(kept, "one-1-7-0")
    assert ("one-1", "one-1-7-0") not in pairs(box)
    assert ("one-1-7-0", kept) in pairs(box)


def test_a_snapshot_that_is_being_read_cannot_go_and_a_volume_with_snapshots_neither(array: V7000) -> None:
    make(array)
    name = snapshot(array, 0)
    with pytest.raises(ConflictError, match=name):
        array.delete("one-1", wait=0)
    array.copy(name, "one-1")
    with pytest.raises(BusyError):
        array.delete(name, wait=0)


def test_a_volume_that_snapshots_depend_on_does_not_grow_on_an_old_code_level(array: V7000) -> None:
    make(array)
    name = snapshot(array, 0)
    with pytest.raises(ConflictError, match=rf"cannot grow while {name} depend.*CMMVC5837E"):
        array.resize("one-1", 2 * SIZE, wait=60)
    array.delete(name, wait=0)
    array.resize("one-1", 2 * SIZE, wait=60)
    (volume,) = array.find("one-1")
    assert volume is not None
    assert volume.size == 2 * SIZE


@with_box(copy_speed=0.0)
def test_a_copy_that_takes_longer_than_one_waits_is_named(array: V7000) -> None:
    make(array)
    array.create(NewVolume("one-1-7-0", source="one-1", is_linked=True), claim=claim_all)
    with pytest.raises(ConflictError, match="CMMVC5837E"):
        array.resize("one-1-7-0", 2 * SIZE)
    with pytest.raises(BusyError, match=r"one-1-7-0 is still being copied from one-1 \(0 %\)"):
        array.resize("one-1-7-0", 2 * SIZE, wait=0.3)


def test_the_most_maps_of_a_volume_are_named(box: Box, array: V7000) -> None:
    make(array)
    options = f"-mdiskgrp mdiskgrp0 -iogrp io_grp0 -size {SIZE} -unit b -rsize 0% -autoexpand"
    for number in range(MOST_MAPS):
        box.run(f"mkvdisk -name other{number} {options}")
        box.run(f"mkfcmap -source one-1 -target other{number} -copyrate 0")
    with pytest.raises(ConflictError, match=f"the source of {MOST_MAPS} at most"):
        snapshot(array, 0)
