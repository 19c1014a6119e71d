# SPDX-License-Identifier: Apache-2.0
"""Storage systems, by the name of their driver."""

from __future__ import annotations

from pathlib import Path

from sanstone.arrays.base import Abilities, Array, Extent, Initiators, NameTakenError, NewVolume, Placement
from sanstone.errors import NotSupportedError
from sanstone.settings import Settings

__all__ = [
    "Abilities",
    "Array",
    "Extent",
    "Initiators",
    "NameTakenError",
    "NewVolume",
    "Placement",
    "open_array",
]


def open_array(
    driver: str, settings: Settings, *, state: Path | None = None, initiators: Initiators | None = None
) -> Array:
    """Open the storage system of a datastore; nothing is sent before the first question.

    ``initiators`` is asked by systems whose access rules name initiators.

    Raises: NotSupportedError for a driver that is not there.
    """
    if driver == "v7000":
        from sanstone.arrays.v7000 import V7000

        return V7000(settings, state=state)
    if driver == "iscsi":
        from sanstone.arrays.iscsi import ISCSI

        return ISCSI(settings, initiators=initiators)
    raise NotSupportedError(
        f"There is no storage driver {driver!r}.", "DS_MAD and TM_MAD take: v7000, iscsi."
    )
