# SPDX-License-Identifier: Apache-2.0
"""Volumes: looked up, made, grown, deleted."""

from __future__ import annotations

import re
from typing import Any

from sanstone.arrays.iscsi.node import contents, mappings, pools, targets, tgtd
from sanstone.arrays.iscsi.node.lvm import (
    ID,
    INCOMPLETE,
    NEW,
    OLD,
    PREFIX,
    Group,
    LogicalVolume,
    Request,
    change,
    locked,
    new_volume,
    read,
    remove_volume,
    request_of,
)
from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.run import Completed, Context

__all__ = ["create", "delete", "find", "resize"]

TAKEN = "name taken"
"""Details by which the front-end tells this conflict from others."""

_LARGEST_EXTENT = 256 << 20


def find(operation: dict[str, Any], context: Context) -> dict[str, Any]:
    """Look volumes up: by ``names``, by ``wwid``, or the snapshots of one (``snapshots_of``)."""
    request = request_of(operation)
    group = read(request, context)
    found: list[LogicalVolume | None] = [group.volume(PREFIX + name) for name in operation.get("names", ())]
    wwid, origin = operation.get("wwid"), operation.get("snapshots_of")
    if wwid:
        found = [each for each in _all(group) if each.wwid == wwid]
    if origin:
        found = list(_snapshots(group, origin))
    return {"volumes": [each.described() if each else None for each in found]}


def _all(group: Group) -> list[LogicalVolume]:
    """List all volumes that bear a name of the driver's scheme."""
    names = {lv.removesuffix(NEW).removesuffix(OLD) for lv in group.volumes if lv.startswith(PREFIX)}
    return [found for found in map(group.volume, sorted(names)) if found is not None]


def _snapshots(group: Group, name: str) -> list[LogicalVolume]:
    form = re.compile(re.escape(name) + r"-[sb]\d+", re.ASCII)
    return [each for each in _all(group) if form.fullmatch(each.name)]


def create(operation: dict[str, Any], context: Context) -> dict[str, Any]:
    """Let a volume be there, empty or with the contents of another one.

    ``expected`` is the WWID of what bore the name when the caller looked, None for nothing; ``identity`` is
    for a new one, and tells that a volume was made by an earlier try of the same call.

    Raises NodeError: NotFoundError, CapacityError; ConflictError with details TAKEN when something else
    bears the name by now.
    """
    request = request_of(operation)
    lv = PREFIX + operation["name"]
    with locked(request, lv, context):
        group = contents.repaired(request, lv, context)
        source = group.existing(PREFIX + operation["source"], request.place) if operation["source"] else None
        size = source.size if source else operation["size"]
        there = group.volume(lv)
        if there and there.wwid not in (operation["expected"], f"36{operation['identity']:0>31}"):
            raise NodeError(
                "ConflictError",
                f"Somebody else has just made a volume {there.name} on {request.place}.",
                "Rename it there, or delete it if nobody needs it, then run the action again.",
                TAKEN,
            )
        is_short = there is not None and not size <= there.size < size + _LARGEST_EXTENT
        # What a copy that was cut off has written may not be what the source holds by now
        if there and (is_short or (there.pool and not there.is_complete)):
            _remove(request, there, context)
            there = None
        if there is None:
            there = _make(request, group, lv, operation, source, context)
        if not there.is_complete:
            if source is None:
                raise NodeError("ConflictError", f"Volume {there.name} is a copy that is not complete.")
            contents.fill(request, source, there, context)
            label = f"{request.group}/{lv}"
            change(request, context, "lvchange", "--deltag", INCOMPLETE, label, what=there.name)
        return there.described()


