# SPDX-License-Identifier: Apache-2.0
"""``make demo`` as a person meets it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.systems import ALL_ARRAYS

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.real("python3", "qemu-img"), pytest.mark.slow]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def begin(**environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "lab.demo"],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT}/remotes:{ROOT}",
                "TMPDIR": str(tmp_path),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of a megabyte of bytes and nothing that boots."""
    raw, path = tmp_path / "raw", tmp_path / "disk image.qcow2"
    raw.write_bytes(os.urandom(1 << 20) + bytes(3 << 20))
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)], check=True, timeout=60
    )
    raw.unlink()
    return path


def left_by(folder: Path) -> list[str]:
    """Folders, mounts and processes of a demonstration that kept its things in ``folder``."""
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]
    processes = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if f"{folder}/sanstone-demo-" in words:
            processes.append(words)
    return [*map(str, folder.glob("sanstone-demo-*")), *mounts, *processes]


@pytest.mark.parametrize("system", ALL_ARRAYS)
def test_it_shows_the_whole_way_of_an_image_and_ends_clean(
    start: Start, image: Path, tmp_path: Path, system: str
) -> None:
    process = start(SYSTEM=system, IMAGE=str(image), ONCE="1")
    shown, _ = process.communicate(timeout=240)
    assert process.returncode == 0, shown
    assert shown.count("the same on") == 2
    assert "blkid finds ext4" in shown
    assert "nothing was left behind" in shown
    assert "Traceback" not in shown
    assert left_by(tmp_path) == []


@pytest.mark.parametrize("until", ["start it", "register the datastore", "import it", "disk.1", "stays up"])
def test_ctrl_c_leaves_nothing_behind(start: Start, image: Path, tmp_path: Path, until: str) -> None:
    process = start(IMAGE=str(image))
    assert process.stdout is not None
    shown = ""
    while until not in shown:
        line = process.stdout.readline()
        assert line, shown
        shown += line
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 0, shown + rest
    assert "nothing is left behind" in rest
    assert "Traceback" not in rest
    assert left_by(tmp_path) == []


def test_a_system_that_is_not_there_is_named_at_once(start: Start) -> None:
    process = start(SYSTEM="floppy", ONCE="1")
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert shown == f"SYSTEM=floppy is not there; the demonstration knows {', '.join(ALL_ARRAYS)}.\n"


def test_a_missing_image_is_named_at_once(start: Start, tmp_path: Path) -> None:
    process = start(IMAGE=str(tmp_path / "none"), ONCE="1")
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"There is no image file {tmp_path / 'none'}" in shown
    assert "Traceback" not in shown
