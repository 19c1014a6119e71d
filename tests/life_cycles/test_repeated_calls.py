# SPDX-License-Identifier: Apache-2.0
"""Every action twice: oned repeats whole scripts, and what is complete and in use must not be made again."""

from __future__ import annotations

import os

import pytest

from lab.oned import DriverCall
from tests.life_cycles.cloud import MIB, PROGRAMS, Cloud

pytestmark = pytest.mark.real(*PROGRAMS)

CONTENT = os.urandom(4 * MIB)
PATTERN = os.urandom(65536)


def repeat(cloud: Cloud, call: DriverCall) -> None:
    """Make a call that succeeded once more: the same answer, and the box and the hosts as they were."""
    before = (cloud.volumes(), cloud.maps(), cloud.mappings(), {v: cloud.wwid(v) for v in cloud.volumes()})
    answer = cloud.again(call)
    assert (answer.rc, answer.stdout) == (0, call.stdout), answer.stderr
    after = (cloud.volumes(), cloud.maps(), cloud.mappings(), {v: cloud.wwid(v) for v in cloud.volumes()})
    assert after == before


def change(cloud: Cloud, volume: str) -> bytes:
    """Write to a volume as somebody does who uses it; return all of its bytes."""
    with cloud.array.path(volume).open("r+b") as file:
        file.seek(MIB)
        file.write(os.urandom(4096))
    return cloud.stored(volume)


@pytest.mark.parametrize("cloud", [{"box": {"copy_speed": 100.0}}], indirect=True)
def test_image_actions_repeated_change_nothing(cloud: Cloud) -> None:
    imported = cloud.imported(CONTENT)
    made = cloud.image(SIZE=8, FS="ext4")
    cloned = int(cloud.call("image.clone", imported, "clone", -1))
    for image, action in ((imported, "cp"), (made, "mkfs"), (cloned, "clone")):
        expected = change(cloud, f"one-{image}")
        repeat(cloud, cloud.calls(action)[-1])
        assert cloud.stored(f"one-{image}") == expected, action
    repeat(cloud, cloud.calls("stat")[-1])
    cloud.assert_array({f"one-{image}" for image in (imported, made, cloned)})
    cloud.delete(cloned, made, imported)
    for call in cloud.calls("rm"):
        repeat(cloud, call)


def test_disk_actions_repeated_change_nothing(cloud: Cloud) -> None:
    image, data = cloud.filled(CONTENT), cloud.image(PERSISTENT="YES")
    vm = cloud.run(f'IMAGE_ID="{image}"', f'IMAGE_ID="{data}"', 'TYPE="swap",SIZE="8"', context=True)
    clone = f"one-{image}-{vm}-0"
    for disk in (0, 1):
        cloud.write(vm, disk, PATTERN, MIB)
    for action in ("clone", "ln", "context"):
        repeat(cloud, cloud.calls(action)[-1])
    for disk in (0, 1):
        assert cloud.read(vm, disk, len(PATTERN), MIB) == PATTERN
    cloud.assert_array({f"one-{image}", f"one-{data}", clone}, {clone: "node1", f"one-{data}": "node1"})

    cloud.migrate(vm, "node2")
    for call in cloud.calls("mv"):
        repeat(cloud, call)
    cloud.assert_array({f"one-{image}", f"one-{data}", clone}, {clone: "node2", f"one-{data}": "node2"})
    assert cloud.read(vm, 0, len(PATTERN), MIB) == PATTERN

    cloud.act(vm, "terminate-hard", "DONE")
    for call in (*cloud.calls("mvds"), *cloud.calls("delete")):
        repeat(cloud, call)
    cloud.assert_array({f"one-{image}", f"one-{data}"})
    assert cloud.stored(f"one-{data}", len(PATTERN), MIB) == PATTERN
    assert cloud.stored(f"one-{image}") == CONTENT
    cloud.delete(image, data)


def test_a_disk_larger_than_its_image_is_not_copied_again(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT)
    vm = cloud.run(f'IMAGE_ID="{image}",SIZE="8"')
    cloud.write(vm, 0, PATTERN)
    cloud.write(vm, 0, PATTERN, 6 * MIB)
    repeat(cloud, cloud.calls("clone")[-1])
    assert cloud.read(vm, 0, len(PATTERN)) == PATTERN
    assert cloud.read(vm, 0, len(PATTERN), 6 * MIB) == PATTERN
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.delete(image)


def test_volatile_volumes_are_not_formatted_again(cloud: Cloud) -> None:
    block = cloud.block_datastore()
    vm = cloud.run('TYPE="fs",SIZE="8",FORMAT="raw"', 'TYPE="swap",SIZE="8"', datastore=block)
    for disk in (0, 1):
        cloud.write(vm, disk, PATTERN)
    repeat(cloud, cloud.calls("mkimage")[-1])
    repeat(cloud, cloud.calls("mkswap")[-1])
    for disk in (0, 1):
        assert cloud.read(vm, disk, len(PATTERN)) == PATTERN
    cloud.act(vm, "terminate-hard", "DONE")
