# SPDX-License-Identifier: Apache-2.0
"""Images for marketplaces: what OpenNebula's downloader is sent to is the image, and goes away again."""

from __future__ import annotations

import hashlib
import random
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.life_cycles.cloud import MIB, PROGRAMS, Cloud

pytestmark = pytest.mark.real(*PROGRAMS)

CONTENT = random.Random(1).randbytes(2 * MIB) + bytes(2 * MIB)


def export(cloud: Cloud, image: int, code: int = 0) -> dict[str, str]:
    """Ask as one_market does; give what the driver tells."""
    documents = cloud.call("image.info", image) + cloud.call("datastore.info", cloud.san)
    action = f"<DS_DRIVER_ACTION_DATA>{documents}</DS_DRIVER_ACTION_DATA>"
    answer = cloud.drive("datastore", "export", "7", stdin=action)
    assert answer.rc == code or (code and answer.rc), answer.stderr
    if answer.rc:
        return {"error": answer.stderr}
    return {each.tag: each.text or "" for each in ElementTree.fromstring(answer.stdout)}


def file_of(told: dict[str, str]) -> Path:
    """Where the file is: all hosts of the lab see the same files."""
    return Path("/" + told["IMPORT_SOURCE"].removeprefix("ssh://").partition("/")[2])


def test_an_exported_image_is_the_image(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT)

    told = export(cloud, image)

    file = file_of(told)
    assert told["IMPORT_SOURCE"].startswith(("ssh://node1:", "ssh://node2:"))
    assert told["MD5"] == hashlib.md5(file.read_bytes()).hexdigest()
    assert (told["SIZE"], told["FORMAT"], told["DISPOSE"]) == ("4", "qcow2", "YES")
    raw = cloud.files / "raw"
    command = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(file), str(raw)]
    subprocess.run(command, check=True, timeout=30)
    assert raw.read_bytes() == CONTENT
    assert file.stat().st_size < 3 * MIB
    assert told["DISPOSE_CMD"].split()[-3:] == ["rm", "-f", str(file)]
    cloud.assert_array({f"one-{image}"})
    file.unlink()
    cloud.delete(image)


def test_an_exported_image_can_be_imported_again(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT)
    file = file_of(export(cloud, image)).rename(cloud.files / "from-the-market.qcow2")

    again = cloud.image(PATH=file)

    assert cloud.stored(f"one-{again}") == CONTENT
    cloud.delete(image, again)


def test_an_image_that_is_gone_is_not_exported(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT)
    documents = cloud.call("image.info", image) + cloud.call("datastore.info", cloud.san)
    cloud.delete(image)

    action = f"<DS_DRIVER_ACTION_DATA>{documents}</DS_DRIVER_ACTION_DATA>"
    answer = cloud.drive("datastore", "export", "7", stdin=action)

    assert answer.rc != 0
    assert f"Volume one-{image} is not on" in answer.stderr
    assert answer.stdout == ""


def test_a_failed_export_leaves_nothing_behind(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT)
    for host in cloud.scene.hosts.values():
        program = host.root / "bin" / "qemu-img"
        program.write_text("#!/bin/sh\necho 'No space left on device' >&2\nexit 1\n")
        program.chmod(0o755)

    told = export(cloud, image, code=1)

    assert "No space left" in told["error"]
    cloud.assert_array({f"one-{image}"})
    assert list((cloud.directory / "staging").iterdir()) == []
    cloud.delete(image)
