# SPDX-License-Identifier: Apache-2.0
"""Twenty volumes at once, and a volume that goes from one host to the other and back."""

from __future__ import annotations

import hashlib
import os

import pytest

from lab.vm.lab import PROGRAMS
from sanstone.model import Connection, Device
from tests.kernel.node import link
from tests.kernel.scene import Scene, at_once
from tests.kernel.targets import SIZE, wwid

pytestmark = [pytest.mark.long, pytest.mark.real(*PROGRAMS), pytest.mark.usefixtures("clean")]


def test_twenty_volumes_come_and_go_at_once(scene: Scene) -> None:
    """Half of them behind one target, half with a target each; all by requests of their own."""
    node = scene.node1
    shared, own = scene.shared.map(range(1, 11)), scene.own.map(range(11, 21))
    ours = {
        one.wwid: target.log_out
        for target, some in ((scene.shared, shared), (scene.own, own))
        for one in some
    }

    def attach(one: Connection) -> Device:
        (device,) = node.attach(one, deadline=600)
        return device

    devices = at_once(*(lambda one=one: attach(one) for one in (*shared, *own)))

    assert [device.wwid for device in devices] == [wwid(number) for number in range(1, 21)]
    assert [device.is_degraded for device in devices] == [False] * 20
    # 256 KiB that say which volume they belong to, then those of the next
    block = os.urandom(1 << 18)
    contents = {number: bytes([number]) * 4096 + block for number in range(1, 21)}
    node.sh("cat > /tmp/block", stdin=block)
    page = "head -c 4096 /dev/zero | tr '\\0' \"$(printf '\\\\%03o' $n)\""
    write = "dd bs=64k iflag=fullblock conv=notrunc,fsync status=none"
    place = link(1).replace("/1/", "/$n/")
    node.sh(f"for n in $(seq 20); do {{ {page}; cat /tmp/block; }} | {write} of={place}; done")

    results = at_once(
        *(
            lambda one=one: node.detach(one, log_out=ours[one.wwid], deadline=600)[0]
            for one in (*shared, *own)
        )
    )

    assert [(result.was_attached, result.warnings) for result in results] == [(True, ())] * 20
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
