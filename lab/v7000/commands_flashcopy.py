# SPDX-License-Identifier: Apache-2.0
"""FlashCopy mappings and their consistency groups: make, prepare, start, stop, remove, list."""

from __future__ import annotations

from collections.abc import Sequence

from lab.v7000.errors import CommandError
from lab.v7000.listings import Cell, concise, detailed, listing
from lab.v7000.machine import Machine, command
from lab.v7000.options import Arguments, Syntax
from lab.v7000.state import FcGroup, FcMap, FcState, Volume

FCMAP_COLUMNS = (
    "id:name:source_vdisk_id:source_vdisk_name:target_vdisk_id:target_vdisk_name:group_id:group_name:status"
    ":progress:copy_rate:clean_progress:incremental:partner_FC_id:partner_FC_name:restoring:start_time"
    ":rc_controlled"
)
ACTIVE = (FcState.COPYING, FcState.STOPPING)


def _map(machine: Machine, args: Arguments, missing: str = "CMMVC5701E") -> FcMap:
    return machine.state.find(machine.state.fc_maps, args.require_target(missing), "CMMVC5753E", "CMMVC5753E")


def _group(machine: Machine, word: str, by_name: str = "CMMVC5753E") -> FcGroup:
    return machine.state.find(machine.state.fc_groups, word, "CMMVC5753E", by_name)


def _by_id(maps: Sequence[FcMap]) -> list[FcMap]:
    return sorted(maps, key=lambda one: one.id)


@command(
    "mkfcmap",
    Syntax.of("incremental autodelete", "source target name copyrate cleanrate grainsize consistgrp"),
    changes=True,
)
def mkfcmap(machine: Machine, args: Arguments) -> str:
    state = machine.state
    args.require("source", "target")
    name = args.new_name()
    copy_rate = args.number("copyrate", 50, 0, 150)
    clean_rate = args.number("cleanrate", 50, 0, 150)
    grainsize = int(args.choice("grainsize", "256", ("64", "256")))
    source = state.find(state.volumes, args.values["source"])
    target = state.find(state.volumes, args.values["target"])
    group = _group(machine, args.values["consistgrp"], "CMMVC5754E") if args.has("consistgrp") else None
    _check_pair(machine, source, target)
    if name is not None and state.is_taken(state.fc_maps, name):
        raise CommandError("CMMVC6035E")
    number = state.free_id(state.fc_maps)
    state.fc_maps[number] = FcMap(
        number,
        name or f"fcmap{number}",
        source.id,
        target.id,
        copy_rate,
        clean_rate,
        grainsize,
        args.has("incremental"),
        args.has("autodelete"),
        group.id if group else None,
    )
    return f"FlashCopy Mapping, id [{number}], successfully created\n"


def _check_pair(machine: Machine, source: Volume, target: Volume) -> None:
    if source.id == target.id:
        raise CommandError("CMMVC6303E")
    if source.size != target.size:
        raise CommandError("CMMVC5924E")
    for other in machine.state.fc_maps.values():
        if (other.source, other.target) == (source.id, target.id):
            raise CommandError("CMMVC6466E")
        if other.target == target.id:
            raise CommandError("CMMVC5753E")  # a volume is the target of one mapping only


def _alone(fc_map: FcMap) -> FcMap:
    """A mapping in a group is prepared, started and stopped with its group."""
    if fc_map.group is not None:
        raise CommandError("CMMVC5903E")
    return fc_map


def _prepare(machine: Machine, maps: Sequence[FcMap], *, restore: bool, start: bool) -> None:
    for fc_map in maps:
        if fc_map.state not in (FcState.IDLE, FcState.STOPPED):
            raise CommandError("CMMVC5903E")
        _check_restore(machine, fc_map, restore)
    for fc_map in maps:
        fc_map.state = FcState.PREPARING
        fc_map.until = machine.clock.now() + machine.prepare_seconds
        fc_map.starts_when_prepared = start and machine.prepare_seconds > 0
        fc_map.restoring = restore
        fc_map.progress, fc_map.copied = 0, 0.0
    if start and machine.prepare_seconds <= 0:
        machine.begin(maps)
    else:
        machine.tick()


