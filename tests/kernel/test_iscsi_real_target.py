# SPDX-License-Identifier: Apache-2.0
"""The driver ``iscsi`` with a real tgtd, real LVM, real initiators: what actions do with a volume."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator

import pytest

from lab.vm.array import VOLUME_GROUP
from lab.vm.lab import PROGRAMS, Lab
from sanstone.arrays import Array, NewVolume, open_array
from sanstone.hosts.ops import Attach, Attached, Detach, Grow, Grown, ReadInitiator
from sanstone.model import MIB, Connection, Device, Initiator, Volume
from sanstone.settings import ConfigFile, resolve
from tests.kernel.node import Node, until
from tests.kernel.scene import Scene
from tests.kernel.writer import Writer

pytestmark = [pytest.mark.real(*PROGRAMS), pytest.mark.usefixtures("clean", "whole_lab")]

SIZE = 16 * MIB
NAME = "one-301"
LINK = "/var/lib/one/datastores/0/301/disk.0"

SEEN = f"""
lvs --noheadings -o lv_name {VOLUME_GROUP} | tr -d " "; ls /etc/tgt/conf.d
tgtadm --op show --mode target | grep ^Target; tgtadm --op show --mode account; true
"""


def claim(_: Volume | None) -> None:
    """Take what bears the name for ours."""


@pytest.fixture(scope="module")
def array(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Array]:
    """Open the target host as a front-end does, which asks hosts for their initiators."""
    file = tmp_path_factory.mktemp("conf") / "sanstone.conf"
    file.write_text(
        f"[hosts]\nSSH_OPTIONS = -F {shlex.quote(str(lab.ssh_config))}\n[iscsi]\nCOMMAND_TIMEOUT = 170\n"
    )
    settings = resolve("iscsi", ConfigFile.read(file), datastore={"HOST": "array1", "CHAP": "YES"})

    def initiator(name: str) -> Initiator:
        (found,) = Node(lab, name).run(ReadInitiator())
        assert isinstance(found, Initiator)
        return found

    one = open_array("iscsi", settings, initiators=initiator)
    before = lab.array.run(SEEN)
    yield one
    one.close()
    assert lab.array.run(SEEN) == before


def attach(node: Node, connection: Connection) -> Device:
    (result,) = node.run(Attach(connection, LINK))
    assert isinstance(result, Attached)
    assert result.warnings == ()
    return result.device


def detach(node: Node, array: Array, wwid: str) -> None:
    node.run(Detach(wwid, LINK, log_out=True))
    array.unmap(NAME, node.name)


def stored(lab: Lab, size: int) -> str:
    """Return the sha256 of the beginning of the volume, as the array has it."""
    return lab.array.run(f"head -c {size} /dev/{VOLUME_GROUP}/lv-{NAME} | sha256sum").split()[0]


def test_a_volume_lives_from_its_creation_to_its_end(scene: Scene, array: Array) -> None:
    node, lab = scene.node1, scene.lab
    first, second = os.urandom(MIB), os.urandom(MIB)

    placement = array.create(NewVolume(NAME, SIZE), claim=claim, host="node1")

    connection = placement.connection
    assert connection is not None
    assert connection.chap is not None
    assert connection.wwid == placement.volume.wwid
    device = attach(node, connection)
    assert (device.wwid, device.size, len(device.paths)) == (connection.wwid, SIZE, 2)
    assert array.mapped_hosts(NAME) == ("node1",)
    # nobody else finds it, and without the secret not even the right initiator gets in
    target = connection.targets[0].iqn
    found = scene.node2.machine.ssh(f"iscsiadm -m discovery -t st -p {lab.array.portals[0]}").output
    assert target not in found
    scene.node2.sh("iscsiadm -m node -o delete; iscsiadm -m discoverydb -o delete -t st -p 10.7.1.1; true")

    # a snapshot, and back to it
    node.write(LINK, first, user="oneadmin")
    array.create(NewVolume(f"{NAME}-s0", source=NAME, is_linked=True), claim=claim)
    node.write(LINK, second, user="oneadmin")
    detach(node, array, device.wwid)
    assert stored(lab, MIB) == hashlib.sha256(second).hexdigest()
    array.copy(f"{NAME}-s0", NAME)
    connection = array.map(NAME, "node1")
    device = attach(node, connection)
    assert node.hash(LINK, MIB) == hashlib.sha256(first).hexdigest()

    # growth under a writer
    with Writer(node, LINK) as writer:
        array.resize(NAME, 2 * SIZE)
        (grown,) = node.run(Grow(array.map(NAME, "node1"), is_cut=True))
        assert isinstance(grown, Grown)
        writer.go_on()
        written = writer.stop()
    assert written.error == ""
    assert (grown.device.size, len(grown.device.paths), grown.warnings) == (2 * SIZE, 2, ())
    sizes = " ".join(f"/sys/block/{path.name}/size" for path in grown.device.paths)
    assert set(node.sh(f"cat {sizes}; blockdev --getsz {LINK}").split()) == {str(2 * SIZE // 512)}

    detach(node, array, device.wwid)
    assert stored(lab, len(written.content)) == hashlib.sha256(written.content).hexdigest()
    assert array.delete(f"{NAME}-s0", wait=0)
    assert array.delete(NAME, wait=0)
    assert array.find(NAME) == (None,)


def test_a_writer_outlives_a_reboot_of_the_target_host(scene: Scene, array: Array) -> None:
    node, lab = scene.node1, scene.lab
    connection = array.create(NewVolume(NAME, SIZE), claim=claim, host="node1").connection
    assert connection is not None
    device = attach(node, connection)

    with Writer(node, LINK) as writer:
        lab.array.power_cut()
        lab.array.boot()
        scene.shared.start()
        writer.go_on()
        written = writer.stop()

    assert written.error == ""
    until(lambda: {path.state for path in attach(node, connection).paths} == {"running"})
    assert attach(node, array.map(NAME, "node1")).wwid == device.wwid
    detach(node, array, device.wwid)
    assert stored(lab, len(written.content)) == hashlib.sha256(written.content).hexdigest()
    assert array.delete(NAME, wait=0)
