# SPDX-License-Identifier: Apache-2.0
"""Volumes of the box: making, growing, renaming, removing, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from lab.v7000 import Box, BoxConfig, ManualClock

GB = 1024**3
MK = "mkvdisk -name {} -mdiskgrp p0 -iogrp 0 -size 1 -unit gb"
Boxes = Callable[..., Box]


@pytest.fixture
def boxes() -> Iterator[Boxes]:
    opened: list[Box] = []

    def make(**changes: object) -> Box:
        settings: dict[str, object] = {"pools": {"p0": 10 * GB, "p1": 10 * GB}, "clock": ManualClock()}
        box = Box(BoxConfig(**{**settings, **changes}))  # type: ignore[arg-type]
        opened.append(box)
        box.start()
        return box

    yield make
    for box in opened:
        box.stop()


@pytest.fixture
def box(boxes: Boxes) -> Box:
    return boxes()


def done(box: Box, line: str) -> str:
    stdout, stderr, code = box.run(line)
    assert (stderr, code) == ("", 0)
    return stdout


def refused(box: Box, line: str) -> str:
    stdout, stderr, code = box.run(line)
    assert (stdout, code) == ("", 1)
    assert stderr.count("\n") == 1
    return stderr.split()[0]


def detail(box: Box, name: str) -> dict[str, str]:
    """Return the detailed view; the first copy's keys win over those of further copies."""
    found: dict[str, str] = {}
    for line in done(box, f"lsvdisk -bytes -delim ! {name}").splitlines():
        if line:
            key, _, value = line.partition("!")
            found.setdefault(key, value)
    return found


def test_the_line_of_the_old_add_on_is_taken(box: Box) -> None:
    line = "svctask mkvdisk -autoexpand -cache readwrite -copies 1 -grainsize 256 -iogrp io_grp0 -mdiskgrp p0"
    line += " -name one-7 -rsize 2% -size 2048 -syncrate 50 -unit mb -vtype striped"
    assert done(box, line) == "Virtual Disk, id [0], successfully created\n"
    shown = detail(box, "one-7")
    assert (shown["capacity"], shown["se_copy"], shown["grainsize"]) == (str(2 * GB), "yes", "256")


@pytest.mark.parametrize("missing", ["mdiskgrp", "iogrp", "size"])
def test_required_parameters(box: Box, missing: str) -> None:
    options = {"mdiskgrp": "p0", "iogrp": "0", "size": "1"}
    line = " ".join(f"-{key} {value}" for key, value in options.items() if key != missing)
    assert refused(box, f"mkvdisk {line}") == "CMMVC5707E"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("-size 0", "CMMVC5742E"),
        ("-size -1", "CMMVC5742E"),
        ("-size 1.5", "CMMVC5716E"),
        ("-size big", "CMMVC5716E"),
        ("-unit gib", "CMMVC5717E"),
        ("-unit GB", "CMMVC5717E"),
        ("-mdiskgrp nosuch", "CMMVC5754E"),
        ("-mdiskgrp 9", "CMMVC5753E"),
        ("-iogrp 9", "CMMVC5753E"),
        ("-iogrp io_grp3", "CMMVC5753E"),
        ("-iogrp nosuch", "CMMVC5754E"),
        ("-name 7up", "CMMVC6527E"),
        ("-name -x", "CMMVC6527E"),
        ("-name a/b", "CMMVC6527E"),
        ("-name 'end '", "CMMVC6527E"),
        ("-name ''", "CMMVC6527E"),
        (f"-name {'x' * 64}", "CMMVC5738E"),
        ("-vtype random", "CMMVC5742E"),
        ("-vtype image", "CMMVC5707E"),
        ("-copies 3", "CMMVC5742E"),
        ("-copies 2", "CMMVC5707E"),
        ("-mdiskgrp p0:p1", "CMMVC5734E"),
        ("-syncrate 101", "CMMVC5742E"),
        ("-cache sometimes", "CMMVC5742E"),
        ("-easytier auto", "CMMVC5742E"),
        ("-rsize 101%", "CMMVC5742E"),
        ("-rsize 2GB", "CMMVC5716E"),
        ("-rsize 2% -grainsize 16", "CMMVC5742E"),
        ("-rsize 2% -warning 101%", "CMMVC5742E"),
        ("-autoexpand", "CMMVC5731E"),
        ("-grainsize 64", "CMMVC5731E"),
        ("-compressed", "CMMVC5731E"),
        ("-fmtdisk -nofmtdisk", "CMMVC5713E"),
        ("-force", "CMMVC5709E"),
    ],
)
def test_mkvdisk_refuses_values_that_are_not_allowed(box: Box, change: str, code: str) -> None:
    key = change.split()[0]
    options = {"-name": "v", "-mdiskgrp": "p0", "-iogrp": "0", "-size": "1"}
    line = " ".join(f"{name} {value}" for name, value in options.items() if name != key)
    assert refused(box, f"mkvdisk {line} {change}") == code
    assert done(box, "lsvdisk -nohdr") == ""


