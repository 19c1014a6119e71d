# SPDX-License-Identifier: Apache-2.0
"""Whose a volume is: what is made, used again, deleted and swept, after kills and with strangers about."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from lab.v7000 import Box
from sanstone.actions import datastore, volumes
from sanstone.actions.disks import disk_volume
from sanstone.actions.site import Site
from sanstone.actions.volumes import NotOursError
from sanstone.arrays import NameTakenError, NewVolume
from sanstone.arrays.v7000 import V7000
from sanstone.errors import BusyError, ConfigurationError, SanstoneError
from sanstone.opennebula.documents import read_vm
from sanstone.settings import ConfigFile
from tests.arrays.test_v7000 import SIZE, Opener, array, box, make, opened, state

__all__ = ["array", "box", "opened"]

NEW = NewVolume("one-7", SIZE)
CLONE = NewVolume("one-1-7-0", source="one-1", is_linked=True)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    path = tmp_path / "site.conf"
    path.write_text(f"[sanstone]\nSTATE_DIR = {tmp_path / 'state'}\nFRONTEND = frontend\n")
    return Site(ConfigFile.read(path))


def names(box: Box) -> list[str]:
    return state(box)[0]


def wwid(array: V7000, name: str) -> str:
    (volume,) = array.find(name)
    assert volume is not None
    return volume.wwid


def by_hand(box: Box, name: str, size: int = SIZE) -> None:
    _, stderr, status = box.run(f"mkvdisk -name {name} -mdiskgrp other -iogrp io_grp0 -size {size} -unit b")
    assert status == 0, stderr


def killed(site: Site, array: V7000, new: NewVolume, *, at: str) -> None:
    """Do what an action has done when it is killed: before the volume, before it knows its WWID, after."""
    entry = site.ledger.begin(array.name, new.name)
    if at == "begun":
        return
    made = array.create(new, claim=lambda found: None)
    if at == "made":
        site.ledger.made(entry, made.volume.wwid)


@pytest.mark.parametrize("at", ["begun", "sent", "made"])
def test_a_volume_of_a_killed_action_is_taken_over_and_does_not_count_as_empty(
    site: Site, array: V7000, box: Box, at: str
) -> None:
    killed(site, array, NEW, at=at)
    made = volumes.make(site, array, NEW)
    assert not made.is_complete
    assert made.is_new is (at == "begun")
    assert names(box) == ["one-7"]


def test_a_stranger_with_the_name_is_refused_and_left_alone(site: Site, array: V7000, box: Box) -> None:
    by_hand(box, "one-7")
    before = wwid(array, "one-7")
    with (
        pytest.raises(NotOursError, match="this front-end did not make"),
        datastore._removed_on_failure(site, array.settings, array, "one-7"),
    ):
        volumes.make(site, array, NEW)
    assert wwid(array, "one-7") == before
    assert site.ledger.find(array.name, "one-7") is None


@pytest.mark.parametrize(("at", "size"), [("sent", 2 * SIZE), ("made", SIZE), ("made", 2 * SIZE)])
def test_a_stranger_that_took_the_name_of_a_volume_of_ours_is_not_deleted_after_a_failure(
    site: Site, array: V7000, box: Box, at: str, size: int
) -> None:
    killed(site, array, NEW, at=at)
    box.run("rmvdisk one-7")
    by_hand(box, "one-7", size)
    before = wwid(array, "one-7")
    with (
        pytest.raises(NotOursError),
        datastore._removed_on_failure(site, array.settings, array, "one-7"),
    ):
        volumes.make(site, array, NEW)
    assert wwid(array, "one-7") == before


def test_a_stranger_that_is_quicker_is_not_claimed(
    site: Site, array: V7000, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = site.ledger.begin

    def quicker(*args: str) -> object:
        by_hand(box, "one-7")
        return begin(*args)

    monkeypatch.setattr(site.ledger, "begin", quicker)
    with (
        pytest.raises(NameTakenError),
        datastore._removed_on_failure(site, array.settings, array, "one-7"),
    ):
        volumes.make(site, array, NEW)
    assert names(box) == ["one-7"]
    assert site.ledger.find(array.name, "one-7") is None


def test_no_name_is_claimed_for_which_nothing_was_made(site: Site, array: V7000, box: Box) -> None:
    box.faults.add("^mkvdisk ", code="CMMVC5742E", times=None)
    with pytest.raises(SanstoneError, match="CMMVC5742E"):
        volumes.make(site, array, NEW)
    assert site.ledger.find(array.name, "one-7") is None
    with pytest.raises(ConfigurationError, match="node9 is not registered"):
        volumes.make(site, array, NEW, host="node9")
    assert site.ledger.find(array.name, "one-7") is None


# numbers that come again


def test_a_complete_volume_is_used_again_for_the_same_only(site: Site, array: V7000, box: Box) -> None:
    volumes.make(site, array, NEW, content="vm-7 of alice")
    volumes.complete(site, array, "one-7")
    assert volumes.make(site, array, NEW, content="vm-7 of alice").is_complete
    with pytest.raises(NotOursError, match="made for something else of that number"):
        volumes.make(site, array, NEW, content="vm-7 of bob")
    assert names(box) == ["one-7"]


def test_the_ledger_holds_no_path_with_a_password(site: Site, array: V7000) -> None:
    volumes.make(site, array, NEW, content="http://user:pass-word@host/image")
    (path,) = (site.state / "volumes").iterdir()
    assert "pass-word" not in path.read_text()


@pytest.mark.parametrize("box", [{"stop_seconds": 0.0}], indirect=True)
def test_a_volume_that_waits_for_its_deletion_is_not_used_again(site: Site, array: V7000, box: Box) -> None:
    make(array, "one-1")
    first = volumes.make(site, array, CLONE).volume
    volumes.complete(site, array, CLONE.name)
    site.ledger.doom(array.name, CLONE.name, first.wwid)
    again = volumes.make(site, array, CLONE)
    volumes.complete(site, array, CLONE.name)
    assert not again.is_complete
    assert again.volume.wwid != first.wwid
    volumes.sweep(site, array.settings, array)
    assert CLONE.name in names(box)


@pytest.mark.parametrize("box", [{"stop_seconds": 60.0}], indirect=True)
def test_while_it_cannot_be_deleted_its_name_is_busy(site: Site, array: V7000, box: Box) -> None:
    make(array, "one-1")
    first = volumes.make(site, array, CLONE).volume
    site.ledger.doom(array.name, CLONE.name, first.wwid)
    with pytest.raises(BusyError):
        volumes.make(site, array, CLONE)
    entry = site.ledger.find(array.name, CLONE.name)
    assert entry is not None
    assert entry.is_doomed


# deletion


@pytest.mark.parametrize("box", [{"copy_speed": 0.0001}], indirect=True)
def test_a_deletion_that_is_put_off_is_made_up_for(site: Site, opened: Opener, box: Box) -> None:
    array = opened(COPYRATE="1", DELETE_WAIT="0")
    volumes.make(site, array, NEW)
    volumes.complete(site, array, "one-7")
    array.create(NewVolume("one-8", source="one-7"), claim=lambda found: None)
    volumes.delete(site, array.settings, array, "one-7")
    volumes.sweep(site, array.settings, array)
    assert "one-7" in names(box)
    box.run("stopfcmap one-8")
    box.run("rmfcmap -force one-8")
    volumes.sweep(site, array.settings, array)
    assert names(box) == ["one-8"]
    assert site.ledger.doomed(array.name) == []


def test_a_stranger_is_not_deleted_by_a_sweep(site: Site, array: V7000, box: Box) -> None:
    volumes.make(site, array, NEW)
    site.ledger.doom(array.name, "one-7", wwid(array, "one-7"))
    box.run("rmvdisk one-7")
    by_hand(box, "one-7")
    volumes.sweep(site, array.settings, array)
    assert names(box) == ["one-7"]


def test_one_that_is_stuck_keeps_no_other_from_being_deleted(site: Site, array: V7000, box: Box) -> None:
    for name in ("one-1", "one-2", "one-3"):
        volumes.make(site, array, NewVolume(name, SIZE))
        site.ledger.doom(array.name, name, wwid(array, name))
    array.map("one-1", "node1")
    with site.volume(array, "one-2"):
        started = time.monotonic()
        volumes.sweep(site, array.settings, array)
        assert time.monotonic() - started < 10
    assert names(box) == ["one-1", "one-2"]


# what killed actions leave


@pytest.mark.parametrize("at", ["begun", "sent", "made"])
def test_what_a_killed_import_left_goes_with_the_next_monitoring(
    site: Site, array: V7000, box: Box, at: str
) -> None:
    killed(site, array, NEW, at=at)
    volumes.sweep(site, array.settings, array)
    assert names(box) == []
    assert site.ledger.find(array.name, "one-7") is None


def test_what_is_being_made_is_not_swept(site: Site, array: V7000, box: Box) -> None:
    killed(site, array, NEW, at="made")
    with site.volume(array, "one-7"):
        volumes.sweep(site, array.settings, array)
    assert names(box) == ["one-7"]


def test_what_is_complete_or_a_vms_is_not_swept(site: Site, array: V7000, box: Box) -> None:
    for name in ("one-7", "one-1-7-0", "one-sys-7-1"):
        killed(site, array, NewVolume(name, SIZE), at="made")
    volumes.complete(site, array, "one-7")
    volumes.sweep(site, array.settings, array)
    assert names(box) == ["one-1-7-0", "one-7", "one-sys-7-1"]


def test_long_after_a_kill_a_name_alone_is_no_proof(site: Site, array: V7000, box: Box) -> None:
    entry = site.ledger.begin(array.name, "one-7")
    site.ledger._write(dataclasses.replace(entry, at=time.time() - 7200))
    by_hand(box, "one-7")
    volumes.sweep(site, array.settings, array)
    assert names(box) == ["one-7"]


@pytest.mark.real("python3")
def test_a_volume_left_on_a_host_after_copying_is_taken_off(site: Site, array: V7000, box: Box) -> None:
    box.add_host("frontend", "iqn.1994-05.com.redhat:frontend")
    make(array)
    site.ledger.visit(array.name, "one-1", "frontend")
    array.map("one-1", "frontend")
    with site.volume(array, "one-1"):
        volumes.sweep(site, array.settings, array)
    assert array.mapped_hosts("one-1") == ("frontend",)
    volumes.sweep(site, array.settings, array)
    assert array.mapped_hosts("one-1") == ()
    assert site.ledger.visits(array.name) == []


def test_an_unusable_state_directory_stops_an_action_before_anything_is_made(
    site: Site, array: V7000, box: Box, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir(exist_ok=True)
    (tmp_path / "state" / "volumes").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot be (read|used)"):
        volumes.make(site, array, NEW)
    assert names(box) == []


# names


def vm_with(*disks: tuple[int, int]) -> str:
    text = "".join(
        f"<DISK><DISK_ID>{disk}</DISK_ID><IMAGE_ID>{image}</IMAGE_ID><CLONE>YES</CLONE><TYPE>BLOCK</TYPE></DISK>"
        for disk, image in disks
    )
    return f"<VM><ID>5</ID><STATE>3</STATE><LCM_STATE>3</LCM_STATE><TEMPLATE>{text}</TEMPLATE></VM>"


def test_the_name_of_the_earlier_add_on_is_that_of_one_disk_only() -> None:
    vm = read_vm(vm_with((0, 7), (1, 8), (2, 7)))
    found = [disk_volume(vm, disk).names for disk in vm.disks]
    assert found == [
        ("one-7-5-0", "one-7-snapshot-5"),
        ("one-8-5-1", "one-8-snapshot-5"),
        ("one-7-5-2",),
    ]
