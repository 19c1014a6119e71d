# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import os
import random
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sanstone.errors import DataSafetyError, HostError, NotFoundError, RequestError
from sanstone.hosts.ops import (
    Copied,
    Digest,
    FileDigest,
    HeldStill,
    HoldStill,
    Part,
    RemoveBackup,
    SaveDisk,
    Thaw,
)
from sanstone.model import MIB

if TYPE_CHECKING:
    from tests.hosts.conftest import FakeHost

WWID = "3600507680c80000a0000000000000011"
BASE = "3600507680c80000a0000000000000022"
SIZE = 8 * MIB
CLUSTER = 65536
URI = "test:///default"

pytestmark = pytest.mark.real("python3", "sh", "qemu-img")


def attach(host: FakeHost, lun: int, wwid: str, content: bytes) -> Path:
    host.lun(lun, wwid, len(content))
    connection = host.connection(host.portal(), lun=lun, wwid=wwid, size=len(content))
    path = Path(host.attach(connection).path)
    path.write_bytes(content)
    return path


def content(seed: int, size: int = SIZE) -> bytes:
    """Bytes with a megabyte of zeros at the beginning and another in the middle."""
    noise = random.Random(seed).randbytes(size)
    return bytes(MIB) + noise[MIB : 4 * MIB] + bytes(MIB) + noise[5 * MIB :]


def changed(before: bytes, *writes: tuple[int, bytes]) -> bytes:
    now = bytearray(before)
    for offset, written in writes:
        now[offset : offset + len(written)] = written
    return bytes(now)


def qemu_img(*words: str | Path) -> str:
    done = subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True, timeout=30)
    return done.stdout.decode()


def raw(path: Path) -> bytes:
    target = path.with_suffix(".read")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, target)
    found = target.read_bytes()
    target.unlink()
    return found


def chained(*paths: Path) -> bytes:
    """What the last of a chain reads as when its files are put together as the stock drivers do it."""
    for below, above in pairwise(paths):
        qemu_img("rebase", "-u", "-F", "qcow2", "-b", below, above)
    found = raw(paths[-1])
    for path in paths[1:]:
        qemu_img("rebase", "-u", "-b", "", path)
    return found


def committed(*paths: Path) -> bytes:
    """What is left when the chain is merged into its first file, as increment_flatten does it."""
    for below, above in pairwise(paths):
        qemu_img("rebase", "-u", "-F", "qcow2", "-b", below, above)
    qemu_img("commit", "-f", "qcow2", "-b", paths[0], paths[-1])
    return raw(paths[0])


def test_a_disk_is_saved_whole_and_its_zeros_take_no_room(host: FakeHost, tmp_path: Path) -> None:
    disk = content(1)
    attach(host, 1, WWID, disk)
    target = tmp_path / "7" / "backup" / "disk.0.0"

    (result,) = host.run(SaveDisk(str(target), WWID))

    assert isinstance(result, Copied)
    assert result.size == SIZE
    assert raw(target) == disk
    assert target.stat().st_size < SIZE - MIB
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("is_told", [True, False], ids=["told", "compared"])
def test_an_increment_holds_what_has_changed_and_the_chain_is_the_disk(
    host: FakeHost, tmp_path: Path, is_told: bool
) -> None:
    before = content(2)
    now = changed(before, (MIB + 100, b"x" * 10), (2 * MIB, bytes(3 * CLUSTER)), (SIZE - 512, b"y" * 512))
    attach(host, 1, BASE, before)
    attach(host, 2, WWID, now)
    full, increment = tmp_path / "disk.0.0", tmp_path / "disk.0.1"
    host.run(SaveDisk(str(full), BASE))
    told = (Part(MIB + 100, 10), Part(2 * MIB, 3 * CLUSTER), Part(SIZE - 512, 512)) if is_told else None

    host.run(
        SaveDisk(str(increment), WWID, is_increment=True, base_wwid=None if is_told else BASE, extents=told)
    )

    assert "backing file" not in qemu_img("info", increment)
    assert increment.stat().st_size < 12 * CLUSTER
    assert chained(full, increment) == now
    assert committed(full, increment) == now


def test_an_increment_without_a_base_holds_everything_zeros_too(host: FakeHost, tmp_path: Path) -> None:
    before, now = content(3), bytes(2 * MIB) + content(4)[2 * MIB :]
    device = attach(host, 1, WWID, before)
    full, increment = tmp_path / "disk.0.0", tmp_path / "disk.0.1"
    host.run(SaveDisk(str(full), WWID))
    device.write_bytes(now)

    host.run(SaveDisk(str(increment), WWID, is_increment=True))

    assert chained(full, increment) == now


def test_an_increment_of_nothing_changes_nothing(host: FakeHost, tmp_path: Path) -> None:
    disk = content(5)
    attach(host, 1, BASE, disk)
    attach(host, 2, WWID, disk)
    full, increment = tmp_path / "disk.0.0", tmp_path / "disk.0.1"
    host.run(SaveDisk(str(full), BASE))

    (result,) = host.run(SaveDisk(str(increment), WWID, is_increment=True, base_wwid=BASE))

    assert isinstance(result, Copied)
    assert result.data == 0
    assert chained(full, increment) == disk


def test_a_disk_that_has_grown_is_whole_in_the_chain(host: FakeHost, tmp_path: Path) -> None:
    before = content(6)
    now = changed(before + bytes(3 * MIB), (SIZE - 3, b"across"), (SIZE + 2 * MIB, b"behind"))
    attach(host, 1, BASE, before)
    attach(host, 2, WWID, now)
    full, increment = tmp_path / "disk.0.0", tmp_path / "disk.0.1"
    host.run(SaveDisk(str(full), BASE))

    host.run(SaveDisk(str(increment), WWID, is_increment=True, base_wwid=BASE))

    assert chained(full, increment) == now
    assert committed(full, increment) == now


