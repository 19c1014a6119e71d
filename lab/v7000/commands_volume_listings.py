# SPDX-License-Identifier: Apache-2.0
"""Listings of volumes and their copies."""

from __future__ import annotations

from collections.abc import Iterator

from lab.v7000.errors import CommandError
from lab.v7000.listings import Cell, Size, columns, concise, detailed, listing
from lab.v7000.machine import Machine, command
from lab.v7000.options import Arguments
from lab.v7000.state import Volume

VDISK_COLUMNS = (
    ((), "id:name:IO_group_id:IO_group_name:status:mdisk_grp_id:mdisk_grp_name:capacity:type:FC_id:FC_name"),
    ((), "RC_id:RC_name:vdisk_UID:fc_map_count:copy_count:fast_write_state:se_copy_count"),
    ((6, 3), "RC_change"),
    ((7, 4), "compressed_copy_count:parent_mdisk_grp_id:parent_mdisk_grp_name"),
    ((7, 5), "formatting"),
    ((7, 6), "encrypt"),
    ((7, 8), "volume_id:volume_name:function"),
)
VDISK_FILTERS = {"vdisk_name": "name", "vdisk_id": "id"}


@command("lsvdisk", listing(target=True))
def lsvdisk(machine: Machine, args: Arguments) -> str:
    machine.measure()
    if args.target is not None:
        if args.has("filtervalue"):
            raise CommandError("CMMVC5713E")
        volume = machine.state.find(machine.state.volumes, args.target)
        return detailed([_vdisk_section(machine, volume), *_copy_sections(machine, volume)], args)
    rows = (_vdisk_row(machine, volume) for volume in _by_id(machine))
    return concise(columns(VDISK_COLUMNS, machine.level), rows, args, aliases=VDISK_FILTERS)


def _by_id(machine: Machine) -> list[Volume]:
    return sorted(machine.state.volumes.values(), key=lambda volume: volume.id)


def _pool_cells(volume: Volume) -> tuple[Cell, Cell]:
    pools = {copy.pool.id: copy.pool for copy in volume.copies}
    if len(pools) > 1:
        return "many", "many"
    (pool,) = pools.values()
    return pool.id, pool.name


def _fc_cells(machine: Machine, volume: Volume) -> tuple[Cell, Cell, Cell]:
    maps = machine.state.fc_maps_of(volume)
    if len(maps) > 1:
        return "many", "many", len(maps)
    return (maps[0].id, maps[0].name, 1) if maps else ("", "", 0)


def _status(machine: Machine, volume: Volume) -> str:
    return "online" if machine.state.is_online(volume) else "offline"


def _vdisk_row(machine: Machine, volume: Volume) -> list[Cell]:
    fc_id, fc_name, fc_count = _fc_cells(machine, volume)
    pool_id, pool_name = _pool_cells(volume)
    thin = sum(copy.rsize is not None for copy in volume.copies)
    kind = "striped" if len(volume.copies) == 1 else "many"
    row: list[Cell] = [volume.id, volume.name, 0, "io_grp0", _status(machine, volume), pool_id, pool_name]
    row += [Size(volume.size), kind, fc_id, fc_name, "", "", volume.uid, fc_count, len(volume.copies)]
    row += ["empty", thin, "no", sum(copy.compressed for copy in volume.copies), pool_id, pool_name]
    return [*row, "yes" if machine.is_formatting(volume) else "no", "no", volume.id, volume.name, ""]


