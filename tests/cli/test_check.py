# SPDX-License-Identifier: Apache-2.0
"""``sanstone check``: a datastore's template is held against the tables before it is created."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from sanstone.cli import main

GOOD = """\
# a datastore
NAME = "san"
DS_MAD = v7000
TM_MAD = v7000
DISK_TYPE = BLOCK
MGMT = v7000-a.example.com
BRIDGE_LIST = "node1 node2"
COPYRATE = 80
"""


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "sanstone.conf"
    path.write_text("")
    path.chmod(0o600)
    monkeypatch.setenv("SANSTONE_CONF", str(path))
    return path


def check(tmp_path: Path, text: str, *more: str) -> int:
    path = tmp_path / "san.ds"
    path.write_text(text, encoding="utf-8")
    return main(["check", str(path), *more])


def test_good_template_shows_what_it_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, GOOD) == 0
    shown = capsys.readouterr()
    assert "no problem found for driver v7000" in shown.out
    assert "  COPYRATE     80\n" in shown.out
    assert "CLEANRATE" not in shown.out
    assert shown.err == ""


def test_template_is_read_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode())))
    assert main(["check", "-"]) == 0
    assert "no problem found" in capsys.readouterr().out


def test_value_from_the_configuration_is_marked(
    tmp_path: Path, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration.write_text("[v7000]\nRSIZE = 5\nMGMT_PASSWORD = canary\n")
    assert check(tmp_path, GOOD) == 0
    shown = capsys.readouterr().out
    assert "RSIZE          5  (sanstone.conf)" in shown
    assert "MGMT_PASSWORD  ***  (sanstone.conf)" in shown
    assert "canary" not in shown


def test_other_configuration_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.conf"
    other.write_text("[v7000]\nRSIZE = 500\n")
    assert check(tmp_path, GOOD, "--config", str(other)) == 3
    assert f"RSIZE=500 in {other}, line 2," in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('NAME = ""', "NAME is missing."),
        ("DS_MAD = fs", "DS_MAD=fs is not v7000."),
        ("TM_MAD = shared", "TM_MAD=shared is not v7000."),
        ("TM_MAD =", "TM_MAD is missing."),
        ("DISK_TYPE = FILE", "DISK_TYPE=FILE is not BLOCK."),
        ("DISK_TYPE =", "DISK_TYPE is missing."),
        ("MGMT =", "MGMT of datastore san is missing."),
        ("COPYRATE = 500", "COPYRATE=500 of datastore san is not allowed: a whole number from 0 to 100."),
        ('COPYRATE = [ A = "1" ]', "COPYRATE of datastore san is there more than once or has parts."),
        ("MGMT_PASSWORD = canary", "MGMT_PASSWORD=*** of datastore san is not allowed there"),
        ("COPIES = 2\nMDISK_GROUP = a:b:c", "COPIES=2 needs one or two pools"),
    ],
)
def test_problem_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str) -> None:
    name = line.split(" ")[0]
    rest = "".join(each for each in GOOD.splitlines(keepends=True) if not each.startswith(f"{name} "))
    assert check(tmp_path, f"{rest}{line}\n", "--driver", "v7000") == 3
    shown = capsys.readouterr()
    assert f"sanstone: {said}" in shown.err
    assert "canary" not in shown.err
    assert "onedatastore update" not in shown.err
    assert shown.out == ""


def test_all_problems_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, "DS_MAD = v7000\nCOPYRATE = 500\nGRAINSIZE = 1\n") == 3
    shown = capsys.readouterr().err
    for said in (
        "NAME is missing",
        "TM_MAD is missing",
        "DISK_TYPE is missing",
        "COPYRATE=500",
        "GRAINSIZE=1",
        "MGMT of",
    ):
        assert said in shown


def test_driver_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, "DS_MAD = ceph\n") == 4
    assert "There is no driver 'ceph'" in capsys.readouterr().err


def test_template_without_a_driver_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, 'NAME = "x"\n') == 2
    assert "names no DS_MAD" in capsys.readouterr().err


def test_what_is_not_supported_yet_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = GOOD + 'REPLICATION = 1\nMGMT_AUX = b\nCLUSTER = "00000200A0000000"\n'
    assert check(tmp_path, text) == 4
    assert "Replication is not supported yet" in capsys.readouterr().err


def test_doubts_are_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, GOOD + "COPY_RATE = 1\nRSIZE = 1\nRSIZE = 2\n") == 0
    shown = capsys.readouterr().err
    assert "warning: COPY_RATE of datastore san has no meaning. Is COPYRATE meant?" in shown
    assert "warning: RSIZE is set on lines 10 and 11" in shown


def test_system_datastore_needs_no_box_unless_it_holds_volumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = 'NAME = "sys"\nTYPE = SYSTEM_DS\nTM_MAD = v7000\n'
    assert check(tmp_path, system) == 0
    assert "holds files and links" in capsys.readouterr().out
    assert check(tmp_path, system + "DISK_TYPE = BLOCK\n") == 3
    assert "MGMT of datastore sys is missing" in capsys.readouterr().err
    assert check(tmp_path, system + "DS_MAD = v7000\n") == 3
    assert "a system datastore has none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (None, 5, "There is no file"),
        (b"\xff", 2, "not a text in UTF-8"),
        (b"NAME san\n", 2, "Line 1: NAME is not followed by ="),
    ],
)
def test_file_that_cannot_be_read_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, code: int, said: str
) -> None:
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    assert main(["check", str(path)]) == code
    assert said in capsys.readouterr().err


def test_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err
