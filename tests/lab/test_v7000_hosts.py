# SPDX-License-Identifier: Apache-2.0
"""Hosts of the box and the mappings to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.v7000 import Box, BoxConfig, ManualClock

IQN = "iqn.2020-01.org.example:{}"
NEW = "8.6.0.0 (build 169.1.2306081123000)"


@pytest.fixture
def box() -> Iterator[Box]:
    with Box(BoxConfig(clock=ManualClock())) as box:
        for host in ("a", "b"):
            box.add_host(host, IQN.format(host))
        for volume in ("v", "w", "x"):
            done(box, f"mkvdisk -name {volume} -mdiskgrp 0 -iogrp 0 -size 1 -unit gb")
        yield box


def done(box: Box, line: str) -> str:
    stdout, stderr, code = box.run(line)
    assert (stderr, code) == ("", 0)
    return stdout


def refused(box: Box, line: str) -> str:
    stdout, stderr, code = box.run(line)
    assert (stdout, code) == ("", 1)
    return stderr.split()[0]


def luns(box: Box, host: str) -> dict[str, int]:
    rows = (line.split(":") for line in done(box, f"lshostvdiskmap -nohdr -delim : {host}").splitlines())
    return {row[4]: int(row[2]) for row in rows}


def test_mkhost_answers_with_the_lowest_free_id(box: Box) -> None:
    line = f"svctask mkhost -force -iscsiname {IQN.format('c')} -name c"
    assert done(box, line) == "Host, id [2], successfully created\n"
    done(box, "rmhost a")
    assert done(box, f"mkhost -iscsiname {IQN.format('d')}") == "Host, id [0], successfully created\n"
    assert "host0" in done(box, "lshost -nohdr")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("mkhost -name c", "CMMVC5707E"),
        (f"mkhost -name a -iscsiname {IQN.format('c')}", "CMMVC6035E"),
        (f"mkhost -name 1c -iscsiname {IQN.format('c')}", "CMMVC6527E"),
        (f"mkhost -name c -iscsiname {IQN.format('a')}", "CMMVC6578E"),
        ("mkhost -name c -iscsiname node1", "CMMVC6578E"),
        (f"mkhost -name c -iscsiname {IQN.format('c')},{IQN.format('c')}", "CMMVC6578E"),
        (f"mkhost -name c -iscsiname {IQN.format('c')} -hbawwpn 2100000000000001", "CMMVC5713E"),
        (f"mkhost -name c -portset portset0 -iscsiname {IQN.format('c')}", "CMMVC5709E"),
        (f"mkhost -name c -type linux -iscsiname {IQN.format('c')}", "CMMVC5742E"),
        (f"addhostport -iscsiname {IQN.format('b')} a", "CMMVC6578E"),
        (f"addhostport -iscsiname {IQN.format('c')}", "CMMVC5701E"),
        (f"addhostport -iscsiname {IQN.format('c')} nosuch", "CMMVC5753E"),
        ("addhostport a", "CMMVC5707E"),
        ("rmhost", "CMMVC5701E"),
        ("rmhost nosuch", "CMMVC5753E"),
        ("chhost a", "CMMVC5707E"),
        ("chhost -chapsecret s nosuch", "CMMVC5753E"),
        ("lshost nosuch", "CMMVC5754E"),
        ("lshost 9", "CMMVC5753E"),
        ("mkvdiskhostmap v", "CMMVC5707E"),
        ("mkvdiskhostmap -host a", "CMMVC5707E"),
        ("mkvdiskhostmap -host a nosuch", "CMMVC5753E"),
        ("mkvdiskhostmap -host nosuch v", "CMMVC5754E"),
        ("mkvdiskhostmap -host a -scsi 512 v", "CMMVC5742E"),
        ("mkvdiskhostmap -host a -scsi one v", "CMMVC5716E"),
        ("rmvdiskhostmap v", "CMMVC5707E"),
        ("rmvdiskhostmap -host a", "CMMVC5701E"),
        ("rmvdiskhostmap -host a v", "CMMVC5842E"),
        ("rmvdiskhostmap -host nosuch v", "CMMVC5754E"),
        ("rmvdiskhostmap -host a nosuch", "CMMVC5753E"),
        ("lsvdiskhostmap nosuch", "CMMVC5753E"),
        ("lsvdiskhostmap", "CMMVC5701E"),
        ("lshostvdiskmap nosuch", "CMMVC5754E"),
    ],
)
def test_what_is_refused(box: Box, line: str, code: str) -> None:
    assert refused(box, line) == code


def test_portsets_came_with_new_firmware() -> None:
    with Box(BoxConfig(firmware=NEW)) as box:
        done(box, f"mkhost -name c -portset portset0 -iscsiname {IQN.format('c')}")


def test_a_host_shows_its_ports(box: Box) -> None:
    done(box, f"addhostport -force -iscsiname {IQN.format('second')} a")
    lines = done(box, "lshost -delim : a").splitlines()
    assert lines[:3] == ["id:0", "name:a", "port_count:2"]
    names = [line for line in lines if line.startswith("iscsi_name")]
    assert names == [f"iscsi_name:{IQN.format('a')}", f"iscsi_name:{IQN.format('second')}"]
    done(box, f"rmhostport -iscsiname {IQN.format('second')} a")
    assert "port_count:1" in done(box, "lshost -delim : a")


def test_lsiscsiauth_shows_the_secret_in_clear(box: Box) -> None:
    done(box, "chhost -chapsecret canary a")
    text = done(box, "lsiscsiauth -delim :")
    assert text == (
        "type:id:name:iscsi_auth_method:iscsi_chap_secret\nhost:0:a:chap:canary\nhost:1:b:none:\n"
    )


def test_the_lowest_free_lun_is_given_and_used_again_at_once(box: Box) -> None:
    answers = [done(box, f"mkvdiskhostmap -host a {name}") for name in ("v", "w", "x")]
    assert [answer.split("[")[1][0] for answer in answers] == ["0", "1", "2"]
    assert answers[0] == "Virtual Disk to Host map, id [0], successfully created\n"
    done(box, "rmvdiskhostmap -host a w")
    assert luns(box, "a") == {"v": 0, "x": 2}
    done(box, "mkvdiskhostmap -host a w")
    assert luns(box, "a")["w"] == 1


def test_luns_are_counted_per_host(box: Box) -> None:
    done(box, "mkvdiskhostmap -host a v")
    done(box, "mkvdiskhostmap -host b w")
    assert (luns(box, "a"), luns(box, "b")) == ({"v": 0}, {"w": 0})


def test_a_second_host_needs_force(box: Box) -> None:
    done(box, "mkvdiskhostmap -host a v")
    assert refused(box, "mkvdiskhostmap -host b v") == "CMMVC6071E"
    done(box, "mkvdiskhostmap -force -host b v")
    rows = done(box, "lsvdiskhostmap -nohdr -delim : v").splitlines()
    assert [row.split(":")[4] for row in rows] == ["a", "b"]


@pytest.mark.parametrize("force", ["", "-force "])
def test_the_same_host_twice_is_refused_even_with_force(box: Box, force: str) -> None:
    done(box, "mkvdiskhostmap -host a v")
    assert refused(box, f"mkvdiskhostmap {force}-host a v") == "CMMVC5878E"


def test_a_lun_is_given_once_per_host(box: Box) -> None:
    done(box, "mkvdiskhostmap -host a -scsi 7 v")
    assert refused(box, "mkvdiskhostmap -host a -scsi 7 w") == "CMMVC5879E"
    done(box, "mkvdiskhostmap -host b -scsi 7 w")
    assert luns(box, "a") == {"v": 7}


def test_a_host_with_mappings_is_kept(box: Box) -> None:
    done(box, "mkvdiskhostmap -host a v")
    assert refused(box, "rmhost a") == "CMMVC5871E"
    done(box, "rmvdiskhostmap -host a v")
    assert done(box, "rmhost a") == ""


def test_nothing_mapped_is_nothing_said_or_a_header() -> None:
    for wanted, expected in ((False, 0), (True, 1)):
        with Box(BoxConfig(header_when_unmapped=wanted)) as box:
            box.add_host("a", IQN.format("a"))
            done(box, "mkvdisk -name v -mdiskgrp 0 -iogrp 0 -size 1")
            assert len(done(box, "lsvdiskhostmap -delim : v").splitlines()) == expected
            assert len(done(box, "lshostvdiskmap -delim : a").splitlines()) == expected
            assert done(box, "lsvdiskhostmap -nohdr v") == ""
