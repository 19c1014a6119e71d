# SPDX-License-Identifier: Apache-2.0
"""Volumes: mkvdisk, mkvolume, expandvdisksize, rmvdisk, rmvolume, chvdisk."""

from __future__ import annotations

from collections.abc import Sequence

from lab.v7000.errors import CommandError
from lab.v7000.machine import Machine, command
from lab.v7000.options import Arguments, Syntax
from lab.v7000.state import GRAIN, Copy, FcState, Pool, Volume, extents

MAX_SIZE = 256 * 1024**4
EXPAND_IN_FLASHCOPY = (8, 0)


@command(
    "mkvdisk",
    Syntax.of(
        "autoexpand compressed nofmtdisk fmtdisk",
        "name mdiskgrp iogrp size unit vtype rsize warning grainsize copies syncrate cache easytier",
    ),
    changes=True,
)
def mkvdisk(machine: Machine, args: Arguments) -> str:
    args.require("mdiskgrp", "iogrp", "size")
    if args.choice("vtype", "striped", ("striped", "sequential", "image")) != "striped":
        raise CommandError("CMMVC5707E")  # these want -mdisk, which nothing here offers
    args.only_with("rsize", "autoexpand", "warning", "grainsize", "compressed")
    args.exclude("fmtdisk", "nofmtdisk")
    size = _new_size(args)
    count = args.number("copies", 1, 1, 2)
    sync_rate = args.number("syncrate", 50, 0, 100)
    template = _thin_copy(args, size, flag="rsize")
    cache = args.choice("cache", "readwrite", ("readwrite", "none", "readonly"))
    easy_tier = args.choice("easytier", "on", ("on", "off"))
    name = _free_name(machine, args)
    _iogrp(args)
    pools = _pools(machine, args.values["mdiskgrp"], count)
    if template.rsize is not None and any(pool.is_data_reduction for pool in pools):
        raise CommandError("CMMVC9292E")
    volume = _create(machine, args, name, size, pools, template)
    volume.cache, volume.sync_rate, volume.easy_tier = cache, sync_rate, easy_tier
    _warn_of_license(machine)
    return f"Virtual Disk, id [{volume.id}], successfully created\n"


@command(
    "mkvolume",
    Syntax.of("thin compressed deduplicated", "name pool size unit buffersize iogrp warning grainsize"),
    changes=True,
    since=(7, 6),
)
def mkvolume(machine: Machine, args: Arguments) -> str:
    args.require("pool", "size")
    args.exclude("thin", "compressed")
    if args.has("deduplicated") and not (args.has("thin") or args.has("compressed")):
        raise CommandError("CMMVC5731E", "-deduplicated", "-thin")
    if args.has("buffersize") and not (args.has("thin") or args.has("compressed")):
        raise CommandError("CMMVC5731E", "-buffersize", "-thin")
    size = _new_size(args)
    template = _thin_copy(args, size, flag="buffersize")
    if args.has("thin") or args.has("compressed"):
        template.rsize = size * 2 // 100 if template.rsize is None else template.rsize
        template.autoexpand = True
        template.deduplicated = args.has("deduplicated")
    name = _free_name(machine, args)
    _iogrp(args)
    pools = _pools(machine, args.values["pool"], 1)
    if args.has("deduplicated") and not pools[0].is_data_reduction:
        raise CommandError("CMMVC9301E")
    volume = _create(machine, args, name, size, pools, template)
    _warn_of_license(machine)
    return f"Volume, id [{volume.id}], successfully created\n"


def _new_size(args: Arguments) -> int:
    size = args.size()
    if size > MAX_SIZE:
        raise CommandError("CMMVC5742E", "-size")
    return size


