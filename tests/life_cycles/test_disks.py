# SPDX-License-Identifier: Apache-2.0
"""Disks that come and go while their VM stays: attach, detach, save as an image."""

from __future__ import annotations

import os

import pytest

from tests.life_cycles.cloud import MIB, PROGRAMS, V7000_ONLY, Cloud

pytestmark = pytest.mark.real(*PROGRAMS)

CONTENT = os.urandom(4 * MIB)
PATTERN = os.urandom(65536)


@pytest.mark.parametrize("state", ["RUNNING", "POWEROFF"])
def test_disks_are_attached_and_detached(cloud: Cloud, state: str) -> None:
    image, data = cloud.filled(CONTENT), cloud.image(PERSISTENT="YES")
    vm = cloud.run(f'IMAGE_ID="{image}"')
    if state == "POWEROFF":
        cloud.act(vm, "poweroff-hard", "POWEROFF")
    kept, clone, images = f"one-{image}-{vm}-0", f"one-{image}-{vm}-1", {f"one-{image}", f"one-{data}"}

    cloud.attach(vm, f'IMAGE_ID="{image}"', state)
    cloud.assert_array(images | {kept, clone}, {kept: "node1", clone: "node1"})
    cloud.assert_linked(vm, 1, clone)
    cloud.write(vm, 1, PATTERN)
    cloud.detach(vm, 1, state)
    cloud.assert_array(images | {kept}, {kept: "node1"})

    cloud.attach(vm, f'IMAGE_ID="{data}"', state)
    cloud.assert_array(images | {kept}, {kept: "node1", f"one-{data}": "node1"})
    cloud.assert_linked(vm, 1, f"one-{data}")
    cloud.write(vm, 1, PATTERN, MIB)
    cloud.detach(vm, 1, state)
    cloud.assert_array(images | {kept}, {kept: "node1"})
    assert cloud.image_state(data) == "READY"
    assert cloud.stored(f"one-{data}", len(PATTERN), MIB) == PATTERN

    cloud.attach(vm, 'TYPE="fs",SIZE="8",FORMAT="raw"', state)
    assert cloud.link(vm, 1).stat().st_size == 8 * MIB
    cloud.detach(vm, 1, state)

    assert cloud.read(vm, 0, len(CONTENT)) == CONTENT == cloud.stored(f"one-{image}")
    cloud.act(vm, "terminate-hard" if state == "RUNNING" else "terminate", "DONE")
    cloud.delete(image, data)


def test_a_hypervisor_that_takes_no_disk_leaves_nothing_attached(cloud: Cloud) -> None:
    image, data = cloud.filled(CONTENT), cloud.image(PERSISTENT="YES")
    vm = cloud.run(f'IMAGE_ID="{image}"')
    kept, images = f"one-{image}-{vm}-0", {f"one-{image}", f"one-{data}"}
    cloud.write(vm, 0, PATTERN)
    for disk in (image, data):
        cloud.oned.hypervisor.fail("attach_disk", "attach_disk: no more PCI slots")
        cloud.attach(vm, f'IMAGE_ID="{disk}"')
        assert "no more PCI slots" in cloud.vm_error(vm)
        cloud.assert_array(images | {kept}, {kept: "node1"})
        cloud.assert_copies({kept})
    assert cloud.read(vm, 0, len(PATTERN)) == PATTERN
    assert cloud.image_state(data) == "READY"
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.delete(image, data)


def test_an_attachment_that_the_box_refuses_leaves_nothing_mapped(cloud: Cloud) -> None:
    data = cloud.image(PERSISTENT="YES")
    vm = cloud.run('TYPE="fs",SIZE="8",FORMAT="raw"')
    cloud.array.refuse("map", times=None)
    cloud.attach(vm, f'IMAGE_ID="{data}"')
    assert f"one-{data}" in cloud.vm_error(vm)
    cloud.assert_array({f"one-{data}"})
    cloud.array.faults.clear()
    cloud.attach(vm, f'IMAGE_ID="{data}"')
    cloud.assert_array({f"one-{data}"}, {f"one-{data}": "node1"})
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.delete(data)


def test_a_detachment_that_fails_keeps_the_disk_and_can_be_repeated(cloud: Cloud) -> None:
    data = cloud.image(PERSISTENT="YES")
    vm = cloud.run(f'IMAGE_ID="{data}"')
    cloud.write(vm, 0, PATTERN)
    cloud.array.refuse("unmap", times=None)
    cloud.detach(vm, 0)
    assert f"one-{data}" in cloud.vm_error(vm)
    assert cloud.image_state(data) == "USED_PERS"
    cloud.array.faults.clear()
    cloud.detach(vm, 0)
    cloud.assert_array({f"one-{data}"})
    assert cloud.image_state(data) == "READY"
    assert cloud.stored(f"one-{data}", len(PATTERN)) == PATTERN
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.delete(data)


