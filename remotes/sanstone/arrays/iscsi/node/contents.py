# SPDX-License-Identifier: Apache-2.0
"""What volumes hold: copied within the target host, exchanged, zeroed.

The contents of a thin volume are exchanged: a snapshot of the source takes its name and tags. The parts are
called ``.new`` and ``.old`` and tagged, so that whoever comes next finishes, or undoes, what was cut off:

    1. snapshot NAME.new, tagged         cut off here: NAME.new is removed
    2. NAME tagged, then named NAME.old  cut off here: NAME.new is the volume (``Group.volume`` says so)
    3. NAME.new named NAME, untagged     cut off here: NAME.old is removed
    4. NAME.old removed
"""

from __future__ import annotations

import errno
import os
from typing import Any

from sanstone.arrays.iscsi.node.lvm import (
    ID,
    NEW,
    OLD,
    PREFIX,
    REPLACEMENT,
    Group,
    LogicalVolume,
    Request,
    change,
    device,
    local,
    locked,
    new_volume,
    read,
    remove_volume,
    request_of,
)
from sanstone.arrays.iscsi.node.targets import activate
from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.run import Context, caller_is_gone, run

__all__ = ["copy", "fill", "repaired", "zero"]

_PIECE = 4 * 1024 * 1024
_ZERO_PIECE = 64 * 1024
_SYNC_EVERY = 256 * 1024 * 1024


def copy(operation: dict[str, Any], context: Context) -> None:
    """Let ``target`` have the contents that ``source`` has now."""
    request = request_of(operation)
    lv = PREFIX + operation["target"]
    with locked(request, lv, context):
        group = repaired(request, lv, context)
        source = group.existing(PREFIX + operation["source"], request.place)
        target = group.existing(lv, request.place)
        if source.size != target.size:
            raise NodeError(
                "ConflictError",
                f"{source.name} has {source.size} bytes and {target.name} {target.size}: "
                "only volumes of one size are copied.",
            )
        if target.hosts:
            raise NodeError(
                "ConflictError",
                f"{target.name} is mapped to {', '.join(sorted(target.hosts))}: nothing is copied to it.",
            )
        if source.pool and target.pool:
            _exchange(request, source, target, context)
        else:
            fill(request, source, target, context)


def _exchange(request: Request, source: LogicalVolume, target: LogicalVolume, context: Context) -> None:
    lv, label = target.lv, f"{request.group}/{target.lv}"
    words = ["-s", f"{request.group}/{source.lv}", "-kn"]
    tags = [*(tag for tag in target.tags if tag != REPLACEMENT), REPLACEMENT]
    if not target.is_ours:
        tags.append(ID + target.identity)
    new_volume(request, lv + NEW, words, tags, context)
    change(request, context, "lvchange", "--addtag", REPLACEMENT, label, what=target.name)
    change(request, context, "lvrename", request.group, lv, lv + OLD, what=target.name)
    _finish(request, lv, context)


def _finish(request: Request, lv: str, context: Context) -> None:
    """Let the new contents have the name, and the old ones be gone."""
    what = lv.removeprefix(PREFIX)
    change(request, context, "lvrename", request.group, lv + NEW, lv, what=what)
    change(request, context, "lvchange", "--deltag", REPLACEMENT, f"{request.group}/{lv}", what=what)
    remove_volume(request, lv + OLD, context)


def repaired(request: Request, lv: str, context: Context) -> Group:
    """Read the volume group, after an exchange that was cut off has been finished or undone.

    The caller holds the volume's lock.
    """
    group = read(request, context)
    there, new, old = (group.volumes.get(name) for name in (lv, lv + NEW, lv + OLD))
    ours = [each for each in (new, old) if each is not None and REPLACEMENT in each.tags]
    if not ours and not (there and REPLACEMENT in there.tags):
        return group
    if there is None and new in ours and old in ours:
        _finish(request, lv, context)
    elif there is not None:
        for each in ours:
            remove_volume(request, each.lv, context)
        if REPLACEMENT in there.tags:
            label = f"{request.group}/{lv}"
            change(request, context, "lvchange", "--deltag", REPLACEMENT, label, what=there.name)
    return read(request, context)


