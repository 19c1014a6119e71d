# SPDX-License-Identifier: Apache-2.0
"""What the tests of this folder work with: volumes on the array, two shapes of targets, two hosts."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lab.vm.array import VOLUME_GROUP
from lab.vm.errors import VMError
from lab.vm.lab import Lab
from tests.kernel.node import Node
from tests.kernel.targets import OwnTargets, SharedTarget, Volumes

__all__ = ["Scene", "at_once"]

T = TypeVar("T")

SWEEP = """
rm -rf /var/lib/one/datastores /var/tmp/sanstone-* /run/lab-watch*
[ ! -e /run/lab-holder ] || kill $(cat /run/lab-holder) 2> /dev/null; rm -f /run/lab-holder
pidof multipathd > /dev/null || multipathd
for name in $(ls /sys/block | grep '^dm-'); do
    map=$(cat /sys/block/$name/dm/name); multipathd disablequeueing map $map
    multipath -f $map || dmsetup remove -f $map
done > /dev/null 2>&1
for path in /sys/block/sd*; do [ -e "$path" ] && echo 1 > "$path/device/delete"; done
iscsiadm -m node -u > /dev/null 2>&1; iscsiadm -m node -o delete > /dev/null 2>&1
true
"""


def at_once(*calls: Callable[[], T]) -> list[T]:
    """Make calls in threads; return what they returned, or raise what the first one raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


class Scene:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.node1, self.node2 = Node(lab, "node1"), Node(lab, "node2")
        self.nodes = (self.node1, self.node2)
        self.volumes = Volumes(lab.array)
        initiators = [machine.initiator for machine in lab.hosts.values()]
        self.shared = SharedTarget(self.volumes, initiators)
        self.own = OwnTargets(self.volumes, initiators)

    def leftovers(self) -> list[str]:
        """List what a test left on hosts and array; the sessions of the shared target may stay."""
        per_node = at_once(*(lambda node=node: node.leftovers(but=[self.shared.iqn]) for node in self.nodes))
        found = [
            f"{node.name}: {line}" for node, lines in zip(self.nodes, per_node, strict=True) for line in lines
        ]
        return found + [f"array: {line}" for line in self.shown()]

    def shown(self) -> list[str]:
        """List the LUNs that the array shows, and the targets but the shared one."""
        found, target = [], ""
        for line in self.lab.array.run("tgtadm --op show --mode target").splitlines():
            words = line.split()
            if line.startswith("Target "):
                target = words[2]
                if target != self.shared.iqn:
                    found.append(f"target {target}")
            elif words[:1] == ["LUN:"] and words[1] != "0":
                found.append(f"LUN {words[1]} of {target}")
        return found

    def sweep(self) -> None:
        """Bring everything back to the beginning, by force, after a test that failed."""
        for machine in self.lab.machines.values():
            for network, peer in sorted(machine.unplugged):
                machine.unplugged.discard((network, peer))
                if machine.is_running:
                    machine.qemu.set_link(network, peer, True)
            if machine.is_running:
                machine.go_on()
            else:
                machine.boot()
        for node in self.nodes:
            try:
                node.sh(SWEEP)
            except VMError:
                node.machine.reset()
                node.sh(SWEEP)
        self.lab.array.run(
            "rm -f /etc/tgt/conf.d/sanstone-*; "
            f"for lv in $(lvs --noheadings -o lv_name {VOLUME_GROUP} "
            "| grep -x '  lv-one-[3-9][0-9][0-9].*'); do "
            f"lvremove -q -f {VOLUME_GROUP}/$lv; done"
        )
        tids = self.lab.array.run(
            "tgtadm --op show --mode target | sed -n 's/^Target \\([0-9]*\\):.*/\\1/p'"
        ).split()
        for tid in tids:
            self.lab.array.run(f"tgtadm --op delete --mode target --force --tid {tid}")
        accounts = self.lab.array.run("tgtadm --op show --mode account | sed 1d").split()
        for user in accounts:
            self.lab.array.run(f"tgtadm --op delete --mode account --user {user}")
        self.shared.start()