def _make(
    request: Request,
    group: Group,
    lv: str,
    operation: dict[str, Any],
    source: LogicalVolume | None,
    context: Context,
) -> LogicalVolume:
    tags = [f"{ID}{operation['identity']}"]
    pool = pools.room(request, group, context)
    if source is not None and source.pool:
        pools.check_room(request, group.pools[source.pool], 0)
        words = ["-s", f"{request.group}/{source.lv}", "-kn"]
    else:
        size = source.size if source else operation["size"]
        needs = max(operation["needs"], 0 if pool.name else size)
        pools.check_room(request, pool, needs)
        if source is not None:
            tags.append(INCOMPLETE)
        words = ["-V", f"{size}b", "-T", f"{request.group}/{pool.name}"]
        if not pool.name:
            words = ["-Wy", "-Zy", "-L", f"{size}b", request.group]
    new_volume(request, lv, words, tags, context)
    return read(request, context).existing(lv, request.place)


def delete(operation: dict[str, Any], context: Context) -> dict[str, Any]:
    """Let a volume be gone, off ``from_host`` first; tell whether it is.

    Raises NodeError: ConflictError while it is mapped or has snapshots, BusyError while it is open.
    """
    request = request_of(operation)
    lv, host = PREFIX + operation["name"], operation["from_host"]
    with locked(request, lv, context):
        group = contents.repaired(request, lv, context)
        volume = group.volume(lv)
        if volume is None:
            return {"is_gone": True}
        if host:
            volume = mappings.take_off(request, volume, host, context)
        if operation["wwid"] not in (None, volume.wwid):
            return {"is_gone": False}
        if volume.hosts:
            hosts = ", ".join(sorted(volume.hosts))
            raise NodeError(
                "ConflictError",
                f"Volume {volume.name} is still mapped to {hosts} on {request.place}.",
                "Detach it there first.",
            )
        snapshots = [each.name for each in _snapshots(group, volume.name)]
        if snapshots:
            raise NodeError(
                "ConflictError",
                f"Volume {volume.name} has snapshots: {', '.join(snapshots)}.",
                "Delete those first.",
            )
        _remove(request, volume, context)
    return {"is_gone": True}


def _remove(request: Request, volume: LogicalVolume, context: Context) -> None:
    """Remove a volume that no host has, and its target. A thick one is zeroed first.

    Raises NodeError: ConflictError when somebody is logged in to a target of it that is not ours.
    """
    found = tgtd.targets(context).get(request.iqn(volume.lv))
    if found is not None and found.sessions and found.scsi_id != volume.identity:
        who = ", ".join(sorted({session.initiator for session in found.sessions}))
        raise NodeError(
            "ConflictError",
            f"Volume {volume.name} is in use by {who}, through a target that this driver did not make.",
            "Shut down the VM that uses it, then run the action again.",
        )
    targets.close(request, volume, context, found=found)
    if not volume.pool:
        contents.zero(request, volume, context)
    remove_volume(request, volume.lv, context)


def resize(operation: dict[str, Any], context: Context) -> dict[str, Any]:
    """Let a volume have at least ``size`` bytes, and its target show them.

    Raises NodeError: CapacityError, ConflictError while a target that is not ours is in use.
    """
    request = request_of(operation)
    lv, size = PREFIX + operation["name"], operation["size"]
    with locked(request, lv, context):
        volume = contents.repaired(request, lv, context).existing(lv, request.place)
        found = tgtd.targets(context).get(request.iqn(lv))
        if found is not None and found.sessions and found.scsi_id not in ("", volume.identity):
            raise NodeError(
                "ConflictError",
                f"Volume {volume.name} is in use through a target that this driver did not make.",
                "Shut down the VM that uses it, then run the action again.",
            )
        if volume.size < size:
            label = f"{request.group}/{lv}"
            change(request, context, "lvextend", "-L", f"{size}b", label, what=volume.name, is_done=_has_size)
            volume = read(request, context).existing(lv, request.place)
        if volume.hosts and not targets.is_right(request, volume, found):
            targets.export(request, volume, context, is_secret=True, found=found)
        return volume.described()


def _has_size(done: Completed) -> bool:
    return "matches existing size" in done.stderr