def _check_restore(machine: Machine, fc_map: FcMap, restore: bool) -> None:
    """Writing over the source of an active mapping is allowed with -restore only."""
    is_source = any(
        one.source == fc_map.target and one.state in ACTIVE for one in machine.state.fc_maps.values()
    )
    if is_source and not restore:
        raise CommandError("CMMVC5903E")


def _start(machine: Machine, maps: Sequence[FcMap], *, prepare: bool, restore: bool) -> str:
    if any(one.state is FcState.COPYING for one in maps):
        raise CommandError("CMMVC5907E")
    if prepare:
        _prepare(machine, maps, restore=restore, start=True)
        return ""
    for fc_map in maps:
        if fc_map.state is not FcState.PREPARED:
            raise CommandError("CMMVC5903E")
        _check_restore(machine, fc_map, restore)
    machine.begin(maps)
    return ""


def _dependents(machine: Machine, fc_map: FcMap) -> list[FcMap]:
    """Mappings that read through this one's target."""
    maps = machine.state.fc_maps.values()
    return _by_id([one for one in maps if one.source == fc_map.target and one.state in ACTIVE])


def _stop(machine: Machine, fc_map: FcMap, *, force: bool, split: bool = False) -> None:
    if fc_map.state in (FcState.STOPPED, FcState.STOPPING):
        raise CommandError("CMMVC5912E")
    if fc_map.state is FcState.IDLE or (split and fc_map.progress < 100):
        raise CommandError("CMMVC5903E")
    dependents = _dependents(machine, fc_map) if fc_map.state is FcState.COPYING else []
    if dependents and not force:
        raise CommandError("CMMVC6045E")
    if fc_map.state is FcState.COPYING:
        machine.plane.lose(machine.state.volumes[fc_map.target], int(fc_map.copied))
    fc_map.state = FcState.STOPPING
    fc_map.until = machine.clock.now() + machine.stop_seconds
    fc_map.restoring = False
    for dependent in dependents:
        if dependent.state is FcState.COPYING:
            _stop(machine, dependent, force=True)
    machine.tick()


@command("prestartfcmap", Syntax.of("restore", target=True), changes=True)
def prestartfcmap(machine: Machine, args: Arguments) -> str:
    fc_map = _alone(_map(machine, args))
    _prepare(machine, [fc_map], restore=args.has("restore"), start=False)
    return ""


@command("startfcmap", Syntax.of("prep restore", target=True), changes=True)
def startfcmap(machine: Machine, args: Arguments) -> str:
    fc_map = _alone(_map(machine, args))
    return _start(machine, [fc_map], prepare=args.has("prep"), restore=args.has("restore"))


@command("stopfcmap", Syntax.of("force split", target=True), changes=True)
def stopfcmap(machine: Machine, args: Arguments) -> str:
    _stop(machine, _alone(_map(machine, args)), force=args.has("force"), split=args.has("split"))
    return ""


@command("rmfcmap", Syntax.of("force", target=True), changes=True)
def rmfcmap(machine: Machine, args: Arguments) -> str:
    fc_map = _map(machine, args)
    stopped = fc_map.state is FcState.STOPPED and args.has("force")
    if fc_map.state is not FcState.IDLE and not stopped:
        raise CommandError("CMMVC5903E")
    machine.drop_map(fc_map)
    machine.settle()
    return ""