@pytest.mark.parametrize("name", ["a", "_x", "one-7-2-0", "a.b c_d", "x" * 63])
def test_names_that_the_rules_allow(box: Box, name: str) -> None:
    done(box, f'mkvdisk -name "{name}" -mdiskgrp p0 -iogrp 0 -size 1')
    assert detail(box, f'"{name}"')["name"] == name


def test_a_name_is_taken_once(box: Box) -> None:
    done(box, MK.format("one-7"))
    assert refused(box, MK.format("one-7")) == "CMMVC6035E"


@pytest.mark.parametrize(
    ("size", "unit", "expected"),
    [(1, "b", 512), (513, "b", 1024), (1, "kb", 1024), (3, "mb", 3 << 20), (2, "gb", 2 << 30)],
)
def test_sizes_are_binary_and_rounded_up_to_blocks(box: Box, size: int, unit: str, expected: int) -> None:
    done(box, f"mkvdisk -name v -mdiskgrp p0 -iogrp 0 -size {size} -unit {unit}")
    assert detail(box, "v")["capacity"] == str(expected)


def test_the_default_unit_is_mb(box: Box) -> None:
    done(box, "mkvdisk -name v -mdiskgrp p0 -iogrp 0 -size 3")
    assert detail(box, "v")["capacity"] == str(3 << 20)


def test_ids_are_used_again_and_uids_never(box: Box) -> None:
    seen = []
    for _ in range(3):
        assert "[0]" in done(box, MK.format("v"))
        seen.append(detail(box, "v")["vdisk_UID"])
        done(box, "rmvdisk v")
    assert len(set(seen)) == 3
    for uid in seen:
        assert len(uid) == 32
        assert uid.startswith("6005076")
        assert uid == uid.upper()
        assert int(uid, 16)


def test_two_boxes_never_give_the_same_uid(boxes: Boxes) -> None:
    uids = []
    for name in ("v7000-a", "v7000-b"):
        box = boxes(name=name)
        done(box, MK.format("v"))
        uids.append(detail(box, "v")["vdisk_UID"])
    assert len(set(uids)) == 2


def test_a_mirrored_volume_has_two_copies_and_many_pools(box: Box) -> None:
    done(box, "mkvdisk -name v -mdiskgrp p0:p1 -copies 2 -iogrp 0 -size 1 -unit gb -rsize 2%")
    done(box, "mkvdisk -name w -mdiskgrp p0:p0 -copies 2 -iogrp 0 -size 1 -unit gb")
    rows = done(box, "lsvdisk -nohdr -delim :").splitlines()
    first, second = (row.split(":") for row in rows)
    assert (first[5], first[6], first[15], first[17]) == ("many", "many", "2", "2")
    assert (second[6], second[15], second[17]) == ("p0", "2", "0")
    text = done(box, "lsvdisk -delim : v")
    assert [line for line in text.splitlines() if line.startswith("copy_id")] == ["copy_id:0", "copy_id:1"]


def test_a_full_pool_refuses_to_create_and_to_expand(box: Box) -> None:
    done(box, "mkvdisk -name v -mdiskgrp p0 -iogrp 0 -size 6 -unit gb")
    assert refused(box, "mkvdisk -name w -mdiskgrp p0 -iogrp 0 -size 5 -unit gb") == "CMMVC8710E"
    assert refused(box, "mkvdisk -name w -mdiskgrp p1:p0 -copies 2 -iogrp 0 -size 5 -unit gb") == "CMMVC8710E"
    assert refused(box, "expandvdisksize -size 5 -unit gb v") == "CMMVC5860E"
    assert detail(box, "v")["capacity"] == str(6 * GB)
    done(box, "mkvdisk -name thin -mdiskgrp p0 -iogrp 0 -size 50 -unit gb -rsize 2% -autoexpand")
    done(box, "rmvdisk v")
    done(box, "mkvdisk -name w -mdiskgrp p0 -iogrp 0 -size 5 -unit gb")


def test_expandvdisksize_adds(box: Box) -> None:
    done(box, MK.format("v"))
    assert done(box, "svctask expandvdisksize -size 512 -unit mb v") == ""
    assert detail(box, "v")["capacity"] == str(GB + GB // 2)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("expandvdisksize -size 1 -unit gb", "CMMVC5701E"),
        ("expandvdisksize -unit gb v", "CMMVC5707E"),
        ("expandvdisksize -size 1 nosuch", "CMMVC5753E"),
        ("expandvdisksize -size 1 7", "CMMVC5753E"),
        ("expandvdisksize -size 0 v", "CMMVC5742E"),
        ("rmvdisk nosuch", "CMMVC5753E"),
        ("rmvdisk 9", "CMMVC5753E"),
        ("rmvdisk a/b", "CMMVC5754E"),
        ("rmvdisk -quiet v", "CMMVC5709E"),
        ("lsvdisk nosuch", "CMMVC5754E"),
        ("lsvdisk 9", "CMMVC5753E"),
        ("lsvdisksyncprogress -copy 1 v", "CMMVC5804E"),
        ("lsvdisksyncprogress nosuch", "CMMVC5804E"),
        ("chvdisk v", "CMMVC5707E"),
        ("chvdisk -name v2 nosuch", "CMMVC5753E"),
        ("chvdisk -name 2 v", "CMMVC6527E"),
        ("chvdisk -name w v", "CMMVC6035E"),
        ("chvdisk -copy 1 -autoexpand on v", "CMMVC6353E"),
    ],
)
def test_what_other_commands_refuse(box: Box, line: str, code: str) -> None:
    done(box, MK.format("v"))
    done(box, MK.format("w"))
    assert refused(box, line) == code


