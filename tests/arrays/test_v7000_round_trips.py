# SPDX-License-Identifier: Apache-2.0
"""How many command lines an operation on a V7000 takes, and that fewer of them change nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.sshd import User
from lab.v7000 import Box, BoxConfig
from sanstone.arrays.base import NewVolume
from sanstone.arrays.v7000 import V7000
from sanstone.errors import CapacityError, ConflictError
from sanstone.model import MIB, Volume
from sanstone.settings import ConfigFile, resolve

GIB = 1024 * MIB
SIZE = 64 * MIB


def claim_all(found: Volume | None) -> None:
    """Take over whatever bears the name."""


@pytest.fixture
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    config = BoxConfig(
        pools={"mdiskgrp0": 10 * GIB},
        users={"oneadmin": User(password="secret-word")},
        **getattr(request, "param", {}),
    )
    with Box(config) as box:
        for name in ("node1", "node2"):
            box.add_host(name, f"iqn.1994-05.com.redhat:{name}")
        yield box


@pytest.fixture
def array(box: Box, tmp_path: Path) -> Iterator[V7000]:
    known, path = tmp_path / "known_hosts", tmp_path / "sanstone.conf"
    known.write_text(box.known_hosts_line(f"[{box.ssh_host}]:{box.ssh_port}") + "\n")
    path.write_text(
        f"[v7000]\nMGMT_PORT = {box.ssh_port}\nMGMT_PASSWORD = secret-word\nMGMT_KNOWN_HOSTS = {known}\n"
    )
    path.chmod(0o600)
    settings = resolve("v7000", ConfigFile.read(path), datastore={"MGMT": box.ssh_host})
    array = V7000(settings, state=tmp_path / "state")
    yield array
    array.close()


def names(box: Box) -> list[str]:
    return [line.split(":")[1] for line in box.run("lsvdisk -nohdr -delim :")[0].splitlines()]


def lines_of(array: V7000, before: int) -> int:
    return array.session.executions - before


def test_what_is_not_known_of_the_box_is_learnt_in_the_line_that_looks_up_the_volume(array: V7000) -> None:
    placement = array.create(NewVolume("one-1", SIZE, needs=SIZE), claim=claim_all, host="node1")
    assert array.session.executions == 2
    assert placement.connection is not None
    assert placement.connection.expected_paths == 2


def test_a_clone_is_made_mapped_and_deleted_in_two_lines_each(box: Box, array: V7000) -> None:
    array.create(NewVolume("one-1", SIZE), claim=claim_all)
    before = array.session.executions
    clone = NewVolume("one-1-7-0", source="one-1", is_linked=True)
    volume = array.create(clone, claim=claim_all, host="node1").volume
    assert lines_of(array, before) == 2
    before = array.session.executions
    assert array.delete("one-1-7-0", wait=0, host="node1", wwid=volume.wwid)
    assert lines_of(array, before) == 2
    assert names(box) == ["one-1"]
    assert box.run("lsfcmap -nohdr")[0] == ""


@pytest.mark.parametrize("box", [{"copy_speed": 10_000_000.0}], indirect=True)
def test_a_copy_that_is_over_at_once_is_not_made_again(box: Box, array: V7000) -> None:
    array.create(NewVolume("one-1", SIZE), claim=claim_all)
    placement = array.create(NewVolume("one-2", source="one-1"), claim=claim_all)
    assert placement.volume.size == SIZE
    assert [each.text.split()[0] for each in box.journal.commands].count("mkfcmap") == 1


def test_a_volume_that_is_mapped_to_another_host_too_is_not_deleted(box: Box, array: V7000) -> None:
    array.create(NewVolume("one-1", SIZE), claim=claim_all, host="node1")
    array.map("one-1", "node2", is_shared=True)
    with pytest.raises(ConflictError, match="still mapped to node2"):
        array.delete("one-1", wait=0, host="node1")
    assert array.mapped_hosts("one-1") == ("node2",)
    assert names(box) == ["one-1"]


def test_another_volume_of_the_same_name_is_not_deleted(box: Box, array: V7000) -> None:
    array.create(NewVolume("one-1", SIZE), claim=claim_all)
    assert not array.delete("one-1", wait=0, wwid="3600507680280809ab00000000000ffff")
    assert names(box) == ["one-1"]


def test_a_host_may_be_left_by_another_of_its_names_on_the_way_to_deletion(box: Box, array: V7000) -> None:
    array.create(NewVolume("one-1", SIZE), claim=claim_all, host="node1")
    assert array.delete("one-1", wait=0, host="node1.example.com")
    assert names(box) == []


def test_a_volume_without_room_is_neither_claimed_nor_made(box: Box, array: V7000) -> None:
    claimed: list[Volume | None] = []
    with pytest.raises(CapacityError, match=r"has 10\d\d\d MiB free, the image needs 11264 MiB"):
        array.create(NewVolume("one-1", SIZE, needs=11 * GIB), claim=claimed.append)
    assert claimed == []
    assert names(box) == []


def test_room_does_not_matter_for_a_volume_that_is_there(array: V7000) -> None:
    array.create(NewVolume("one-1", SIZE), claim=claim_all)
    new = NewVolume("one-1", SIZE, needs=11 * GIB)
    assert array.create(new, claim=claim_all).volume.name == "one-1"


def test_a_host_that_was_renamed_on_the_box_is_found_again(box: Box, array: V7000) -> None:
    array.create(NewVolume("one-1", SIZE), claim=claim_all, host="node1")
    array.unmap("one-1", "node1")
    box.run("chhost -name node1.example.com node1")
    array.map("one-1", "node1")
    assert array.mapped_hosts("one-1") == ("node1.example.com",)
