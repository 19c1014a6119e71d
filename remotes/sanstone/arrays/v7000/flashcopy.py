# SPDX-License-Identifier: Apache-2.0
"""FlashCopy maps: what their states mean for us."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sanstone.arrays.v7000.terminal import Row, command, detail, rows

__all__ = ["FlashCopyMap", "finish", "read_map", "read_maps", "removal", "start"]


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
        """Made, but not started: what a cut between the two leaves, or a flush that failed.

        The target has no contents yet that anybody could have used.
        """
        return self.status in ("idle_or_copied", "prepared", "stopped") and not self.is_independent

    @property
    def is_starting(self) -> bool:
        """The target is offline until the caches are flushed."""
        return self.status in ("preparing", "prepared")

    @property
    def is_stopping(self) -> bool:
        """On its way to stopped or idle, which can take as long as others need what the target has."""
        return self.status == "stopping"

    @property
    def is_for_ever(self) -> bool:
        """A snapshot: the target will always need the source, for nothing is copied in the background."""
        return self.copy_rate == 0 and self.reads_source and not self.is_stopping

    @property
    def reads_source(self) -> bool:
        """The target still needs the source."""
        return self.status in ("preparing", "prepared", "copying", "suspended", "stopping") and not (
            self.is_independent
        )


def read_map(section: Sequence[str]) -> FlashCopyMap | None:
    """Read the detailed view of a map, None when there was none."""
    found = detail(section)
    return _read(found) if "status" in found else None


def read_maps(section: Sequence[str]) -> list[FlashCopyMap]:
    """Read the concise view."""
    return [_read(row) for row in rows(section)]


def _read(found: Row) -> FlashCopyMap:
    return FlashCopyMap(
        found["name"],
        found["source_vdisk_name"],
        found["target_vdisk_name"],
        found["status"],
        _percent(found.get("progress", "")),
        _percent(found.get("copy_rate", "")),
    )


def _percent(text: str) -> int:
    return int(text) if text.isdigit() else 0


def start(name: str, existing: FlashCopyMap | None = None, *, is_restore: bool = False) -> str:
    """Spell the command that starts a map, which must not be prepared a second time.

    ``is_restore``: the target may be the source of other maps, such as the one by which the source was made.
    """
    is_prepared = existing is not None and existing.status == "prepared"
    options = [*([] if is_prepared else ["-prep"]), *(["-restore"] if is_restore else [])]
    return command("startfcmap", *options, name)


def finish(each: FlashCopyMap) -> list[str]:
    """Spell the commands that remove a map whose target has all that it needs, or never had anything.

    One that is still active then keeps what others read through its target: it is split off first.
    """
    if each.status in ("copying", "suspended"):
        return [command("stopfcmap", "-split", each.name), command("rmfcmap", each.name)]
    return removal(each)


def removal(each: FlashCopyMap) -> list[str]:
    """Spell the commands that remove a map whose target may become unusable.

    A stopped map goes by force only, an idle one without (IBM's rmfcmap page).
    """
    if each.status in ("preparing", "prepared", "copying", "suspended"):
        return [command("stopfcmap", each.name), command("rmfcmap", "-force", each.name)]
    if each.status in ("stopped", "stopping"):
        return [command("rmfcmap", "-force", each.name)]
    return [command("rmfcmap", each.name)]
