# SPDX-License-Identifier: Apache-2.0
"""The hosts of a live migration stay written down until somebody knows how it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from sanstone.store.locks import Locks, Place

BOX, NAME, VM = "v7000-a", "one-7", 12
SOURCE, TARGET = Place("node1", vm=VM), Place("node2", vm=VM)


@pytest.fixture
def locks(tmp_path: Path) -> Locks:
    return Locks(tmp_path / "locks")


def begin(locks: Locks) -> None:
    with locks.hold(BOX, NAME, seconds=1):
        locks.note(BOX, NAME, SOURCE)
        locks.note(BOX, NAME, TARGET)


def test_the_hosts_of_a_migration_outlive_the_action_that_noted_them(locks: Locks) -> None:
    begin(locks)
    with locks.hold(BOX, NAME, seconds=1):
        locks.note(BOX, NAME, Place("node3", "/vms/3/disk.0"))
    assert locks.migrating(BOX, NAME, VM) == [SOURCE, TARGET]
    assert locks.places(BOX, NAME) == [SOURCE, TARGET]
    assert locks.left(BOX) == [NAME]


def test_a_migration_that_has_ended_leaves_nothing(locks: Locks) -> None:
    begin(locks)
    with locks.hold(BOX, NAME, seconds=1):
        locks.forget_migration(BOX, NAME, VM)
    assert locks.left(BOX) == []


def test_the_end_of_one_migration_is_not_that_of_another_vm_with_the_same_disk(locks: Locks) -> None:
    begin(locks)
    other = Place("node2", vm=13)
    with locks.hold(BOX, NAME, seconds=1):
        locks.note(BOX, NAME, other)
        locks.forget_migration(BOX, NAME, VM)
    assert locks.places(BOX, NAME) == [other]


def test_what_a_killed_action_has_left_stays_when_a_migration_ends(locks: Locks) -> None:
    begin(locks)
    killed = Place("node3", "/vms/3/disk.0")
    held = locks.hold(BOX, NAME, seconds=1)
    held.__enter__()
    locks.note(BOX, NAME, killed)
    file = next((locks.directory).iterdir())
    text = file.read_bytes()
    held.__exit__(None, None, None)
    file.write_bytes(text)
    with locks.hold(BOX, NAME, seconds=1):
        locks.forget_migration(BOX, NAME, VM)
    assert locks.places(BOX, NAME) == [killed]
    with locks.settling(BOX, NAME) as places:
        assert places == [killed]
    assert locks.left(BOX) == []
