# SPDX-License-Identifier: Apache-2.0
"""Attributes that every driver has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sanstone.settings.attribute import COMMON, FILE, Attribute, OldOption, Scope, Table
from sanstone.settings.kinds import (
    HOSTNAME,
    Arguments,
    Choice,
    Duration,
    Flag,
    HostName,
    Integer,
    Path,
    Text,
    Words,
)
from sanstone.settings.problems import Problem

if TYPE_CHECKING:
    from sanstone.settings.resolving import Settings

__all__ = ["BLOCK_DS_CONF", "BLOCK_TM_CONF", "TABLE"]

MINUTE, HOUR, DAY = 60, 3600, 86400

_HOSTS = Words(HostName(), "host names or addresses, separated by blanks")
_THIS_OR_HOSTS = Words(HostName(), f"host names, separated by blanks, or {HOSTNAME}", knows_hostname=True)
_PATHS = Words(Path(), "absolute paths, separated by blanks")
_SITE = (Scope.SANSTONE,)

_HOST_GROUP = "Hosts"
_IMPORT = "Import of images"
_BACKUP = "Backups"
_TIME = "Time limits"
_SITE_GROUP = "Front-end"

_ATTRIBUTES = (
    Attribute(
        "BRIDGE_LIST",
        _HOSTS,
        "Hosts that prepare disks: they copy images to volumes and make file systems. They take turns.",
        note="the front-end itself",
        group=_HOST_GROUP,
    ),
    Attribute(
        "NO_ISCSI",
        _THIS_OR_HOSTS,
        "Hosts that never log in to or out of an iSCSI target: only the sessions they have are used. "
        f"{HOSTNAME} is the front-end.",
        HOSTNAME,
        default_with="BRIDGE_LIST",
        note=f"{HOSTNAME}; none without BRIDGE_LIST, because the front-end then has to reach the volumes",
        group=_HOST_GROUP,
    ),
    Attribute(
        "SSH_OPTIONS",
        Arguments(),
        "Options for ssh to hosts, besides those in oneadmin's ~/.ssh/config.",
        scopes=(Scope.HOSTS,),
        group=_HOST_GROUP,
    ),
    Attribute(
        "RESTRICTED_DIRS",
        _PATHS,
        "Directories of the front-end from which no image is taken, besides OpenNebula's own (/etc/one, "
        "/var/lib/one) and the home of the user that runs oned. / leaves only SAFE_DIRS, which is wise where "
        "users make images.",
        group=_IMPORT,
    ),
    Attribute(
        "SAFE_DIRS",
        _PATHS,
        "Directories below restricted ones from which images may be taken all the same, such as /var/tmp.",
        group=_IMPORT,
    ),
    Attribute(
        "STAGING_DIR",
        Path(),
        "Directory on the host that prepares disks where an image is kept until it is on its volume. "
        "It needs room for the largest image.",
        "/var/tmp",
        group=_IMPORT,
    ),
    Attribute(
        "COPY_TOOL",
        Choice(("qemu-img", "ddpt", "dd")),
        "What writes images to volumes. qemu-img reads all formats; ddpt and dd take raw images.",
        "qemu-img",
        group=_IMPORT,
    ),
    Attribute(
        "USE_DDPT",
        Flag(),
        "Option of an earlier add-on: 1 means COPY_TOOL=ddpt, 0 means COPY_TOOL=dd.",
        stands_for=OldOption("COPY_TOOL", {"1": "ddpt", "0": "dd"}),
        group=_IMPORT,
    ),
    Attribute(
        "BACKUP_COMPARE",
        Flag(),
        "Whether a host reads a disk's state and its earlier one to find what has changed, where the storage "
        "system cannot tell. NO makes each increment hold the whole disk.",
        "YES",
        group=_BACKUP,
    ),
    Attribute(
        "BACKUP_BASE_PATH",
        Path(),
        "Directory of the hosts where the files of a backup are kept until they are stored. OpenNebula's "
        "backup drivers must have the same.",
        scopes=_SITE,
        note="what OpenNebula's etc/datastore/datastore.conf says, else the VM's directory",
        group=_BACKUP,
    ),
    Attribute(
        "LIBVIRT_URI",
        Text(r"[a-z][a-z0-9+]*:[!-~]+", "a URI of libvirt, such as qemu:///system"),
        "How virsh on a host reaches libvirt, to let a guest hold still.",
        "qemu:///system",
        scopes=(Scope.HOSTS,),
        group=_BACKUP,
    ),
    Attribute(
        "CONNECT_TIMEOUT",
        Duration(1, 10 * MINUTE),
        "How long the storage system or a host may take to answer a connection.",
        "15",
        FILE,
        group=_TIME,
    ),
    Attribute(
        "COMMAND_TIMEOUT",
        Duration(1, HOUR),
        "How long one command on the storage system may take.",
        "180",
        FILE,
        group=_TIME,
    ),
    Attribute(
        "SESSION_TIMEOUT",
        Duration(1, DAY),
        "How long an action waits for a free session when ARRAY_SESSIONS are in use.",
        "600",
        FILE,
        group=_TIME,
    ),
    Attribute(
        "FLOCK_TIMEOUT",
        Duration(1, DAY),
        "Option of an earlier add-on: the same as SESSION_TIMEOUT.",
        scopes=FILE,
        stands_for=OldOption("SESSION_TIMEOUT"),
        group=_TIME,
    ),
    Attribute(
        "ATTACH_TIMEOUT",
        Duration(5, HOUR),
        "How long a volume may take to appear on a host, or to go away there.",
        "60",
        group=_TIME,
    ),
    Attribute(
        "COPY_TIMEOUT",
        Duration(MINUTE, 30 * DAY),
        "How long writing an image to its volume may take.",
        "1 d",
        group=_TIME,
    ),
    Attribute(
        "FREEZE_TIMEOUT",
        Duration(1, 10 * MINUTE),
        "How long a guest may hold still for a backup (FS_FREEZE) while the states of its disks are taken. "
        "After that it goes on in any case, and the backup fails.",
        "30",
        group=_TIME,
    ),
    Attribute(
        "DELETE_WAIT",
        Duration(0, 7 * DAY),
        "How long the deletion of a volume waits for copies that still read from it. One of oned's 15 "
        "datastore threads is occupied for that time.",
        "10 min",
        group=_TIME,
    ),
    Attribute(
        "ARRAY_SESSIONS",
        Integer(1, 64),
        "How many sessions the front-end has open at once on one storage system.",
        "4",
        FILE,
        group=_TIME,
    ),
    Attribute(
        "STATE_DIR",
        Path(),
        "Directory for what Sanstone remembers about its volumes and the storage systems.",
        "~/.sanstone",
        _SITE,
        group=_SITE_GROUP,
    ),
    Attribute(
        "REMOTES_DIR",
        Path(),
        "OpenNebula's remotes on the front-end, with its datastore drivers in datastore/.",
        "/var/lib/one/remotes",
        _SITE,
        group=_SITE_GROUP,
    ),
    Attribute(
        "FRONTEND",
        HostName(),
        "The front-end's name as OpenNebula spells it (HOSTNAME in oned.conf).",
        scopes=_SITE,
        note="what hostname prints",
        group=_SITE_GROUP,
    ),
)


BLOCK_TM_CONF = {
    "LN_TARGET": "NONE",
    "CLONE_TARGET": "SELF",
    "SHARED": "YES",
    "TM_MAD_SYSTEM": "ssh,shared",
    "LN_TARGET_SSH": "NONE",
    "CLONE_TARGET_SSH": "SELF",
    "DISK_TYPE_SSH": "BLOCK",
    "LN_TARGET_SHARED": "NONE",
    "CLONE_TARGET_SHARED": "SELF",
    "DISK_TYPE_SHARED": "BLOCK",
    "DRIVER": "raw",
    "ALLOW_ORPHANS": "YES",
    "PERSISTENT_SNAPSHOTS": "YES",
    "DS_MIGRATE": "YES",
    "DS_LIVE_MIGRATE": "YES",
    "DS_MIGRATE_SNAP": "YES",
}
"""What oned has to know of drivers whose disks are volumes on a block device."""

BLOCK_DS_CONF = {"PERSISTENT_ONLY": "NO", "MARKETPLACE_ACTIONS": "export"}


def _doubts(settings: Settings) -> list[Problem]:
    doubts = []
    if "/" in settings.words("SAFE_DIRS"):
        doubts.append(Problem("SAFE_DIRS holds /: users can make images of every file of the front-end."))
    options = settings.text("SSH_OPTIONS").lower().replace(" ", "=")
    if "stricthostkeychecking=no" in options or "stricthostkeychecking=off" in options:
        doubts.append(
            Problem("SSH_OPTIONS switches the check of host keys off: any machine can pose as a host.")
        )
    return doubts


TABLE = Table(COMMON, "All drivers", _ATTRIBUTES, doubts=_doubts)