def _vdisk_section(machine: Machine, volume: Volume) -> Iterator[tuple[str, Cell]]:
    fc_id, fc_name, fc_count = _fc_cells(machine, volume)
    pool_id, pool_name = _pool_cells(volume)
    yield from (("id", volume.id), ("name", volume.name), ("IO_group_id", 0), ("IO_group_name", "io_grp0"))
    yield from (("status", _status(machine, volume)), ("mdisk_grp_id", pool_id))
    yield from (("mdisk_grp_name", pool_name), ("capacity", Size(volume.size)))
    yield ("type", "striped" if len(volume.copies) == 1 else "many")
    yield from (("formatted", "yes" if volume.formatted else "no"), ("mdisk_id", ""), ("mdisk_name", ""))
    yield from (("FC_id", fc_id), ("FC_name", fc_name), ("RC_id", ""), ("RC_name", ""))
    yield from (("vdisk_UID", volume.uid), ("throttling", 0), ("preferred_node_id", 1 + volume.id % 2))
    yield from (("fast_write_state", "empty"), ("cache", volume.cache), ("udid", ""))
    yield from (
        ("fc_map_count", fc_count),
        ("sync_rate", volume.sync_rate),
        ("copy_count", len(volume.copies)),
    )
    yield ("se_copy_count", sum(copy.rsize is not None for copy in volume.copies))
    yield from (("mirror_write_priority", "latency"), ("RC_change", "no"))
    if machine.level >= (7, 5):
        yield ("formatting", "yes" if machine.is_formatting(volume) else "no")
    if machine.level >= (8, 4):
        yield from (("volume_group_id", ""), ("volume_group_name", ""))


def _copy_sections(machine: Machine, volume: Volume) -> Iterator[list[tuple[str, Cell]]]:
    for copy in volume.copies:
        used, real = machine.state.used(volume, copy), machine.state.real(volume, copy)
        is_thin = copy.rsize is not None
        section: list[tuple[str, Cell]] = [("copy_id", copy.id), ("status", "online"), ("sync", "yes")]
        section += [("primary", "yes" if copy.id == volume.copies[0].id else "no")]
        section += [("mdisk_grp_id", copy.pool.id), ("mdisk_grp_name", copy.pool.name), ("type", "striped")]
        section += [("used_capacity", Size(used)), ("real_capacity", Size(real))]
        section += [
            ("free_capacity", Size(real - used)),
            ("overallocation", volume.size * 100 // max(1, real)),
        ]
        section += [("autoexpand", ("on" if copy.autoexpand else "off") if is_thin else "")]
        section += [
            ("warning", copy.warning if is_thin else ""),
            ("grainsize", copy.grainsize if is_thin else ""),
        ]
        section += [("se_copy", "yes" if is_thin else "no"), ("easy_tier", volume.easy_tier)]
        section += [("easy_tier_status", "balanced"), ("compressed_copy", "yes" if copy.compressed else "no")]
        if machine.level >= (8, 1):
            section += [("deduplicated_copy", "yes" if copy.deduplicated else "no")]
        yield section


@command("lsvdiskcopy", listing(target=True))
def lsvdiskcopy(machine: Machine, args: Arguments) -> str:
    header = (
        "vdisk_id:vdisk_name:copy_id:status:sync:primary:mdisk_grp_id:mdisk_grp_name:capacity:type:se_copy"
    )
    header += ":easy_tier:easy_tier_status:compressed_copy"
    volumes = _by_id(machine)
    if args.target is not None:
        volumes = [machine.state.find(machine.state.volumes, args.target)]
    rows: list[list[Cell]] = []
    for volume in volumes:
        for copy in volume.copies:
            row: list[Cell] = [
                volume.id,
                volume.name,
                copy.id,
                "online",
                "yes",
                "yes" if copy.id == 0 else "no",
            ]
            row += [copy.pool.id, copy.pool.name, Size(volume.size), "striped"]
            row += ["yes" if copy.rsize is not None else "no", volume.easy_tier, "balanced"]
            rows.append([*row, "yes" if copy.compressed else "no"])
    return concise(header, rows, args)


@command("lsvdisksyncprogress", listing(values="copy", target=True))
def lsvdisksyncprogress(machine: Machine, args: Arguments) -> str:
    volumes = _by_id(machine)
    if args.target is not None:
        volumes = [machine.state.find(machine.state.volumes, args.target, "CMMVC5804E", "CMMVC5804E")]
    wanted = args.values.get("copy")
    rows: list[list[Cell]] = [
        [volume.id, volume.name, copy.id, 100, ""]
        for volume in volumes
        for copy in volume.copies
        if wanted is None or str(copy.id) == wanted
    ]
    if wanted is not None and not rows:
        raise CommandError("CMMVC5804E")
    return concise("vdisk_id:vdisk_name:copy_id:progress:estimated_completion_time", rows, args)
