# SPDX-License-Identifier: Apache-2.0
"""What is counted of an action, and what many runs of it come to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lab.scene import Scene

__all__ = ["Cost", "Counter", "Counts", "median"]

_FREE = ("echo", "set")  # the shell's own words, which no box takes time for


@dataclass(frozen=True, slots=True)
class Counts:
    """``lines``: command lines that came over SSH, one round trip each; ``commands``: those in them."""

    lines: int
    commands: int
    connections: int
    hosts: int


@dataclass(frozen=True, slots=True)
class Cost:
    """One run of an action. ``cpu``: seconds of the driver's process and its children; ``wall``: seconds."""

    counts: Counts
    cpu: float
    wall: float


class Counter:
    """Counts between two moments, from the journals of the box and the hosts."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._start = self._now()

    def _now(self) -> Counts:
        journal = self._scene.box.journal
        over_ssh = {line.number for line in journal.lines if line.connection}
        commands = [
            each
            for each in journal.commands
            if each.line in over_ssh and each.text.split(" ", 1)[0] not in _FREE
        ]
        hosts = sum(host.ssh_connections for host in self._scene.hosts.values())
        return Counts(len(over_ssh), len(commands), journal.connections, hosts)

    def spent(self) -> Counts:
        now, start = self._now(), self._start
        return Counts(
            now.lines - start.lines,
            now.commands - start.commands,
            now.connections - start.connections,
            now.hosts - start.hosts,
        )


def median(costs: Sequence[Cost]) -> Cost:
    """Take the median of each figure; of an even number of counts the higher one of the middle two."""

    def of(values: Sequence[int]) -> int:
        return statistics.median_high(values)

    return Cost(
        Counts(
            of([each.counts.lines for each in costs]),
            of([each.counts.commands for each in costs]),
            of([each.counts.connections for each in costs]),
            of([each.counts.hosts for each in costs]),
        ),
        statistics.median(each.cpu for each in costs),
        statistics.median(each.wall for each in costs),
    )
