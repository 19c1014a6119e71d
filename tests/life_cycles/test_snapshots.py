# SPDX-License-Identifier: Apache-2.0
"""Disk snapshots: what a disk was at a moment comes back whole, and goes when its disk goes."""

from __future__ import annotations

import os

import pytest

from tests.life_cycles.cloud import MIB, PROGRAMS, V7000_ONLY, Cloud, RefusedError

pytestmark = pytest.mark.real(*PROGRAMS)

CONTENT = os.urandom(4 * MIB)
FIRST, SECOND, THIRD = (os.urandom(65536) for _ in range(3))
QUICK = {"box": {"copy_speed": 1000.0}}
SLOW = {"box": {"copy_speed": 0.001}}

quick = pytest.mark.parametrize("cloud", [QUICK], ids=[""], indirect=True)
slow = pytest.mark.parametrize("cloud", [SLOW], ids=[""], indirect=True)


def take(cloud: Cloud, vm: int, disk: int, state: str = "RUNNING") -> int:
    number = int(cloud.call("vm.disksnapshotcreate", vm, disk, "a moment"))
    cloud.expect(vm, state)
    assert not cloud.failures()
    return number


def revert(cloud: Cloud, vm: int, disk: int, number: int) -> None:
    cloud.call("vm.disksnapshotrevert", vm, disk, number)
    cloud.expect(vm, "POWEROFF")
    assert not cloud.failures()


def changed(content: bytes, piece: bytes, offset: int = 0) -> bytes:
    return content[:offset] + piece + content[offset + len(piece) :]


@quick
@pytest.mark.parametrize("is_persistent", [False, True], ids=["clone", "persistent"])
def test_a_disk_goes_back_to_what_it_was(cloud: Cloud, is_persistent: bool) -> None:
    image = cloud.filled(CONTENT, **({"PERSISTENT": "YES"} if is_persistent else {}))
    vm = cloud.run(f'IMAGE_ID="{image}"')
    volume = f"one-{image}" if is_persistent else f"one-{image}-{vm}-0"
    volumes = {f"one-{image}", volume}
    cloud.write(vm, 0, FIRST)
    assert take(cloud, vm, 0) == 0
    cloud.assert_array(volumes | {f"{volume}-s0"}, {volume: "node1"})
    cloud.write(vm, 0, SECOND)
    cloud.act(vm, "poweroff", "POWEROFF")
    assert take(cloud, vm, 0, "POWEROFF") == 1
    revert(cloud, vm, 0, 0)
    cloud.assert_array(volumes | {f"{volume}-s0", f"{volume}-s1"}, {volume: "node1"})
    cloud.assert_linked(vm, 0, volume)
    assert cloud.read(vm, 0, len(CONTENT)) == changed(CONTENT, FIRST)
    cloud.act(vm, "resume", "RUNNING")
    cloud.write(vm, 0, THIRD)
    cloud.act(vm, "poweroff", "POWEROFF")
    revert(cloud, vm, 0, 1)
    assert cloud.read(vm, 0, len(CONTENT)) == changed(CONTENT, SECOND)
    revert(cloud, vm, 0, 0)
    assert cloud.read(vm, 0, len(CONTENT)) == changed(CONTENT, FIRST)
    cloud.act(vm, "resume", "RUNNING")
    cloud.call("vm.disksnapshotdelete", vm, 0, 0)
    cloud.assert_array(volumes | {f"{volume}-s1"}, {volume: "node1"})
    assert cloud.read(vm, 0, len(CONTENT)) == changed(CONTENT, FIRST)
    cloud.act(vm, "terminate-hard", "DONE")
    if is_persistent:
        # its snapshots are the image's now
        cloud.assert_array({volume, f"{volume}-s1"})
        assert cloud.stored(volume) == changed(CONTENT, FIRST)
    else:
        cloud.assert_array({f"one-{image}"})
        assert cloud.stored(f"one-{image}") == CONTENT
    cloud.delete(image)


@quick
def test_the_snapshots_of_an_image_are_reverted_to_deleted_and_flattened(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT, PERSISTENT="YES")
    volume = f"one-{image}"
    vm = cloud.run(f'IMAGE_ID="{image}"')
    for piece in (FIRST, SECOND, THIRD):
        cloud.write(vm, 0, piece)
        take(cloud, vm, 0)
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.assert_array({volume, *(f"{volume}-s{number}" for number in range(3))})
    cloud.call("image.snapshotrevert", image, 1)
    assert cloud.stored(volume) == changed(CONTENT, SECOND)
    cloud.call("image.snapshotdelete", image, 1)
    cloud.assert_array({volume, f"{volume}-s0", f"{volume}-s2"})
    cloud.call("image.snapshotflatten", image, 0)
    assert cloud.image_error(image) == ""
    assert cloud.stored(volume) == changed(CONTENT, FIRST)
    sweep_until(cloud, {volume})
    cloud.delete(image)


