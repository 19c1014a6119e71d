# SPDX-License-Identifier: Apache-2.0
"""The driver ``v7000``: the simulated box on the lab's array, with real initiators and multipath."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import pytest

from lab.vm.box import V7000
from lab.vm.lab import PROGRAMS, Lab
from sanstone.arrays import Array, NewVolume, open_array
from sanstone.errors import ConflictError
from sanstone.hosts.ops import Attach, Attached, Detach
from sanstone.model import MIB, Connection, Device, Volume
from sanstone.settings import ConfigFile, resolve
from tests.kernel.node import Node
from tests.kernel.scene import Scene

pytestmark = [pytest.mark.real(*PROGRAMS), pytest.mark.usefixtures("clean")]

SIZE = 64 * MIB


def claim(_: Volume | None) -> None:
    """Take what bears the name for ours."""


@pytest.fixture(scope="module")
def box(lab: Lab) -> Iterator[V7000]:
    one = lab.v7000()
    try:
        yield one
    finally:
        for host in lab.hosts.values():
            host.run("iscsiadm -m node -u; iscsiadm -m node -o delete; true")
        one.stop()


@pytest.fixture(scope="module")
def array(box: V7000, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Array]:
    folder = tmp_path_factory.mktemp("front-end")
    file = folder / "sanstone.conf"
    file.write_text(
        f"[v7000]\nMGMT_PORT = {box.port}\nMGMT_USER = {box.user}\nMGMT_KEY = {box.key}\n"
        f"MGMT_KNOWN_HOSTS = {box.known_hosts}\nCOMMAND_TIMEOUT = 120\nSESSION_TIMEOUT = 120\n"
    )
    settings = resolve("v7000", ConfigFile.read(file), datastore={"MGMT": box.address})
    one = open_array("v7000", settings, state=folder / "state")
    yield one
    one.close()


@pytest.fixture(autouse=True)
def forgotten(box: V7000, scene: Scene, clean: None) -> Iterator[None]:
    """The box's targets serve all volumes: its sessions stay until they are ended by hand."""
    yield
    for node in scene.nodes:
        for target in box.targets:
            node.sh(f"iscsiadm -m node -T {target} -u; iscsiadm -m node -T {target} -o delete; true")


def place(number: int) -> str:
    return f"/var/lib/one/datastores/0/{number}/disk.0"


def attach(node: Node, number: int, connection: Connection) -> Device:
    (result,) = node.run(Attach(connection, place(number)))
    assert isinstance(result, Attached)
    assert result.warnings == ()
    return result.device


def stored(box: V7000, wwid: str, size: int) -> str:
    """Return the sha256 of the beginning of a volume, as the array has it."""
    return box.array.run(f"head -c {size} {box.volume_path(wwid[1:].upper())} | sha256sum").split()[0]


def test_a_volume_of_the_box_is_attached_by_both_portals_and_its_lun_used_again(
    scene: Scene, box: V7000, array: Array
) -> None:
    node, first, second = scene.node1, os.urandom(MIB), os.urandom(MIB)
    one = array.create(NewVolume("one-1", SIZE), claim=claim, host="node1").connection
    assert one is not None

    device = attach(node, 1, one)

    assert (device.wwid, device.size, device.is_degraded) == (one.wwid, SIZE, False)
    assert {path.portal for path in device.paths} == set(box.portals)
    assert "IBM" in node.sh(f"cat /sys/block/{device.paths[0].name}/device/vendor")
    node.write(place(1), first, user="oneadmin")
    with pytest.raises(ConflictError):
        array.map("one-1", "node2")
    node.run(Detach(one.wwid, place(1)))
    array.unmap("one-1", "node1")
    two = array.create(NewVolume("one-2", SIZE), claim=claim, host="node1").connection
    assert two is not None
    assert two.lun == one.lun
    assert attach(node, 2, two).wwid == two.wwid
    node.write(place(2), second, user="oneadmin")
    node.run(Detach(two.wwid, place(2)))
    array.unmap("one-2", "node1")
    assert stored(box, one.wwid, MIB) == hashlib.sha256(first).hexdigest()
    assert stored(box, two.wwid, MIB) == hashlib.sha256(second).hexdigest()
    assert array.delete("one-1", wait=60)
    assert array.delete("one-2", wait=60)


def test_a_copy_of_the_box_is_read_on_another_host(scene: Scene, box: V7000, array: Array) -> None:
    content = os.urandom(MIB)
    one = array.create(NewVolume("one-3", SIZE), claim=claim, host="node1").connection
    assert one is not None
    attach(scene.node1, 3, one)
    scene.node1.write(place(3), content, user="oneadmin")
    scene.node1.run(Detach(one.wwid, place(3)))
    array.unmap("one-3", "node1")

    copy = array.create(
        NewVolume("one-3-7-0", SIZE, source="one-3", is_linked=True), claim=claim, host="node2"
    )

    assert copy.connection is not None
    attach(scene.node2, 4, copy.connection)
    assert scene.node2.hash(place(4), MIB) == hashlib.sha256(content).hexdigest()
    scene.node2.write(place(4), content[::-1], user="oneadmin")
    scene.node2.run(Detach(copy.connection.wwid, place(4)))
    array.unmap("one-3-7-0", "node2")
    assert stored(box, one.wwid, MIB) == hashlib.sha256(content).hexdigest()
    assert stored(box, copy.connection.wwid, MIB) == hashlib.sha256(content[::-1]).hexdigest()
    assert array.delete("one-3-7-0", wait=60)
    assert array.delete("one-3", wait=60)
