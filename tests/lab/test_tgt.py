# SPDX-License-Identifier: Apache-2.0
"""A private tgtd: it lives and dies with us, and keeps its words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.tgt import Tgtd, TgtError

IQN = "iqn.2020-01.org.example:box.node1"
HOST = "iqn.2020-01.org.example:host"
DEADLINE = 30

pytestmark = pytest.mark.real("setpriv", "tgtd", "tgtadm", "iscsi-ls", "iscsi-inq", "python3")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Tgtd]:
    with Tgtd() as daemon:
        yield daemon


@pytest.fixture
def tid(daemon: Tgtd) -> Iterator[int]:
    daemon.new_target(1, IQN)
    yield 1
    daemon.delete_target(1)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(8 << 20)
    return path


def run(*argv: str) -> tuple[str, int]:
    done = subprocess.run(argv, capture_output=True, timeout=DEADLINE, check=False)
    return (done.stdout + done.stderr).decode(errors="replace"), done.returncode


def url(daemon: Tgtd, lun: str = "") -> str:
    host, port = daemon.portal
    return f"iscsi://{host}:{port}{lun}"


def test_refusals_are_in_the_words_of_tgtadm(daemon: Tgtd, tid: int, disk: Path) -> None:
    with pytest.raises(TgtError, match="this target already exists") as caught:
        daemon.new_target(1, IQN)
    assert caught.value.code == 22
    with pytest.raises(TgtError, match="can't find the target"):
        daemon.bind(9, HOST)
    with pytest.raises(TgtError, match="can't find the logical unit"):
        daemon.delete_lun(tid, 5)
    with pytest.raises(TgtError, match="this logical unit number already exists"):
        daemon.add_lun(tid, 0, disk, scsi_id="0", scsi_sn="0")
    with pytest.raises(TgtError, match="invalid request"):
        daemon.add_lun(tid, 1, disk.with_name("absent"), scsi_id="0", scsi_sn="0")


def test_only_a_bound_initiator_sees_the_target(daemon: Tgtd, tid: int, disk: Path) -> None:
    daemon.add_lun(tid, 1, disk, scsi_id="0050761", scsi_sn="sn")
    daemon.bind(tid, HOST)
    text, code = run("iscsi-ls", "-s", "-i", HOST, url(daemon))
    assert code == 0
    assert "Lun:1    Type:DIRECT_ACCESS" in text
    text, _ = run("iscsi-ls", "-s", "-i", HOST + "2", url(daemon))
    assert "Target:" not in text
    daemon.unbind(tid, HOST)
    assert "Target:" not in run("iscsi-ls", "-s", "-i", HOST, url(daemon))[0]


def test_a_lun_has_the_identity_that_it_was_given(daemon: Tgtd, tid: int, disk: Path) -> None:
    daemon.add_lun(tid, 1, disk, scsi_id="005076123", scsi_sn="serial-7", vendor="IBM", product="2145")
    daemon.bind(tid, HOST)
    text, _ = run("iscsi-inq", "-i", HOST, url(daemon, f"/{IQN}/1"))
    assert "Vendor:IBM " in text
    assert "Product:2145 " in text
    assert (
        "Designator:[005076123]"
        in run("iscsi-inq", "-i", HOST, "-e", "1", "-c", "131", url(daemon, f"/{IQN}/1"))[0]
    )
    assert "serial-7" in run("iscsi-inq", "-i", HOST, "-e", "1", "-c", "128", url(daemon, f"/{IQN}/1"))[0]


def test_an_offline_lun_does_not_answer(daemon: Tgtd, tid: int, disk: Path) -> None:
    daemon.add_lun(tid, 1, disk, scsi_id="1", scsi_sn="1")
    daemon.bind(tid, HOST)
    daemon.set_online(tid, 1, False)
    assert "DIRECT_ACCESS (Size" not in run("iscsi-ls", "-s", "-i", HOST, url(daemon))[0]
    daemon.set_online(tid, 1, True)
    assert "DIRECT_ACCESS (Size" in run("iscsi-ls", "-s", "-i", HOST, url(daemon))[0]


def test_nobody_is_logged_in_at_first(daemon: Tgtd, tid: int) -> None:
    assert daemon.sessions([tid]) == []


def test_two_daemons_do_not_know_one_another(daemon: Tgtd, tid: int) -> None:
    with Tgtd() as other:
        other.new_target(1, IQN)
        assert other.portal != daemon.portal


def test_stop_leaves_no_process_and_no_file() -> None:
    before = set(Path(tempfile.gettempdir()).glob("lab-tgt-*"))
    threads = set(threading.enumerate())
    daemon = Tgtd()
    daemon.start()
    pid = daemon.pid
    assert pid is not None
    daemon.stop()
    assert not Path(f"/proc/{pid}").exists()
    assert not set(Path(tempfile.gettempdir()).glob("lab-tgt-*")) - before
    assert not set(threading.enumerate()) - threads
    with pytest.raises(TgtError, match="not running"):
        daemon.new_target(1, IQN)


def test_a_daemon_started_by_a_thread_outlives_it_and_dies_with_the_process() -> None:
    code = """
import sys, threading
from lab.tgt import Tgtd
daemon = Tgtd()
thread = threading.Thread(target=daemon.start)
thread.start(); thread.join()
daemon.new_target(1, "iqn.2020-01.org.example:x")
print(daemon.pid, daemon._directory, flush=True)
sys.stdin.read()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        pid, directory = process.stdout.readline().split()
        assert Path(f"/proc/{int(pid)}").exists()
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE
    while _is_alive(int(pid)) and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    assert not _is_alive(int(pid))
    left = Path(directory.decode())
    for file in left.iterdir():
        file.unlink()
    left.rmdir()


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"