def fill(request: Request, source: LogicalVolume, target: LogicalVolume, context: Context) -> None:
    """Copy all bytes of one volume to another one that no host has, hole for hole where it is thin.

    Raises NodeError: ConflictError when the source may change meanwhile.
    """
    if source.pool:
        _fill_from_snapshot(request, source, target, context)
        return
    if source.hosts:
        raise NodeError(
            "ConflictError",
            f"Volume {source.name} is thick and mapped to {', '.join(sorted(source.hosts))}: what is written "
            "meanwhile would be copied or not.",
            "Shut the VM down first, or move the volume to a thin pool, which has snapshots.",
        )
    _copy_bytes(request, source, target, context)


def _fill_from_snapshot(
    request: Request, source: LogicalVolume, target: LogicalVolume, context: Context
) -> None:
    """Copy from a thin volume: from a snapshot, which does not change."""
    lv = target.lv + NEW
    new_volume(request, lv, ["-s", f"{request.group}/{source.lv}", "-kn"], [REPLACEMENT], context)
    try:
        _copy_bytes(request, source._replace(lv=lv, attributes=""), target, context)
    finally:
        remove_volume(request, lv, context)


def _copy_bytes(request: Request, source: LogicalVolume, target: LogicalVolume, context: Context) -> None:
    for each in (source, target):
        if not each.is_active:
            activate(request, each, context)
    read_from = _open(request, source, os.O_RDONLY)
    try:
        write_to = _open(request, target, os.O_WRONLY)
        try:
            _pump(read_from, write_to, source, target, context)
        finally:
            os.close(write_to)
    finally:
        os.close(read_from)


def _open(request: Request, volume: LogicalVolume, flags: int) -> int:
    path = local(device(request.group, volume.lv))
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as err:
        if err.errno in (errno.EACCES, errno.EPERM):
            raise NodeError(
                "ConfigurationError",
                f"{volume.name} cannot be copied on the target host: {path} is not open to this user.",
                "Thick volumes are copied byte by byte: let the user belong to the group disk there, "
                "or use a thin pool.",
            ) from err
        raise


def _pump(
    read_from: int, write_to: int, source: LogicalVolume, target: LogicalVolume, context: Context
) -> None:
    """Copy with progress; stop when nobody waits for it any more."""
    is_zero_already = bool(target.pool) and not target.is_complete
    nothing = bytes(_PIECE)
    at, told, unsynced = 0, -1, 0
    while at < source.size:
        context.deadline.check(f"{source.name} was copied to {target.name}")
        if caller_is_gone():
            raise NodeError("ConnectError", "The front-end went away during a copy; it was stopped.")
        piece = os.pread(read_from, min(_PIECE, source.size - at), at)
        if not piece:
            raise NodeError("ArrayError", f"{source.name} ends at {at} of {source.size} bytes.")
        if not (is_zero_already and piece == nothing[: len(piece)]):
            _write(write_to, piece, at)
            unsynced += len(piece)
        at += len(piece)
        if unsynced >= _SYNC_EVERY:
            os.fdatasync(write_to)
            unsynced = 0
        percent = 100 * at // source.size
        if percent // 10 != told // 10:
            told = percent
            context.progress(f"{source.name} to {target.name}: {percent} %")
    os.fsync(write_to)


def _write(descriptor: int, piece: bytes, at: int) -> None:
    view = memoryview(piece)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def zero(request: Request, volume: LogicalVolume, context: Context) -> None:
    """Overwrite a thick volume with zeros: what it held must not be read by the next who gets its extents."""
    if not volume.is_active:
        activate(request, volume, context)
    path = local(device(request.group, volume.lv))
    context.progress(f"{volume.name}: writing zeros before it is deleted")
    done = run(["blkdiscard", "-z", path], context.deadline, ok=None, ends_with_caller=True)
    if done.code:
        raise NodeError(
            "ArrayError",
            f"Volume {volume.name} could not be overwritten with zeros, so that it was not deleted.",
            "See the target host's kernel log, then run the action again.",
            done.words,
        )
