# SPDX-License-Identifier: Apache-2.0
"""What hardly ever changes on a box, remembered between actions: targets, pools, host names.

Kept in a small file per box for ``LIFETIME`` seconds, and thrown away when an answer contradicts it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sanstone.arrays.v7000.terminal import Row, listing, rows
from sanstone.model import Portal, Target

__all__ = ["LIFETIME", "TARGET_QUESTIONS", "Facts", "read_targets"]

log = logging.getLogger(__name__)

LIFETIME = 600.0

TARGET_QUESTIONS = (listing("lsnodecanister"), listing("lsportip"), listing("lsip"), listing("lsnode"))


class Facts:
    """The remembered facts of one box; ``directory`` None remembers for this object's life only."""

    def __init__(self, directory: Path | None, box: str) -> None:
        name = "".join(char if char.isalnum() or char in "-_." else "_" for char in box)
        self._path = directory / f"{name}.json" if directory else None
        self._known: dict[str, Any] | None = None

    def get(self, key: str) -> Any:
        """Recall a fact, None when it is unknown or too old."""
        found = self._load().get(key)
        if not found or not 0 <= time.time() - found["at"] < LIFETIME:
            return None
        return found["value"]

    def put(self, key: str, value: Any) -> None:
        known = self._load()
        known[key] = {"at": time.time(), "value": value}
        if self._path is None:
            return
        temporary = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.write_text(json.dumps(known))
            temporary.replace(self._path)
        except OSError as err:  # what cannot be remembered is asked again
            log.info("%s cannot be kept: %s", self._path, err.strerror)

    def forget(self) -> None:
        self._known = {}
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _load(self) -> dict[str, Any]:
        if self._known is None:
            self._known = {}
            if self._path is not None:
                try:
                    self._known = dict(json.loads(self._path.read_text()))
                except (OSError, ValueError, TypeError):
                    self._known = {}
        return self._known


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
