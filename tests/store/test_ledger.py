# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from sanstone.errors import BusyError, ConfigurationError
from sanstone.store.ledger import Entry, Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state")


def test_a_volume_is_ours_from_the_moment_before_it_is_made(ledger: Ledger) -> None:
    assert ledger.find("box", "one-1") is None
    entry = ledger.begin("box", "one-1")
    assert ledger.find("box", "one-1") == entry == Entry("box", "one-1")
    assert entry.covers("3600a")


def test_only_the_volume_that_was_made_is_covered(ledger: Ledger) -> None:
    entry = ledger.made(ledger.begin("box", "one-1"), "3600a")
    assert entry.covers("3600a")
    assert not entry.covers("3600b")


def test_a_forgotten_volume_is_not_ours(ledger: Ledger) -> None:
    ledger.begin("box", "one-1")
    ledger.forget("box", "one-1")
    ledger.forget("box", "one-1")
    assert ledger.find("box", "one-1") is None


def test_boxes_and_names_are_kept_apart(ledger: Ledger) -> None:
    ledger.begin("box.a", "one-1")
    ledger.begin("box", "a.one-1")
    ledger.begin("../x", "one-1")
    assert ledger.find("box", "one-1") is None
    assert ledger.find("../x", "one-1") == Entry("../x", "one-1")
    assert not (ledger.directory.parent / "x.one-1.json").exists()


def test_put_off_deletions_are_listed_for_their_box_only(ledger: Ledger) -> None:
    ledger.doom("box", "one-1", "3600a")
    ledger.doom("box2", "one-1", "3600a")
    ledger.begin("box", "one-2")
    assert [entry.name for entry in ledger.doomed("box")] == ["one-1"]


def test_a_damaged_entry_is_an_error_not_a_guess(ledger: Ledger) -> None:
    ledger.begin("box", "one-1")
    (path,) = (ledger.directory / "volumes").iterdir()
    path.write_text("{")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        ledger.find("box", "one-1")
    assert ledger.doomed("box") == []


def test_two_actions_on_one_volume_follow_one_another(ledger: Ledger) -> None:
    with ledger.lock("box", "one-1", seconds=1):
        with ledger.lock("box", "one-2", seconds=1):
            pass
        with pytest.raises(BusyError, match="Another action"), ledger.lock("box", "one-1", seconds=0):
            pass
    with ledger.lock("box", "one-1", seconds=0):
        pass


def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Ledger(tmp_path / "file").begin("box", "one-1")


def test_what_was_never_completed_is_listed(ledger: Ledger) -> None:
    ledger.ready(ledger.begin("box", "one-1"))
    ledger.begin("box", "one-2")
    assert [entry.name for entry in ledger.begun("box")] == ["one-2"]


def test_locks_leave_no_files_behind(ledger: Ledger) -> None:
    with ledger.lock("box", "one-1", seconds=1):
        pass
    assert list((ledger.directory / "locks").iterdir()) == []


def test_a_lock_is_held_by_one_at_a_time_whoever_comes_and_goes(ledger: Ledger) -> None:
    inside, seen = [0], []

    def work() -> None:
        for _ in range(30):
            with ledger.lock("box", "one-1", seconds=20):
                inside[0] += 1
                seen.append(inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 120


def test_a_full_disk_is_named_and_leaves_the_old_entry(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = ledger.made(ledger.begin("box", "one-1"), "3600a")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match="cannot be used: No space left"):
        ledger.ready(entry)
    assert ledger.find("box", "one-1") == entry
    assert len(list((ledger.directory / "volumes").iterdir())) == 1