def test_chvdisk_renames_and_the_uid_stays(box: Box) -> None:
    done(box, MK.format("one-7"))
    uid = detail(box, "one-7")["vdisk_UID"]
    assert done(box, "chvdisk -name one-8 one-7") == ""
    assert detail(box, "one-8")["vdisk_UID"] == uid
    assert refused(box, "lsvdisk one-7") == "CMMVC5754E"


def test_a_mapped_volume_is_removed_only_with_force_or_its_own_option(box: Box) -> None:
    box.add_host("h", "iqn.2020-01.org.example:h")
    for name in ("v", "w"):
        done(box, MK.format(name))
        done(box, f"mkvdiskhostmap -host h {name}")
        assert refused(box, f"rmvdisk {name}") == "CMMVC5840E"
    done(box, "rmvdisk -removehostmappings v")
    done(box, "rmvdisk -force w")
    assert done(box, "lshostvdiskmap h") == ""


def test_near_the_licensed_capacity_the_work_is_done_with_a_warning(boxes: Boxes) -> None:
    box = boxes(licensed_capacity=GB)
    done(box, MK.format("v"))
    stdout, stderr, code = box.run(MK.format("w"))
    assert (stdout, stderr.split()[0], code) == ("", "CMMVC6372W", 1)
    assert detail(box, "w")["name"] == "w"


def test_a_volume_that_formats_cannot_grow_yet(boxes: Boxes) -> None:
    clock = ManualClock()
    box = boxes(clock=clock, format_rate=GB / 60)
    done(box, MK.format("v"))
    done(box, MK.format("w") + " -nofmtdisk")
    assert detail(box, "v")["formatting"] == "yes"
    assert refused(box, "expandvdisksize -size 1 v") == "CMMVC8587E"
    done(box, "expandvdisksize -size 1 w")
    clock.advance(60)
    assert detail(box, "v")["formatting"] == "no"
    done(box, "expandvdisksize -size 1 v")


def test_a_data_reduction_pool_wants_mkvolume(boxes: Boxes) -> None:
    box = boxes(data_reduction=frozenset({"p1"}), firmware="8.6.0.0 (build 169.1.2306081123000)")
    assert refused(box, "mkvdisk -name v -mdiskgrp p1 -iogrp 0 -size 1 -rsize 2%") == "CMMVC9292E"
    assert done(box, "mkvolume -name v -pool p1 -size 1 -unit gb -thin") == (
        "Volume, id [0], successfully created\n"
    )
    done(box, "mkvolume -name w -pool p1 -size 1 -unit gb -compressed -deduplicated")
    assert detail(box, "w")["deduplicated_copy"] == "yes"
    assert refused(box, "mkvolume -name x -pool p0 -size 1 -thin -deduplicated") == "CMMVC9301E"
    assert refused(box, "mkvolume -name x -pool p1 -size 1 -thin -compressed") == "CMMVC5713E"
    assert refused(box, "mkvolume -name x -size 1") == "CMMVC5707E"


def test_rmvolume_takes_apart_what_it_is_told_to(boxes: Boxes) -> None:
    box = boxes(firmware="8.6.0.0 (build 169.1.2306081123000)")
    box.add_host("h", "iqn.2020-01.org.example:h")
    done(box, "mkvolume -name v -pool p0 -size 1 -unit gb")
    done(box, "mkvolume -name w -pool p0 -size 1 -unit gb")
    done(box, "mkvdiskhostmap -host h v")
    done(box, "mkfcmap -source v -target w")
    assert refused(box, "rmvolume v") == "CMMVC5840E"
    assert refused(box, "rmvolume -removehostmappings v") == "CMMVC5840E"
    assert refused(box, "rmvolume -removefcmaps v") == "CMMVC5840E"
    done(box, "rmvolume -removehostmappings -removefcmaps v")
    assert done(box, "lsfcmap -nohdr") == ""


def test_old_firmware_has_no_mkvolume(boxes: Boxes) -> None:
    box = boxes(firmware="7.2.0.0 (build 87.0.1311291000)")
    assert refused(box, "svctask mkvolume -name v -pool p0 -size 1") == "CMMVC5987E"
