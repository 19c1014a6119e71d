# SPDX-License-Identifier: Apache-2.0
"""Twenty volumes at once, and a volume that goes from one host to the other and back."""

from __future__ import annotations

import hashlib
import os

import pytest

from lab.vm.lab import PROGRAMS
from sanstone.hosts.ops import Attach, Attached, Detach, Detached
from sanstone.model import Connection, Device
from tests.kernel.node import link, number_of
from tests.kernel.scene import Scene, at_once
from tests.kernel.targets import SIZE, wwid

pytestmark = [pytest.mark.long, pytest.mark.real(*PROGRAMS), pytest.mark.usefixtures("clean")]


def test_twenty_volumes_come_and_go_at_once(scene: Scene) -> None:
    """Ten on each host, half of them behind one target, half with targets of their own."""
    shared, own = scene.shared.map(range(1, 11)), scene.own.map(range(11, 21))
    every = [(one, False) for one in shared] + [(one, True) for one in own]
    places = {one.wwid: scene.nodes[at % 2] for at, (one, _) in enumerate(every)}

    def attach(one: Connection) -> Device:
        (device,) = places[one.wwid].host.run([Attach(one, link(number_of(one)))], deadline=600)
        assert isinstance(device, Attached)
        return device.device

    def detach(one: Connection, log_out: bool) -> Detached:
        (result,) = places[one.wwid].host.run([Detach(one.wwid, link(number_of(one)), log_out)], deadline=600)
        assert isinstance(result, Detached)
        return result

    devices = at_once(*(lambda one=one: attach(one) for one, _ in every))
    # a path that emulation was too slow for is there when it is asked for again
    devices = [
        device if not device.is_degraded else attach(one)
        for device, (one, _) in zip(devices, every, strict=True)
    ]

    assert [device.wwid for device in devices] == [wwid(number) for number in range(1, 21)]
    assert [device.is_degraded for device in devices] == [False] * 20
    # a page that says which volume it belongs to, then the same for all
    block = os.urandom(1 << 18)
    contents = {number: bytes([number]) * 4096 + block for number in range(1, 21)}
    page = "head -c 4096 /dev/zero | tr '\\0' \"$(printf '\\\\%03o' $n)\""
    write = "dd bs=64k iflag=fullblock conv=notrunc,fsync status=none"
    place = link(1).replace("/1/", "/$n/")
    for node in scene.nodes:
        numbers = " ".join(str(number_of(one)) for one, _ in every if places[one.wwid] is node)
        node.sh("cat > /tmp/block", stdin=block)
        node.sh(f"for n in {numbers}; do {{ {page}; cat /tmp/block; }} | {write} of={place}; done")

    results = at_once(*(lambda one=one, out=out: detach(one, out) for one, out in every))

    assert results == [Detached(was_attached=True)] * 20
    expected = [hashlib.sha256(contents[number]).hexdigest() for number in range(1, 21)]
    assert scene.volumes.hashes(range(1, 21), 4096 + len(block)) == expected
    scene.shared.unmap(range(1, 11))
    scene.own.unmap(range(11, 21))


def test_a_volume_moves_between_hosts_and_no_cache_shows_what_was(scene: Scene) -> None:
    (one,) = scene.own.map([8])
    first, second = os.urandom(SIZE), os.urandom(SIZE)
    sums = [hashlib.sha256(content).hexdigest() for content in (first, second)]

    scene.node1.attach(one)
    scene.node1.write(link(8), first, is_buffered=True)
    assert scene.node1.hash(link(8)) == sums[0]
    scene.node1.detach(one, log_out=True)
    scene.node2.attach(one)
    assert scene.node2.hash(link(8)) == sums[0]
    scene.node2.write(link(8), second, is_buffered=True)
    scene.node2.detach(one, log_out=True)
    scene.node1.attach(one)

    assert scene.node1.hash(link(8)) == sums[1]
    scene.node1.detach(one, log_out=True)
    assert scene.volumes.holds(8, second)
    scene.own.unmap([8])