def test_many_scattered_changes_are_all_there(host: FakeHost, tmp_path: Path) -> None:
    size = 140 * MIB
    before = bytes(size)
    now = changed(before, *((offset, b"c") for offset in range(0, size, 2 * CLUSTER)))
    attach(host, 1, BASE, before)
    attach(host, 2, WWID, now)
    full, increment = tmp_path / "disk.0.0", tmp_path / "disk.0.1"
    host.run(SaveDisk(str(full), BASE))

    (result,) = host.run(SaveDisk(str(increment), WWID, is_increment=True, base_wwid=BASE))

    assert isinstance(result, Copied)
    assert result.data == size // 2
    assert hashlib.sha256(chained(full, increment)).digest() == hashlib.sha256(now).digest()


def test_a_file_is_saved_like_a_volume(host: FakeHost, tmp_path: Path) -> None:
    source = tmp_path / "disk.2"
    source.write_bytes(content(7))

    host.run(SaveDisk(str(tmp_path / "backup" / "disk.2.0"), source=str(source), format="raw"))

    assert raw(tmp_path / "backup" / "disk.2.0") == content(7)


def test_a_failed_save_leaves_no_file(host: FakeHost, tmp_path: Path) -> None:
    attach(host, 1, WWID, content(8))

    with pytest.raises(NotFoundError):
        host.run(SaveDisk(str(tmp_path / "backup" / "disk.0.1"), WWID, is_increment=True, base_wwid=BASE))

    assert list((tmp_path / "backup").iterdir()) == []


def test_a_digest_is_that_of_the_file(host: FakeHost, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"bytes")

    (found,) = host.run(FileDigest(str(tmp_path / "image")))

    assert found == Digest(5, hashlib.md5(b"bytes").hexdigest())


def test_only_the_directory_of_a_backup_is_removed(host: FakeHost, tmp_path: Path) -> None:
    place = tmp_path / "7" / "backup"
    place.mkdir(parents=True)
    (place / "disk.0.0").touch()

    for strange in (tmp_path / "7", tmp_path / "seven" / "backup", tmp_path):
        with pytest.raises(DataSafetyError):
            host.run(RemoveBackup(str(strange)))
    host.run(RemoveBackup(str(place)))
    assert (tmp_path / "7").is_dir()
    host.run(RemoveBackup(str(place), with_parent=True))
    assert not (tmp_path / "7").exists()
    host.run(RemoveBackup(str(place), with_parent=True))


# a guest that holds still


@pytest.fixture
def virsh(standins: Path, tmp_path: Path) -> Path:
    """A virsh that writes down what it is asked; it fails for what stands in ``refuses``."""
    log = tmp_path / "virsh.log"
    refuses = tmp_path / "refuses"
    program = standins / "virsh"
    program.write_text(
        f'#!/bin/sh\necho "$3 $4" >> "{log}"\n'
        f'if grep -qsx "$3" "{refuses}"; then echo "error: no agent" >&2; exit 1; fi\n'
        'case "$3" in domstate) echo paused ;; esac\n'
    )
    program.chmod(0o755)
    log.touch()
    return log


def hold(host: FakeHost, how: str = "AGENT", seconds: float = 20) -> HeldStill:
    """Hold a guest, and let go as soon as it holds still."""
    reading, writing = os.pipe()
    release = os.fdopen(writing, "wb", 0)
    with os.fdopen(reading, "rb", 0) as upload, release:
        # the end of its input is all that the host learns of a caller, killed or not
        (result,) = host.run(
            HoldStill("one-7", how, URI, seconds), upload=upload, progress=lambda said: release.close()
        )
    assert isinstance(result, HeldStill)
    return result


@pytest.mark.parametrize(
    ("how", "words"),
    [("AGENT", ["domfsfreeze one-7", "domfsthaw one-7"]), ("SUSPEND", ["suspend one-7", "resume one-7"])],
)
def test_a_guest_holds_still_until_it_is_let_go(
    host: FakeHost, virsh: Path, how: str, words: list[str]
) -> None:
    assert hold(host, how).was_in_time
    assert virsh.read_text().splitlines() == words


def test_a_guest_goes_on_when_nobody_lets_it_go(host: FakeHost, virsh: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", 0) as upload, os.fdopen(writing, "wb", 0):
        (result,) = host.run(HoldStill("one-7", "AGENT", URI, 0.3), upload=upload)

    assert isinstance(result, HeldStill)
    assert not result.was_in_time
    assert virsh.read_text().splitlines() == ["domfsfreeze one-7", "domfsthaw one-7"]


def test_a_guest_that_refuses_to_freeze_is_thawed_all_the_same(
    host: FakeHost, virsh: Path, tmp_path: Path
) -> None:
    (tmp_path / "refuses").write_text("domfsfreeze\n")

    with pytest.raises(HostError, match="no agent"):
        hold(host)

    assert virsh.read_text().splitlines() == ["domfsfreeze one-7", "domfsthaw one-7"]


def test_a_left_guest_is_thawed(host: FakeHost, virsh: Path) -> None:
    host.run(Thaw("one-7", "SUSPEND", URI), Thaw("one-7", "AGENT", URI))

    assert virsh.read_text().splitlines() == ["domstate one-7", "resume one-7", "domfsthaw one-7"]


@pytest.mark.parametrize("domain", ["", "--all", "one-7; reboot", "a b"])
def test_a_guest_with_a_strange_name_is_refused(host: FakeHost, virsh: Path, domain: str) -> None:
    with pytest.raises(RequestError):
        host.run(HoldStill(domain, "AGENT", URI, 1))

    assert virsh.read_text() == ""
