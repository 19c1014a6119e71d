# SPDX-License-Identifier: Apache-2.0
"""A volume that grows on the array while a host has it: every path and the map follow."""

from __future__ import annotations

import os

import pytest

from lab.vm.lab import PROGRAMS
from sanstone.errors import HostError
from sanstone.hosts.ops import Grow, Grown
from sanstone.model import MIB
from tests.kernel.node import Node, link, until
from tests.kernel.scene import Scene
from tests.kernel.targets import SIZE
from tests.kernel.writer import Writer

pytestmark = [pytest.mark.long, pytest.mark.real(*PROGRAMS), pytest.mark.usefixtures("clean", "whole_lab")]


def sizes(node: Node, number: int) -> set[int]:
    """Return the sizes that the kernel has for the map and its paths, in bytes."""
    map_path = node.sh(f"basename $(readlink -f {link(number)})").strip()
    words = node.sh(f"cat /sys/block/{map_path}/size /sys/block/{map_path}/slaves/*/size").split()
    assert len(words) > 1
    return {512 * int(word) for word in words}


def test_every_path_and_the_map_grow_under_a_writer(scene: Scene) -> None:
    node = scene.node1
    scene.volumes.renew(9)
    (one,) = scene.own.map([9])
    node.attach(one)
    assert sizes(node, 9) == {SIZE}

    with Writer(node, link(9)) as writer:
        grown = scene.own.grow(9, SIZE + 4 * MIB)
        (result,) = node.run(Grow(grown, is_cut=True))
        writer.go_on()
        written = writer.stop()

    assert written.error == ""
    assert isinstance(result, Grown)
    assert (result.device.size, len(result.device.paths), result.warnings) == (SIZE + 4 * MIB, 2, ())
    assert sizes(node, 9) == {SIZE + 4 * MIB}
    node.detach(one, log_out=True)
    assert scene.volumes.holds(9, written.content)
    scene.own.unmap([9])
    scene.volumes.renew(9)


def test_a_path_of_the_old_size_is_named_and_does_not_keep_the_map_small(scene: Scene) -> None:
    node, content = scene.node1, os.urandom(MIB)
    scene.volumes.renew(10)
    (one,) = scene.own.map([10])
    node.attach(one)
    node.write(link(10), content)
    scene.lab.lose_path("node1", 2, is_silent=True)
    until(lambda: node.sh("cat /sys/class/iscsi_session/*/state").split().count("LOGGED_IN") == 1)

    grown = scene.own.grow(10, SIZE + 4 * MIB)
    (result,) = node.run(Grow(grown, is_cut=True))

    assert isinstance(result, Grown)
    assert (result.device.size, len(result.device.paths)) == (SIZE + 4 * MIB, 1)
    assert "did not answer and was dropped" in "".join(result.warnings)
    assert sizes(node, 10) == {SIZE + 4 * MIB}
    scene.lab.restore_path("node1", 2)
    until(lambda: not node.attach(grown)[0].is_degraded)
    assert sizes(node, 10) == {SIZE + 4 * MIB}
    node.detach(grown, log_out=True)
    assert scene.volumes.holds(10, content)
    scene.own.unmap([10], is_forced=True)
    scene.volumes.renew(10)


def test_a_volume_that_no_path_can_read_anew_keeps_its_size_and_says_so(scene: Scene) -> None:
    node = scene.node1
    scene.volumes.renew(11)
    (one,) = scene.own.map([11])
    node.attach(one)
    for network in (1, 2):
        scene.lab.lose_path("node1", network, is_silent=True)
    grown = scene.own.grow(11, SIZE + 4 * MIB)

    with pytest.raises(HostError, match=r"No path of volume one-11 answers, so that its new size"):
        node.run(Grow(grown, is_cut=True))

    assert sizes(node, 11) == {SIZE}
    for network in (1, 2):
        scene.lab.restore_path("node1", network)

    def follows() -> bool:
        try:
            (result,) = node.run(Grow(grown, is_cut=True))
        except HostError:
            return False
        return isinstance(result, Grown) and len(result.device.paths) == 2

    until(follows)
    assert sizes(node, 11) == {SIZE + 4 * MIB}
    node.detach(grown, log_out=True)
    scene.own.unmap([11], is_forced=True)
    scene.volumes.renew(11)
