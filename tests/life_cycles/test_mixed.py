# SPDX-License-Identifier: Apache-2.0
"""Volumes as disks of VMs in system datastores of OpenNebula's own transfer managers, shared and ssh."""

from __future__ import annotations

import os

import pytest

from tests.life_cycles.cloud import MIB, PROGRAMS, Cloud

pytestmark = pytest.mark.real(*PROGRAMS)

CONTENT = os.urandom(4 * MIB)
PATTERN = os.urandom(65536)


@pytest.mark.parametrize("kind", ["shared", "ssh"])
def test_a_vm_lives_in_a_system_datastore_of_another_driver(cloud: Cloud, kind: str) -> None:
    system = cloud.system_datastore("mixed", TM_MAD=kind)
    image, data = cloud.filled(CONTENT), cloud.image(PERSISTENT="YES")
    vm = cloud.run(
        f'IMAGE_ID="{image}"', f'IMAGE_ID="{data}"', 'TYPE="swap",SIZE="8"', datastore=system, context=True
    )
    images, clone = {f"one-{image}", f"one-{data}"}, f"one-{image}-{vm}-0"
    cloud.assert_array(images | {clone}, {clone: "node1", f"one-{data}": "node1"})
    assert cloud.calls("clone")[-1].argv[1].startswith("node1:")
    cloud.write(vm, 0, PATTERN, MIB)
    cloud.write(vm, 1, PATTERN, MIB)

    cloud.migrate(vm, "node2")
    cloud.assert_array(images | {clone}, {clone: "node2", f"one-{data}": "node2"})
    assert cloud.read(vm, 0, len(PATTERN), MIB) == PATTERN

    cloud.attach(vm, f'IMAGE_ID="{image}"')
    cloud.assert_linked(vm, 4, f"one-{image}-{vm}-4", "node2")
    saved = cloud.save_as(vm, 0)
    assert cloud.image_state(saved) == "READY", cloud.failures()
    assert cloud.stored(f"one-{saved}", len(PATTERN), MIB) == PATTERN
    cloud.detach(vm, 4)

    cloud.act(vm, "undeploy", "UNDEPLOYED")
    cloud.assert_array(images | {clone, f"one-{saved}"})
    cloud.call("vm.action", "resume", vm)
    cloud.deploy(vm, "node1", system)
    assert cloud.read(vm, 0, len(CONTENT)) == CONTENT[:MIB] + PATTERN + CONTENT[MIB + len(PATTERN) :]
    cloud.act(vm, "terminate-hard", "DONE")
    cloud.assert_array(images | {f"one-{saved}"})
    assert cloud.stored(f"one-{data}", len(PATTERN), MIB) == PATTERN
    assert cloud.stored(f"one-{image}") == CONTENT
    cloud.delete(image, data, saved)


def test_a_vm_moves_between_shared_system_datastores(cloud: Cloud) -> None:
    first, second = (cloud.system_datastore(name, TM_MAD="shared") for name in ("first", "second"))
    image, data = cloud.filled(CONTENT), cloud.image(PERSISTENT="YES")
    vm = cloud.run(f'IMAGE_ID="{image}"', f'IMAGE_ID="{data}"', datastore=first, context=True)
    images, clone = {f"one-{image}", f"one-{data}"}, f"one-{image}-{vm}-0"
    cloud.write(vm, 0, PATTERN, MIB)
    for host, datastore in (("node2", second), ("node2", first)):
        cloud.migrate(vm, host, datastore=datastore)
        cloud.assert_array(images | {clone}, {clone: host, f"one-{data}": host})
        cloud.assert_linked(vm, 0, clone, host)
        assert cloud.link(vm, 0).is_relative_to(cloud.directory / "datastores" / str(datastore))
        assert cloud.read(vm, 0, len(PATTERN), MIB) == PATTERN
    cloud.recover(vm, "delete", "DONE")
    cloud.assert_array(images)
    cloud.call("image.enable", data, True)
    cloud.delete(image, data)
