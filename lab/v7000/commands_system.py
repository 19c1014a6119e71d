# SPDX-License-Identifier: Apache-2.0
"""The system itself: pools, nodes, ports, I/O groups, partners."""

from __future__ import annotations

from lab.v7000.listings import Cell, Size, columns, concise, detailed, listing
from lab.v7000.machine import Machine, command
from lab.v7000.options import Arguments
from lab.v7000.state import Pool

PORTSETS = (8, 4, 2)
POOL_COLUMNS = (
    ((), "id:name:status:mdisk_count:vdisk_count:capacity:extent_size:free_capacity:virtual_capacity"),
    ((), "used_capacity:real_capacity:overallocation:warning:easy_tier:easy_tier_status"),
    ((6, 4), "compression_active:compression_virtual_capacity:compression_compressed_capacity"),
    ((6, 4), "compression_uncompressed_capacity"),
    ((7, 4), "parent_mdisk_grp_id:parent_mdisk_grp_name:child_mdisk_grp_count:child_mdisk_grp_capacity:type"),
    ((7, 6), "encrypt:owner_type:site_id:site_name"),
    ((8, 1), "data_reduction"),
)
NODE_COLUMNS = (
    (
        (),
        "id:name:UPS_serial_number:WWNN:status:IO_group_id:IO_group_name:config_node:UPS_unique_id:hardware",
    ),
    ((), "iscsi_name:iscsi_alias:panel_name:enclosure_id:canister_id:enclosure_serial_number"),
    ((7, 2), "site_id"),
)


@command("lssystem", listing())
def lssystem(machine: Machine, args: Arguments) -> str:
    state = machine.state
    machine.measure()
    total = sum(pool.size for pool in state.pools.values())
    free = sum(state.free(pool) for pool in state.pools.values())
    virtual = sum(volume.size for volume in state.volumes.values())
    section: list[tuple[str, Cell]] = [("id", state.system_id), ("name", state.name), ("location", "local")]
    section += [
        ("partnership", ""),
        ("total_mdisk_capacity", Size(total)),
        ("space_in_mdisk_grps", Size(total)),
    ]
    section += [("space_allocated_to_vdisks", Size(total - free)), ("total_free_space", Size(free))]
    section += [("total_vdiskcopy_capacity", Size(virtual)), ("total_used_capacity", Size(total - free))]
    section += [("statistics_status", "on"), ("statistics_frequency", 15), ("cluster_locale", "en_US")]
    section += [("time_zone", "520 UTC"), ("code_level", machine.firmware), ("gm_link_tolerance", 300)]
    section += [("id_alias", state.system_id), ("auth_service_configured", "no"), ("layer", "storage")]
    section += [("topology", ""), ("topology_status", ""), ("product_name", "IBM Storwize V7000")]
    return detailed([section], args)


@command("lsmdiskgrp", listing(target=True))
def lsmdiskgrp(machine: Machine, args: Arguments) -> str:
    machine.measure()
    header = columns(POOL_COLUMNS, machine.level)
    if args.target is not None:
        pool = machine.state.find(machine.state.pools, args.target)
        return detailed([list(zip(header.split(":"), _pool_row(machine, pool), strict=False))], args)
    rows = [_pool_row(machine, pool) for pool in machine.state.pools.values()]
    return concise(header, rows, args, aliases={"mdisk_grp_name": "name"})


