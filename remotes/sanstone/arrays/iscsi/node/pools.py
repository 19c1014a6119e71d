# SPDX-License-Identifier: Apache-2.0
"""How much room there is, and whether the settings fit the volume group."""

from __future__ import annotations

from typing import Any

from sanstone.arrays.iscsi.node.lvm import Group, Pool, Request, only_one, read, read_group, request_of
from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.run import Context

__all__ = ["capacity", "check_room", "room"]

_MOST_METADATA = 95.0
_LEAST_FREE = 0.01
_WARN_METADATA = 80.0
_WARN_FREE = 0.10


def capacity(operation: dict[str, Any], context: Context) -> dict[str, Any]:
    """Read what the thin pool has, or the volume group where there is no pool."""
    request = request_of(operation)
    found = room(request, read(request, context), context)
    warnings = []
    if found.name and found.metadata_percent >= _WARN_METADATA:
        warnings.append(
            f"The metadata of thin pool {request.group}/{found.name} are full to "
            f"{found.metadata_percent:.0f} %: extend them (lvextend --poolmetadatasize)."
        )
    if found.name and found.free < found.size * _WARN_FREE:
        percent = 100 - 100 * found.free // max(found.size, 1)
        warnings.append(f"Thin pool {request.group}/{found.name} is full to {percent} %: extend it.")
    return {"total": found.size, "free": found.free, "warnings": warnings}


def room(request: Request, group: Group, context: Context) -> Pool:
    return only_one(group, request.pool) or read_group(request, context)


def check_room(request: Request, pool: Pool, needs: int) -> None:
    """Make nothing in a pool that is nearly full: when it is, all of its volumes stop.

    Raises NodeError: CapacityError.
    """
    what = f"{request.group}/{pool.name}" if pool.name else request.group
    if pool.name and pool.metadata_percent >= _MOST_METADATA:
        raise NodeError(
            "CapacityError",
            f"The metadata of thin pool {what} are full to {pool.metadata_percent:.0f} %.",
            f"Extend them: lvextend --poolmetadatasize +1G {what}",
        )
    if pool.name and pool.free < pool.size * _LEAST_FREE:
        raise NodeError(
            "CapacityError", f"Thin pool {what} is full.", f"Extend it, or delete volumes: lvextend {what}"
        )
    if needs > pool.free:
        raise NodeError(
            "CapacityError",
            f"{what} has {pool.free >> 20} MiB free, {needs >> 20} MiB are needed.",
            "Extend it, or delete what nobody needs.",
        )