@pytest.mark.parametrize("cloud", [{"box": {"copy_speed": 100.0}}], indirect=True)
def test_a_disk_is_saved_as_an_image_with_what_is_on_it_then(cloud: Cloud) -> None:
    image, data = cloud.filled(CONTENT), cloud.filled(CONTENT[::-1], PERSISTENT="YES")
    vm = cloud.run(f'IMAGE_ID="{image}"', f'IMAGE_ID="{data}"')
    clone = f"one-{image}-{vm}-0"
    saved: dict[int, bytes] = {}

    def save(disk: int, state: str) -> None:
        """Write to the disk, save it, and write to it again."""
        cloud.write(vm, disk, os.urandom(4096), MIB)
        content = cloud.read(vm, disk, len(CONTENT))
        number = cloud.save_as(vm, disk)
        assert cloud.image_state(number) == "READY", cloud.failures()
        cloud.expect(vm, state)
        cloud.write(vm, disk, os.urandom(4096), 2 * MIB)
        saved[number] = content

    for disk in (0, 1):
        save(disk, "RUNNING")
    for action, state in (("poweroff", "POWEROFF"), ("suspend", "SUSPENDED")):
        cloud.act(vm, action, state)
        save(0, state)
        cloud.act(vm, "resume", "RUNNING")
    cloud.assert_array(
        {f"one-{each}" for each in (image, data, *saved)} | {clone}, {clone: "node1", f"one-{data}": "node1"}
    )
    cloud.act(vm, "terminate-hard", "DONE")
    for number, content in saved.items():
        assert cloud.stored(f"one-{number}") == content
    assert cloud.stored(f"one-{image}") == CONTENT
    cloud.delete(image, data, *saved)


def test_a_disk_larger_than_its_image_is_saved_whole(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT)
    vm = cloud.run(f'IMAGE_ID="{image}",SIZE="8"')
    cloud.write(vm, 0, PATTERN, 6 * MIB)
    saved = cloud.save_as(vm, 0)
    assert cloud.image_state(saved) == "READY", cloud.failures()
    assert cloud.stored(f"one-{saved}") == CONTENT + bytes(2 * MIB) + PATTERN + bytes(2 * MIB - len(PATTERN))
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.delete(image, saved)


def test_saving_that_fails_leaves_an_image_to_delete_and_the_disk_in_use(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT)
    vm = cloud.run(f'IMAGE_ID="{image}"')
    cloud.array.refuse("copy", times=None)
    saved = cloud.save_as(vm, 0)
    assert cloud.image_state(saved) == "ERROR"
    cloud.array.faults.clear()
    clone = f"one-{image}-{vm}-0"
    cloud.assert_array({f"one-{image}", f"one-{saved}", clone}, {clone: "node1"})
    cloud.delete(saved)
    assert cloud.read(vm, 0, len(CONTENT)) == CONTENT
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.delete(image)


def test_a_clone_that_the_host_cannot_attach_is_removed(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT)
    vm = cloud.run(f'IMAGE_ID="{image}"')
    kept = f"one-{image}-{vm}-0"
    cloud.scene.hosts["node1"].crash()
    cloud.attach(vm, f'IMAGE_ID="{image}"')
    cloud.scene.hosts["node1"].boot()
    assert "cannot be reached" in cloud.vm_error(vm)
    assert cloud.volumes() == {f"one-{image}", kept}
    assert cloud.mappings() == {("node1", kept)}
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.delete(image)


@V7000_ONLY
@pytest.mark.parametrize(
    "cloud", [{"attributes": {"DELETE_WAIT": "0"}, "box": {"copy_speed": 0.01}}], indirect=True
)
def test_a_disk_is_new_although_one_of_its_name_waits_to_be_deleted(cloud: Cloud) -> None:
    """A number that a detached disk had is used again; its volume may still be the source of a copy."""
    image = cloud.filled(CONTENT)
    vm = cloud.run(f'IMAGE_ID="{image}"')
    cloud.attach(vm, f'IMAGE_ID="{image}"')
    cloud.write(vm, 1, PATTERN)
    saved = cloud.save_as(vm, 1)
    cloud.detach(vm, 1)
    old = f"one-{image}-{vm}-1"
    assert old in cloud.volumes()  # put off: the saved image is still being copied from it
    cloud.attach(vm, f'IMAGE_ID="{image}"')
    if ("node1", old) in cloud.mappings():
        assert cloud.read(vm, 1, len(PATTERN)) == CONTENT[: len(PATTERN)]
    else:
        assert "still being copied" in cloud.vm_error(vm)
    cloud.act(vm, "terminate-hard", "DONE")
    for volume in sorted(cloud.maps()):
        cloud.box.run(f"stopfcmap -force {volume}")
        cloud.box.run(f"rmfcmap -force {volume}")
    cloud.oned.monitor_datastore(cloud.san)
    cloud.assert_array({f"one-{image}", f"one-{saved}"})
    cloud.delete(image, saved)
