# SPDX-License-Identifier: Apache-2.0
"""The array dies while volumes are attached, multipathd is not there, the host loses its power."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from lab.vm.errors import VMError
from lab.vm.lab import PROGRAMS
from sanstone.errors import ConnectError, HostError, SanstoneError
from sanstone.model import MIB
from tests.kernel.node import Node, link, until
from tests.kernel.scene import Scene, at_once
from tests.kernel.targets import wwid

pytestmark = [pytest.mark.long, pytest.mark.real(*PROGRAMS), pytest.mark.usefixtures("clean", "whole_lab")]

CONF = "/etc/multipath/conf.d/zz-lab.conf"
DEADLINE = 40.0
KERNEL = 150.0
"""Seconds in which the kernel's own time-outs have ended everything: noop, replacement, abort, reset."""


@pytest.fixture
def queueing(scene: Scene) -> Iterator[Node]:
    """Let I/O wait for ever for a path, as a multipath.conf of somebody else may have it."""
    node = scene.node1
    node.sh(f"printf 'overrides {{\\n no_path_retry queue\\n}}\\n' > {CONF}; multipathd reconfigure")
    yield node
    node.sh(f"rm {CONF}; multipathd reconfigure")


def nothing_is_stuck(node: Node) -> bool:
    return not [line for line in node.leftovers() if line.startswith("stuck")]


def within(seconds: float, call: Callable[[], object]) -> SanstoneError:
    """Return the error that ``call`` raises in time."""
    started = time.monotonic()
    with pytest.raises(SanstoneError) as error:
        call()
    assert time.monotonic() - started < seconds + 5
    return error.value


@pytest.mark.parametrize("how", ["hangs", "dies"])
def test_an_array_dead_while_attached_hangs_no_action(scene: Scene, queueing: Node, how: str) -> None:
    node, content = queueing, os.urandom(MIB)
    one, two = scene.shared.map([1, 2])
    node.attach(one)
    node.write(link(1), content)
    (scene.lab.array.hang if how == "hangs" else scene.lab.array.die)()

    # what the host still has is not thrown away as long as a path may live
    error = within(DEADLINE, lambda: node.detach(one, deadline=DEADLINE))
    assert wwid(1) in str(error)
    refused = within(DEADLINE, lambda: node.attach(two, deadline=DEADLINE))
    assert isinstance(refused, (ConnectError, HostError))
    assert scene.lab.array.portals[0] in str(refused)

    # when all paths are given up, the volume goes, and it is said what that means
    until(lambda: "LOGGED_IN" not in node.sh("cat /sys/class/iscsi_session/*/state"))
    (result,) = node.detach(one, deadline=KERNEL)
    assert result.was_attached
    assert any("was down" in warning for warning in result.warnings)
    until(lambda: nothing_is_stuck(node), KERNEL)

    if how == "hangs":
        scene.lab.array.go_on()
        scene.shared.unmap([2])
    else:
        scene.lab.array.boot()
        scene.shared.start()
        scene.shared.map([1])
    scene.shared.unmap([1])
    (three,) = scene.own.map([3])
    until(lambda: not node.attach(three)[0].is_degraded)
    node.write(link(3), content)
    node.detach(three, log_out=True)
    assert scene.volumes.holds(3, content)
    assert scene.volumes.holds(1, content)
    scene.own.unmap([3])


def test_without_multipathd_two_paths_are_refused_and_adopted_later(scene: Scene) -> None:
    node, content = scene.node1, os.urandom(MIB)
    (one,) = scene.shared.map([4])
    stop = "multipathd shutdown; timeout 60 sh -c 'while pidof multipathd; do sleep 0.1; done' > /dev/null"
    start = "multipathd; timeout 60 sh -c 'until multipathd show daemon; do sleep 0.1; done' > /dev/null"
    node.sh(stop)
    try:
        with pytest.raises(HostError, match="has 2 paths on this host, but multipathd does not run"):
            node.attach(one)
        assert node.sh(f"ls {link(4)} 2> /dev/null; true") == ""
    finally:
        node.sh(start)

    (device,) = node.attach(one)

    assert device.path == f"/dev/mapper/{wwid(4)}"
    assert not device.is_degraded
    node.write(link(4), content, is_buffered=True)
    node.sh(stop)
    try:
        assert node.detach(one)[0].was_attached
        assert not [line for line in node.leftovers() if wwid(4)[1:] in line]
    finally:
        node.sh(start)
    assert scene.volumes.holds(4, content)
    scene.shared.unmap([4])


def cut_at(node: Node, line: str) -> None:
    """Take the power away as soon as a command succeeds on the host, or that is no longer to be learned."""
    with contextlib.suppress(VMError):
        node.sh(f"sync; timeout 120 sh -c 'until {line}; do sleep 0.02; done' > /dev/null 2>&1")
    node.machine.power_cut()


def test_a_host_that_loses_its_power_comes_up_clean(scene: Scene) -> None:
    """One host in the middle of an attach, the other one in the middle of a detach."""
    first, second = scene.nodes
    content = os.urandom(MIB)
    (one,), (two,) = scene.own.map([5]), scene.own.map([6])
    second.attach(two)
    second.write(link(6), content)
    cuts = [
        threading.Thread(target=cut_at, args=(first, "ls -d /sys/block/sd*")),
        threading.Thread(target=cut_at, args=(second, f"[ ! -L {link(6)} ]")),
    ]
    for cut in cuts:
        cut.start()

    errors = at_once(lambda: broken(first, one), lambda: broken(second, two))

    for cut in cuts:
        cut.join()
    at_once(first.machine.boot, second.machine.boot)
    assert {type(error) for error in errors} <= {ConnectError, type(None)}
    for node in scene.nodes:
        # nothing logs in by itself, and no disk is there
        kinds = {line.split()[0] for line in node.leftovers()}
        assert kinds <= {"record", "note", "link"}
    assert first.attach(one)[0].is_degraded is False
    first.write(link(5), content)
    for node, each in ((first, one), (second, two)):
        node.detach(each, log_out=True)
    assert scene.volumes.holds(5, content)
    assert scene.volumes.holds(6, content)
    scene.own.unmap([5, 6], is_forced=True)


def broken(node: Node, connection: object) -> SanstoneError | None:
    """Attach where nothing is attached, detach where something is; return what came of it."""
    try:
        if node.name == "node1":
            node.attach(connection)  # type: ignore[arg-type]
        else:
            node.detach(connection, log_out=True)  # type: ignore[arg-type]
    except SanstoneError as error:
        return error
    return None
