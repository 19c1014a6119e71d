# SPDX-License-Identifier: Apache-2.0
"""Full, degraded, dead, busy, occupied: what happens is said, and nothing is left mapped or lost."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.life_cycles.cloud import MIB, PROGRAMS, V7000_ONLY, Cloud, written_file

pytestmark = pytest.mark.real(*PROGRAMS)

CONTENT = os.urandom(4 * MIB)
PATTERN = os.urandom(65536)
QUICK = {"CONNECT_TIMEOUT": "3", "COMMAND_TIMEOUT": "4", "SESSION_TIMEOUT": "3"}


def complaint(cloud: Cloud, action: str) -> str:
    """The line for people of the last call of an action, which failed."""
    call = cloud.calls(action)[-1]
    assert call.rc != 0
    (line,) = [each for each in call.stderr.splitlines() if not re.match(r"(ERROR|WARN|INFO|DEBUG): ", each)]
    return line


@contextmanager
def crashed(cloud: Cloud, name: str) -> Iterator[None]:
    """Have a host without power for a while."""
    host = cloud.scene.hosts[name]
    host.crash()
    try:
        yield
    finally:
        host.boot()


@V7000_ONLY
@pytest.mark.parametrize("cloud", [{"box": {"pools": {"mdiskgrp0": 512 * MIB}}}], indirect=True)
def test_a_full_pool_is_said_and_nothing_is_left_in_it(cloud: Cloud) -> None:
    thick = cloud.datastore("thick", THIN_PROVISION="0")
    too_large = cloud.image(SIZE=2048, datastore=thick, state="ERROR")
    assert "MiB free" in cloud.image_error(too_large)
    kept = cloud.image(SIZE=512, datastore=thick)
    imported = cloud.image(PATH=written_file(cloud.files / "disk.raw", CONTENT), state="ERROR")
    assert complaint(cloud, "cp")
    cloud.assert_array({f"one-{kept}"})
    cloud.delete(too_large, imported, kept)


@pytest.mark.parametrize("cloud", [{"settings": QUICK}], indirect=True)
def test_a_missing_path_is_said_and_missing_both_is_refused(cloud: Cloud) -> None:
    data = cloud.filled(CONTENT, PERSISTENT="YES")
    disk, volume = f'IMAGE_ID="{data}"', f"one-{data}"
    cloud.array.portal_down(1)
    vm = cloud.run(disk)
    (log,) = [line for line in cloud.calls("ln")[-1].stderr.splitlines() if "1 of 2 paths" in line]
    assert log.startswith("WARN: ")
    assert cloud.read(vm, 0, len(CONTENT)) == CONTENT
    assert cloud.mappings() == {("node1", volume)}
    cloud.act(vm, "terminate-hard", "DONE")
    assert cloud.mappings() == set()
    cloud.array.portal_up(1)
    cloud.delete(data)


@pytest.mark.parametrize("cloud", [{"settings": QUICK, "attributes": {"ATTACH_TIMEOUT": "8"}}], indirect=True)
def test_without_any_path_nothing_is_left_mapped(cloud: Cloud) -> None:
    data = cloud.filled(CONTENT, PERSISTENT="YES")
    for portal in (1, 2):
        cloud.array.portal_down(portal)
    vm = cloud.make_vm(f'IMAGE_ID="{data}"')
    cloud.deploy(vm, state="PROLOG_FAILURE")
    assert "node1" in complaint(cloud, "ln")
    cloud.assert_array({f"one-{data}"})
    for portal in (1, 2):
        cloud.array.portal_up(portal)
    cloud.recover(vm, "retry", "RUNNING")
    assert cloud.read(vm, 0, len(CONTENT)) == CONTENT
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.delete(data)


@pytest.mark.parametrize("cloud", [{"settings": QUICK}], indirect=True)
def test_a_dead_box_is_said_and_all_goes_on_when_it_is_back(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT)
    vm = cloud.run(f'IMAGE_ID="{image}"')
    cloud.act(vm, "undeploy-hard", "UNDEPLOYED")
    cloud.array.die()
    failed = cloud.image(state="ERROR")
    assert cloud.array.name in cloud.image_error(failed)
    cloud.act(vm, "terminate", "EPILOG_FAILURE")
    assert cloud.array.name in complaint(cloud, "delete")
    cloud.array.revive()
    cloud.recover(vm, "retry", "DONE")
    cloud.assert_array({f"one-{image}"})
    cloud.delete(failed, image)


@V7000_ONLY
@pytest.mark.parametrize("cloud", [{"settings": QUICK, "box": {"session_limit": 1}}], indirect=True)
def test_a_box_without_a_free_session_is_waited_for_and_then_said(cloud: Cloud) -> None:
    cloud.box.session_limit = 0
    failed = cloud.image(state="ERROR")
    assert "session" in cloud.image_error(failed)
    cloud.box.session_limit = 1
    image = cloud.image()
    cloud.delete(failed, image)


@pytest.mark.parametrize("cloud", [{"settings": QUICK}], indirect=True)
def test_the_next_bridge_host_takes_over(cloud: Cloud) -> None:
    first = cloud.image()  # image 0: the next one's turn is node2
    with crashed(cloud, "node2"):
        image = cloud.imported(CONTENT)
        call = cloud.calls("cp")[-1]
        assert "the next bridge host takes over" in call.stderr
        assert cloud.stored(f"one-{image}") == CONTENT
        cloud.assert_array({f"one-{first}", f"one-{image}"})
    with crashed(cloud, "node1"), crashed(cloud, "node2"):
        failed = cloud.image(PATH=cloud.files / "disk.raw", state="ERROR")
        assert "cannot be reached" in cloud.image_error(failed)
        assert cloud.volumes() == {f"one-{first}", f"one-{image}"}
    assert cloud.mappings() == set()
    cloud.delete(first, image, failed)


@pytest.mark.parametrize("cloud", [{"settings": QUICK}], indirect=True)
def test_disks_of_a_dead_host_are_unmapped_and_may_go_elsewhere(cloud: Cloud) -> None:
    image, data = cloud.filled(CONTENT), cloud.filled(CONTENT, PERSISTENT="YES")
    vm = cloud.run(f'IMAGE_ID="{image}"', f'IMAGE_ID="{data}"')
    cloud.write(vm, 1, PATTERN)
    with crashed(cloud, "node1"):
        cloud.recover(vm, "delete-recreate", "PENDING")
        assert (cloud.volumes(), cloud.mappings()) == ({f"one-{image}", f"one-{data}"}, set())
        assert "without the host's consent" in "".join(call.stderr for call in cloud.calls("delete"))
        cloud.deploy(vm, "node2")
        assert cloud.read(vm, 1, len(PATTERN)) == PATTERN
        assert cloud.read(vm, 0, len(CONTENT)) == CONTENT
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.assert_array({f"one-{image}", f"one-{data}"})
    cloud.delete(image, data)


@pytest.mark.parametrize("action", ["cp", "mkfs", "clone"])
def test_somebody_elses_volume_of_that_name_is_not_touched(cloud: Cloud, action: str) -> None:
    first = cloud.filled(CONTENT)
    foreign = f"one-{first + 1}"
    cloud.make_foreign(foreign)
    wwid = cloud.wwid(foreign)
    cloud.array.path(foreign).write_bytes(PATTERN)
    if action == "cp":
        image = cloud.image(PATH=written_file(cloud.files / "disk.raw", CONTENT), state="ERROR")
    elif action == "mkfs":
        image = cloud.image(SIZE=4, FS="ext4", state="ERROR")
    else:
        image = int(cloud.call("image.clone", first, "clone", -1))
    assert f"one-{image}" == foreign
    assert cloud.image_state(image) == "ERROR"
    assert "did not make" in cloud.image_error(image)
    cloud.delete(image)
    cloud.assert_array({f"one-{first}", foreign})
    assert (cloud.wwid(foreign), cloud.stored(foreign)[: len(PATTERN)]) == (wwid, PATTERN)
    cloud.array.remove(foreign)
    cloud.delete(first)


def test_somebody_elses_volume_is_neither_a_disk_nor_deleted_with_a_vm(cloud: Cloud) -> None:
    image = cloud.filled(CONTENT)
    foreign = f"one-{image}-0-0"
    cloud.make_foreign(foreign)
    cloud.array.path(foreign).write_bytes(PATTERN)
    vm = cloud.make_vm(f'IMAGE_ID="{image}"')
    cloud.deploy(vm, state="PROLOG_FAILURE")
    assert foreign in complaint(cloud, "clone")
    cloud.recover(vm, "delete", "DONE")
    cloud.assert_array({f"one-{image}", foreign})
    assert cloud.stored(foreign)[: len(PATTERN)] == PATTERN
    cloud.array.remove(foreign)
    cloud.delete(image)


def test_a_volume_that_took_an_images_name_is_not_deleted_with_it(cloud: Cloud) -> None:
    image = cloud.image()
    cloud.array.remove(f"one-{image}")
    cloud.make_foreign(f"one-{image}")
    wwid = cloud.wwid(f"one-{image}")
    cloud.call("image.delete", image)
    assert cloud.wwid(f"one-{image}") == wwid
    cloud.array.remove(f"one-{image}")
    if cloud.image_state(image) != "GONE":
        cloud.delete(image)


@V7000_ONLY
def test_a_persistent_image_that_another_host_has_is_refused_by_the_box(cloud: Cloud) -> None:
    data = cloud.image(PERSISTENT="YES")
    cloud.box.run(f"mkvdiskhostmap -host node2 one-{data}")
    vm = cloud.make_vm(f'IMAGE_ID="{data}"')
    cloud.deploy(vm, state="PROLOG_FAILURE")
    assert "node2" in complaint(cloud, "ln")
    assert cloud.mappings() == {("node2", f"one-{data}")}
    cloud.box.run(f"rmvdiskhostmap -host node2 one-{data}")
    cloud.recover(vm, "retry", "RUNNING")
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.delete(data)
