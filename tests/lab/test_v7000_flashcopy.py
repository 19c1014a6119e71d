# SPDX-License-Identifier: Apache-2.0
"""FlashCopy: states, progress over time, what each state refuses, groups."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.v7000 import Box, BoxConfig, ManualClock

MIB_PER_SECOND_AT_50 = 2
GIB_IN_SECONDS_AT_50 = 1024 / MIB_PER_SECOND_AT_50


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def box(clock: ManualClock) -> Iterator[Box]:
    config = BoxConfig(clock=clock, prepare_seconds=10, stop_seconds=5)
    with Box(config) as box:
        for name in ("a", "b", "c", "d"):
            done(box, f"mkvdisk -name {name} -mdiskgrp 0 -iogrp 0 -size 1 -unit gb")
        done(box, "mkvdisk -name big -mdiskgrp 0 -iogrp 0 -size 2 -unit gb")
        yield box


def done(box: Box, line: str) -> str:
    stdout, stderr, code = box.run(line)
    assert (stderr, code) == ("", 0)
    return stdout


def refused(box: Box, line: str) -> str:
    stdout, stderr, code = box.run(line)
    assert (stdout, code) == ("", 1)
    return stderr.split()[0]


def states(box: Box) -> dict[str, tuple[str, str]]:
    rows = (line.split(":") for line in done(box, "lsfcmap -nohdr -delim :").splitlines())
    return {row[1]: (row[8], row[9]) for row in rows}


def status(box: Box, volume: str) -> str:
    return done(box, f"lsvdisk -nohdr -delim : -filtervalue name={volume}").split(":")[4]


def start(box: Box, clock: ManualClock, options: str = "") -> None:
    """Bring a mapping m of a to b into copying."""
    done(box, f"mkfcmap -source a -target b -name m {options}")
    done(box, "prestartfcmap m")
    clock.advance(10)
    done(box, "startfcmap m")
    assert states(box)["m"][0] == "copying"


def test_mkfcmap_answers_with_its_id_and_a_default_name(box: Box) -> None:
    assert done(box, "mkfcmap -source a -target b") == "FlashCopy Mapping, id [0], successfully created\n"
    assert states(box) == {"fcmap0": ("idle_or_copied", "0")}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("mkfcmap -source a", "CMMVC5707E"),
        ("mkfcmap -target b", "CMMVC5707E"),
        ("mkfcmap -source nosuch -target b", "CMMVC5754E"),
        ("mkfcmap -source a -target nosuch", "CMMVC5754E"),
        ("mkfcmap -source 99 -target b", "CMMVC5753E"),
        ("mkfcmap -source a -target a", "CMMVC6303E"),
        ("mkfcmap -source a -target big", "CMMVC5924E"),
        ("mkfcmap -source a -target b", "CMMVC6466E"),
        ("mkfcmap -source c -target d -name m", "CMMVC6035E"),
        ("mkfcmap -source c -target d -name 1m", "CMMVC6527E"),
        ("mkfcmap -source c -target d -copyrate 151", "CMMVC5742E"),
        ("mkfcmap -source c -target d -cleanrate 151", "CMMVC5742E"),
        ("mkfcmap -source c -target d -copyrate fast", "CMMVC5716E"),
        ("mkfcmap -source c -target d -grainsize 128", "CMMVC5742E"),
        ("mkfcmap -source c -target d -consistgrp nosuch", "CMMVC5754E"),
        ("prestartfcmap", "CMMVC5701E"),
        ("prestartfcmap nosuch", "CMMVC5753E"),
        ("startfcmap m", "CMMVC5903E"),
        ("startfcmap 9", "CMMVC5753E"),
        ("stopfcmap m", "CMMVC5903E"),
        ("rmfcmap nosuch", "CMMVC5753E"),
        ("chfcmap m", "CMMVC5707E"),
        ("chfcmap -copyrate 151 m", "CMMVC5742E"),
        ("chfcmap -autodelete maybe m", "CMMVC5742E"),
        ("lsvdiskfcmappings", "CMMVC5707E"),
        ("rmvdisk a", "CMMVC5840E"),
        ("rmvdisk b", "CMMVC5840E"),
    ],
)
def test_what_is_refused_beside_an_idle_mapping(box: Box, line: str, code: str) -> None:
    done(box, "mkfcmap -source a -target b -name m")
    assert refused(box, line) == code


def test_a_mapping_is_prepared_then_copies_then_is_idle(box: Box, clock: ManualClock) -> None:
    done(box, "mkfcmap -source a -target b -name m")
    assert done(box, "prestartfcmap m") == ""
    assert states(box)["m"][0] == "preparing"
    assert refused(box, "startfcmap m") == "CMMVC5903E"
    assert refused(box, "prestartfcmap m") == "CMMVC5903E"
    clock.advance(10)
    assert states(box)["m"][0] == "prepared"
    assert status(box, "b") == "offline"
    assert done(box, "startfcmap m") == ""
    assert states(box)["m"] == ("copying", "0")
    assert status(box, "b") == "online"
    assert refused(box, "startfcmap m") == "CMMVC5907E"
    assert refused(box, "startfcmap -prep m") == "CMMVC5907E"
    clock.advance(GIB_IN_SECONDS_AT_50 / 4)
    assert states(box)["m"] == ("copying", "25")
    assert done(box, "lsfcmapprogress -delim : m") == "id:progress\n0:25\n"
    clock.advance(GIB_IN_SECONDS_AT_50)
    assert states(box)["m"] == ("idle_or_copied", "100")


def test_prep_prepares_and_starts_in_one(box: Box, clock: ManualClock) -> None:
    done(box, "mkfcmap -source a -target b -name m")
    done(box, "svctask startfcmap -prep m")
    assert states(box)["m"][0] == "preparing"
    clock.advance(10 + GIB_IN_SECONDS_AT_50 / 2)
    assert states(box)["m"] == ("copying", "50")


@pytest.mark.parametrize(
    ("rate", "seconds"),
    [(1, 8192), (10, 8192), (11, 4096), (50, 512), (60, 256), (100, 16), (150, 0.5)],
)
def test_the_copy_rate_doubles_with_each_ten(box: Box, clock: ManualClock, rate: int, seconds: float) -> None:
    start(box, clock, f"-copyrate {rate}")
    clock.advance(seconds * 0.995)
    assert states(box)["m"] == ("copying", "99")
    clock.advance(seconds * 0.02)
    assert states(box)["m"] == ("idle_or_copied", "100")


def test_the_speed_of_the_box_scales_the_rate() -> None:
    clock = ManualClock()
    with Box(BoxConfig(clock=clock, copy_speed=512)) as box:
        for name in ("a", "b"):
            done(box, f"mkvdisk -name {name} -mdiskgrp 0 -iogrp 0 -size 1 -unit gb")
        done(box, "mkfcmap -source a -target b -name m; startfcmap -prep m")
        assert states(box)["m"] == ("copying", "0")
        clock.advance(1)
        assert states(box)["m"] == ("idle_or_copied", "100")


def test_copy_rate_0_never_ends_until_it_is_changed(box: Box, clock: ManualClock) -> None:
    start(box, clock, "-copyrate 0")
    clock.advance(1e9)
    assert states(box)["m"] == ("copying", "0")
    done(box, "chfcmap -copyrate 100 m")
    clock.advance(16)
    assert states(box)["m"] == ("idle_or_copied", "100")


def test_autodelete_takes_the_mapping_away_at_100(box: Box, clock: ManualClock) -> None:
    start(box, clock, "-autodelete")
    clock.advance(GIB_IN_SECONDS_AT_50)
    assert states(box) == {}
    assert done(box, "lsvdiskfcmappings -nohdr a") == ""
    done(box, "rmvdisk a")
    assert status(box, "b") == "online"


def test_autodelete_set_after_the_end_takes_it_away_at_once(box: Box, clock: ManualClock) -> None:
    start(box, clock)
    clock.advance(GIB_IN_SECONDS_AT_50)
    assert states(box)["m"][0] == "idle_or_copied"
    done(box, "chfcmap -autodelete on m")
    assert states(box) == {}


def test_a_stopped_copy_leaves_its_target_offline(box: Box, clock: ManualClock) -> None:
    start(box, clock)
    clock.advance(GIB_IN_SECONDS_AT_50 / 2)
    assert done(box, "stopfcmap m") == ""
    assert states(box)["m"] == ("stopping", "50")
    assert refused(box, "stopfcmap m") == "CMMVC5912E"
    clock.advance(5)
    assert states(box)["m"] == ("stopped", "50")
    assert status(box, "b") == "offline"
    assert refused(box, "stopfcmap m") == "CMMVC5912E"
    assert refused(box, "rmfcmap m") == "CMMVC5903E"
    assert done(box, "rmfcmap -force m") == ""
    assert status(box, "b") == "online"


@pytest.mark.parametrize("force", ["", "-force "])
def test_a_mapping_that_copies_or_is_prepared_is_not_removed(
    box: Box, clock: ManualClock, force: str
) -> None:
    start(box, clock)
    assert refused(box, f"rmfcmap {force}m") == "CMMVC5903E"
    done(box, "mkfcmap -source c -target d -name n; prestartfcmap n")
    clock.advance(10)
    assert refused(box, f"rmfcmap {force}n") == "CMMVC5903E"
    done(box, "stopfcmap n")


def test_an_idle_mapping_is_removed_without_force(box: Box) -> None:
    done(box, "mkfcmap -source a -target b -name m")
    assert done(box, "rmfcmap m") == ""
    assert states(box) == {}


def test_split_needs_all_copied(box: Box, clock: ManualClock) -> None:
    start(box, clock)
    assert refused(box, "stopfcmap -split m") == "CMMVC5903E"


def test_a_stopped_mapping_can_be_prepared_again(box: Box, clock: ManualClock) -> None:
    start(box, clock)
    done(box, "stopfcmap m")
    clock.advance(5)
    done(box, "prestartfcmap m")
    clock.advance(10)
    done(box, "startfcmap m")
    assert states(box)["m"] == ("copying", "0")


def test_a_volume_in_mappings_shows_them(box: Box) -> None:
    done(box, "mkfcmap -source a -target b -name m; mkfcmap -source a -target c -name n")
    row = done(box, "lsvdisk -nohdr -delim : -filtervalue name=a").split(":")
    assert (row[9], row[10], row[14]) == ("many", "many", "2")
    row = done(box, "lsvdisk -nohdr -delim : -filtervalue name=c").split(":")
    assert (row[9], row[10], row[14]) == ("1", "n", "1")
    assert done(box, "lsvdiskfcmappings -delim : a") == "id:name\n0:m\n1:n\n"
    assert done(box, "lsvdiskfcmappings -delim : b") == "id:name\n0:m\n"


def test_removing_a_source_by_force_takes_its_mappings(box: Box, clock: ManualClock) -> None:
    start(box, clock)
    assert done(box, "lsvdiskdependentmaps -nohdr -delim : a") == "0:m\n"
    assert refused(box, "rmvdisk a") == "CMMVC5840E"
    done(box, "rmvdisk -force a")
    assert states(box) == {}


def test_a_restore_needs_its_flag_while_the_snapshot_is_active(box: Box, clock: ManualClock) -> None:
    start(box, clock, "-copyrate 0")
    done(box, "mkfcmap -source b -target a -name back -copyrate 100")
    assert refused(box, "prestartfcmap back") == "CMMVC5903E"
    done(box, "prestartfcmap -restore back")
    clock.advance(10)
    assert refused(box, "startfcmap back") == "CMMVC5903E"
    done(box, "startfcmap -restore back")
    row = done(box, "lsfcmap -nohdr -delim : -filtervalue source_vdisk_name=b").split(":")
    assert (row[8], row[15]) == ("copying", "yes")
    assert status(box, "a") == "online"
    assert done(box, "lsfcmapdependentmaps -nohdr -delim : back") == "0:m\n"


def test_old_firmware_does_not_grow_a_volume_in_a_mapping() -> None:
    for firmware, allowed in (("7.8.1.5 (build 1)", False), ("8.6.0.0 (build 1)", True)):
        with Box(BoxConfig(firmware=firmware, clock=ManualClock())) as box:
            for name in ("a", "b"):
                done(box, f"mkvdisk -name {name} -mdiskgrp 0 -iogrp 0 -size 1 -unit gb")
            done(box, "mkfcmap -source a -target b -name m")
            for name in ("a", "b"):
                stderr = box.run(f"expandvdisksize -size 1 {name}")[1]
                assert stderr[:10] == ("" if allowed else "CMMVC5837E")


def test_a_group_starts_all_its_mappings_together(box: Box, clock: ManualClock) -> None:
    assert (
        done(box, "mkfcconsistgrp -name g") == "FlashCopy Consistency Group, id [1], successfully created\n"
    )
    assert refused(box, "mkfcconsistgrp -name g") == "CMMVC6035E"
    assert refused(box, "startfcconsistgrp -prep g") == "CMMVC5903E"
    done(box, "mkfcmap -source a -target b -name m -consistgrp g")
    done(box, "mkfcmap -source c -target d -name n -consistgrp g")
    assert refused(box, "startfcmap -prep m") == "CMMVC5903E"
    assert refused(box, "startfcconsistgrp g") == "CMMVC5903E"
    done(box, "prestartfcconsistgrp g")
    clock.advance(10)
    assert done(box, "lsfcconsistgrp -nohdr -delim :").startswith("1:g:prepared:")
    done(box, "startfcconsistgrp g")
    assert states(box) == {"m": ("copying", "0"), "n": ("copying", "0")}
    assert refused(box, "startfcconsistgrp g") == "CMMVC5907E"
    assert refused(box, "rmfcconsistgrp g") == "CMMVC6045E"
    done(box, "stopfcconsistgrp g")
    clock.advance(5)
    assert {one[0] for one in states(box).values()} == {"stopped"}
    assert refused(box, "stopfcconsistgrp g") == "CMMVC5912E"
    done(box, "rmfcconsistgrp -force g")
    assert done(box, "lsfcconsistgrp -nohdr") == ""
    assert refused(box, "startfcconsistgrp g") == "CMMVC5753E"