def _thin_copy(args: Arguments, size: int, *, flag: str) -> Copy:
    """Read what a thin copy is to be; a full one has no rsize."""
    grainsize = int(args.choice("grainsize", "256", ("32", "64", "128", "256")))
    warning = args.values.get("warning", "80%")
    if not warning.removesuffix("%").isdigit():
        raise CommandError("CMMVC5716E", "-warning")
    if warning.endswith("%") and int(warning[:-1]) > 100:
        raise CommandError("CMMVC5742E", "-warning")
    template = Copy(0, Pool(0, "", 0), grainsize=grainsize, warning=int(warning.removesuffix("%")))
    template.autoexpand, template.compressed = args.has("autoexpand"), args.has("compressed")
    rsize = args.values.get(flag)
    if rsize is None:
        return template
    if rsize == "auto" and flag == "rsize":
        template.rsize = 0
    elif not rsize.removesuffix("%").isdigit():
        raise CommandError("CMMVC5716E", f"-{flag}")
    elif rsize.endswith("%"):
        if int(rsize[:-1]) > 100:
            raise CommandError("CMMVC5742E", f"-{flag}")
        template.rsize = size * int(rsize[:-1]) // 100
    else:
        template.rsize = int(rsize) * args.unit()
        if template.rsize > size:
            raise CommandError("CMMVC5742E", f"-{flag}")
    return template


def _free_name(machine: Machine, args: Arguments) -> str:
    name = args.new_name()
    if name is None:
        return f"vdisk{machine.state.free_id(machine.state.volumes)}"
    if machine.state.is_taken(machine.state.volumes, name):
        raise CommandError("CMMVC6035E")
    return name


def _iogrp(args: Arguments) -> None:
    word = args.values.get("iogrp", "0")
    if word in ("0", "io_grp0"):
        return
    # the other groups exist but have no nodes: no suitable candidates
    known = word in ("1", "2", "3", "io_grp1", "io_grp2", "io_grp3")
    raise CommandError("CMMVC5753E" if known or word.isdigit() else "CMMVC5754E")


def _pools(machine: Machine, words: str, count: int) -> list[Pool]:
    names = words.split(":")
    if len(names) < count:
        raise CommandError("CMMVC5707E")
    if len(names) > count:
        raise CommandError("CMMVC5734E")
    return [machine.state.find(machine.state.pools, name) for name in names]


def _create(
    machine: Machine, args: Arguments, name: str, size: int, pools: Sequence[Pool], template: Copy
) -> Volume:
    state = machine.state
    machine.measure()
    copies = [
        Copy(
            number,
            pool,
            template.rsize,
            template.autoexpand,
            template.warning,
            template.grainsize,
            template.compressed,
            template.deduplicated,
        )
        for number, pool in enumerate(pools)
    ]
    wanted: dict[int, int] = {}
    for copy in copies:
        real = size if copy.rsize is None else max(copy.rsize, GRAIN)
        wanted[copy.pool.id] = wanted.get(copy.pool.id, 0) + extents(real, copy.pool)
    if any(need > state.free(state.pools[pool]) for pool, need in wanted.items()):
        raise CommandError("CMMVC8710E")
    volume = Volume(state.free_id(state.volumes), name, state.next_uid(), size, copies)
    volume.formatted = template.rsize is None and not args.has("nofmtdisk")
    if volume.formatted and machine.format_rate:
        volume.formatting_until = machine.clock.now() + size / machine.format_rate
    machine.plane.create_volume(volume)
    state.volumes[volume.id] = volume
    return volume


def _warn_of_license(machine: Machine) -> None:
    """Refuse in words what was done in fact, as the box does near the limit of its licence."""
    limit = machine.licensed_capacity
    if limit is not None and sum(one.size for one in machine.state.volumes.values()) > limit:
        raise CommandError("CMMVC6372W")


