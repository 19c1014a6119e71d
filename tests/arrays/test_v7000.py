# SPDX-License-Identifier: Apache-2.0
"""The driver's side of a V7000 against the simulated box, over real SSH on loopback."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.sshd import User
from lab.v7000 import Box, BoxConfig
from sanstone.arrays.base import NewVolume
from sanstone.arrays.v7000 import V7000
from sanstone.errors import (
    BusyError,
    CapacityError,
    ConfigurationError,
    ConflictError,
    ConnectError,
    DeadlineError,
    NotFoundError,
    SanstoneError,
)
from sanstone.model import MIB, Volume
from sanstone.settings import ConfigFile, resolve

GIB = 1024 * MIB
SIZE = 64 * MIB

Opener = Callable[..., V7000]


def claim_all(found: Volume | None) -> None:
    """Take over whatever bears the name."""


@pytest.fixture
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    fields = getattr(request, "param", {})
    config = BoxConfig(
        **{
            "name": "v7000-a",
            "pools": {"mdiskgrp0": 10 * GIB, "other": 10 * GIB},
            "directory": tmp_path / "box",
            "data_plane": False,
            "users": {"oneadmin": User(password="secret-word")},
            **fields,
        }
    )
    with Box(config) as box:
        box.add_host("node1", "iqn.1994-05.com.redhat:node1")
        box.add_host("node2", "iqn.1994-05.com.redhat:node2")
        yield box


@pytest.fixture
def opened(box: Box, tmp_path: Path) -> Iterator[Opener]:
    arrays: list[V7000] = []
    known = tmp_path / "known_hosts"
    known.write_text(box.known_hosts_line(f"[{box.ssh_host}]:{box.ssh_port}") + "\n")

    def open_with(password: str = "secret-word", timeout: int = 20, **attributes: str) -> V7000:
        path = tmp_path / "sanstone.conf"
        path.write_text(
            f"[v7000]\nMGMT_PORT = {box.ssh_port}\nMGMT_PASSWORD = {password}\n"
            f"MGMT_KNOWN_HOSTS = {known}\nCONNECT_TIMEOUT = 5\n"
            f"COMMAND_TIMEOUT = {timeout}\nSESSION_TIMEOUT = {timeout}\n"
        )
        path.chmod(0o600)
        settings = resolve("v7000", ConfigFile.read(path), datastore={"MGMT": box.ssh_host, **attributes})
        array = V7000(settings, state=tmp_path / "state")
        arrays.append(array)
        return array

    yield open_with
    for array in arrays:
        array.close()


@pytest.fixture
def array(opened: Opener) -> V7000:
    return opened()


def listed(box: Box, command: str) -> list[dict[str, str]]:
    name, *operands = command.split()
    stdout, _, _ = box.run(" ".join([name, "-delim", ":", *operands]))
    head, *lines = stdout.splitlines() or [""]
    return [dict(zip(head.split(":"), line.split(":"), strict=False)) for line in lines]


def state(box: Box) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """What is on the box: volumes, FlashCopy maps, mappings."""
    return (
        sorted(row["name"] for row in listed(box, "lsvdisk")),
        sorted(row["name"] for row in listed(box, "lsfcmap")),
        sorted((row["name"], row["vdisk_name"]) for row in listed(box, "lshostvdiskmap")),
    )


def make(array: V7000, name: str = "one-1", **more: object) -> None:
    array.create(NewVolume(name, SIZE, **more), claim=claim_all)  # type: ignore[arg-type]


def test_a_volume_is_made_thin_with_the_settings_of_the_datastore(box: Box, opened: Opener) -> None:
    array = opened(RSIZE="10", COPIES="2", MDISK_GROUP="mdiskgrp0:other", GRAINSIZE="64")
    volume = array.create(NewVolume("one-1", SIZE), claim=claim_all).volume
    assert volume.size == SIZE
    assert volume.wwid.startswith("36005076")
    detail, _, _ = box.run("lsvdisk -delim : -bytes one-1")
    lines = detail.splitlines()
    assert "copy_count:2" in lines
    assert lines.count("se_copy:yes") == 2
    assert "grainsize:64" in lines


def test_a_thick_volume_has_no_thin_copy(box: Box, opened: Opener) -> None:
    opened(THIN_PROVISION="0").create(NewVolume("one-1", SIZE), claim=claim_all)
    detail, _, _ = box.run("lsvdisk -delim : one-1")
    assert "se_copy:no" in detail.splitlines()


def test_making_it_again_changes_nothing(box: Box, array: V7000) -> None:
    first = array.create(NewVolume("one-1", SIZE), claim=claim_all, host="node1")
    before = state(box)
    again = array.create(NewVolume("one-1", SIZE), claim=claim_all, host="node1")
    assert again.connection == first.connection
    assert state(box) == before


def test_what_bears_the_name_is_shown_before_anything_is_made(box: Box, array: V7000) -> None:
    box.run("mkvdisk -name one-1 -mdiskgrp mdiskgrp0 -iogrp io_grp0 -size 1 -unit gb")

    def refuse(found: Volume | None) -> None:
        assert found is not None
        assert found.size == GIB
        raise ConflictError("not ours")

    before = state(box)
    with pytest.raises(ConflictError, match="not ours"):
        array.create(NewVolume("one-1", SIZE), claim=refuse)
    assert state(box) == before


def test_a_connection_has_all_that_a_host_must_know(box: Box, array: V7000) -> None:
    make(array)
    connection = array.map("one-1", "node1")
    (mapping,) = listed(box, "lshostvdiskmap node1")
    assert connection.lun == int(mapping["SCSI_id"])
    assert connection.wwid == "3" + mapping["vdisk_UID"].lower()
    assert connection.size == SIZE
    assert len(connection.targets) == 2
    assert all(target.iqn.startswith("iqn.1986-03.com.ibm:2145.") for target in connection.targets)
    assert connection.expected_paths == 2


def test_mapping_again_is_the_same_connection(array: V7000) -> None:
    make(array)
    assert array.map("one-1", "node1") == array.map("one-1", "node1")


def test_a_second_host_is_refused_unless_the_volume_is_shared(box: Box, array: V7000) -> None:
    make(array)
    array.map("one-1", "node1")
    with pytest.raises(ConflictError, match=r"mapped to node1 already: node2 does not get it too"):
        array.map("one-1", "node2")
    array.map("one-1", "node2", is_shared=True)
    assert array.mapped_hosts("one-1") == ("node1", "node2")


def test_an_attach_asks_the_box_once(opened: Opener) -> None:
    make(opened())
    array = opened()
    array.map("one-1", "node1")
    assert (array.session.connections, array.session.executions) == (1, 1)


def test_a_host_may_be_registered_by_the_first_label_of_its_name(array: V7000) -> None:
    make(array)
    array.map("one-1", "node1.example.com")
    assert array.mapped_hosts("one-1") == ("node1",)
    array.unmap("one-1", "node1.example.com")
    assert array.mapped_hosts("one-1") == ()


def test_a_mapping_under_the_short_name_is_found_by_a_fresh_process(
    opened: Opener, box: Box, tmp_path: Path
) -> None:
    make(opened())
    box.run("mkvdiskhostmap -host node1 one-1")
    opened().unmap("one-1", "node1.example.com")
    assert listed(box, "lshostvdiskmap") == []


def test_an_unknown_host_is_named_with_those_that_are_known(array: V7000) -> None:
    make(array)
    with pytest.raises(ConfigurationError, match=r"node9 is not registered on .*node1, node2") as caught:
        array.map("one-1", "node9")
    assert "mkhost" in caught.value.hint


def test_a_missing_volume_is_not_found(array: V7000) -> None:
    with pytest.raises(NotFoundError, match="one-1 is not on"):
        array.map("one-1", "node1")
    with pytest.raises(NotFoundError):
        array.create(NewVolume("one-1-2-0", source="one-1"), claim=claim_all)
    with pytest.raises(NotFoundError):
        array.resize("one-1", GIB)
    assert array.find("one-1") == (None,)


def test_unmapping_what_is_not_mapped_is_no_failure(array: V7000) -> None:
    make(array)
    array.unmap("one-1", "node1")
    array.unmap("gone", "node1")


def test_a_mapped_volume_is_not_deleted(box: Box, array: V7000) -> None:
    make(array)
    array.map("one-1", "node1")
    with pytest.raises(ConflictError, match="still mapped to node1"):
        array.delete("one-1", wait=0)
    assert state(box)[0] == ["one-1"]


def test_deleting_twice_is_no_failure(box: Box, array: V7000) -> None:
    make(array)
    array.delete("one-1", wait=0)
    array.delete("one-1", wait=0)
    assert state(box) == ([], [], [])


def test_a_snapshot_depends_on_its_source_and_goes_in_one_step(box: Box, array: V7000) -> None:
    make(array)
    array.create(NewVolume("one-1-7-0", source="one-1", is_linked=True), claim=claim_all, host="node1")
    (copy,) = listed(box, "lsfcmap")
    assert (copy["copy_rate"], copy["status"]) == ("0", "copying")
    with pytest.raises(ConflictError, match="one-1-7-0 depends on"):
        array.delete("one-1", wait=5)
    array.unmap("one-1-7-0", "node1")
    array.delete("one-1-7-0", wait=0)
    array.delete("one-1", wait=0)
    assert state(box) == ([], [], [])


def test_a_clone_copies_at_the_rate_of_the_datastore(box: Box, opened: Opener) -> None:
    array = opened(COPYRATE="80", CLEANRATE="20")
    make(array)
    array.create(NewVolume("one-2", source="one-1"), claim=claim_all)
    (copy,) = listed(box, "lsfcmap")
    assert (copy["name"], copy["source_vdisk_name"], copy["target_vdisk_name"]) == ("one-2", "one-1", "one-2")
    assert copy["copy_rate"] == "80"


@pytest.mark.parametrize("box", [{"copy_speed": 0.0001}], indirect=True)
def test_a_source_is_not_deleted_while_it_is_copied(box: Box, opened: Opener) -> None:
    array = opened(COPYRATE="1")
    make(array)
    array.create(NewVolume("one-2", source="one-1"), claim=claim_all)
    with pytest.raises(BusyError, match=r"still being copied to one-2 \(\d+ %\)"):
        array.delete("one-1", wait=0)
    assert state(box)[0] == ["one-1", "one-2"]


@pytest.mark.parametrize("box", [{"copy_speed": 1000.0}], indirect=True)
def test_a_source_is_deleted_when_its_copy_is_complete(box: Box, array: V7000) -> None:
    make(array)
    array.create(NewVolume("one-2", source="one-1"), claim=claim_all)
    array.delete("one-1", wait=20)
    assert state(box) == (["one-2"], [], [])


@pytest.mark.parametrize("cut_after", [1, 2, 3])
def test_a_clone_that_was_cut_off_is_completed(box: Box, array: V7000, cut_after: int) -> None:
    """Whatever part of it was done before: volume, FlashCopy map, start."""
    make(array)
    steps = [
        f"mkvdisk -name one-1-7-0 -mdiskgrp mdiskgrp0 -iogrp 0 -size {SIZE} -unit b -rsize 0% -autoexpand",
        "mkfcmap -source one-1 -target one-1-7-0 -name one-1-7-0 -copyrate 0",
        "startfcmap -prep one-1-7-0",
    ]
    for step in steps[:cut_after]:
        assert box.run(step)[2] == 0
    new = NewVolume("one-1-7-0", source="one-1", is_linked=True)
    placement = array.create(new, claim=claim_all, host="node1")
    assert placement.connection is not None
    assert state(box) == (["one-1", "one-1-7-0"], ["one-1-7-0"], [("node1", "one-1-7-0")])
    assert listed(box, "lsfcmap")[0]["status"] == "copying"


def test_a_left_over_of_another_size_is_made_anew(box: Box, array: V7000) -> None:
    box.run("mkvdisk -name one-1 -mdiskgrp mdiskgrp0 -iogrp io_grp0 -size 1 -unit mb")
    assert array.create(NewVolume("one-1", SIZE), claim=claim_all).volume.size == SIZE


def test_a_saved_disk_has_its_copy_started_once(box: Box, array: V7000) -> None:
    make(array, "one-1")
    make(array, "one-2")
    array.copy("one-1", "one-2")
    array.copy("one-1", "one-2")
    assert state(box)[1] == ["one-2"]


def test_volumes_of_unequal_size_are_not_copied_by_the_box(array: V7000) -> None:
    make(array, "one-1")
    array.create(NewVolume("one-2", 2 * SIZE), claim=claim_all)
    with pytest.raises(ConflictError, match="equal sizes only"):
        array.copy("one-1", "one-2")


def test_a_volume_grows_and_never_shrinks(array: V7000) -> None:
    make(array)
    array.resize("one-1", 2 * SIZE)
    array.resize("one-1", SIZE)
    (volume,) = array.find("one-1")
    assert volume is not None
    assert volume.size == 2 * SIZE
    assert array.find_wwid(volume.wwid) == volume


def test_a_full_pool_is_a_matter_of_capacity(opened: Opener) -> None:
    array = opened(THIN_PROVISION="0")
    with pytest.raises(CapacityError, match=r"the pool on .* is full"):
        array.create(NewVolume("one-1", 20 * GIB), claim=claim_all)


def test_capacity_is_that_of_the_pools_of_the_datastore(opened: Opener) -> None:
    one, two = opened().capacity(), opened(MDISK_GROUP="mdiskgrp0 other").capacity()
    assert one.total == 10 * GIB
    assert two.total == 20 * GIB
    assert one.used + one.free == one.total


def test_an_unknown_pool_is_refused_with_those_that_are_there(opened: Opener) -> None:
    array = opened(MDISK_GROUP="mdiskgrp7")
    with pytest.raises(ConfigurationError, match=r"MDISK_GROUP=mdiskgrp7: .* it has mdiskgrp0, other"):
        array.capacity()
    with pytest.raises(ConfigurationError, match="MDISK_GROUP=mdiskgrp7"):
        array.create(NewVolume("one-1", SIZE), claim=claim_all)


def test_an_unknown_io_group_is_refused(opened: Opener) -> None:
    with pytest.raises(ConfigurationError, match="IO_GROUP=io_grp9"):
        opened(IO_GROUP="io_grp9").capacity()


@pytest.mark.parametrize(
    "box",
    [{"firmware": "8.6.0.0 (build 169.6.2305171232000)", "data_reduction": frozenset({"mdiskgrp0"})}],
    indirect=True,
)
def test_newer_firmware_and_its_pools_are_understood(box: Box, array: V7000) -> None:
    make(array)
    connection = array.map("one-1", "node1")
    assert connection.expected_paths == 2
    assert state(box)[0] == ["one-1"]


def test_a_wrong_password_says_who_may_not_log_in(opened: Opener) -> None:
    with pytest.raises(ConnectError, match="does not let oneadmin log in") as caught:
        opened(password="other-word").capacity()
    assert "other-word" not in str(caught.value) + caught.value.details


def test_an_unknown_host_key_is_not_accepted(opened: Opener, tmp_path: Path) -> None:
    array = opened()
    (tmp_path / "known_hosts").write_text("")
    with pytest.raises(ConnectError, match=r"host key of .* is not known"):
        array.capacity()


def test_a_changed_host_key_is_not_accepted(opened: Opener, tmp_path: Path, box: Box) -> None:
    from lab.sshd import generate_host_key

    array = opened()
    other = generate_host_key()
    name = box.known_hosts_line(f"[{box.ssh_host}]:{box.ssh_port}").split()[0]
    (tmp_path / "known_hosts").write_text(f"{name} {other.get_name()} {other.get_base64()}\n")
    with pytest.raises(ConnectError, match="is not the one in known_hosts"):
        array.capacity()


def test_a_dead_box_is_said_to_be_out_of_reach(box: Box, array: V7000) -> None:
    make(array)
    box.die()
    with pytest.raises(ConnectError, match="cannot be reached"):
        array.find("one-1")
    box.revive()
    assert array.find("one-1") != (None,)


@pytest.mark.parametrize("box", [{"session_limit": 1}], indirect=True)
def test_a_box_without_a_free_session_is_busy_and_used_when_one_is_free(box: Box, opened: Opener) -> None:
    first, second = opened(), opened(timeout=1)
    first.capacity()
    with pytest.raises(BusyError, match="no session free"):
        second.capacity()
    first.close()
    assert second.capacity().total == 10 * GIB


def test_a_command_that_hangs_ends_at_its_deadline(box: Box, opened: Opener) -> None:
    array = opened(timeout=1)
    box.faults.add(pattern="lsvdisk", hang=30)
    with pytest.raises(DeadlineError, match="did not answer a command within 1 s"):
        array.find("one-1")


ACTIONS: dict[str, Callable[[V7000], object]] = {
    "create": lambda array: array.create(NewVolume("one-9", SIZE), claim=claim_all, host="node1"),
    "clone": lambda array: array.create(
        NewVolume("one-1-7-0", source="one-1", is_linked=True), claim=claim_all, host="node1"
    ),
    "copy": lambda array: array.copy("one-1", "one-2"),
    "resize": lambda array: array.resize("one-2", 2 * SIZE),
    "map": lambda array: array.map("one-1", "node1"),
    "unmap": lambda array: array.unmap("one-3", "node1"),
    "delete": lambda array: array.delete("one-2", wait=0),
    "delete-clone": lambda array: array.delete("one-1-8-0", wait=0),
}


def prepare(array: V7000) -> None:
    for name in ("one-1", "one-2", "one-3"):
        make(array, name)
    array.map("one-3", "node1")
    array.create(NewVolume("one-1-8-0", source="one-1", is_linked=True), claim=claim_all)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("fault", ["refused", "cut before", "cut after"])
def test_every_action_repeated_after_a_failure_of_each_command_ends_in_the_same_state(
    tmp_path: Path, box: Box, opened: Opener, action: str, fault: str
) -> None:
    def run(what: Callable[[V7000], object]) -> None:
        array = opened()
        try:
            what(array)
        finally:
            array.close()

    run(prepare)
    box.journal.clear()
    run(ACTIONS[action])
    commands = [each.text for each in box.journal.commands]
    assert commands
    run(ACTIONS[action])
    wanted = state(box)

    for number in range(len(commands)):
        for name in state(box)[0]:
            for host in ("node1", "node2"):
                box.run(f"rmvdiskhostmap -host {host} {name}")
            box.run(f"rmvdisk -force {name}")
        assert state(box) == ([], [], [])
        run(prepare)
        kind = {
            "refused": {"code": "CMMVC5786E"},
            "cut before": {"drop": "before"},
            "cut after": {"drop": "after"},
        }[fault]
        box.faults.add(pattern=".", skip=number, times=2, **kind)
        with contextlib.suppress(SanstoneError):
            run(ACTIONS[action])
        box.faults.clear()
        run(ACTIONS[action])
        assert state(box) == wanted, f"after a fault at {commands[number]}"


@pytest.mark.parametrize(
    "name", ["x y", "a'b", 'a"b', "a;rm", "a\nb", "a$b", "a`b", "-force", "ä", "a|b", "a>b", "a&b", ""]
)
def test_no_hostile_pool_name_reaches_the_box(box: Box, opened: Opener, name: str) -> None:
    box.journal.clear()
    with pytest.raises(SanstoneError):
        opened(MDISK_GROUP=name or "''").create(NewVolume("one-1", SIZE), claim=claim_all)
    assert state(box)[0] == []
    assert not any("mkvdisk" in each.text for each in box.journal.commands)
