# SPDX-License-Identifier: Apache-2.0
"""Which host reaches which volume."""

from __future__ import annotations

from typing import Any

from sanstone.arrays.iscsi.node import contents, targets, tgtd
from sanstone.arrays.iscsi.node.lvm import (
    HOST,
    ID,
    PREFIX,
    LogicalVolume,
    Request,
    change,
    locked,
    read,
    request_of,
)
from sanstone.arrays.iscsi.node.tgtd import LUN
from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.lock import hold
from sanstone.transport.remote.run import Context, Deadline

__all__ = ["map_volume", "mend", "take_off", "unmap"]


def map_volume(operation: dict[str, Any], context: Context) -> dict[str, Any]:
    """Let a host reach a volume; a second one only if ``is_shared``."""
    request = request_of(operation)
    lv, host = PREFIX + operation["name"], operation["to_host"]
    with locked(request, lv, context):
        volume = contents.repaired(request, lv, context).existing(lv, request.place)
        others = sorted(set(volume.hosts) - {host})
        if others and not operation["is_shared"]:
            raise NodeError(
                "ConflictError",
                f"Volume {volume.name} is mapped to {', '.join(others)} already: {host} does not get it too.",
                "See whether a VM still runs there; if not, detach the volume from it first.",
            )
        if not volume.is_complete:
            raise NodeError(
                "ConflictError",
                f"Volume {volume.name} is a copy that is not complete.",
                "Run the action that made it again.",
            )
        if not volume.is_online:
            raise NodeError(
                "ArrayError",
                f"Volume {volume.name} is damaged or offline on {request.place}.",
                f"See there: lvs -o +lv_health_status {request.group}",
            )
        volume = _tag(request, volume, host, operation["initiator"], context)
        found = tgtd.targets(context).get(request.iqn(lv))
        exported = targets.export(request, volume, context, is_secret=operation["is_secret"], found=found)
        user = targets.account_of(volume, host)
        return {
            **volume.described(),
            "lun": LUN,
            "iqn": exported.iqn,
            "portals": tgtd.portals(context),
            "user": user,
            "password": exported.secrets.get(user, ""),
        }


def _tag(
    request: Request, volume: LogicalVolume, host: str, initiator: str, context: Context
) -> LogicalVolume:
    """Write down that a host has the volume, and who the volume is if it was made elsewhere."""
    old = volume.hosts.get(host)
    add = [] if volume.is_ours else [f"{ID}{volume.identity}"]
    remove = [] if old in (None, initiator) else [f"{HOST}{host}/{old}"]
    if old != initiator:
        add.append(f"{HOST}{host}/{initiator}")
    if not add:
        return volume
    words = [word for tag in remove for word in ("--deltag", tag)]
    words += [word for tag in add for word in ("--addtag", tag)]
    change(request, context, "lvchange", *words, f"{request.group}/{volume.lv}", what=volume.name)
    return volume._replace(tags=(*(tag for tag in volume.tags if tag not in remove), *add))


def unmap(operation: dict[str, Any], context: Context) -> None:
    """Let a host no longer reach a volume; when this returns, no command of it is under way any more."""
    request = request_of(operation)
    lv = PREFIX + operation["name"]
    with locked(request, lv, context):
        volume = read(request, context).volume(lv)
        if volume is not None:
            take_off(request, volume, operation["from_host"], context)


def take_off(request: Request, volume: LogicalVolume, host: str, context: Context) -> LogicalVolume:
    """Unmap a volume whose lock is held; return it without that host."""
    initiator = volume.hosts.get(host)
    if initiator is not None:
        tag = f"{HOST}{host}/{initiator}"
        label = f"{request.group}/{volume.lv}"
        change(request, context, "lvchange", "--deltag", tag, label, what=volume.name)
        volume = volume._replace(tags=tuple(each for each in volume.tags if each != tag))
    elif not volume.is_ours:
        return volume
    found = tgtd.targets(context).get(request.iqn(volume.lv))
    if volume.hosts:
        if not targets.is_right(request, volume, found):
            targets.export(request, volume, context, is_secret=True, found=found)
    else:
        targets.close(request, volume, context, found=found)
    return volume


def mend(operation: dict[str, Any], context: Context) -> dict[str, Any]:
    """Bring back what tgtd has lost, and close what an action that was cut off has left open.

    Targets of volumes that were never mapped by this driver are left alone.
    """
    request = request_of(operation)
    warnings: list[str] = []
    known = tgtd.targets(context)
    for volume in read(request, context).volumes.values():
        if not volume.is_ours or targets.is_right(request, volume, known.get(request.iqn(volume.lv))):
            continue
        try:
            with hold("volume", f"{request.group}/{volume.lv}", Deadline(0.0)):
                if _mend(request, volume.lv, operation, context):
                    warnings.append(f"The target of {volume.name} was not as it should be and is again.")
        except NodeError as fault:
            if fault.family != "BusyError":
                warnings.append(f"The target of {volume.name} is not as it should be: {fault.message}")
    return {"warnings": warnings}


def _mend(request: Request, lv: str, operation: dict[str, Any], context: Context) -> bool:
    """Look again, with the volume's lock held, and set right what still differs."""
    volume = read(request, context).volumes.get(lv)
    found = tgtd.targets(context).get(request.iqn(lv))
    if volume is None or not volume.is_ours or targets.is_right(request, volume, found):
        return False
    if volume.hosts:
        targets.export(request, volume, context, is_secret=operation["is_secret"], found=found)
    else:
        targets.close(request, volume, context, found=found)
    return True
