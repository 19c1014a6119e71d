# SPDX-License-Identifier: Apache-2.0
"""The identity of a LUN from its VPD page 0x83, as the kernel and as udev's scsi_id write it."""

from __future__ import annotations

__all__ = ["kernel_wwid", "multipath_wwid"]

T10, EUI, NAA, NAME = 1, 2, 3, 8


def _designators(page: bytes) -> list[tuple[int, bytes]]:
    """List (type, bytes) of the designators that name the logical unit."""
    found: list[tuple[int, bytes]] = []
    offset = 4
    while offset + 4 <= len(page):
        association, kind, length = page[offset + 1] >> 4 & 3, page[offset + 1] & 0x0F, page[offset + 3]
        if association == 0:
            found.append((kind, page[offset + 4 : offset + 4 + length]))
        offset += 4 + length
    return found


def _best(page: bytes) -> tuple[int, bytes] | None:
    """Prefer the longest NAA, then EUI, then the vendor's own."""
    order = {NAA: 3, EUI: 2, T10: 1}
    known = [one for one in _designators(page) if one[0] in order]
    return max(known, key=lambda one: (order[one[0]], len(one[1])), default=None)


def kernel_wwid(page: bytes) -> str:
    """Return what ``/sys/block/sdX/device/wwid`` says (``naa.6...``); empty without a designator."""
    best = _best(page)
    if best is None:
        return ""
    kind, name = best
    if kind == T10:
        return "t10." + name.rstrip(b"\0 ").decode("ascii", "replace")
    return ("naa." if kind == NAA else "eui.") + name.hex()


def multipath_wwid(page: bytes) -> str:
    """Return what multipath calls the WWID: the designator's type and its name (``36...``)."""
    best = _best(page)
    if best is None:
        return ""
    kind, name = best
    if kind == T10:
        return "1" + name.rstrip(b"\0 ").decode("ascii", "replace").replace(" ", "_")
    return f"{kind}{name.hex()}"
