# SPDX-License-Identifier: Apache-2.0
"""What the stand-in is told at its start, with OpenNebula's own defaults."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.oned.hypervisor import HostRunner, Hypervisor

__all__ = ["SAN_TM_CONF", "STOCK_TM_CONF", "OnedConfig"]

#: oned.conf's TM_MAD_CONF of a SAN driver that also serves disks on shared and ssh system datastores.
SAN_TM_CONF: Mapping[str, str] = {
    "LN_TARGET": "NONE",
    "CLONE_TARGET": "SELF",
    "LN_TARGET_SSH": "NONE",
    "CLONE_TARGET_SSH": "SELF",
    "DISK_TYPE_SSH": "BLOCK",
    "LN_TARGET_SHARED": "NONE",
    "CLONE_TARGET_SHARED": "SELF",
    "DISK_TYPE_SHARED": "BLOCK",
    "TM_MAD_SYSTEM": "ssh,shared",
    "DRIVER": "raw",
    "ALLOW_ORPHANS": "YES",
    "PERSISTENT_SNAPSHOTS": "YES",
    "SHARED": "YES",
    "DS_MIGRATE": "YES",
    "DS_LIVE_MIGRATE": "YES",
    "DS_MIGRATE_SNAP": "YES",
}

_STOCK = {
    "PERSISTENT_SNAPSHOTS": "YES",
    "DS_MIGRATE": "YES",
    "DS_LIVE_MIGRATE": "YES",
    "DS_MIGRATE_SNAP": "YES",
}

STOCK_TM_CONF: Mapping[str, Mapping[str, str]] = {
    "shared": {
        **_STOCK,
        "LN_TARGET": "NONE",
        "CLONE_TARGET": "SYSTEM",
        "LN_TARGET_SSH": "SYSTEM",
        "CLONE_TARGET_SSH": "SYSTEM",
        "DISK_TYPE_SSH": "FILE",
        "TM_MAD_SYSTEM": "ssh",
        "ALLOW_ORPHANS": "FORMAT",
        "SHARED": "YES",
    },
    "ssh": {
        **_STOCK,
        "LN_TARGET": "SYSTEM",
        "CLONE_TARGET": "SYSTEM",
        "ALLOW_ORPHANS": "YES",
        "SHARED": "NO",
    },
}


@dataclass(frozen=True, slots=True)
class OnedConfig:
    """Settings of one stand-in; paths are made when they are missing.

    ``tm_mad_conf`` is TM_MAD_CONF by driver name, added to the stock ones; a driver that has a directory
    below ``remotes/tm`` and no entry gets :data:`SAN_TM_CONF`. ``required_attrs`` is DS_MAD_CONF's
    REQUIRED_ATTRS by driver name. ``users`` are plain users, name to password. ``environment`` is added to
    what drivers see; ONE_XMLRPC and ONE_AUTH are set for them when ``give_endpoint``. Intervals and
    deadlines are seconds.
    """

    remotes: Path
    datastores: Path
    vms: Path
    hostname: str = "frontend"
    hosts: tuple[str, ...] = ("h1", "h2")
    vm_mad: str = "kvm"
    listen: tuple[str, int] = ("127.0.0.1", 0)
    password: str = "opennebula"
    users: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    give_endpoint: bool = True
    tm_mad_conf: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ds_mads: tuple[str, ...] = ("fs", "dummy")
    required_attrs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ds_encrypted_attrs: tuple[str, ...] = ()
    live_disk_snapshots: tuple[str, ...] | None = None
    version: tuple[int, int, int] = (7, 4, 0)
    first_datastore: int = 100
    monitor_interval: float | None = None
    monitor_after_operations: bool = True
    monitor_vm_disks: bool = True
    concurrency: int = 15
    driver_deadline: float = 600.0
    unreachable_hosts: tuple[str, ...] = ()
    hypervisor: Hypervisor | None = None
    runner: HostRunner | None = None
    clock: Callable[[], float] = time.time
