# SPDX-License-Identifier: Apache-2.0
"""Which iSCSI targets a box has: it hardly ever changes and is remembered between actions."""

from __future__ import annotations

from collections.abc import Sequence

from sanstone.arrays.v7000.terminal import Row, listing, rows
from sanstone.model import Portal, Target

__all__ = ["TARGET_QUESTIONS", "read_targets"]

TARGET_QUESTIONS = (listing("lsnodecanister"), listing("lsportip"), listing("lsip"), listing("lsnode"))


def read_targets(sections: Sequence[Sequence[str]]) -> dict[str, list[Target]]:
    """Read the answers to TARGET_QUESTIONS: the iSCSI targets of each I/O group.

    One target per canister; its portals are the addresses in use for hosts. Older firmware lists them with
    lsportip (rows with failover=yes are a partner's address, taken over in need), 8.4.2 and newer with lsip.
    An SVC has lsnode instead of lsnodecanister.
    """
    canisters, ports, addresses, nodes = (rows(section) for section in sections)
    portals: dict[str, list[Portal]] = {}
    for row in ports:
        if _is_in_use(row):
            for kind in ("", "_6"):
                if row.get(f"IP_address{kind}") and row.get(f"host{kind}", "yes") in ("yes", ""):
                    portals.setdefault(_node(row), []).append(Portal(row[f"IP_address{kind}"]))
    for row in addresses:
        if row.get("IP_address"):
            portals.setdefault(_node(row), []).append(Portal(row["IP_address"]))
    groups: dict[str, list[Target]] = {}
    for node in canisters or nodes:
        found = tuple(dict.fromkeys(portals.get(node.get("id", ""), ())))
        if found and node.get("iscsi_name"):
            groups.setdefault(node.get("IO_group_name", ""), []).append(Target(node["iscsi_name"], found))
    return groups


def _node(row: Row) -> str:
    """The node that an address is on: by its number, for not every listing has its name."""
    return row.get("node_id", "")


def _is_in_use(row: Row) -> bool:
    return row.get("failover", "no") == "no" and row.get("state", "") in ("configured", "online")
