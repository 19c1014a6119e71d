# SPDX-License-Identifier: Apache-2.0
"""What goes wrong meanwhile, at random, and is lifted again."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable

from lab.killing.steps import Kill
from lab.killing.world import World
from lab.systems import System

__all__ = ["Faults"]

_ACTIONS = (
    "tm/clone", "tm/ln", "tm/mv", "tm/mvds", "tm/delete", "tm/cpds", "tm/resize", "tm/premigrate",
    "tm/postmigrate", "tm/snap_create", "tm/snap_create_live", "tm/snap_delete", "tm/snap_revert",
    "tm/mkimage", "datastore/cp", "datastore/mkfs", "datastore/clone", "datastore/rm",
)  # fmt: skip
_CHANGES = {
    "v7000": "^(mk|rm|start|ch|expand)",
    "iscsi": "^(lvcreate|lvremove|lvchange|lvextend|lvrename|tgtadm .*--op (new|delete|update|bind|unbind) )",
}
"""Commands that change something, by driver."""
_LONGEST = 4.0


class Faults:
    """Lets one thing go wrong after the other, in a thread of its own; ``counts`` says how often each did."""

    def __init__(self, world: World, seed: int, pause: float) -> None:
        self.world = world
        self.counts: Counter[str] = Counter()
        self.crashes: dict[str, int] = dict.fromkeys(world.host_names, 0)
        """How often each host has lost its power: a VM that saw fewer has lost its disks there."""
        self._random = random.Random(seed)
        self._pause = pause
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="faults", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Lift what there is, and let nothing more go wrong."""
        self._ending.set()
        self._thread.join()
        self.world.drivers.disarm()
        for array in self._arrays:
            array.faults.clear()

    def _go_on(self) -> None:
        kinds: tuple[Callable[[], None], ...] = (
            self._refused, self._refused, self._cut, self._cut, self._cut, *[self._kill] * 5, self._slow,
            self._portal, self._crash,
        )  # fmt: skip
        while not self._ending.wait(self._random.uniform(0.2, 1.0) * self._pause):
            self._random.choice(kinds)()

    @property
    def _arrays(self) -> list[System]:
        return list(self.world.scene.arrays.values())

    def _refused(self) -> None:
        self.counts["command refused"] += 1
        array = self._random.choice(self._arrays)
        array.faults.add(_CHANGES[array.driver], skip=self._random.randrange(3), **array.refusal)

    def _cut(self) -> None:
        self.counts["connection cut"] += 1
        array = self._random.choice(self._arrays)
        where = self._random.choice(("before", "after"))
        array.faults.add(".", drop=where, times=self._random.choice((1, 2)), skip=self._random.randrange(6))

    def _kill(self) -> None:
        self.counts["driver killed"] += 1
        action = self._random.choice(_ACTIONS)
        when = self._random.choice(("before", "after"))
        self.world.drivers.arm(Kill(action, self._random.randint(1, 4), when))

    def _slow(self) -> None:
        """Let the array be slow: one session at a time, or commands that take their time."""
        if self.world.system_name != "v7000":
            self.counts["command slow"] += 1
            array = self._random.choice(self._arrays)
            array.faults.add(".", hang=self._random.uniform(0.5, _LONGEST), times=self._random.choice((1, 2)))
            return
        self.counts["session limit"] += 1
        box = self.world.scene.box
        before, box.session_limit = box.session_limit, 1
        self._ending.wait(self._random.uniform(0.5, _LONGEST))
        box.session_limit = before

    def _portal(self) -> None:
        self.counts["portal down"] += 1
        number = self._random.choice((1, 2))
        self.world.scene.array.portal_down(number)
        self._ending.wait(self._random.uniform(0.5, _LONGEST))
        self.world.scene.array.portal_up(number)

    def _crash(self) -> None:
        self.counts["host crashed"] += 1
        name = self._random.choice(self.world.host_names)
        self.crashes[name] += 1
        self.world.scene.hosts[name].crash()
        self._ending.wait(self._random.uniform(0.2, 2.0))
        self.world.scene.hosts[name].boot()
