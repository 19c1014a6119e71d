# SPDX-License-Identifier: Apache-2.0
"""Disks grow on the array, on every path of their host and for their guest, with all that is on them."""

from __future__ import annotations

import os

import pytest

from tests.life_cycles.cloud import MIB, PROGRAMS, V7000_ONLY, Cloud

pytestmark = pytest.mark.real(*PROGRAMS)

CONTENT = os.urandom(4 * MIB)
PATTERN = os.urandom(65536)
OLD_BOX = {"box": {"copy_speed": 1000.0}}

quick = pytest.mark.parametrize("cloud", [OLD_BOX], ids=[""], indirect=True)


def grow(cloud: Cloud, vm: int, disk: int, size_mib: int, state: str = "RUNNING") -> None:
    cloud.call("vm.diskresize", vm, disk, str(size_mib))
    cloud.expect(vm, state)


def size(cloud: Cloud, vm: int, disk: int) -> int:
    """Tell how large the device is to which a disk's link leads."""
    with cloud.link(vm, disk).open("rb") as device:
        return device.seek(0, os.SEEK_END)


@quick
def test_disks_grow_under_a_running_guest_and_at_rest(cloud: Cloud) -> None:
    image, data = cloud.filled(CONTENT), cloud.filled(CONTENT, PERSISTENT="YES")
    vm = cloud.run(f'IMAGE_ID="{image}"', f'IMAGE_ID="{data}"')
    for disk, volume in ((0, f"one-{image}-{vm}-0"), (1, f"one-{data}")):
        grow(cloud, vm, disk, 8)
        assert not cloud.failures()
        assert cloud.array.path(volume).stat().st_size == 8 * MIB
        assert size(cloud, vm, disk) == 8 * MIB
        cloud.write(vm, disk, PATTERN, 6 * MIB)
        assert cloud.stored(volume) == CONTENT + bytes(2 * MIB) + PATTERN + bytes(2 * MIB - len(PATTERN))
        cloud.assert_linked(vm, disk, volume)
    # once more, as after a lost answer, and to less: all stays as it is
    for call in cloud.calls("resize"):
        assert cloud.again(call).rc == 0
        assert cloud.drive("tm", "resize", call.argv[0], "4", *call.argv[2:]).rc == 0
    assert size(cloud, vm, 0) == 8 * MIB
    cloud.act(vm, "poweroff", "POWEROFF")
    grow(cloud, vm, 1, 12, "POWEROFF")
    assert size(cloud, vm, 1) == 12 * MIB
    cloud.act(vm, "resume", "RUNNING")
    cloud.assert_array(
        {f"one-{image}", f"one-{data}", f"one-{image}-{vm}-0"},
        {f"one-{data}": "node1", f"one-{image}-{vm}-0": "node1"},
    )
    cloud.act(vm, "terminate-hard", "DONE")
    assert cloud.stored(f"one-{data}", 4 * MIB) == CONTENT
    assert cloud.stored(f"one-{image}") == CONTENT
    cloud.delete(image, data)


def test_volatile_disks_grow(cloud: Cloud) -> None:
    vm = cloud.run('TYPE="fs",SIZE="4",FORMAT="raw"', datastore=cloud.block_datastore())
    grow(cloud, vm, 0, 8)
    assert not cloud.failures()
    assert size(cloud, vm, 0) == 8 * MIB
    cloud.assert_array({f"one-sys-{vm}-0"}, {f"one-sys-{vm}-0": "node1"})
    file = cloud.run('TYPE="fs",SIZE="4",FORMAT="raw"')
    grow(cloud, file, 0, 8)
    assert not cloud.failures()
    assert cloud.link(file, 0).stat().st_size == 8 * MIB
    for each in (vm, file):
        cloud.act(each, "terminate-hard", "DONE")


def test_a_disk_that_cannot_grow_stays_as_it_was(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT, PERSISTENT="YES")
    vm = cloud.run(f'IMAGE_ID="{image}"')
    cloud.array.refuse("grow", f"one-{image}", times=None)
    grow(cloud, vm, 0, 8)
    assert cloud.vm_error(vm)
    assert size(cloud, vm, 0) == 4 * MIB
    cloud.array.faults.clear()
    grow(cloud, vm, 0, 8)
    assert size(cloud, vm, 0) == 8 * MIB
    assert cloud.read(vm, 0, len(CONTENT)) == CONTENT
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.delete(image)


@V7000_ONLY
@quick
def test_an_old_box_says_that_snapshots_are_in_the_way(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT, PERSISTENT="YES")
    vm = cloud.run(f'IMAGE_ID="{image}"')
    cloud.call("vm.disksnapshotcreate", vm, 0, "a moment")
    grow(cloud, vm, 0, 8)
    assert "CMMVC5837E" in cloud.failures()
    assert f"cannot grow while one-{image}-s0 depend" in cloud.vm_error(vm)
    cloud.call("vm.disksnapshotdelete", vm, 0, 0)
    grow(cloud, vm, 0, 8)
    assert size(cloud, vm, 0) == 8 * MIB
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.delete(image)


@V7000_ONLY
@pytest.mark.parametrize(
    "cloud", [{"box": {"copy_speed": 1000.0, "expand_in_fcmap": True}}], ids=[""], indirect=True
)
def test_a_disk_that_has_grown_since_its_snapshot_goes_back_all_the_same(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT, PERSISTENT="YES")
    vm = cloud.run(f'IMAGE_ID="{image}"')
    cloud.call("vm.disksnapshotcreate", vm, 0, "a moment")
    grow(cloud, vm, 0, 8)
    cloud.write(vm, 0, PATTERN)
    cloud.act(vm, "poweroff", "POWEROFF")
    cloud.call("vm.disksnapshotrevert", vm, 0, 0)
    assert not cloud.failures()
    assert cloud.read(vm, 0, len(CONTENT)) == CONTENT
    assert size(cloud, vm, 0) == 8 * MIB
    cloud.assert_array({f"one-{image}", f"one-{image}-s0"}, {f"one-{image}": "node1"})
    cloud.act(vm, "terminate", "DONE")
    cloud.delete(image)
