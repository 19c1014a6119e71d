# SPDX-License-Identifier: Apache-2.0
"""Volumes as the box lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sanstone.arrays.v7000.terminal import listing, rows
from sanstone.model import Volume

__all__ = ["Found", "read_volumes", "volumes_where"]


@dataclass(frozen=True, slots=True)
class Found:
    """A volume with what only this package needs of it."""

    volume: Volume
    io_group: str
    maps: int | None
    """How many FlashCopy maps it is part of, None when the box does not say."""


def volumes_where(condition: str) -> str:
    return listing("lsvdisk", "-bytes", "-filtervalue", condition)


def read_volumes(section: Sequence[str]) -> list[Found]:
    return [
        Found(
            Volume(
                row["name"],
                "3" + row["vdisk_UID"].lower(),
                int(row["capacity"]),
                row["mdisk_grp_name"],
                is_online=row["status"] != "offline",
            ),
            row.get("IO_group_name", ""),
            int(row["fc_map_count"]) if row.get("fc_map_count", "").isdigit() else None,
        )
        for row in rows(section)
    ]