def sweep(cloud: Cloud) -> None:
    """Monitor the datastore once, which deletes what was put off."""
    info = cloud.call("datastore.info", cloud.san)
    document = f"<DS_DRIVER_ACTION_DATA>{info}</DS_DRIVER_ACTION_DATA>"
    answer = cloud.drive("datastore", "monitor", str(cloud.san), stdin=document)
    assert answer.rc == 0, answer.stderr


def sweep_until(cloud: Cloud, volumes: set[str]) -> None:
    """Monitor until only these volumes are left."""
    for _ in range(100):
        if cloud.volumes() == volumes:
            break
        sweep(cloud)
    cloud.assert_array(volumes)


@quick
def test_a_disk_snapshot_is_saved_as_an_image(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT)
    vm = cloud.run(f'IMAGE_ID="{image}"')
    cloud.write(vm, 0, FIRST)
    number = take(cloud, vm, 0)
    cloud.write(vm, 0, SECOND)
    saved = int(cloud.call("vm.disksaveas", vm, 0, "saved", "", number))
    assert cloud.image_state(saved) == "READY", cloud.failures()
    assert cloud.stored(f"one-{saved}") == changed(CONTENT, FIRST)
    cloud.act(vm, "terminate-hard", "DONE")
    sweep_until(cloud, {f"one-{image}", f"one-{saved}"})
    cloud.delete(image, saved)


@quick
def test_recover_delete_takes_the_snapshots_of_a_clone_along_and_leaves_those_of_an_image(
    cloud: Cloud,
) -> None:
    image, data = cloud.filled(CONTENT), cloud.image(SIZE=4, PERSISTENT="YES")
    vm = cloud.run(f'IMAGE_ID="{image}"', f'IMAGE_ID="{data}"')
    take(cloud, vm, 0)
    take(cloud, vm, 1)
    cloud.recover(vm, "delete", "DONE")
    cloud.assert_array({f"one-{image}", f"one-{data}", f"one-{data}-s0"})
    assert cloud.image_state(data) == "ERROR"
    cloud.call("image.enable", data, True)
    cloud.delete(image, data)


@V7000_ONLY
@slow
def test_a_snapshot_from_which_a_copy_still_reads_goes_later(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT, PERSISTENT="YES")
    volume = f"one-{image}"
    vm = cloud.run(f'IMAGE_ID="{image}"')
    cloud.write(vm, 0, FIRST)
    take(cloud, vm, 0)
    cloud.write(vm, 0, SECOND)
    take(cloud, vm, 0)
    cloud.act(vm, "poweroff", "POWEROFF")
    revert(cloud, vm, 0, 0)
    assert cloud.maps() == {volume, f"{volume}-s0", f"{volume}-s1"}
    assert cloud.read(vm, 0, len(FIRST)) == FIRST
    # the snapshot is still being read: it goes later
    cloud.call("vm.disksnapshotdelete", vm, 0, 0)
    assert not cloud.failures()
    assert f"{volume}-s0" in cloud.volumes()
    cloud.box.run(f"chfcmap -copyrate 150 {volume}")
    cloud.act(vm, "terminate", "DONE")
    cloud.delete(image)
    sweep_until(cloud, set())


@V7000_ONLY
@slow
def test_a_disk_that_goes_while_it_is_being_reverted_is_deleted_when_that_is_over(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT, PERSISTENT="YES")
    volume = f"one-{image}"
    vm = cloud.run(f'IMAGE_ID="{image}"')
    take(cloud, vm, 0)
    cloud.write(vm, 0, SECOND)
    cloud.act(vm, "poweroff", "POWEROFF")
    revert(cloud, vm, 0, 0)
    cloud.act(vm, "terminate", "DONE")
    cloud.delete(image)
    cloud.assert_array({volume, f"{volume}-s0"})
    cloud.box.run(f"chfcmap -copyrate 150 {volume}")
    sweep_until(cloud, set())


