# SPDX-License-Identifier: Apache-2.0
"""The life of VMs: their disks follow them through every state, and nothing of them stays behind."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest

from tests.life_cycles.cloud import MIB, PROGRAMS, V7000_ONLY, Cloud

pytestmark = pytest.mark.real(*PROGRAMS)

CONTENT = os.urandom(4 * MIB)
PATTERN = os.urandom(65536)


@dataclass(frozen=True)
class Images:
    os: int
    data: int
    cdrom: int

    @property
    def volumes(self) -> set[str]:
        return {f"one-{image}" for image in (self.os, self.data, self.cdrom)}

    def disks(self) -> tuple[str, ...]:
        """As in the recorded life cycles: clone, persistent, fs, swap, CD-ROM."""
        return (
            f'IMAGE_ID="{self.os}"',
            f'IMAGE_ID="{self.data}"',
            'TYPE="fs",SIZE="8",FORMAT="raw",FS="ext4",TARGET="vdk"',
            'TYPE="swap",SIZE="8",TARGET="vdl"',
            f'IMAGE_ID="{self.cdrom}"',
        )


def cdrom_of(cloud: Cloud, content: bytes) -> int:
    image = cloud.filled(content)
    cloud.call("image.chtype", image, "CDROM")
    return image


@pytest.fixture
def images(cloud: Cloud) -> Images:
    return Images(
        cloud.filled(CONTENT),
        cloud.image(SIZE=4, PERSISTENT="YES"),
        cdrom_of(cloud, CONTENT[:MIB]),
    )


def assert_running_on(cloud: Cloud, images: Images, vm: int, host: str) -> None:
    clone = f"one-{images.os}-{vm}-0"
    cloud.assert_array(
        images.volumes | {clone}, {clone: host, f"one-{images.data}": host, f"one-{images.cdrom}": host}
    )
    cloud.assert_copies({clone})
    for disk, volume in ((0, clone), (1, f"one-{images.data}"), (4, f"one-{images.cdrom}")):
        cloud.assert_linked(vm, disk, volume, host)
    assert cloud.read(vm, 4, MIB) == CONTENT[:MIB]


def assert_ended(cloud: Cloud, images: Images) -> None:
    """Only the images are left, as they were; what was written to the persistent one is there."""
    cloud.assert_array(images.volumes)
    assert cloud.maps() == set()
    assert cloud.stored(f"one-{images.os}") == CONTENT
    assert cloud.stored(f"one-{images.data}", len(PATTERN), MIB) == PATTERN
    assert {cloud.image_state(each) for each in (images.os, images.data, images.cdrom)} == {"READY"}
    cloud.delete(images.os, images.data, images.cdrom)


def write_all(cloud: Cloud, images: Images, vm: int) -> None:
    """Write to both disks; the clone changes, its image does not."""
    cloud.write(vm, 0, PATTERN, MIB)
    cloud.write(vm, 1, PATTERN, MIB)
    assert cloud.stored(f"one-{images.os}-{vm}-0", len(PATTERN), MIB) == PATTERN
    assert cloud.stored(f"one-{images.os}") == CONTENT
    assert_written(cloud, vm)


def assert_written(cloud: Cloud, vm: int) -> None:
    """The clone has what was written, around it what its image has."""
    assert cloud.read(vm, 0, len(CONTENT)) == CONTENT[:MIB] + PATTERN + CONTENT[MIB + len(PATTERN) :]
    assert cloud.read(vm, 1, len(PATTERN), MIB) == PATTERN


def test_a_vm_with_every_kind_of_disk_lives_moves_and_ends(cloud: Cloud, images: Images) -> None:
    vm = cloud.run(*images.disks(), context=True)
    assert_running_on(cloud, images, vm, "node1")
    assert cloud.image_state(images.data) == "USED_PERS"
    assert cloud.link(vm, 2).stat().st_size == 8 * MIB
    assert b"SWAPSPACE2" in cloud.link(vm, 3).read_bytes()[:4096]
    assert b"CONTEXT" in cloud.link(vm, 5).read_bytes()
    write_all(cloud, images, vm)

    cloud.act(vm, "poweroff", "POWEROFF")
    cloud.act(vm, "resume", "RUNNING")
    cloud.act(vm, "suspend", "SUSPENDED")
    cloud.act(vm, "resume", "RUNNING")
    cloud.act(vm, "reboot", "RUNNING")
    assert_running_on(cloud, images, vm, "node1")

    cloud.migrate(vm, "node2", kind=0)
    assert_running_on(cloud, images, vm, "node2")
    assert_written(cloud, vm)
    cloud.act(vm, "terminate-hard", "DONE")
    assert_ended(cloud, images)


def test_disks_of_a_vm_that_leaves_its_host_are_mapped_to_nobody_and_come_back_elsewhere(
    cloud: Cloud, images: Images
) -> None:
    vm = cloud.run(*images.disks()[:2], images.disks()[4])
    clone = f"one-{images.os}-{vm}-0"
    write_all(cloud, images, vm)
    for leave, state, host in (("stop", "STOPPED", "node2"), ("undeploy", "UNDEPLOYED", "node1")):
        cloud.act(vm, leave, state)
        cloud.assert_array(images.volumes | {clone})
        cloud.call("vm.action", "resume", vm)
        cloud.deploy(vm, host)
        cloud.assert_array(
            images.volumes | {clone},
            {clone: host, f"one-{images.data}": host, f"one-{images.cdrom}": host},
        )
        cloud.assert_linked(vm, 0, clone, host)
        cloud.assert_linked(vm, 1, f"one-{images.data}", host)
        assert_written(cloud, vm)
    cloud.act(vm, "undeploy-hard", "UNDEPLOYED")
    cloud.assert_array(images.volumes | {clone})
    cloud.act(vm, "terminate", "DONE")
    assert_ended(cloud, images)


def test_a_suspended_vm_can_be_stopped_and_a_stopped_one_terminated(cloud: Cloud, images: Images) -> None:
    vm = cloud.run(*images.disks()[:2])
    cloud.write(vm, 1, PATTERN, MIB)
    cloud.act(vm, "suspend", "SUSPENDED")
    cloud.act(vm, "stop", "STOPPED")
    cloud.assert_array(images.volumes | {f"one-{images.os}-{vm}-0"})
    cloud.act(vm, "terminate", "DONE")
    assert_ended(cloud, images)


def test_migrations_by_power_off_and_while_powered_off_take_the_disks_along(
    cloud: Cloud, images: Images
) -> None:
    vm = cloud.run(*images.disks()[:2])
    clone = f"one-{images.os}-{vm}-0"
    write_all(cloud, images, vm)
    for host, kind, state in (("node2", 1, "RUNNING"), ("node1", 2, "RUNNING"), ("node2", 0, "POWEROFF")):
        if state == "POWEROFF":
            cloud.act(vm, "poweroff-hard", "POWEROFF")
        cloud.migrate(vm, host, kind=kind, state=state)
        cloud.assert_array(images.volumes | {clone}, {clone: host, f"one-{images.data}": host})
        cloud.assert_linked(vm, 0, clone, host)
        cloud.assert_linked(vm, 1, f"one-{images.data}", host)
        assert_written(cloud, vm)
    cloud.act(vm, "terminate", "DONE")
    assert_ended(cloud, images)


def test_a_migration_to_another_system_datastore_takes_the_disks_along(cloud: Cloud, images: Images) -> None:
    other = cloud.system_datastore("system 2")
    vm = cloud.run(*images.disks()[:3])
    clone = f"one-{images.os}-{vm}-0"
    write_all(cloud, images, vm)
    # the second time to the same host: only the directory changes
    for host, datastore in (("node2", other), ("node2", cloud.system)):
        cloud.migrate(vm, host, datastore=datastore)
        cloud.assert_array(images.volumes | {clone}, {clone: host, f"one-{images.data}": host})
        cloud.assert_linked(vm, 0, clone, host)
        cloud.assert_linked(vm, 1, f"one-{images.data}", host)
        assert cloud.link(vm, 2).is_relative_to(cloud.directory / "datastores" / str(datastore))
        assert_written(cloud, vm)
    cloud.act(vm, "terminate-hard", "DONE")
    assert_ended(cloud, images)


def test_a_cdrom_may_be_on_two_hosts_and_twice_on_one(cloud: Cloud) -> None:
    cdrom = cdrom_of(cloud, CONTENT)
    disk, volume = f'IMAGE_ID="{cdrom}"', f"one-{cdrom}"
    first, second, third = (cloud.run(disk, host=host) for host in ("node1", "node2", "node1"))
    cloud.assert_array({volume}, {volume: {"node1", "node2"}})
    cloud.act(first, "terminate", "DONE")
    cloud.assert_array({volume}, {volume: {"node1", "node2"}})
    assert cloud.read(third, 0, len(CONTENT)) == CONTENT
    cloud.act(third, "terminate", "DONE")
    cloud.assert_array({volume}, {volume: "node2"})
    assert cloud.read(second, 0, len(CONTENT)) == CONTENT
    cloud.act(second, "terminate", "DONE")
    cloud.delete(cdrom)


def test_two_disks_of_one_image_are_two_volumes(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT)
    disk = f'IMAGE_ID="{image}"'
    vm = cloud.run(disk, disk)
    cloud.write(vm, 0, PATTERN)
    cloud.write(vm, 1, PATTERN[::-1])
    assert cloud.stored(f"one-{image}-{vm}-0", len(PATTERN)) == PATTERN
    assert cloud.stored(f"one-{image}-{vm}-1", len(PATTERN)) == PATTERN[::-1]
    assert cloud.stored(f"one-{image}") == CONTENT
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.assert_array({f"one-{image}"})
    cloud.delete(image)


def test_volatile_disks_are_volumes_where_the_system_datastore_says_block(cloud: Cloud) -> None:
    block = cloud.block_datastore()
    vm = cloud.run('TYPE="fs",SIZE="8",FORMAT="raw"', 'TYPE="swap",SIZE="8"', datastore=block, context=True)
    own = {f"one-sys-{vm}-0", f"one-sys-{vm}-1"}
    cloud.assert_array(own, dict.fromkeys(own, "node1"))
    assert b"SWAPSPACE2" in cloud.stored(f"one-sys-{vm}-1", 4096)
    assert not cloud.link(vm, 2).is_symlink()
    cloud.write(vm, 0, PATTERN)
    cloud.migrate(vm, "node2")
    cloud.assert_array(own, dict.fromkeys(own, "node2"))
    assert cloud.read(vm, 0, len(PATTERN)) == PATTERN
    cloud.act(vm, "undeploy", "UNDEPLOYED")
    cloud.assert_array(own)
    cloud.call("vm.action", "resume", vm)
    cloud.deploy(vm, "node1", block)
    assert cloud.read(vm, 0, len(PATTERN)) == PATTERN
    cloud.act(vm, "terminate-hard", "DONE")


@V7000_ONLY
def test_clones_of_a_datastore_without_snapshots_become_independent(cloud: Cloud) -> None:
    clones = cloud.datastore("clones", SNAPSHOT="0", COPYRATE="100")
    image = cloud.filled(CONTENT, datastore=clones)
    vm = cloud.run(f'IMAGE_ID="{image}"')
    clone = f"one-{image}-{vm}-0"
    cloud.assert_array({f"one-{image}", clone}, {clone: "node1"})
    cloud.write(vm, 0, PATTERN, MIB)
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.assert_array({f"one-{image}"})
    assert cloud.stored(f"one-{image}") == CONTENT
    cloud.delete(image)


@pytest.mark.parametrize(
    "cloud",
    [{}, {"box": {"expand_in_fcmap": True}}],
    ids=["the host copies", "the box expands"],
    indirect=True,
)
def test_a_disk_may_be_larger_than_its_image(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT)
    vm = cloud.run(f'IMAGE_ID="{image}",SIZE="16"')
    clone = f"one-{image}-{vm}-0"
    cloud.assert_array({f"one-{image}", clone}, {clone: "node1"})
    assert cloud.stored(clone) == CONTENT + bytes(12 * MIB)
    cloud.assert_linked(vm, 0, clone)
    cloud.write(vm, 0, PATTERN, 10 * MIB)
    assert cloud.stored(clone, len(PATTERN), 10 * MIB) == PATTERN
    assert cloud.stored(f"one-{image}") == CONTENT
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.assert_array({f"one-{image}"})
    cloud.delete(image)


# recover


def failed_deployment(cloud: Cloud, images: Images) -> int:
    """The second disk is refused by the array, so that the first is there and mapped."""
    cloud.array.refuse("map", f"one-{images.data}")
    vm = cloud.make_vm(*images.disks()[:2])
    cloud.deploy(vm, state="PROLOG_FAILURE")
    cloud.array.faults.clear()
    clone = f"one-{images.os}-{vm}-0"
    cloud.assert_array(images.volumes | {clone}, {clone: "node1"})
    return vm


def test_recover_retry_goes_on_where_deployment_migration_or_termination_failed(
    cloud: Cloud, images: Images
) -> None:
    vm = failed_deployment(cloud, images)
    clone = f"one-{images.os}-{vm}-0"
    made = cloud.wwid(clone)
    cloud.recover(vm, "retry", "RUNNING")
    assert cloud.wwid(clone) == made
    cloud.assert_array(images.volumes | {clone}, {clone: "node1", f"one-{images.data}": "node1"})
    write_all(cloud, images, vm)

    cloud.array.refuse("map", host="node2", skip=1)
    cloud.migrate(vm, "node2", state="PROLOG_MIGRATE_FAILURE")
    cloud.recover(vm, "retry", "RUNNING")
    cloud.assert_array(images.volumes | {clone}, {clone: "node2", f"one-{images.data}": "node2"})
    assert_written(cloud, vm)

    cloud.array.refuse("delete")
    cloud.act(vm, "terminate-hard", "EPILOG_FAILURE")
    cloud.recover(vm, "retry", "DONE")
    assert_ended(cloud, images)


def test_recover_success_in_a_failed_deployment_leaves_nothing_in_the_end(
    cloud: Cloud, images: Images
) -> None:
    vm = failed_deployment(cloud, images)
    cloud.recover(vm, "success", "RUNNING")
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.assert_array(images.volumes)
    cloud.delete(images.os, images.data, images.cdrom)


def test_recover_delete_removes_clones_and_only_detaches_images(cloud: Cloud, images: Images) -> None:
    vm = cloud.run(*images.disks()[:2], images.disks()[4], context=True)
    write_all(cloud, images, vm)
    cloud.recover(vm, "delete-recreate", "PENDING")
    cloud.assert_array(images.volumes)
    assert cloud.maps() == set()
    assert cloud.stored(f"one-{images.data}", len(PATTERN), MIB) == PATTERN
    cloud.deploy(vm, "node2")
    assert cloud.read(vm, 0, len(CONTENT)) == CONTENT
    assert cloud.read(vm, 1, len(PATTERN), MIB) == PATTERN
    cloud.recover(vm, "delete", "DONE")
    assert cloud.image_state(images.data) == "ERROR"
    cloud.call("image.enable", images.data, True)
    assert_ended(cloud, images)


def test_recover_delete_cleans_up_after_a_failed_deployment(cloud: Cloud, images: Images) -> None:
    vm = failed_deployment(cloud, images)
    cloud.recover(vm, "delete", "DONE")
    cloud.assert_array(images.volumes)
    cloud.call("image.enable", images.data, True)
    cloud.delete(images.os, images.data, images.cdrom)


def test_recover_delete_db_calls_nobody_and_the_volumes_stay(cloud: Cloud, images: Images) -> None:
    vm = cloud.run(*images.disks()[:2])
    before = len(cloud.calls())
    cloud.recover(vm, "delete-db", "DONE")
    assert len(cloud.calls()) == before
    clone = f"one-{images.os}-{vm}-0"
    cloud.assert_array(images.volumes | {clone}, {clone: "node1", f"one-{images.data}": "node1"})
    # an administrator does by hand what oned would have asked for
    deleted = [
        cloud.drive("tm", "delete", f"node1:{cloud.link(vm, disk)}", str(vm), str(cloud.san))
        for disk in (0, 1)
    ]
    assert [answer.rc for answer in deleted] == [0, 0]
    cloud.assert_array(images.volumes)
    cloud.call("image.enable", images.data, True)
    cloud.delete(images.os, images.data, images.cdrom)
