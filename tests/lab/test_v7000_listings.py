# SPDX-License-Identifier: Apache-2.0
"""What the box prints: header rows of several firmwares, delimiters, capacities, filters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.v7000 import Box, BoxConfig, ManualClock

OLD = "7.2.0.0 (build 87.0.1311291000)"
MIDDLE = "7.8.1.5 (build 135.9.1803291125000)"
NEW = "8.6.0.0 (build 169.1.2306081123000)"
TB = 1024**4

VDISK = (
    "id:name:IO_group_id:IO_group_name:status:mdisk_grp_id:mdisk_grp_name:capacity:type:FC_id:FC_name:RC_id:"
    "RC_name:vdisk_UID:fc_map_count:copy_count:fast_write_state:se_copy_count:RC_change"
)
VDISK_NEWER = (
    ":compressed_copy_count:parent_mdisk_grp_id:parent_mdisk_grp_name:formatting:encrypt:volume_id:volume_name"
    ":function"
)
POOL = (
    "id:name:status:mdisk_count:vdisk_count:capacity:extent_size:free_capacity:virtual_capacity:used_capacity:"
    "real_capacity:overallocation:warning:easy_tier:easy_tier_status"
)
NODE = (
    "id:name:UPS_serial_number:WWNN:status:IO_group_id:IO_group_name:config_node:UPS_unique_id:hardware:"
    "iscsi_name:iscsi_alias:panel_name:enclosure_id:canister_id:enclosure_serial_number:site_id"
)
HEADERS = [
    ("lsvdisk", OLD, VDISK),
    ("lsvdisk", MIDDLE, VDISK + VDISK_NEWER),
    ("lsnode", MIDDLE, NODE),
    ("lsnodecanister", MIDDLE, NODE),
    (
        "lsportip",
        MIDDLE,
        "id:node_id:node_name:IP_address:mask:gateway:IP_address_6:prefix_6:gateway_6:MAC:duplex:state:speed:"
        "failover:link_state:host",
    ),
    (
        "lsip",
        NEW,
        "id:node_id:node_name:port_id:portset_id:portset_name:IP_address:prefix:vlan:gateway:owner_id:owner_name",
    ),
    ("lsiogrp", MIDDLE, "id:name:node_count:vdisk_count:host_count"),
    ("lshost", OLD, "id:name:port_count:iogrp_count:status"),
    (
        "lshost",
        MIDDLE,
        "id:name:port_count:iogrp_count:status:site_id:site_name:host_cluster_id:host_cluster_name",
    ),
    ("lsiscsiauth", MIDDLE, "type:id:name:iscsi_auth_method:iscsi_chap_secret"),
    ("lshostvdiskmap", OLD, "id:name:SCSI_id:vdisk_id:vdisk_name:vdisk_UID:IO_group_id:IO_group_name"),
    (
        "lshostvdiskmap h",
        NEW,
        "id:name:SCSI_id:vdisk_id:vdisk_name:vdisk_UID:IO_group_id:IO_group_name:mapping_type:host_cluster_id:"
        "host_cluster_name:protocol",
    ),
    ("lsvdiskhostmap v", OLD, "id:name:SCSI_id:host_id:host_name:vdisk_UID:IO_group_id:IO_group_name"),
    (
        "lsfcmap",
        MIDDLE,
        "id:name:source_vdisk_id:source_vdisk_name:target_vdisk_id:target_vdisk_name:group_id:group_name:status:"
        "progress:copy_rate:clean_progress:incremental:partner_FC_id:partner_FC_name:restoring:start_time:"
        "rc_controlled",
    ),
    ("lsvdiskfcmappings v", MIDDLE, "id:name"),
    ("lsvdisksyncprogress v", MIDDLE, "vdisk_id:vdisk_name:copy_id:progress:estimated_completion_time"),
    ("lspartnership", MIDDLE, "id:name:location:partnership:type:cluster_ip:event_log_sequence"),
    (
        "lsrcrelationship",
        MIDDLE,
        "id:name:master_cluster_id:master_cluster_name:master_vdisk_id:master_vdisk_name:aux_cluster_id:"
        "aux_cluster_name:aux_vdisk_id:aux_vdisk_name:primary:consistency_group_id:consistency_group_name:state:"
        "bg_copy_priority:progress:copy_type:cycling_mode:freeze_time",
    ),
]


def made(firmware: str = MIDDLE) -> Box:
    return Box(BoxConfig(firmware=firmware, pools={"STP_V7K": 2 * TB}, clock=ManualClock()))


def fill(box: Box) -> None:
    box.add_host("h", "iqn.2020-01.org.example:h")
    done(box, "mkvdisk -name v -mdiskgrp STP_V7K -iogrp 0 -size 1 -unit gb")
    done(box, "mkvdisk -name one-7 -mdiskgrp STP_V7K -iogrp 0 -size 2 -unit gb -rsize 2% -autoexpand")
    done(box, "mkvdiskhostmap -host h v")


def done(box: Box, line: str) -> str:
    stdout, stderr, code = box.run(line)
    assert (stderr, code) == ("", 0)
    return stdout


@pytest.fixture
def box() -> Iterator[Box]:
    with made() as box:
        fill(box)
        yield box


@pytest.mark.parametrize(("line", "firmware", "header"), HEADERS)
def test_header_rows(line: str, firmware: str, header: str) -> None:
    with made(firmware) as box:
        fill(box)
        name, _, target = line.partition(" ")
        rows = done(box, f"{name} -delim : {target}").splitlines()
        assert rows[0] == header
        bang = [row.split("!") for row in done(box, f"{name} -delim ! {target}").splitlines()]
        assert {len(row) for row in bang} == {header.count(":") + 1}


def test_new_columns_of_a_pool_come_at_the_right() -> None:
    for firmware in (OLD, MIDDLE, NEW):
        with made(firmware) as box:
            header = done(box, "lsmdiskgrp -delim :").splitlines()[0]
            assert header.startswith(POOL)
            assert header.endswith(":data_reduction") is (firmware == NEW)


def test_a_volume_row_has_its_values_at_the_old_places(box: Box) -> None:
    row = done(box, "lsvdisk -nohdr -delim : -filtervalue name=v").rstrip("\n").split(":")
    assert row[:13] == [
        "0",
        "v",
        "0",
        "io_grp0",
        "online",
        "0",
        "STP_V7K",
        "1.00GB",
        "striped",
        "",
        "",
        "",
        "",
    ]
    assert len(row[13]) == 32
    assert row[14:19] == ["0", "1", "empty", "0", "no"]


def test_without_a_delimiter_columns_are_padded(box: Box) -> None:
    header, first, second, *rest = done(box, "lsvdisk").splitlines()
    assert rest == []
    at = header.index("IO_group_id")
    assert (first[at - 1], second[at - 1]) == (" ", " ")
    assert header.split() == (VDISK + VDISK_NEWER).split(":")
    assert first[header.index("name") :].startswith("v ")


def test_nohdr_drops_the_header(box: Box) -> None:
    assert len(done(box, "lsvdisk").splitlines()) == len(done(box, "lsvdisk -nohdr").splitlines()) + 1


def test_capacities_are_plain_with_bytes_and_human_without(box: Box) -> None:
    plain = done(box, "lsmdiskgrp -bytes -nohdr -delim :").split(":")
    human = done(box, "lsmdiskgrp -nohdr -delim :").split(":")
    # the thin volume takes one extent of the pool, the full one four
    taken = (4 + 1) * 256 * 1024**2
    assert (plain[5], human[5]) == (str(2 * TB), "2.00TB")
    assert (plain[7], human[7]) == (str(2 * TB - taken), "2.00TB")
    assert (plain[8], human[8]) == (str(3 * 1024**3), "3.00GB")
    assert human[6] == plain[6] == "256"


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("lsvdisk -filtervalue name=v", ["v"]),
        ("lsvdisk -filtervalue vdisk_name=one-7", ["one-7"]),
        ("lsvdisk -filtervalue 'name=one-*'", ["one-7"]),
        ("lsvdisk -filtervalue 'name=*7'", ["one-7"]),
        ("lsvdisk -filtervalue mdisk_grp_name=STP_V7K", ["v", "one-7"]),
        ("lsvdisk -filtervalue mdisk_grp_name=STP_V7K:name=v", ["v"]),
        ("lsvdisk -filtervalue IO_group_name=io_grp0:status=online", ["v", "one-7"]),
        ("lsvdisk -filtervalue name=nosuch", []),
        ("lsmdiskgrp -filtervalue name=STP_V7K", ["STP_V7K"]),
        ("lshost -filtervalue name=h", ["h"]),
        ("lshost -filtervalue host_name=h", ["h"]),
        ("lspartnership -filtervalue name=v7000-a", ["v7000-a"]),
        ("lsrcrelationship -filtervalue RC_rel_name=v", []),
        ("lsfcmap -filtervalue source_vdisk_name=v", []),
    ],
)
def test_filters(box: Box, line: str, names: list[str]) -> None:
    rows = done(box, f"{line} -delim !").splitlines()
    assert [row.split("!")[1] for row in rows[1:]] == names
    assert len(done(box, f"{line} -nohdr").splitlines()) == len(names)


def test_a_volume_is_found_by_its_uid(box: Box) -> None:
    uid = done(box, "lsvdisk -nohdr -delim : -filtervalue name=v").split(":")[13]
    assert done(box, f"lsvdisk -nohdr -delim : -filtervalue vdisk_UID={uid}").startswith("0:v:")


@pytest.mark.parametrize("wanted", ["colour=red", "name", "name=", "RC_rel_name=x"])
def test_a_bad_filter_is_refused(box: Box, wanted: str) -> None:
    _, stderr, code = box.run(f"lsvdisk -filtervalue {wanted}")
    assert (stderr.split()[0], code) == ("CMMVC5741E", 1)


def test_the_detailed_view_of_a_volume_has_a_section_per_copy(box: Box) -> None:
    text = done(box, "lsvdisk -bytes -delim ! one-7")
    first, second = text.split("\n\n")
    pairs = [line.split("!", 1) for line in first.splitlines()]
    assert [key for key, _ in pairs][:11] == [
        "id",
        "name",
        "IO_group_id",
        "IO_group_name",
        "status",
        "mdisk_grp_id",
        "mdisk_grp_name",
        "capacity",
        "type",
        "formatted",
        "mdisk_id",
    ]
    assert dict(pairs)["capacity"] == str(2 * 1024**3)
    copy = dict(line.split("!", 1) for line in second.splitlines())
    assert (copy["copy_id"], copy["se_copy"], copy["autoexpand"]) == ("0", "yes", "on")
    assert copy["real_capacity"] == str(2 * 1024**3 * 2 // 100)


def test_the_detailed_view_with_nohdr_has_values_only(box: Box) -> None:
    assert done(box, "lsvdisk -nohdr v").splitlines()[:2] == ["0", "v"]


def test_the_system_tells_its_code_level(box: Box) -> None:
    lines = done(box, "lssystem -delim !").splitlines()
    pairs = dict(line.split("!", 1) for line in lines)
    assert pairs["code_level"] == MIDDLE
    assert (pairs["name"], pairs["location"]) == ("v7000-a", "local")
    assert len(pairs["id"]) == 16


def test_each_canister_is_a_target(box: Box) -> None:
    rows = [line.split(":") for line in done(box, "lsnodecanister -nohdr -delim :").splitlines()]
    names = [line.split("!")[10] for line in done(box, "lsnodecanister -nohdr -delim !").splitlines()]
    assert names == [f"iqn.1986-03.com.ibm:2145.v7000-a.node{at}" for at in (1, 2)]
    assert tuple(names) == box.targets
    assert [row[7] for row in rows] == ["yes", "no"]


def test_portals_are_found_in_lsportip_or_in_lsip() -> None:
    with made(MIDDLE) as box:
        rows = [line.split("!") for line in done(box, "lsportip -nohdr -delim !").splitlines()]
        used = [row[3] for row in rows if row[15] == "yes" and row[11] in ("configured", "online") and row[3]]
        assert tuple(f"{address}:3260" for address in used) == box.portals
        assert sorted(row[13] for row in rows) == ["no"] * 4 + ["yes"] * 4
        assert box.run("svcinfo lsip")[1].startswith("CMMVC5987E")
    with made(NEW) as box:
        rows = [line.split("!") for line in done(box, "lsip -nohdr -delim !").splitlines()]
        assert tuple(f"{row[6]}:3260" for row in rows) == box.portals
        assert {row[5] for row in rows} == {"portset0"}
        assert box.run("lsportip")[1].startswith("CMMVC7205E")
