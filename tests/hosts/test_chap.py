# SPDX-License-Identifier: Apache-2.0
"""A CHAP secret gets into open-iscsi's records, and nowhere else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sanstone.hosts.node import chap

TARGET = "iqn.2012-02.org.opennebula:tgt1.vg-one.lv-one-5"
RECORD = """# BEGIN RECORD 2.1.8
node.name = iqn.2012-02.org.opennebula:tgt1.vg-one.lv-one-5
node.startup = manual
node.session.auth.authmethod = None
node.session.auth.username = <empty>
# END RECORD
"""


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(chap, "ROOT", tmp_path)
    folder = tmp_path / "etc/iscsi/nodes" / TARGET
    folder.mkdir(parents=True)
    return folder


def write_record(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(RECORD)
    return path


@pytest.mark.parametrize("name", ["10.7.1.1,3260", "10.7.1.1,3260,1/default", "10.7.1.1,3260,-1/eth1"])
def test_every_form_of_record_gets_the_secret(nodes: Path, name: str) -> None:
    record = write_record(nodes / name)

    assert chap.write(TARGET, "10.7.1.1", 3260, "h1", "s3cret-s3cret") == 1

    lines = record.read_text().splitlines()
    assert "node.session.auth.authmethod = CHAP" in lines
    assert "node.session.auth.username = h1" in lines
    assert "node.session.auth.password = s3cret-s3cret" in lines
    assert "node.startup = manual" in lines
    assert lines[-1] == "# END RECORD"
    assert record.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in record.parent.iterdir()] == [record.name]


def test_twice_is_once(nodes: Path) -> None:
    record = write_record(nodes / "10.7.1.1,3260,1/default")
    chap.write(TARGET, "10.7.1.1", 3260, "h1", "first-secret")
    chap.write(TARGET, "10.7.1.1", 3260, "h1", "second-secret")
    assert [line for line in record.read_text().splitlines() if "password" in line] == [
        "node.session.auth.password = second-secret"
    ]


def test_records_of_other_portals_stay(nodes: Path) -> None:
    others = [
        write_record(nodes / name) for name in ("10.7.1.1,32601", "10.7.1.11,3260,1/default", "fe80::1,3260")
    ]
    assert chap.write(TARGET, "10.7.1.1", 3260, "h1", "s3cret-s3cret") == 0
    assert {other.read_text() for other in others} == {RECORD}


def test_a_link_is_not_followed(nodes: Path, tmp_path: Path) -> None:
    precious = write_record(tmp_path / "precious")
    (nodes / "10.7.1.1,3260").symlink_to(precious)
    (nodes / "10.7.1.1,3260,1").mkdir()
    (nodes / "10.7.1.1,3260,1/default").symlink_to(precious)
    assert chap.write(TARGET, "10.7.1.1", 3260, "h1", "s3cret-s3cret") == 0
    assert precious.read_text() == RECORD


@pytest.mark.parametrize(
    ("target", "address", "port", "user", "password"),
    [
        ("../../../etc", "10.7.1.1", 3260, "h1", "secret"),
        ("iqn.2012-02.org/../../x", "10.7.1.1", 3260, "h1", "secret"),
        (TARGET, "../10.7.1.1", 3260, "h1", "secret"),
        (TARGET, "10.7.1.1", 0, "h1", "secret"),
        (TARGET, "10.7.1.1", 3260, "h1", "sec\nnode.startup = automatic"),
        (TARGET, "10.7.1.1", 3260, "h 1", "secret"),
        (TARGET, "10.7.1.1", 3260, "h1", ""),
    ],
)
def test_what_could_reach_elsewhere_is_refused(
    nodes: Path, target: str, address: str, port: int, user: str, password: str
) -> None:
    record = write_record(nodes / "10.7.1.1,3260")
    with pytest.raises(ValueError, match=r"no target or portal|cannot hold"):
        chap.write(target, address, port, user, password)
    assert record.read_text() == RECORD


@pytest.mark.real("python3")
@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        ("{}", 2, "not understood"),
        ("no JSON", 2, "not understood"),
        (
            json.dumps({"target": TARGET, "address": "a", "port": 1, "user": "u", "password": "hush"}),
            1,
            "no record",
        ),
    ],
)
def test_the_program_says_what_is_wrong_without_the_secret(request_: str, code: int, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I", chap.__file__],
        input=request_,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == code
    assert words in done.stderr
    assert "hush" not in done.stdout + done.stderr


def test_the_shipped_program_is_this_one() -> None:
    shipped = Path(__file__).resolve().parents[2] / "etc/sbin/sanstone-chap"
    assert shipped.resolve() == Path(chap.__file__).resolve()
    assert shipped.stat().st_mode & 0o111