@command("expandvdisksize", Syntax.of("", "size unit", target=True), changes=True)
def expandvdisksize(machine: Machine, args: Arguments) -> str:
    state = machine.state
    name = args.require_target()
    args.require("size")
    more = args.size()
    volume = state.find(state.volumes, name, "CMMVC5753E", "CMMVC5753E")
    allowed = machine.expand_in_fcmap
    if allowed is None:
        allowed = machine.level >= EXPAND_IN_FLASHCOPY
    if state.fc_maps_of(volume) and not allowed:
        raise CommandError("CMMVC5837E")
    if machine.is_formatting(volume):
        raise CommandError("CMMVC8587E")
    if volume.size + more > MAX_SIZE:
        raise CommandError("CMMVC5742E", "-size")
    machine.measure()
    wanted: dict[int, int] = {}
    for copy in volume.copies:
        if copy.rsize is None:
            need = extents(volume.size + more, copy.pool) - extents(volume.size, copy.pool)
            wanted[copy.pool.id] = wanted.get(copy.pool.id, 0) + need
    if any(need > state.free(state.pools[pool]) for pool, need in wanted.items()):
        raise CommandError("CMMVC5860E")
    volume.size += more
    machine.plane.resize(volume, machine.luns_of(volume), state.is_online(volume))
    return ""


@command("rmvdisk", Syntax.of("force removehostmappings", target=True), changes=True)
def rmvdisk(machine: Machine, args: Arguments) -> str:
    volume = _volume_to_change(machine, args)
    force = args.has("force")
    return _remove(machine, volume, maps=force or args.has("removehostmappings"), copies=force)


@command(
    "rmvolume",
    Syntax.of("removehostmappings removefcmaps removercrelationships", target=True),
    changes=True,
    since=(7, 6),
)
def rmvolume(machine: Machine, args: Arguments) -> str:
    volume = _volume_to_change(machine, args)
    return _remove(machine, volume, maps=args.has("removehostmappings"), copies=args.has("removefcmaps"))


def _volume_to_change(machine: Machine, args: Arguments) -> Volume:
    return machine.state.find(machine.state.volumes, args.require_target(), "CMMVC5753E", "CMMVC5753E")


def _remove(machine: Machine, volume: Volume, *, maps: bool, copies: bool) -> str:
    state = machine.state
    mappings, fc_maps = state.mappings_of_volume(volume), state.fc_maps_of(volume)
    if (mappings and not maps) or (fc_maps and not copies):
        raise CommandError("CMMVC5840E")
    for mapping in mappings:
        machine.plane.unmap(state.hosts[mapping.host], volume, mapping.lun)
        state.mappings.remove(mapping)
    for fc_map in fc_maps:
        target = state.volumes[fc_map.target]
        if fc_map.state in (FcState.COPYING, FcState.STOPPING) and target is not volume:
            machine.plane.lose(target, int(fc_map.copied))
        machine.drop_map(fc_map)
    machine.plane.delete_volume(volume)
    del state.volumes[volume.id]
    machine.settle()
    return ""


@command(
    "chvdisk",
    Syntax.of("", "name cache syncrate easytier warning autoexpand copy", target=True),
    changes=True,
)
def chvdisk(machine: Machine, args: Arguments) -> str:
    state = machine.state
    name = args.new_name()
    volume = _volume_to_change(machine, args)
    if not args.values:
        raise CommandError("CMMVC5707E")
    if name is not None:
        if name != volume.name and state.is_taken(state.volumes, name):
            raise CommandError("CMMVC6035E")
        volume.name = name
    volume.cache = args.choice("cache", volume.cache, ("readwrite", "none", "readonly"))
    volume.sync_rate = args.number("syncrate", volume.sync_rate, 0, 100)
    volume.easy_tier = args.choice("easytier", volume.easy_tier, ("on", "off"))
    return _change_copies(volume, args)


def _change_copies(volume: Volume, args: Arguments) -> str:
    wanted = args.values.get("copy")
    copies = [copy for copy in volume.copies if wanted is None or str(copy.id) == wanted]
    if not copies:
        raise CommandError("CMMVC6353E")
    for copy in copies:
        if args.has("autoexpand"):
            copy.autoexpand = args.choice("autoexpand", "on", ("on", "off")) == "on"
        if args.has("warning"):
            copy.warning = args.number("warning", copy.warning, 0, 100)
    return ""
