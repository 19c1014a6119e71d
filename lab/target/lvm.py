# SPDX-License-Identifier: Apache-2.0
"""LVM's commands that change something, as strict as LVM 2.03 and in its words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from lab.target import reports
from lab.target.options import (
    MISUSE,
    MISUSED,
    Arguments,
    Syntax,
    check_full_name,
    check_name,
    extents_of,
    misuse,
    read_size,
    spell_size,
)
from lab.target.volumes import EXTENT, METADATA, LogicalVolume, LVMError, VolumeGroup, Volumes

__all__ = ["COMMANDS"]

LVCREATE = Syntax(
    "lvcreate",
    {"thin": "T", "snapshot": "s", "ignoreactivationskip": "K", "force": "f"},
    {
        "name": "n", "size": "L", "extents": "l", "virtualsize": "V", "thinpool": "", "addtag": "",
        "setactivationskip": "k", "activate": "a", "zero": "Z", "wipesignatures": "W", "permission": "p",
        "chunksize": "c", "type": "", "poolmetadatasize": "", "discards": "", "errorwhenfull": "",
        "monitor": "", "readahead": "r", "poolmetadataspare": "", "alloc": "", "contiguous": "C",
    },
)  # fmt: skip
LVREMOVE = Syntax("lvremove", {"force": "f"}, {"select": "S"})
LVEXTEND = Syntax(
    "lvextend",
    {"resizefs": "r", "nofsck": "n", "force": "f"},
    {"size": "L", "extents": "l", "poolmetadatasize": "", "alloc": ""},
)
LVRENAME = Syntax("lvrename")
LVCHANGE = Syntax(
    "lvchange",
    {"ignoreactivationskip": "K", "refresh": "", "force": "f", "partial": "P"},
    {
        "activate": "a", "addtag": "", "deltag": "", "setactivationskip": "k", "permission": "p",
        "discards": "", "errorwhenfull": "", "zero": "Z", "monitor": "", "select": "S", "readahead": "r",
    },
)  # fmt: skip
LVCONVERT = Syntax(
    "lvconvert",
    {"merge": "", "mergesnapshot": "", "force": "f", "background": "b", "thin": "T"},
    {"interval": "i", "thinpool": "", "type": "", "originname": ""},
)


def lvcreate(volumes: Volumes, argv: Sequence[str]) -> str:
    """Make a thin volume, a thin snapshot or a thick volume."""
    args = LVCREATE.parse(argv)
    sizes = {name: read_size(args.get(name), name) for name in ("size", "virtualsize") if name in args}
    if "name" in args:
        check_name(args.get("name").rpartition("/")[2])
    for tag in args.all("addtag"):
        _check_tag(tag, "addtag")
    if not args.words and "thinpool" not in args:
        raise _no_syntax("lvcreate")
    for name, size in sizes.items():
        if not size:
            raise misuse(f"--{name} may not be zero.")
    if "snapshot" in args or args.get("type") == "snapshot":
        return _create_snapshot(volumes, args)
    if "virtualsize" in args or "thin" in args or args.get("type") == "thin":
        return _create_thin(volumes, args)
    return _create_thick(volumes, args)


def _no_syntax(command: str) -> LVMError:
    words = f"No command with matching syntax recognised.  Run '{command} --help' for more information."
    return LVMError(words, code=MISUSE)


def _create_snapshot(volumes: Volumes, args: Arguments) -> str:
    group_name, name = volumes.split(args.words[0])
    if not name:
        raise misuse("The origin name should include the volume group.")
    group = volumes.group(group_name)
    origin = group.volumes.get(name)
    if origin is None:
        raise LVMError(f"Snapshot origin LV {name} not found in Volume group {group_name}.")
    if not origin.is_thin or "size" in args or "extents" in args:
        # thick snapshots are what nobody wants here
        raise LVMError("Please specify either size or extents with snapshots.")
    volume = volumes.new(
        _new_name(group, args),
        origin.size,
        "thin",
        pool=origin.pool,
        origin=origin.name,
        tags=_tags(args),
        skips_activation=args.yes("setactivationskip", True),
        is_writable=args.get("permission", "rw") != "r",
    )
    volumes.copy(origin, volume)
    return _created(volumes, group, volume, args)


def _create_thin(volumes: Volumes, args: Arguments) -> str:
    group_name, pool_name = volumes.split(args.words[0] if args.words else args.get("thinpool"))
    pool_name = pool_name or args.get("thinpool").rpartition("/")[2]
    if "name" in args and "/" in args.get("name"):
        other = args.get("name").partition("/")[0]
        if other != group_name:
            raise misuse(f'Please use a single volume group name ("{group_name}" or "{other}").')
    if not pool_name:
        raise misuse("Please specify name of existing pool.")
    group = volumes.group(group_name)
    if "virtualsize" not in args:
        return _create_pool(volumes, group, pool_name, args)
    pool = group.volumes.get(pool_name)
    if pool is None:
        raise LVMError(f"Pool {pool_name} not found in Volume group {group_name}.")
    if pool.kind != "pool":
        raise LVMError(f"Logical volume {group_name}/{pool_name} is not a thin pool.")
    asked = read_size(args.get("virtualsize"), "virtualsize")
    # a pool that is full does not stop LVM from making volumes
    volume = volumes.new(
        _new_name(group, args),
        extents_of(asked),
        "thin",
        pool=pool_name,
        tags=_tags(args),
        skips_activation=args.yes("setactivationskip", False),
        is_writable=args.get("permission", "rw") != "r",
    )
    return _rounded(asked, volume.size) + _created(volumes, group, volume, args)


def _create_pool(volumes: Volumes, group: VolumeGroup, name: str, args: Arguments) -> str:
    name = name or args.get("name")
    check_name(name)
    if name in group.volumes:
        raise _exists(group, name)
    size = extents_of(read_size(args.get("size"), "size"))
    _has_extents(group, size + 2 * METADATA)
    group.volumes[name] = volumes.new(name, size, "pool", tags=_tags(args))
    return f'  Logical volume "{name}" created.\n'


def _create_thick(volumes: Volumes, args: Arguments) -> str:
    if not args.words or ("size" not in args and "extents" not in args):
        raise _no_syntax("lvcreate")
    group = volumes.group(volumes.split(args.words[0])[0])
    if "size" in args:
        asked = read_size(args.get("size"), "size")
    elif match := re.fullmatch(r"(\d+)(%FREE)?", args.get("extents")):
        asked = int(match[1]) * (group.free // 100 if match[2] else EXTENT)
    else:
        raise LVMError(f"Invalid argument for --extents: {args.get('extents')}", MISUSED, code=MISUSE)
    size = extents_of(asked)
    name = _new_name(group, args)
    _has_extents(group, size)
    volume = volumes.new(
        name,
        size,
        "linear",
        tags=_tags(args),
        skips_activation=args.yes("setactivationskip", False),
        is_writable=args.get("permission", "rw") != "r",
    )
    return _rounded(asked, size) + _created(volumes, group, volume, args)


def _new_name(group: VolumeGroup, args: Arguments) -> str:
    name = args.get("name").rpartition("/")[2]
    if not name:
        # 0 is the spare of the pools' metadata
        number = next(n for n in range(bool(group.pools()), 1 << 20) if f"lvol{n}" not in group.volumes)
        return f"lvol{number}"
    if name in group.volumes:
        raise _exists(group, name)
    check_full_name(group.name, name)
    return name


def _exists(group: VolumeGroup, name: str) -> LVMError:
    return LVMError(f'Logical Volume "{name}" already exists in volume group "{group.name}"')


def _has_extents(group: VolumeGroup, size: int) -> None:
    if size > group.free:
        raise LVMError(
            f'Volume group "{group.name}" has insufficient free space '
            f"({group.free // EXTENT} extents): {size // EXTENT} required."
        )


def _rounded(asked: int, size: int) -> str:
    if asked == size:
        return ""
    return f"  Rounding up size to full physical extent {_spelled(size)}\n"


def _created(volumes: Volumes, group: VolumeGroup, volume: LogicalVolume, args: Arguments) -> str:
    if volume.is_thin:
        volume.thin_id = group.next_thin_id
        group.next_thin_id += 1
    group.volumes[volume.name] = volume
    wanted = args.get("activate", "y")
    if wanted != "n" and (not volume.skips_activation or "ignoreactivationskip" in args):
        volumes.activate(group, volume)
    else:
        volumes.deactivate(group, volume)
    return f'  Logical volume "{volume.name}" created.\n'


def _tags(args: Arguments) -> list[str]:
    return sorted({tag.removeprefix("@") for tag in args.all("addtag")})


def _check_tag(tag: str, option: str) -> None:
    if not re.fullmatch(r"@?[A-Za-z0-9_+.][A-Za-z0-9_+.\-/=!:&#]*", tag) or len(tag) > 1024:
        raise LVMError(f"Invalid argument for --{option}: {tag}", MISUSED, code=MISUSE)


def lvremove(volumes: Volumes, argv: Sequence[str]) -> str:
    """Remove volumes; without -y or -f it asks about an active one, and nobody answers."""
    args = LVREMOVE.parse(argv)
    if not args.words and "select" not in args:
        raise _no_syntax("lvremove")
    wanted, errors = reports.selected(volumes, args)
    done: list[str] = []
    for group, volume in wanted:
        if volume.name not in group.volumes:
            continue  # it went with its pool
        try:
            done += _remove(volumes, group, volume, is_sure="yes" in args or "force" in args)
        except LVMError as err:
            errors.append(err)
    return _ended("".join(f"  {line}\n" for line in done), errors)


def _ended(out: str, errors: Sequence[LVMError]) -> str:
    if errors:
        raise LVMError(*(line for err in errors for line in err.lines), out=out)
    return out


def _remove(volumes: Volumes, group: VolumeGroup, volume: LogicalVolume, *, is_sure: bool) -> list[str]:
    label = f"{group.name}/{volume.name}"
    if volumes.is_open(volume):
        raise LVMError(f"Logical volume {label} in use.")
    if not is_sure and volume.is_active:
        raise LVMError(
            f"Do you really want to remove active logical volume {label}? [y/n]: [n]",
            f"Logical volume {label} not removed.",
        )
    lines = []
    for each in group.thin_in(volume.name) if volume.kind == "pool" else ():
        lines += _remove(volumes, group, each, is_sure=is_sure)
    volumes.remove(group, volume)
    return [*lines, f'Logical volume "{volume.name}" successfully removed.']


def lvextend(volumes: Volumes, argv: Sequence[str]) -> str:
    """Let a volume be larger, whether somebody has it open or not."""
    args = LVEXTEND.parse(argv)
    if len(args.words) != 1 or ("size" in args) is ("extents" in args):
        raise _no_syntax("lvextend")
    text = args.get("size") or args.get("extents")
    asked = read_size(text.removeprefix("+"), "size") if "size" in args else int(text) * EXTENT
    group, volume = _existing(volumes, args.words[0])
    wanted = volume.size + asked if text.startswith("+") else asked
    size = extents_of(wanted)
    old, new = volume.size // EXTENT, size // EXTENT
    if size == volume.size:
        raise LVMError(f"New size ({new} extents) matches existing size ({old} extents).")
    if size < volume.size:
        raise LVMError(f"New size given ({new} extents) not larger than existing size ({old} extents)")
    if not volume.is_thin and size - volume.size > group.free:
        has = group.free // EXTENT
        raise LVMError(f"Insufficient free space: {new - old} extents needed, but only {has} available")
    before = volume.size
    volumes.grow(volume, size)
    is_round = wanted == size
    return (
        ("" if is_round else f"  Rounding size to boundary between physical extents: {_spelled(size)}.\n")
        + f"  Size of logical volume {group.name}/{volume.name} changed from {_spelled(before)} "
        f"({old} extents) to {_spelled(size)} ({new} extents).\n"
        f"  Logical volume {group.name}/{volume.name} successfully resized.\n"
    )


def _existing(volumes: Volumes, word: str) -> tuple[VolumeGroup, LogicalVolume]:
    group_name, name = volumes.split(word)
    group = volumes.group(group_name)
    if name not in group.volumes:
        raise LVMError(f"Logical volume {name} not found in volume group {group_name}.")
    return group, group.volumes[name]


def _spelled(size: int) -> str:
    text = spell_size(size)
    return f"{text[:-1]} {text[-1].upper()}iB"


def lvrename(volumes: Volumes, argv: Sequence[str]) -> str:
    """Give a volume another name in its group."""
    args = LVRENAME.parse(argv)
    if len(args.words) == 3:
        group_name, old, new = args.words
    elif len(args.words) == 2:
        (group_name, old), new = volumes.split(args.words[0]), args.words[1]
    else:
        raise misuse("Old and new logical volume names required")
    if not old:
        raise misuse(f'Path required for Logical Volume "{group_name}".')
    old, new = (volumes.split(name)[1] if "/" in name else name for name in (old, new))
    if re.search(r"[^A-Za-z0-9+_.-]", new):
        raise misuse(f'New logical volume name "{new}" is invalid')
    check_name(new)
    if old == new:
        raise misuse("Old and new logical volume names must differ")
    group = volumes.group(group_name)
    check_full_name(group_name, new)
    if new in group.volumes:
        raise _exists(group, new)
    if old not in group.volumes:
        raise LVMError(f'Existing logical volume "{old}" not found in volume group "{group_name}"')
    volume = group.volumes[old]
    was_active = volume.is_active
    volumes.deactivate(group, volume)
    group.volumes = {new if name == old else name: one for name, one in group.volumes.items()}
    volume.name = new
    for other in group.volumes.values():
        for link in ("origin", "pool", "merges"):
            if getattr(other, link) == old:
                setattr(other, link, new)
    if was_active:
        volumes.activate(group, volume)
    return f'  Renamed "{old}" to "{new}" in volume group "{group_name}"\n'


def lvchange(volumes: Volumes, argv: Sequence[str]) -> str:
    """Change tags, whether a volume is active, or what is kept about it."""
    args = LVCHANGE.parse(argv)
    for option in ("addtag", "deltag"):
        for tag in args.all(option):
            _check_tag(tag, option)
    if args.get("activate", "y") not in ("y", "n", "ay", "ey", "sy", "ly", "ln"):
        raise LVMError(f"Invalid argument for --activate: {args.get('activate')}", MISUSED, code=MISUSE)
    if not args.words or not set(LVCHANGE.values) - {"select"} & set(args.options) | {"refresh"} & set(
        args.options
    ):
        raise _no_syntax("lvchange")
    wanted, errors = reports.selected(volumes, args)
    out = ""
    for group, volume in wanted:
        try:
            out += _change(volumes, group, volume, args)
        except LVMError as err:
            errors.append(err)
    return _ended(out, errors)


def _change(volumes: Volumes, group: VolumeGroup, volume: LogicalVolume, args: Arguments) -> str:
    label = f"{group.name}/{volume.name}"
    changed = ""
    tags = (set(volume.tags) | set(args.all("addtag"))) - set(args.all("deltag"))
    if "addtag" in args or "deltag" in args:
        volume.tags = sorted(tags)
        changed = f"  Logical volume {label} changed.\n"
    if "setactivationskip" in args:
        volume.skips_activation = args.yes("setactivationskip", True)
        changed = f"  Logical volume {label} changed.\n"
    if "permission" in args:
        is_writable = args.get("permission") != "r"
        if is_writable is volume.is_writable:
            now = "writable" if is_writable else "read only"
            raise LVMError(f'Logical volume "{label}" is already {now}.')
        volume.is_writable = is_writable
        changed = f"  Logical volume {label} changed.\n"
    if "activate" in args:
        if args.get("activate").endswith("y"):
            if not volume.skips_activation or "ignoreactivationskip" in args:
                volumes.activate(group, volume)
        elif volumes.is_open(volume):
            raise LVMError(f"Logical volume {label} in use.")
        else:
            volumes.deactivate(group, volume)
    return changed


def lvconvert(volumes: Volumes, argv: Sequence[str]) -> str:
    """Merge a thin snapshot back into its origin."""
    args = LVCONVERT.parse(argv)
    out = ""
    for word in args.words:
        group, snapshot = volumes.find(word)
        label = f"{group.name}/{snapshot.name}"
        if "merge" not in args and "mergesnapshot" not in args:
            raise LVMError(
                f"Command on LV {label} does not accept LV type {snapshot.kind}.",
                f"Command not permitted on LV {label}.",
            )
        if not snapshot.is_thin:
            raise LVMError(f"{label} cannot be merged because --trackchanges was not used.")
        if snapshot.origin not in group.volumes:
            raise LVMError(f"{label} is not a mergeable logical volume.")
        out += _merge(volumes, group, group.volumes[snapshot.origin], snapshot)
    return out


def _merge(volumes: Volumes, group: VolumeGroup, origin: LogicalVolume, snapshot: LogicalVolume) -> str:
    label, into = f"{group.name}/{snapshot.name}", f"{group.name}/{origin.name}"
    if origin.merges:
        merging = f"{group.name}/{origin.merges}"
        raise LVMError(
            f"Cannot merge snapshot {label} into the origin {into} with merging snapshot {merging}."
        )
    if volumes.is_open(origin) or volumes.is_open(snapshot):
        origin.merges = snapshot.name
        out = (
            "  Delaying merge since origin volume is open.\n"
            f"  Merging of thin snapshot {label} will occur on next activation of {into}.\n"
        )
        raise LVMError(f"Logical volume {into} in use.", code=0, out=out)
    was_active = origin.is_active
    volumes.merge(group, origin, snapshot)
    if was_active:
        volumes.activate(group, origin)
    return f"  Volume {label} replaced origin {into}.\n"


Command = Callable[[Volumes, Sequence[str]], str]

COMMANDS: dict[str, Command] = {
    "lvs": reports.lvs,
    "vgs": reports.vgs,
    "lvcreate": lvcreate,
    "lvremove": lvremove,
    "lvextend": lvextend,
    "lvrename": lvrename,
    "lvchange": lvchange,
    "lvconvert": lvconvert,
}