@command(
    "chfcmap",
    Syntax.of("force", "name copyrate cleanrate autodelete incremental consistgrp", target=True),
    changes=True,
)
def chfcmap(machine: Machine, args: Arguments) -> str:
    state = machine.state
    name = args.new_name()
    fc_map = _map(machine, args, "CMMVC5707E")
    if not args.values:
        raise CommandError("CMMVC5707E")
    autodelete = args.choice("autodelete", "on" if fc_map.autodelete else "off", ("on", "off"))
    incremental = args.choice("incremental", "on" if fc_map.incremental else "off", ("on", "off"))
    copy_rate = args.number("copyrate", fc_map.copy_rate, 0, 150)
    clean_rate = args.number("cleanrate", fc_map.clean_rate, 0, 150)
    if name is not None and name != fc_map.name and state.is_taken(state.fc_maps, name):
        raise CommandError("CMMVC6035E")
    if args.has("consistgrp"):
        fc_map.group = _group(machine, args.values["consistgrp"], "CMMVC5754E").id
    fc_map.name = name or fc_map.name
    fc_map.copy_rate, fc_map.clean_rate = copy_rate, clean_rate
    fc_map.autodelete, fc_map.incremental = autodelete == "on", incremental == "on"
    if fc_map.autodelete and fc_map.state is FcState.IDLE and fc_map.progress == 100:
        machine.drop_map(fc_map)
    return ""


def _row(machine: Machine, fc_map: FcMap) -> list[Cell]:
    state = machine.state
    source, target = state.volumes[fc_map.source], state.volumes[fc_map.target]
    group = None if fc_map.group is None else state.fc_groups[fc_map.group]
    row: list[Cell] = [fc_map.id, fc_map.name, source.id, source.name, target.id, target.name]
    row += [group.id if group else "", group.name if group else "", fc_map.state.value, fc_map.progress]
    row += [fc_map.copy_rate, 100, "on" if fc_map.incremental else "off", "", ""]
    return [*row, "yes" if fc_map.restoring else "no", fc_map.start_time, "no"]


@command("lsfcmap", listing(target=True))
def lsfcmap(machine: Machine, args: Arguments) -> str:
    if args.target is None:
        rows = [_row(machine, one) for one in _by_id(list(machine.state.fc_maps.values()))]
        aliases = {"FC_mapping_name": "name", "FC_id": "id"}
        return concise(FCMAP_COLUMNS, rows, args, aliases=aliases)
    fc_map = _map(machine, args)
    section = list(zip(FCMAP_COLUMNS.split(":"), _row(machine, fc_map), strict=True))
    extra: list[tuple[str, Cell]] = [("autodelete", "on" if fc_map.autodelete else "off")]
    extra += [("clean_rate", fc_map.clean_rate), ("grain_size", fc_map.grainsize)]
    return detailed([section + extra], args)


@command("lsfcmapprogress", listing(target=True))
def lsfcmapprogress(machine: Machine, args: Arguments) -> str:
    fc_map = _map(machine, args)
    return concise("id:progress", [[fc_map.id, fc_map.progress]], args)


@command("lsfcmapdependentmaps", listing(target=True))
def lsfcmapdependentmaps(machine: Machine, args: Arguments) -> str:
    rows: list[list[Cell]] = [[one.id, one.name] for one in _dependents(machine, _map(machine, args))]
    return concise("fc_id:fc_name", rows, args)


def _vdisk_maps(machine: Machine, args: Arguments, missing: str = "CMMVC5701E") -> tuple[Volume, list[FcMap]]:
    state = machine.state
    volume = state.find(state.volumes, args.require_target(missing), "CMMVC5753E", "CMMVC5753E")
    return volume, _by_id(state.fc_maps_of(volume))


@command("lsvdiskfcmappings", listing(target=True))
def lsvdiskfcmappings(machine: Machine, args: Arguments) -> str:
    _, maps = _vdisk_maps(machine, args, "CMMVC5707E")
    return concise("id:name", [[one.id, one.name] for one in maps], args)


@command("lsvdiskdependentmaps", listing(target=True))
def lsvdiskdependentmaps(machine: Machine, args: Arguments) -> str:
    volume, maps = _vdisk_maps(machine, args)
    active = [one for one in maps if one.source == volume.id and one.state in ACTIVE]
    return concise("id:name", [[one.id, one.name] for one in active], args)


@command("lsrmvdiskdependentmaps", listing(target=True))
def lsrmvdiskdependentmaps(machine: Machine, args: Arguments) -> str:
    _, maps = _vdisk_maps(machine, args)
    active = [one for one in maps if one.state in ACTIVE]
    return concise("id:name", [[one.id, one.name] for one in active], args)


