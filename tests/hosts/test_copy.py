# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sanstone.errors import CapacityError, DataSafetyError, NotFoundError, RequestError
from sanstone.hosts.ops import Convert, Copied, CopyVolume, MakeFilesystem, MakeImageFile
from sanstone.model import MIB

if TYPE_CHECKING:
    from tests.hosts.conftest import FakeHost

WWID = "3600507680c80000a0000000000000011"
OTHER = "3600507680c80000a0000000000000022"
SIZE = 8 * MIB

pytestmark = pytest.mark.real("python3", "sh", "qemu-img")


@pytest.fixture
def device(host: FakeHost) -> Path:
    return attach(host, 1, WWID, SIZE)


def attach(host: FakeHost, lun: int, wwid: str, size: int) -> Path:
    """Attach a volume whose device is a file full of old bytes."""
    host.lun(lun, wwid, size)
    path = Path(host.attach(host.connection(host.portal(), lun=lun, wwid=wwid, size=size)).path)
    host.calls()
    path.write_bytes(b"\xa5" * size)
    return path


def qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True, timeout=30)


def image(path: Path, format_: str, size: int = SIZE) -> Path:
    """Make an image with a megabyte of bytes at 1 MiB and holes around."""
    raw = path.with_suffix(".tmp")
    with raw.open("wb") as file:
        file.truncate(size)
        file.seek(MIB)
        file.write(hashlib.sha256(b"seed").digest() * (MIB // 32))
    qemu_img("convert", "-f", "raw", "-O", format_, raw, path)
    raw.unlink()
    return path


def expected(size: int = SIZE) -> bytes:
    return bytes(MIB) + hashlib.sha256(b"seed").digest() * (MIB // 32) + bytes(size - 2 * MIB)


@pytest.mark.parametrize("format_", ["raw", "qcow2", "vmdk", "vdi"])
@pytest.mark.parametrize("is_told", [True, False])
def test_an_image_comes_whole_onto_a_volume_with_old_bytes(
    host: FakeHost, device: Path, tmp_path: Path, format_: str, is_told: bool
) -> None:
    source = image(tmp_path / "image", format_)
    said: list[str] = []

    (result,) = host.run(
        Convert(str(source), WWID, False, format_ if is_told else None), progress=said.append
    )

    assert isinstance(result, Copied)
    assert result.size == SIZE
    assert 0 < result.data < SIZE
    assert device.read_bytes() == expected()
    assert said[-1] == "copied 100 %"
    assert host.calls() == [f"blockdev --flushbufs /dev/mapper/{WWID}"]


def test_a_volume_of_zeros_is_not_written_where_the_image_has_holes(
    host: FakeHost, device: Path, tmp_path: Path
) -> None:
    device.write_bytes(b"")
    os.truncate(device, SIZE)

    host.run(Convert(str(image(tmp_path / "image", "qcow2")), WWID, True, "qcow2"))

    assert device.read_bytes() == expected()
    assert device.stat().st_blocks * 512 < SIZE // 2


@pytest.mark.parametrize("is_zero", [True, False])
@pytest.mark.real("dd")
def test_dd_writes_zeros_unless_they_are_there(
    host: FakeHost, device: Path, tmp_path: Path, is_zero: bool
) -> None:
    if is_zero:
        device.write_bytes(bytes(SIZE))

    host.run(Convert(str(image(tmp_path / "image", "raw")), WWID, is_zero, "raw", "dd"))

    assert device.read_bytes() == expected()


def test_a_smaller_image_fits_and_a_larger_one_is_refused_before_a_byte(
    host: FakeHost, device: Path, tmp_path: Path
) -> None:
    before = device.read_bytes()
    with pytest.raises(CapacityError, match=str(SIZE + MIB)):
        host.run(Convert(str(image(tmp_path / "large", "qcow2", SIZE + MIB)), WWID, False))
    assert device.read_bytes() == before

    (result,) = host.run(Convert(str(image(tmp_path / "small", "qcow2", 4 * MIB)), WWID, False))

    assert isinstance(result, Copied)
    assert result.size == 4 * MIB
    assert device.read_bytes() == expected(4 * MIB) + bytes(SIZE - 4 * MIB)


@pytest.mark.parametrize("is_told", [True, False])
def test_an_image_that_refers_to_other_files_is_refused(
    host: FakeHost, device: Path, tmp_path: Path, is_told: bool
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * MIB)
    backed, data, flat = tmp_path / "backed", tmp_path / "data", tmp_path / "flat.vmdk"
    qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "raw", backed)
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/part,data_file_raw=on", data, "1M")
    qemu_img("create", "-f", "vmdk", "-o", "subformat=monolithicFlat", flat, "1M")
    before = device.read_bytes()

    for path, format_ in ((backed, "qcow2"), (data, "qcow2"), (flat, "vmdk")):
        with pytest.raises(DataSafetyError, match="refers to other files"):
            host.run(Convert(str(path), WWID, False, format_ if is_told else None))

    assert device.read_bytes() == before


def test_a_raw_image_is_not_taken_for_what_a_guest_wrote_into_it(
    host: FakeHost, device: Path, tmp_path: Path
) -> None:
    secret, source = tmp_path / "secret", tmp_path / "image"
    secret.write_bytes(b"s" * MIB)
    qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "raw", source)
    os.truncate(source, MIB)

    host.run(Convert(str(source), WWID, False, "raw"))

    assert device.read_bytes()[:MIB] == source.read_bytes()


@pytest.mark.parametrize("format_", ["qcow2", "vmdk", "nbd", "raw,file.filename=/etc/passwd", "--help"])
def test_a_format_that_is_wrong_is_refused(
    host: FakeHost, device: Path, tmp_path: Path, format_: str
) -> None:
    source = tmp_path / "image"
    source.write_bytes(b"x" * MIB)

    with pytest.raises(RequestError):
        host.run(Convert(str(source), WWID, False, format_))


@pytest.mark.parametrize("source", ["/dev/zero", "nbd://127.0.0.1/x", "json:{}", "relative", "/tmp"])
def test_a_source_that_is_no_file_is_refused(host: FakeHost, device: Path, source: str) -> None:
    with pytest.raises(RequestError):
        host.run(Convert(source, WWID, False))


def test_a_volume_that_is_not_attached_is_not_written(host: FakeHost, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=WWID):
        host.run(Convert(str(image(tmp_path / "image", "raw")), WWID, False))
    with pytest.raises(NotFoundError, match=WWID):
        host.run(MakeFilesystem(WWID, "ext4"))


def test_a_map_with_a_stranger_is_not_written(host: FakeHost, device: Path, tmp_path: Path) -> None:
    before = device.read_bytes()
    host.attribute("block", "sda", "device", "wwid").write_text(f"naa.{OTHER[1:]}\n")

    with pytest.raises(DataSafetyError, match=OTHER):
        host.run(Convert(str(image(tmp_path / "image", "raw")), WWID, False))

    assert device.read_bytes() == before


@pytest.mark.parametrize("tool", ["qemu-img", "dd"])
def test_a_volume_is_copied_onto_a_larger_one(host: FakeHost, device: Path, tool: str) -> None:
    target = attach(host, 2, OTHER, 2 * SIZE)
    device.write_bytes(expected())

    (result,) = host.run(CopyVolume(WWID, OTHER, False, tool))

    assert isinstance(result, Copied)
    assert (result.size, result.data) == (SIZE, SIZE)
    assert target.read_bytes() == expected() + bytes(SIZE)
    with pytest.raises(CapacityError):
        host.run(CopyVolume(OTHER, WWID, False, tool))
    with pytest.raises(RequestError):
        host.run(CopyVolume(WWID, WWID, False, tool))


@pytest.mark.parametrize(
    ("kind", "offset", "magic"), [("ext4", 1080, b"\x53\xef"), ("swap", 4086, b"SWAPSPACE2")]
)
def test_a_file_system_replaces_what_was_there_without_asking(
    host: FakeHost, device: Path, kind: str, offset: int, magic: bytes
) -> None:
    host.run(MakeFilesystem(WWID, kind, "data"), MakeFilesystem(WWID, kind))

    assert device.read_bytes()[offset : offset + len(magic)] == magic


@pytest.mark.parametrize("kind", ["../../bin/sh", "ext4 -h", "", "EXT4", "ext4;id"])
def test_what_is_no_kind_of_file_system_is_refused(host: FakeHost, device: Path, kind: str) -> None:
    with pytest.raises(RequestError):
        host.run(MakeFilesystem(WWID, kind))


@pytest.mark.parametrize("format_", ["raw", "qcow2"])
@pytest.mark.parametrize("kind", ["", "ext4", "swap"])
def test_an_image_file_is_made_whole(host: FakeHost, tmp_path: Path, format_: str, kind: str) -> None:
    path = tmp_path / "new folder/disk.1"

    host.run(MakeImageFile(str(path), SIZE, format_, kind), MakeImageFile(str(path), SIZE, format_, kind))

    assert [path.name for path in path.parent.iterdir()] == ["disk.1"]
    raw = tmp_path / "raw"
    qemu_img("convert", "-f", format_, "-O", "raw", path, raw)
    content = raw.read_bytes()
    assert len(content) == SIZE
    assert {
        "": not any(content),
        "ext4": content[1080:1082] == b"\x53\xef",
        "swap": b"SWAPSPACE2" in content,
    }[kind]
