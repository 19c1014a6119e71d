# SPDX-License-Identifier: Apache-2.0
"""One image on several disks, and one number for two VMs: nobody loses a disk, and nothing is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.life_cycles.cloud import MIB, PROGRAMS, Cloud

pytestmark = pytest.mark.real(*PROGRAMS, "ssh", "qemu-img")

CONTENT = os.urandom(MIB)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    with Cloud(tmp_path) as cloud:
        yield cloud
        cloud.oned.wait_idle(60)
        cloud.assert_nothing_left()


@pytest.fixture
def cdrom(cloud: Cloud) -> int:
    image = cloud.filled(CONTENT)
    cloud.call("image.chtype", image, "CDROM")
    return image


def hosts_of(cloud: Cloud, image: int) -> list[str]:
    stdout, _, _ = cloud.box.run(f"lsvdiskhostmap -nohdr -delim : one-{image}")
    return sorted(line.split(":")[4] for line in stdout.splitlines())


def link(cloud: Cloud, vm: int, disk: int) -> Path:
    return cloud.directory / "datastores" / str(cloud.system) / str(vm) / f"disk.{disk}"


def test_two_vms_that_go_at_once_leave_no_cdrom_behind(cloud: Cloud, cdrom: int) -> None:
    vms = [cloud.run(f'IMAGE_ID="{cdrom}"') for _ in range(2)]
    for vm in vms:
        cloud._proxy.one.vm.action(cloud.oned.session, "terminate", vm)
    cloud.oned.wait_idle(60)
    assert hosts_of(cloud, cdrom) == []
    cloud.delete(cdrom)


def test_a_vm_that_was_undeployed_keeps_no_cdrom_on_its_old_host(cloud: Cloud, cdrom: int) -> None:
    gone, here = (cloud.run(f'IMAGE_ID="{cdrom}"') for _ in range(2))
    cloud.act(gone, "undeploy", "UNDEPLOYED")
    assert hosts_of(cloud, cdrom) == ["node1"]
    assert link(cloud, here, 0).exists()
    cloud.act(here, "terminate", "DONE")
    assert hosts_of(cloud, cdrom) == []
    cloud.act(gone, "terminate", "DONE")
    cloud.delete(cdrom)


def test_a_cdrom_that_a_vm_has_twice_is_detached_once(cloud: Cloud, cdrom: int) -> None:
    vm = cloud.run(f'IMAGE_ID="{cdrom}"', f'IMAGE_ID="{cdrom}"')
    cloud.detach(vm, 1)
    assert hosts_of(cloud, cdrom) == ["node1"]
    assert link(cloud, vm, 0).exists()
    cloud.act(vm, "terminate", "DONE")
    assert hosts_of(cloud, cdrom) == []
    cloud.delete(cdrom)


def test_an_attach_that_fails_takes_no_cdrom_from_another_vm(cloud: Cloud, cdrom: int) -> None:
    off = cloud.run(f'IMAGE_ID="{cdrom}"')
    cloud.act(off, "poweroff", "POWEROFF")
    other = cloud.make_vm(f'IMAGE_ID="{cdrom}"')
    in_the_way = link(cloud, other, 0)
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where the link shall be")
    cloud.deploy(other, state="PROLOG_FAILURE")
    assert hosts_of(cloud, cdrom) == ["node1"]
    assert link(cloud, off, 0).exists()
    in_the_way.unlink()
    cloud.recover(other, "retry", "RUNNING")
    for vm in (other, off):
        cloud.act(vm, "terminate", "DONE")
    cloud.delete(cdrom)


def test_a_vm_that_is_made_anew_gets_no_disk_of_its_former_life(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT)
    vm = cloud.run(f'IMAGE_ID="{image}"')
    with cloud.box.volume_path(f"one-{image}-{vm}-0").open("r+b") as volume:
        volume.write(b"written by the guest")
    cloud.box.die()
    cloud.recover(vm, "delete-recreate", "PENDING")
    cloud.box.revive()
    cloud.deploy(vm)
    assert cloud.read(vm, 0, len(CONTENT)) == CONTENT
    cloud.recover(vm, "delete", "DONE")
    cloud.delete(image)
