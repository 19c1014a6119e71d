# SPDX-License-Identifier: Apache-2.0
"""A path, or all of them, down before, during and after an attach and a detach."""

from __future__ import annotations

import os
import threading
import time

import pytest

from lab.vm.lab import PROGRAMS
from sanstone.errors import ConnectError, DataSafetyError
from sanstone.hosts.ops import Attach, Attached
from sanstone.model import MIB, Connection
from tests.kernel.node import PATIENCE, Node, link, until
from tests.kernel.scene import Scene
from tests.kernel.targets import wwid

pytestmark = [pytest.mark.long, pytest.mark.real(*PROGRAMS), pytest.mark.usefixtures("clean", "whole_lab")]

BOTH = (1, 2)


@pytest.fixture
def node(scene: Scene) -> Node:
    """Return a host without sessions that remembers no dead portal."""
    scene.node1.sh("iscsiadm -m node -u; rm -f /var/tmp/sanstone-*/dead-portals.json; true")
    return scene.node1


def attach(node: Node, connection: Connection) -> Attached:
    (result,) = node.run(Attach(connection, link(int(connection.volume.split("-")[1]))))
    assert isinstance(result, Attached)
    return result


def wait_for_paths(node: Node, number: int, count: int) -> None:
    line = f"multipathd show paths format '%w %t %o' | grep -c '^{wwid(number)} *active *running'; true"
    until(lambda: node.sh(line).strip() == str(count))


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_path_down_before_an_attach_degrades_and_is_named(
    scene: Scene, node: Node, is_silent: bool
) -> None:
    one, two = scene.shared.map([1, 2])
    content = os.urandom(MIB)
    with scene.lab.lost_path("node1", 2, is_silent=is_silent):
        found = attach(node, one)
        assert [path.portal for path in found.device.paths] == [scene.lab.array.portals[0]]
        assert found.device.is_degraded
        (warning,) = found.warnings
        assert scene.lab.array.portals[1] in warning
        node.write(link(1), content)

        (again,) = attach(node, two).warnings
        assert scene.lab.array.portals[1] in again

    # it is asked again, and answers
    until(lambda: not attach(node, one).warnings)
    wait_for_paths(node, 1, 2)
    found = attach(node, two)
    assert len(found.device.paths) == 2
    assert [result.warnings for result in node.detach(one, two)] == [(), ()]
    assert scene.volumes.holds(1, content)
    scene.shared.unmap([1, 2])


def test_without_any_portal_an_attach_names_them_all_and_is_quick(scene: Scene, node: Node) -> None:
    (one,) = scene.own.map([3])
    for network in BOTH:
        scene.lab.lose_path("node1", network, is_silent=True)
    started = time.monotonic()

    with pytest.raises(ConnectError) as error:
        attach(node, one)

    assert all(
        f"{portal} ({scene.own.iqn_of(3)}): no answer" in str(error.value)
        for portal in scene.lab.array.portals
    )
    assert time.monotonic() - started < 60
    assert not any(scene.own.iqn_of(3) in line for line in node.leftovers())
    for network in BOTH:
        scene.lab.restore_path("node1", network)
    assert attach(node, one).warnings == ()
    node.detach(one, log_out=True)
    scene.own.unmap([3], is_forced=True)


@pytest.mark.parametrize("sign", ["session", "disk", "map"])
def test_a_path_lost_in_the_middle_of_an_attach(scene: Scene, node: Node, sign: str) -> None:
    (one,) = scene.own.map([4])
    places = {"session": "/sys/class/iscsi_session/*", "disk": "/sys/block/sd*", "map": "/sys/block/dm-*"}
    cut = threading.Thread(
        target=lambda: (_wait_for(node, places[sign]), scene.lab.lose_path("node1", 1, is_silent=True))
    )
    cut.start()
    try:
        refused = ""
        try:
            attach(node, one)
        except ConnectError as err:
            refused = str(err)
    finally:
        cut.join()
    # nothing in between: it is there, or it is said which portal does not answer
    assert not refused or scene.lab.array.portals[0] in refused
    found = attach(node, one)
    assert {path.portal for path in found.device.paths} >= {scene.lab.array.portals[1]}
    content = os.urandom(MIB)
    node.write(link(4), content)
    scene.lab.restore_path("node1", 1)
    until(lambda: not attach(node, one).warnings)
    wait_for_paths(node, 4, 2)
    node.detach(one, log_out=True)
    assert scene.volumes.holds(4, content)
    scene.own.unmap([4], is_forced=True)


def _wait_for(node: Node, pattern: str) -> None:
    node.sh(f"timeout {PATIENCE:.0f} sh -c 'until ls -d {pattern} > /dev/null 2>&1; do sleep 0.05; done'")


def test_a_path_lost_after_the_attach_comes_back_by_itself(scene: Scene, node: Node) -> None:
    (one,) = scene.shared.map([5])
    attach(node, one)
    content = os.urandom(MIB)
    with scene.lab.lost_path("node1", 2, is_silent=True):
        node.write(link(5), content)
        wait_for_paths(node, 5, 1)
        assert scene.volumes.holds(5, content)
        found = attach(node, one)
        assert scene.lab.array.portals[1] in "".join(found.warnings)
    wait_for_paths(node, 5, 2)
    assert attach(node, one).warnings == ()
    node.detach(one)
    scene.shared.unmap([5])


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_a_path_lost_at_a_detach_is_removed_with_the_rest(scene: Scene, node: Node, moment: str) -> None:
    (one,) = scene.own.map([6])
    attach(node, one)
    content = os.urandom(MIB)
    node.write(link(6), content)
    if moment == "before":
        scene.lab.lose_path("node1", 1, is_silent=True)
        wait_for_paths(node, 6, 1)
        (result,) = node.detach(one, log_out=True)
        assert any("was down" in warning for warning in result.warnings)
    else:
        # the link goes first
        gone = f"while [ -L {link(6)} ]; do sleep 0.05; done"
        cut = threading.Thread(
            target=lambda: (node.sh(gone), scene.lab.lose_path("node1", 1, is_silent=True))
        )
        cut.start()
        (result,) = node.detach(one, log_out=True)
        cut.join()
    assert result.was_attached
    scene.lab.restore_path("node1", 1)
    # a logout that could not be told to the target is made up for
    node.detach(one, log_out=True)
    assert scene.volumes.holds(6, content)
    scene.own.unmap([6], is_forced=True)


def test_what_cannot_be_flushed_stays_attached(scene: Scene, node: Node) -> None:
    (one,) = scene.shared.map([7])
    (device, content) = (attach(node, one).device, os.urandom(MIB))
    node.write(link(7), content)
    for network in BOTH:
        scene.lab.lose_path("node1", network, is_silent=True)

    with pytest.raises(DataSafetyError, match=f"{wwid(7)} could not be flushed, so it stays attached"):
        node.detach(one, deadline=40)

    assert node.sh(f"readlink {link(7)}").strip() == device.path
    for network in BOTH:
        scene.lab.restore_path("node1", network)
    wait_for_paths(node, 7, 2)
    assert node.detach(one)[0].was_attached
    assert scene.volumes.holds(7, content)
    scene.shared.unmap([7])
