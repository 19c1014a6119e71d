# SPDX-License-Identifier: Apache-2.0
"""Hosts, their ports, and what is mapped to them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lab.v7000.errors import CommandError
from lab.v7000.listings import Cell, columns, concise, detailed, listing
from lab.v7000.machine import Machine, command
from lab.v7000.options import Arguments, Syntax
from lab.v7000.state import Host, Mapping

MAX_LUN = 511
HOST_COLUMNS = (
    ((), "id:name:port_count:iogrp_count:status"),
    ((7, 5), "site_id:site_name"),
    ((7, 7, 1), "host_cluster_id:host_cluster_name"),
)
HOST_MAP_COLUMNS = (
    ((), "id:name:SCSI_id:vdisk_id:vdisk_name:vdisk_UID"),
    ((7, 1), "IO_group_id:IO_group_name"),
    ((7, 7, 1), "mapping_type:host_cluster_id:host_cluster_name"),
    ((8, 4), "protocol"),
)
VDISK_MAP_COLUMNS = (
    ((), "id:name:SCSI_id:host_id:host_name:vdisk_UID:IO_group_id:IO_group_name"),
    ((7, 7, 1), "mapping_type:host_cluster_id:host_cluster_name"),
    ((8, 4), "protocol"),
)
IQN = re.compile(r"(iqn\.[0-9]{4}-[0-9]{2}\.[a-zA-Z0-9.-]+(:[^\s,]*)?|eui\.[0-9A-Fa-f]{16})")
WWPN = re.compile(r"[0-9A-Fa-f]{16}")
PORT_VALUES = "iscsiname hbawwpn fcwwpn"


def _host(machine: Machine, word: str, by_name: str = "CMMVC5753E") -> Host:
    return machine.state.find(machine.state.hosts, word, "CMMVC5753E", by_name)


def _by_id(machine: Machine) -> list[Host]:
    return sorted(machine.state.hosts.values(), key=lambda host: host.id)


def _status(machine: Machine, host: Host) -> str:
    """Online: each port logged in to all nodes; degraded: not to all; offline: nowhere."""
    counts = [machine.plane.logged_in(iqn) for iqn in host.iqns]
    if not any(counts):
        return "offline"
    return "online" if min(counts) == len(machine.state.nodes) else "degraded"


@command("lshost", listing(target=True))
def lshost(machine: Machine, args: Arguments) -> str:
    if args.target is not None:
        host = _host(machine, args.target, "CMMVC5754E")
        return detailed([_host_section(machine, host)], args)
    rows: list[list[Cell]] = [
        [host.id, host.name, len(host.iqns + host.wwpns), 4, _status(machine, host), "", host.site, "", ""]
        for host in _by_id(machine)
    ]
    header = columns(HOST_COLUMNS, machine.level)
    return concise(header, rows, args, aliases={"host_name": "name", "host_id": "id"})


def _host_section(machine: Machine, host: Host) -> Iterator[tuple[str, Cell]]:
    level = machine.level
    yield from (("id", host.id), ("name", host.name), ("port_count", len(host.iqns + host.wwpns)))
    yield from (("type", host.type), ("mask", "1" * 64), ("iogrp_count", 4))
    yield ("status", _status(machine, host))
    if level >= (7, 5):
        yield from (("site_id", ""), ("site_name", host.site))
    if level >= (7, 7, 1):
        yield from (("host_cluster_id", ""), ("host_cluster_name", ""))
    if level >= (8, 4, 2):
        yield from (("protocol", "scsi"), ("portset_id", 0), ("portset_name", host.portset))
    for wwpn in host.wwpns:
        yield from (("WWPN", wwpn), ("node_logged_in_count", 0), ("state", "offline"))
    for iqn in host.iqns:
        count = machine.plane.logged_in(iqn)
        yield from (("iscsi_name", iqn), ("node_logged_in_count", count))
        yield ("state", "active" if count else "offline")


@command("lsiscsiauth", listing())
def lsiscsiauth(machine: Machine, args: Arguments) -> str:
    rows: list[list[Cell]] = [
        ["host", host.id, host.name, "chap" if host.chap_secret else "none", host.chap_secret]
        for host in _by_id(machine)
    ]
    return concise("type:id:name:iscsi_auth_method:iscsi_chap_secret", rows, args)


@command(
    "mkhost",
    Syntax.of("force", f"name {PORT_VALUES} iogrp mask type portset site", portset=(8, 4, 2)),
    changes=True,
)
def mkhost(machine: Machine, args: Arguments) -> str:
    state = machine.state
    name = args.new_name()
    kind = args.choice(
        "type", "generic", ("generic", "hpux", "tpgs", "openvms", "adminlun", "hide_secondary")
    )
    iqns, wwpns = _ports(machine, args)
    number = state.free_id(state.hosts)
    if name is not None and state.is_taken(state.hosts, name):
        raise CommandError("CMMVC6035E")
    host = Host(number, name or f"host{number}", iqns, wwpns, type=kind)
    host.portset = args.values.get("portset", host.portset)
    host.site = args.values.get("site", "")
    machine.plane.add_host(host)
    state.hosts[number] = host
    return f"Host, id [{number}], successfully created\n"


def _ports(machine: Machine, args: Arguments) -> tuple[list[str], list[str]]:
    """Read ports that no host has yet; several are joined by commas (iSCSI) or colons (FC)."""
    args.exclude(*PORT_VALUES.split())
    iscsi = args.values.get("iscsiname")
    fibre = args.values.get("hbawwpn", args.values.get("fcwwpn"))
    if iscsi is None and fibre is None:
        raise CommandError("CMMVC5707E")
    iqns = iscsi.split(",") if iscsi is not None else []
    wwpns = fibre.upper().split(":") if fibre is not None else []
    hosts = machine.state.hosts.values()
    taken = {port for host in hosts for port in (*host.iqns, *host.wwpns)}
    for at, iqn in enumerate(iqns):
        if not IQN.fullmatch(iqn) or len(iqn) > 223 or iqn in taken or iqn in iqns[:at]:
            raise CommandError("CMMVC6578E")
    for at, wwpn in enumerate(wwpns):
        if not WWPN.fullmatch(wwpn) or wwpn in taken or wwpn in wwpns[:at]:
            raise CommandError("CMMVC6035E")
    return iqns, wwpns


@command("addhostport", Syntax.of("force", PORT_VALUES, target=True), changes=True)
def addhostport(machine: Machine, args: Arguments) -> str:
    host = _host(machine, args.require_target())
    iqns, wwpns = _ports(machine, args)
    host.iqns += iqns
    host.wwpns += wwpns
    machine.plane.change_initiators(host)
    return ""


@command("rmhostport", Syntax.of("force", PORT_VALUES, target=True), changes=True)
def rmhostport(machine: Machine, args: Arguments) -> str:
    host = _host(machine, args.require_target())
    args.exclude(*PORT_VALUES.split())
    iqn = args.values.get("iscsiname")
    wwpn = args.values.get("hbawwpn", args.values.get("fcwwpn", "")).upper()
    if iqn is None and not wwpn:
        raise CommandError("CMMVC5707E")
    if iqn not in host.iqns and wwpn not in host.wwpns:
        raise CommandError("CMMVC5753E")
    host.iqns = [one for one in host.iqns if one != iqn]
    host.wwpns = [one for one in host.wwpns if one != wwpn]
    machine.plane.change_initiators(host)
    return ""


@command(
    "chhost",
    Syntax.of("nochapsecret", "name chapsecret site type mask portset", target=True, portset=(8, 4, 2)),
    changes=True,
)
def chhost(machine: Machine, args: Arguments) -> str:
    state = machine.state
    name = args.new_name()
    host = _host(machine, args.require_target())
    if not args.values and not args.flags:
        raise CommandError("CMMVC5707E")
    args.exclude("chapsecret", "nochapsecret")
    if len(args.values.get("chapsecret", "")) > 79:
        raise CommandError("CMMVC5703E", "-chapsecret")
    if name is not None and name != host.name:
        if state.is_taken(state.hosts, name):
            raise CommandError("CMMVC6035E")
        host.name = name
    if args.has("nochapsecret"):
        host.chap_secret = ""
    host.chap_secret = args.values.get("chapsecret", host.chap_secret)
    host.site = args.values.get("site", host.site)
    host.portset = args.values.get("portset", host.portset)
    return ""


@command("rmhost", Syntax.of("force", target=True), changes=True)
def rmhost(machine: Machine, args: Arguments) -> str:
    state = machine.state
    host = _host(machine, args.require_target())
    mappings = state.mappings_of_host(host)
    if mappings and not args.has("force"):
        raise CommandError("CMMVC5871E")
    state.mappings = [one for one in state.mappings if one.host != host.id]
    machine.plane.remove_host(host)
    del state.hosts[host.id]
    return ""


@command("mkvdiskhostmap", Syntax.of("force", "host scsi", target=True), changes=True)
def mkvdiskhostmap(machine: Machine, args: Arguments) -> str:
    state = machine.state
    args.require("host")
    name = args.require_target("CMMVC5707E")
    volume = state.find(state.volumes, name, "CMMVC5753E", "CMMVC5753E")
    host = _host(machine, args.values["host"], "CMMVC5754E")
    others = state.mappings_of_volume(volume)
    if any(one.host == host.id for one in others):
        raise CommandError("CMMVC5878E")
    if others and not args.has("force"):
        raise CommandError("CMMVC6071E")
    taken = {one.lun for one in state.mappings_of_host(host)} | set(range(state.first_lun))
    lun = args.number("scsi", state.free_id(taken), 0, MAX_LUN)
    if lun in taken or lun > MAX_LUN:
        raise CommandError("CMMVC5879E")
    machine.plane.map(host, volume, lun, state.is_online(volume))
    state.mappings.append(Mapping(host.id, volume.id, lun))
    return f"Virtual Disk to Host map, id [{lun}], successfully created\n"


@command("rmvdiskhostmap", Syntax.of("", "host", target=True), changes=True)
def rmvdiskhostmap(machine: Machine, args: Arguments) -> str:
    state = machine.state
    args.require("host")
    volume = state.find(state.volumes, args.require_target(), "CMMVC5753E", "CMMVC5753E")
    host = _host(machine, args.values["host"], "CMMVC5754E")
    for mapping in state.mappings_of_volume(volume):
        if mapping.host == host.id:
            machine.plane.unmap(host, volume, mapping.lun)
            state.mappings.remove(mapping)
            return ""
    raise CommandError("CMMVC5842E")


@command("lshostvdiskmap", listing(target=True))
def lshostvdiskmap(machine: Machine, args: Arguments) -> str:
    state = machine.state
    hosts = _by_id(machine) if args.target is None else [_host(machine, args.target, "CMMVC5754E")]
    rows: list[list[Cell]] = []
    for host in hosts:
        for mapping in state.mappings_of_host(host):
            volume = state.volumes[mapping.volume]
            row: list[Cell] = [host.id, host.name, mapping.lun, volume.id, volume.name, volume.uid]
            rows.append([*row, 0, "io_grp0", "private", "", "", "scsi"])
    header = columns(HOST_MAP_COLUMNS, machine.level)
    return concise(header, rows, args, header_when_empty=machine.header_when_unmapped)


@command("lsvdiskhostmap", listing(target=True))
def lsvdiskhostmap(machine: Machine, args: Arguments) -> str:
    state = machine.state
    volume = state.find(state.volumes, args.require_target(), "CMMVC5753E", "CMMVC5753E")
    rows: list[list[Cell]] = []
    for mapping in state.mappings_of_volume(volume):
        host = state.hosts[mapping.host]
        row: list[Cell] = [volume.id, volume.name, mapping.lun, host.id, host.name, volume.uid]
        rows.append([*row, 0, "io_grp0", "private", "", "", "scsi"])
    header = columns(VDISK_MAP_COLUMNS, machine.level)
    return concise(header, rows, args, header_when_empty=machine.header_when_unmapped)
