# SPDX-License-Identifier: Apache-2.0
"""FlashCopy maps: what their states mean for us."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sanstone.arrays.v7000.terminal import command, detail

__all__ = ["FlashCopyMap", "read_map", "removal"]


@dataclass(frozen=True, slots=True)
class FlashCopyMap:
    """A map from ``source`` to ``target``; ``progress`` in percent, ``copy_rate`` 0 means never."""

    name: str
    source: str
    target: str
    status: str
    progress: int
    copy_rate: int

    @property
    def is_independent(self) -> bool:
        """The target has all that it needs."""
        return self.progress == 100

    @property
    def has_not_begun(self) -> bool:
        """Made, but never started: what a cut between the two leaves."""
        return self.status in ("idle_or_copied", "prepared") and not self.is_independent

    @property
    def reads_source(self) -> bool:
        """The target still needs the source."""
        return self.status in ("preparing", "prepared", "copying", "suspended", "stopping") and not (
            self.is_independent
        )


def read_map(section: Sequence[str]) -> FlashCopyMap | None:
    """Read the detailed view of a map, None when there was none."""
    found = detail(section)
    if "status" not in found:
        return None
    return FlashCopyMap(
        found["name"],
        found["source_vdisk_name"],
        found["target_vdisk_name"],
        found["status"],
        int(found.get("progress") or 0),
        int(found.get("copy_rate") or 0),
    )


def removal(each: FlashCopyMap) -> list[str]:
    """Spell the commands that remove a map whose target may become unusable.

    A stopped map goes by force only, an idle one without (IBM's rmfcmap page).
    """
    if each.status in ("preparing", "prepared", "copying", "suspended"):
        return [command("stopfcmap", each.name), command("rmfcmap", "-force", each.name)]
    if each.status in ("stopped", "stopping"):
        return [command("rmfcmap", "-force", each.name)]
    return [command("rmfcmap", each.name)]