# consistency groups


@command("mkfcconsistgrp", Syntax.of("autodelete", "name"), changes=True)
def mkfcconsistgrp(machine: Machine, args: Arguments) -> str:
    state = machine.state
    name = args.new_name()
    if name is not None and state.is_taken(state.fc_groups, name):
        raise CommandError("CMMVC6035E")
    number = state.free_id(state.fc_groups, 1)
    state.fc_groups[number] = FcGroup(number, name or f"fccstgrp{number}", args.has("autodelete"))
    return f"FlashCopy Consistency Group, id [{number}], successfully created\n"


def _members(machine: Machine, args: Arguments) -> list[FcMap]:
    """Return the mappings of a group; an empty one cannot be prepared, started or stopped."""
    group = _group(machine, args.require_target())
    maps = _by_id(machine.maps_in(group.id))
    if not maps:
        raise CommandError("CMMVC5903E")
    return maps


@command("prestartfcconsistgrp", Syntax.of("restore", target=True), changes=True)
def prestartfcconsistgrp(machine: Machine, args: Arguments) -> str:
    _prepare(machine, _members(machine, args), restore=args.has("restore"), start=False)
    return ""


@command("startfcconsistgrp", Syntax.of("prep restore", target=True), changes=True)
def startfcconsistgrp(machine: Machine, args: Arguments) -> str:
    maps = _members(machine, args)
    return _start(machine, maps, prepare=args.has("prep"), restore=args.has("restore"))


@command("stopfcconsistgrp", Syntax.of("force", target=True), changes=True)
def stopfcconsistgrp(machine: Machine, args: Arguments) -> str:
    maps = _members(machine, args)
    if all(one.state is FcState.STOPPED for one in maps):
        raise CommandError("CMMVC5912E")
    stoppable = [one for one in maps if one.state in (FcState.PREPARING, FcState.PREPARED, FcState.COPYING)]
    if not stoppable:
        raise CommandError("CMMVC5903E")
    for fc_map in stoppable:
        _stop(machine, fc_map, force=args.has("force"))
    return ""


@command("rmfcconsistgrp", Syntax.of("force", target=True), changes=True)
def rmfcconsistgrp(machine: Machine, args: Arguments) -> str:
    group = _group(machine, args.require_target())
    maps = machine.maps_in(group.id)
    if maps and not args.has("force"):
        raise CommandError("CMMVC6045E")
    for fc_map in maps:
        fc_map.group = None
    machine.state.fc_groups.pop(group.id, None)
    return ""


def _group_status(maps: Sequence[FcMap]) -> str:
    if not maps:
        return "empty"
    order = (
        FcState.STOPPED,
        FcState.STOPPING,
        FcState.COPYING,
        FcState.PREPARING,
        FcState.PREPARED,
        FcState.IDLE,
    )
    return min((one.state for one in maps), key=order.index).value


@command("lsfcconsistgrp", listing(target=True))
def lsfcconsistgrp(machine: Machine, args: Arguments) -> str:
    groups = machine.state.fc_groups
    if args.target is None:
        rows: list[list[Cell]] = [
            [one.id, one.name, _group_status(maps), maps[0].start_time if maps else ""]
            for one in sorted(groups.values(), key=lambda group: group.id)
            for maps in [machine.maps_in(one.id)]
        ]
        return concise("id:name:status:start_time", rows, args)
    group = _group(machine, args.target, "CMMVC5754E")
    maps = _by_id(machine.maps_in(group.id))
    section: list[tuple[str, Cell]] = [
        ("id", group.id),
        ("name", group.name),
        ("status", _group_status(maps)),
    ]
    section += [("autodelete", "on" if group.autodelete else "off")]
    section += [("start_time", maps[0].start_time if maps else "")]
    for one in maps:
        section += [("FC_mapping_id", one.id), ("FC_mapping_name", one.name)]
    return detailed([section], args)