def _pool_row(machine: Machine, pool: Pool) -> list[Cell]:
    state = machine.state
    copies = list(state.copies_in(pool))
    virtual = sum(volume.size for volume, _ in copies)
    used = sum(state.used(volume, copy) for volume, copy in copies)
    real = sum(state.real(volume, copy) for volume, copy in copies)
    volumes = len({volume.id for volume, _ in copies})
    row: list[Cell] = [pool.id, pool.name, "online", 1, volumes, Size(pool.size), pool.extent // 1024**2]
    row += [Size(state.free(pool)), Size(virtual), Size(used), Size(real), virtual * 100 // max(1, pool.size)]
    row += [80, "auto", "balanced", "no", Size(0), Size(0), Size(0)]
    row += [pool.id, pool.name, 0, Size(0), "parent", "no", "none", "", ""]
    return [*row, "yes" if pool.is_data_reduction else "no"]


def _lsnode(machine: Machine, args: Arguments) -> str:
    state = machine.state
    rows: list[list[Cell]] = []
    for node in state.nodes:
        wwnn = f"5005076802{state.system_id[-4:]}{node.id:02X}"
        row: list[Cell] = [node.id, node.name, "", wwnn, "online", 0, "io_grp0"]
        row += ["yes" if node.is_config else "no", "", "300", node.iqn, "", f"01-{node.id}", 1, node.id]
        rows.append([*row, state.system_id[-7:], ""])
    header = columns(NODE_COLUMNS, machine.level)
    if args.target is not None:
        node = state.find({one.id: one for one in state.nodes}, args.target)
        row = next(one for one in rows if one[0] == node.id)
        return detailed([list(zip(header.split(":"), row, strict=False))], args)
    return concise(header, rows, args)


command("lsnode", listing(target=True))(_lsnode)
command("lsnodecanister", listing(target=True))(_lsnode)


@command("lsportip", listing(target=True), until=PORTSETS)
def lsportip(machine: Machine, args: Arguments) -> str:
    """Two Ethernet ports per node, the first with an address; each has a row for its failover twin."""
    header = "id:node_id:node_name:IP_address:mask:gateway:IP_address_6:prefix_6:gateway_6:MAC:duplex:state"
    header += ":speed:failover:link_state:host"
    rows: list[list[Cell]] = []
    for port in (1, 2):
        for node in machine.state.nodes:
            mac = f"6c:ae:8b:00:{node.id:02x}:{port:02x}"
            used = port == 1
            first: list[Cell] = [port, node.id, node.name]
            own: list[Cell] = [node.address, "255.0.0.0", "", "", "", ""] if used else [""] * 6
            state = "configured" if used else "unconfigured"
            host = "yes" if used else ""
            rows.append([*first, *own, mac, "Full", state, "10Gb/s", "no", "active", host])
            rows.append([*first, *[""] * 6, mac, "Full", state, "10Gb/s", "yes", "active", ""])
    return concise(header, rows, args)


@command("lsip", listing(), since=PORTSETS)
def lsip(machine: Machine, args: Arguments) -> str:
    header = "id:node_id:node_name:port_id:portset_id:portset_name:IP_address:prefix:vlan:gateway"
    rows: list[list[Cell]] = [
        [at, node.id, node.name, 1, 0, "portset0", node.address, 8, "", "", "", ""]
        for at, node in enumerate(machine.state.nodes)
    ]
    return concise(header + ":owner_id:owner_name", rows, args)


@command("lsiogrp", listing())
def lsiogrp(machine: Machine, args: Arguments) -> str:
    volumes, hosts = len(machine.state.volumes), len(machine.state.hosts)
    rows: list[list[Cell]] = [
        [0, "io_grp0", len(machine.state.nodes), volumes, hosts],
        *([number, f"io_grp{number}", 0, 0, hosts] for number in (1, 2, 3)),
        [4, "recovery_io_grp", 0, 0, 0],
    ]
    return concise("id:name:node_count:vdisk_count:host_count", rows, args)


@command("lspartnership", listing())
def lspartnership(machine: Machine, args: Arguments) -> str:
    rows: list[list[Cell]] = [[machine.state.system_id, machine.state.name, "local", "", "", "", ""]]
    return concise("id:name:location:partnership:type:cluster_ip:event_log_sequence", rows, args)


@command("lsrcrelationship", listing())
def lsrcrelationship(machine: Machine, args: Arguments) -> str:
    header = "id:name:master_cluster_id:master_cluster_name:master_vdisk_id:master_vdisk_name:aux_cluster_id"
    header += ":aux_cluster_name:aux_vdisk_id:aux_vdisk_name:primary:consistency_group_id"
    header += ":consistency_group_name:state:bg_copy_priority:progress:copy_type:cycling_mode:freeze_time"
    return concise(header, [], args, aliases={"RC_rel_name": "name", "RC_rel_id": "id"})
