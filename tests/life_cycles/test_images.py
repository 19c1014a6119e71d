# SPDX-License-Identifier: Apache-2.0
"""The life of images: made, imported, cloned, deleted; what oned says, what the array has, every byte."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from sanstone.names import volume_of_source
from tests.life_cycles.cloud import MIB, PROGRAMS, V7000_ONLY, Cloud, written_file

pytestmark = pytest.mark.real(*PROGRAMS)

CONTENT = os.urandom(3 * MIB + 512)


def padded(content: bytes) -> bytes:
    """A volume has whole MiB; what no image covers reads as zeros."""
    return content + bytes(-len(content) % MIB)


def test_an_imported_image_has_every_byte_and_goes_away_with_its_volume(cloud: Cloud) -> None:
    image = cloud.imported(CONTENT)
    assert volume_of_source(cloud.image_says(image, "SOURCE")) == f"one-{image}"
    assert cloud.image_says(image, "FORMAT") == "raw"
    assert cloud.image_says(image, "SIZE") == "4"
    cloud.assert_array({f"one-{image}"})
    assert cloud.stored(f"one-{image}") == padded(CONTENT)
    cloud.delete(image)


def test_an_image_larger_than_its_file_has_zeros_behind_it(cloud: Cloud) -> None:
    image = cloud.imported(CONTENT, SIZE=8)
    assert cloud.stored(f"one-{image}") == CONTENT + bytes(8 * MIB - len(CONTENT))
    cloud.delete(image)


def test_a_cdrom_is_imported_like_any_image(cloud: Cloud) -> None:
    image = cloud.imported(CONTENT, TYPE="CDROM")
    assert cloud.stored(f"one-{image}") == padded(CONTENT)
    cloud.delete(image)


def test_a_sparse_image_stays_sparse_on_the_array(cloud: Cloud) -> None:
    path = cloud.files / "sparse.raw"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(40 * MIB)
        file.write(CONTENT)
    image = cloud.image(PATH=path)
    volume = cloud.array.path(f"one-{image}")
    assert volume.read_bytes() == path.read_bytes()
    assert volume.stat().st_blocks * 512 < 16 * MIB
    cloud.delete(image)


def test_an_empty_datablock_is_a_volume_that_no_host_has_seen(cloud: Cloud) -> None:
    image = cloud.image(SIZE=16)
    cloud.assert_array({f"one-{image}"})
    assert all(host.ssh_connections == 0 for host in cloud.scene.hosts.values())
    assert not cloud.stored(f"one-{image}").strip(b"\0")
    cloud.delete(image)


@pytest.mark.parametrize(("fs", "kind"), [("ext4", "ext4"), ("swap", "swap")])
def test_a_datablock_gets_its_file_system(cloud: Cloud, fs: str, kind: str) -> None:
    image = cloud.image(SIZE=16, FS=fs)
    found = subprocess.run(
        ["blkid", "-p", "-o", "value", "-s", "TYPE", str(cloud.array.path(f"one-{image}"))],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    assert found.stdout.strip() == kind
    cloud.assert_array({f"one-{image}"})
    cloud.delete(image)


def test_a_clone_has_the_bytes_of_its_image_and_lives_on_without_it(cloud: Cloud) -> None:
    image = cloud.imported(CONTENT)
    clone = int(cloud.call("image.clone", image, "clone", -1))
    assert cloud.image_state(clone) == "READY"
    assert cloud.image_state(image) == "READY"
    cloud.assert_array({f"one-{image}", f"one-{clone}"})
    cloud.delete(image)
    assert cloud.stored(f"one-{clone}") == padded(CONTENT)
    cloud.delete(clone)


@V7000_ONLY
@pytest.mark.parametrize(
    "cloud", [{"box": {"pools": {"mdiskgrp0": 10 << 30, "other": 10 << 30}}}], indirect=True
)
def test_a_clone_in_another_datastore_is_in_the_pool_of_that(cloud: Cloud) -> None:
    other = cloud.datastore("other", MDISK_GROUP="other")
    image = cloud.imported(CONTENT)
    clone = int(cloud.call("image.clone", image, "clone", other))
    assert cloud.image_state(clone) == "READY", cloud.failures()
    pools = {row["name"]: row["mdisk_grp_name"] for row in cloud.rows("lsvdisk")}
    assert pools == {f"one-{image}": "mdiskgrp0", f"one-{clone}": "other"}
    assert cloud.stored(f"one-{clone}") == padded(CONTENT)
    cloud.delete(clone, image)


@pytest.mark.parametrize(
    "cloud", [{"further_boxes": ("v7000-b",), "further_targets": ("tgt2",)}], indirect=True
)
def test_a_clone_on_another_box_is_copied_through_a_bridge_host(cloud: Cloud) -> None:
    _, second = cloud.scene.arrays.values()
    other = cloud.datastore("other", **second.attributes())
    image = cloud.imported(CONTENT)
    clone = int(cloud.call("image.clone", image, "clone", other))
    assert cloud.image_state(clone) == "READY", cloud.failures()
    assert (cloud.volumes(), set(second.volumes())) == ({f"one-{image}"}, {f"one-{clone}"})
    assert (cloud.mappings(), second.mappings()) == (set(), set())
    assert cloud.stored(f"one-{clone}", array=second) == padded(CONTENT)
    assert all(host.leftovers(with_sessions=False) == [] for host in cloud.scene.hosts.values())
    cloud.delete(image)
    assert cloud.stored(f"one-{clone}", array=second) == padded(CONTENT)
    cloud.delete(clone)


def test_a_qcow2_image_arrives_as_the_disk_that_it_is(cloud: Cloud) -> None:
    raw = written_file(cloud.files / "disk.raw", CONTENT)
    qcow2 = cloud.files / "disk.qcow2"
    subprocess.run(
        ["qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", str(raw), str(qcow2)],
        timeout=30,
        check=True,
    )
    image = cloud.image(PATH=qcow2)
    assert cloud.image_says(image, "FORMAT") == "raw"
    assert cloud.stored(f"one-{image}") == padded(CONTENT)
    cloud.delete(image)


def test_a_qcow2_image_with_a_backing_file_is_refused(cloud: Cloud, tmp_path: Path) -> None:
    secret = written_file(tmp_path / "secret", b"nobody's business" * 1000)
    qcow2 = cloud.files / "disk.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(secret), str(qcow2)],
        timeout=30,
        check=True,
    )
    image = cloud.image(PATH=qcow2, SIZE=1, state="ERROR")
    assert "refers to another file" in cloud.image_error(image)
    cloud.assert_array(set())
    cloud.delete(image)


def test_an_image_that_failed_is_deleted_without_a_driver(cloud: Cloud) -> None:
    failed = cloud.image(PATH=cloud.files / "missing", SIZE=1, state="ERROR")
    assert "There is no image file" in cloud.image_error(failed)
    cloud.delete(failed)
    assert cloud.calls("rm") == []
    cloud.delete(cloud.imported(CONTENT))


def test_deleting_fails_while_the_box_is_dead_and_succeeds_afterwards(cloud: Cloud) -> None:
    image = cloud.image()
    cloud.array.die()
    cloud.call("image.delete", image)
    assert cloud.image_state(image) == "ERROR"
    cloud.array.revive()
    assert cloud.volumes() == {f"one-{image}"}
    cloud.delete(image)


def test_a_forced_deletion_that_fails_leaves_the_volume_to_the_administrator(cloud: Cloud) -> None:
    image = cloud.image()
    cloud.array.die()
    cloud.call("image.delete", image, True)
    assert cloud.image_state(image) == "GONE"
    cloud.array.revive()
    cloud.assert_array({f"one-{image}"})
    cloud.array.remove(f"one-{image}")