@V7000_ONLY
@slow
def test_a_clone_that_is_still_a_snapshot_of_its_image_becomes_independent_before_it_goes_back(
    cloud: Cloud,
) -> None:
    image = cloud.filled(CONTENT[:MIB])
    vm = cloud.run(f'IMAGE_ID="{image}"')
    volume = f"one-{image}-{vm}-0"
    cloud.write(vm, 0, FIRST)
    take(cloud, vm, 0)
    cloud.write(vm, 0, SECOND)
    cloud.act(vm, "poweroff", "POWEROFF")
    revert(cloud, vm, 0, 0)
    assert cloud.read(vm, 0, MIB) == changed(CONTENT[:MIB], FIRST)
    sources = {(row["source_vdisk_name"], row["target_vdisk_name"]) for row in cloud.rows("lsfcmap")}
    assert sources == {(volume, f"{volume}-s0"), (f"{volume}-s0", volume)}
    cloud.box.run(f"chfcmap -copyrate 150 {volume}")
    cloud.act(vm, "terminate", "DONE")
    sweep_until(cloud, {f"one-{image}"})
    cloud.delete(image)


def test_a_volume_that_somebody_else_made_is_no_snapshot(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT, PERSISTENT="YES")
    vm = cloud.run(f'IMAGE_ID="{image}"')
    cloud.array.make_foreign(f"one-{image}-s0")
    cloud.call("vm.disksnapshotcreate", vm, 0, "a moment")
    cloud.expect(vm, "RUNNING")
    assert "one-0-s0 already" in cloud.vm_error(vm)
    path = f"node1:{cloud.link(vm, 0)}"
    deleted = cloud.drive("tm", "snap_delete", path, "0", str(vm), str(cloud.san))
    assert (deleted.rc, "left alone" in deleted.stderr) == (0, True)
    reverted = cloud.drive("tm", "snap_revert", path, "0", str(vm), str(cloud.san))
    assert (reverted.rc != 0, "no snapshot that this front-end made" in reverted.stderr) == (True, True)
    cloud.assert_array({f"one-{image}", f"one-{image}-s0"}, {f"one-{image}": "node1"})
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.array.remove(f"one-{image}-s0")
    cloud.delete(image)


def test_a_repeated_snapshot_is_of_the_moment_of_the_repetition(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT, PERSISTENT="YES")
    vm = cloud.run(f'IMAGE_ID="{image}"')
    take(cloud, vm, 0)
    cloud.write(vm, 0, FIRST)
    assert cloud.again(cloud.calls("snap_create_live")[-1]).rc == 0
    assert cloud.stored(f"one-{image}-s0") == changed(CONTENT, FIRST)
    assert cloud.again(cloud.calls("snap_create_live")[-1]).rc == 0
    cloud.assert_copies({f"one-{image}-s0"})
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.delete(image)


def test_a_disk_under_a_running_guest_is_not_reverted(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT, PERSISTENT="YES")
    vm = cloud.run(f'IMAGE_ID="{image}"')
    take(cloud, vm, 0)
    with pytest.raises(RefusedError):
        cloud.call("vm.disksnapshotrevert", vm, 0, 0)
    with cloud.link(vm, 0).open("rb") as held:
        answer = cloud.drive("tm", "snap_revert", f"node1:{cloud.link(vm, 0)}", "0", str(vm), str(cloud.san))
        assert held.read(1) == CONTENT[:1]
    assert (answer.rc != 0, "in use" in answer.stderr) == (True, True)
    cloud.assert_linked(vm, 0, f"one-{image}")
    cloud.assert_array({f"one-{image}", f"one-{image}-s0"}, {f"one-{image}": "node1"})
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.delete(image)


@quick
def test_a_revert_that_fails_leaves_the_disk_on_its_host_as_it_was(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT, PERSISTENT="YES")
    vm = cloud.run(f'IMAGE_ID="{image}"')
    take(cloud, vm, 0)
    cloud.write(vm, 0, FIRST)
    cloud.act(vm, "poweroff", "POWEROFF")
    cloud.array.refuse("copy", f"one-{image}", times=None)
    cloud.call("vm.disksnapshotrevert", vm, 0, 0)
    cloud.expect(vm, "POWEROFF")
    assert cloud.vm_error(vm)
    cloud.array.faults.clear()
    cloud.assert_linked(vm, 0, f"one-{image}")
    assert cloud.read(vm, 0, len(CONTENT)) == changed(CONTENT, FIRST)
    # when the disk cannot be brought back either, the repetition does so
    cloud.array.refuse("map", times=None)
    cloud.call("vm.disksnapshotrevert", vm, 0, 0)
    cloud.array.faults.clear()
    cloud.assert_array({f"one-{image}", f"one-{image}-s0"})
    cloud.call("vm.disksnapshotrevert", vm, 0, 0)
    cloud.expect(vm, "POWEROFF")
    cloud.assert_linked(vm, 0, f"one-{image}")
    assert cloud.read(vm, 0, len(CONTENT)) == CONTENT
    cloud.act(vm, "terminate", "DONE")
    cloud.delete(image)
    sweep_until(cloud, set())
