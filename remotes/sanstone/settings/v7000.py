# SPDX-License-Identifier: Apache-2.0
"""Attributes of IBM Storwize V7000, SVC and FlashSystem.

Names and defaults are those of the existing V7000 add-on, so that its datastores work as they are. Its
defaults for MGMT, MGMT_AUX and CLUSTER named nobody's box; here they have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sanstone.settings.attribute import FILE, VOLUME, Attribute, Scope, Table
from sanstone.settings.common import BLOCK_DS_CONF, BLOCK_TM_CONF
from sanstone.settings.kinds import Choice, Flag, HostName, Integer, Path, Percent, Text, Words
from sanstone.settings.problems import Problem

if TYPE_CHECKING:
    from sanstone.settings.resolving import Settings

__all__ = ["TABLE"]

_SYSTEM = "Storage system"
_VOLUMES = "Volumes"
_COPIES = "Snapshots and clones"
_REPLICATION = "Replication and failover"

# Rule of the box for names of objects; blanks, which it allows, would make a list of names ambiguous.
_NAME = Text(
    r"[A-Za-z_][A-Za-z0-9_.-]{0,62}", "a name of letters, digits, _ . and -, beginning with a letter or _"
)
_RATE = Integer(0, 100)
_BOX_AND_DATASTORE = (Scope.DRIVER, Scope.DATASTORE)

_THIN = ("THIN_PROVISION", "1")
_MIRRORED = ("COPIES", "2")
_REPLICATED = ("REPLICATION", "1")

_ATTRIBUTES = (
    Attribute(
        "MGMT",
        HostName(),
        "Management address of the system. It also names the section of sanstone.conf for this system.",
        scopes=_BOX_AND_DATASTORE,
        is_mandatory=True,
        group=_SYSTEM,
    ),
    Attribute(
        "MGMT_PORT",
        Integer(1, 65535),
        "Port of its SSH server.",
        "22",
        FILE,
        group=_SYSTEM,
    ),
    Attribute(
        "MGMT_USER",
        Text(r"[A-Za-z_][A-Za-z0-9_.@\\-]{0,63}", "a user name"),
        "User on the system. Any role that may make, map and delete volumes will do.",
        "oneadmin",
        FILE,
        group=_SYSTEM,
    ),
    Attribute(
        "MGMT_KEY",
        Path(),
        "Private key with which to log in.",
        scopes=FILE,
        note="those of the SSH agent and ~/.ssh/id_*",
        group=_SYSTEM,
    ),
    Attribute(
        "MGMT_PASSWORD",
        Text(r".{1,256}", "a password of 1 to 256 characters"),
        "Password, for a user without a key. MGMT_PASSWORD_FILE is the better place for it.",
        scopes=FILE,
        is_secret=True,
        group=_SYSTEM,
    ),
    Attribute(
        "MGMT_PASSWORD_FILE",
        Path(),
        "File whose first line is the password; nobody but its owner and group may read it.",
        scopes=FILE,
        group=_SYSTEM,
    ),
    Attribute(
        "MGMT_KNOWN_HOSTS",
        Path(),
        "File with the system's host key. A system that is not in it is not spoken to.",
        "~/.ssh/known_hosts",
        FILE,
        group=_SYSTEM,
    ),
    Attribute(
        "BASE_IQN",
        Text(
            r"iqn\.[0-9]{4}-(0[1-9]|1[0-2])\.[A-Za-z0-9]([A-Za-z0-9.-]{0,98}[A-Za-z0-9])?(:[A-Za-z0-9.:_-]{1,80})?",
            "a name such as iqn.1986-03.com.ibm",
        ),
        "Beginning of the SOURCE that images get in OpenNebula.",
        "iqn.1986-03.com.ibm",
        group=_SYSTEM,
    ),
    Attribute(
        "MDISK_GROUP",
        Words(_NAME, "one or more pool names, separated by blanks", separator=":"),
        "Storage pools. Of several, each new volume goes to the one with most room; with COPIES=2 the "
        "copies go to the first and the second.",
        "mdiskgrp0",
        option="mkvdisk -mdiskgrp",
        group=_VOLUMES,
    ),
    Attribute(
        "IO_GROUP",
        _NAME,
        "I/O group (pair of nodes) through which hosts reach the volumes.",
        "io_grp0",
        option="mkvdisk -iogrp",
        group=_VOLUMES,
    ),
    Attribute(
        "THIN_PROVISION",
        Flag(),
        "Volumes take room in the pool as they are written (1), or all of it at once (0).",
        "1",
        VOLUME,
        group=_VOLUMES,
    ),
    Attribute(
        "RSIZE",
        Percent(),
        "Share of a thin volume that has room in the pool from the start.",
        "2",
        VOLUME,
        option="mkvdisk -rsize",
        shown_when=_THIN,
        group=_VOLUMES,
    ),
    Attribute(
        "COPIES",
        Integer(choices=(1, 2)),
        "Copies of each volume within the system; 2 makes mirrored volumes.",
        "1",
        option="mkvdisk -copies",
        group=_VOLUMES,
    ),
    Attribute(
        "SYNC_RATE",
        _RATE,
        "How fast the copies of a mirrored volume are synchronised; 0 does not synchronise them.",
        "50",
        option="mkvdisk -syncrate",
        shown_when=_MIRRORED,
        group=_VOLUMES,
    ),
    Attribute(
        "VTYPE",
        Choice(("striped",)),
        "How a volume lies on the managed disks of its pool.",
        "striped",
        option="mkvdisk -vtype",
        group=_VOLUMES,
    ),
    Attribute(
        "SNAPSHOT",
        Flag(),
        "Disks of non-persistent images are snapshots (1), which depend on the image, or clones (0), "
        "which are copied in the background and depend on it no more when that is done.",
        "1",
        VOLUME,
        group=_COPIES,
    ),
    Attribute(
        "SNAPSHOT_RSIZE",
        Percent(),
        "Share of a snapshot that has room in the pool from the start.",
        "0",
        VOLUME,
        option="mkvdisk -rsize",
        shown_when=("SNAPSHOT", "1"),
        group=_COPIES,
    ),
    Attribute(
        "COPYRATE",
        _RATE,
        "How fast clones are copied in the background; 0 copies nothing, so that a clone depends on its "
        "image as a snapshot does.",
        "50",
        VOLUME,
        option="mkfcmap -copyrate",
        group=_COPIES,
    ),
    Attribute(
        "CLEANRATE",
        _RATE,
        "How fast the system saves what others still read from a snapshot or clone that goes away.",
        "50",
        VOLUME,
        option="mkfcmap -cleanrate",
        group=_COPIES,
    ),
    Attribute(
        "GRAINSIZE",
        Integer(choices=(64, 256), of="KiB"),
        "Smallest piece that a snapshot or clone copies. It cannot be changed afterwards.",
        "256",
        VOLUME,
        option="mkfcmap -grainsize",
        group=_COPIES,
    ),
    Attribute(
        "REPLICATION",
        Flag(),
        "Each volume has a copy on a second system.",
        "0",
        group=_REPLICATION,
    ),
    Attribute(
        "MGMT_AUX",
        HostName(),
        "Management address of the second system.",
        scopes=_BOX_AND_DATASTORE,
        shown_when=_REPLICATED,
        group=_REPLICATION,
    ),
    Attribute(
        "CLUSTER",
        Text(r"[0-9A-Fa-f]{16}", "16 hexadecimal digits, as lspartnership shows"),
        "Id of the second system.",
        scopes=_BOX_AND_DATASTORE,
        option="mkrcrelationship -cluster",
        shown_when=_REPLICATED,
        group=_REPLICATION,
    ),
    Attribute(
        "FAILOVER",
        Flag(),
        "VMs use the volumes of the second system, from their next deployment on.",
        "0",
        shown_when=_REPLICATED,
        group=_REPLICATION,
    ),
)


def _problems(settings: Settings) -> list[Problem]:
    problems = []
    pools = settings.words("MDISK_GROUP")
    if settings.integer("COPIES") == 2 and len(pools) > 2:
        problems.append(
            Problem(
                f"COPIES=2 needs one or two pools, but MDISK_GROUP names {len(pools)}.",
                "Name the pool of the first copy and the pool of the second, or one pool for both.",
            )
        )
    for switch in ("REPLICATION", "FAILOVER"):
        needed = ("MGMT_AUX", "CLUSTER") if switch == "REPLICATION" else ("MGMT_AUX",)
        missing = [name for name in needed if not settings.text(name)]
        if settings.flag(switch) and missing:
            problems.append(
                Problem(
                    f"{switch}=1 needs {' and '.join(missing)}.", "They say which system is the second one."
                )
            )
    same = settings.text("MGMT_AUX").lower() == settings.text("MGMT").lower()
    if same and (settings.flag("REPLICATION") or settings.flag("FAILOVER")):
        problems.append(
            Problem(
                f"MGMT_AUX={settings.text('MGMT_AUX')} is the same system as MGMT.",
                "Name the second system in MGMT_AUX.",
            )
        )
    if settings.text("MGMT_PASSWORD_FILE") and settings.has_secret_text("MGMT_PASSWORD"):
        problems.append(
            Problem(
                "MGMT_PASSWORD and MGMT_PASSWORD_FILE are both set.", "Keep the file, remove MGMT_PASSWORD."
            )
        )
    return problems


def _doubts(settings: Settings) -> list[Problem]:
    if not settings.flag("SNAPSHOT") and settings.integer("COPYRATE") == 0:
        return [
            Problem("SNAPSHOT=0 with COPYRATE=0: clones are never copied and depend on their image for ever.")
        ]
    return []


TABLE = Table(
    "v7000",
    "IBM Storwize V7000, SVC, FlashSystem",
    _ATTRIBUTES,
    problems=_problems,
    doubts=_doubts,
    unsupported={
        ("REPLICATION", "1"): "Replication is not supported yet",
        ("FAILOVER", "1"): "Failover is not supported yet",
    },
    tm_conf=BLOCK_TM_CONF,
    ds_conf=BLOCK_DS_CONF,
)
