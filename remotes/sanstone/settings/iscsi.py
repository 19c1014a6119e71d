# SPDX-License-Identifier: Apache-2.0
"""Attributes of Linux tgt on LVM.

Names and defaults are those of OpenNebula's iSCSI datastore 3.4 and the add-on that followed it, so that
their datastores work as they are; what they did not have is added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sanstone.settings.attribute import Attribute, Scope, Table
from sanstone.settings.common import BLOCK_DS_CONF, BLOCK_TM_CONF
from sanstone.settings.kinds import Choice, HostName, Integer, Text, Words
from sanstone.settings.problems import Problem

if TYPE_CHECKING:
    from sanstone.settings.resolving import Settings

__all__ = ["TABLE"]

_SYSTEM = "Target host"
_VOLUMES = "Volumes"
_ACCESS = "Access"

_BOX_AND_DATASTORE = (Scope.DRIVER, Scope.DATASTORE)

# A volume group is a part of target names, where tgtd takes no underscore and a dot would end it.
_GROUP = Text(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}", "a name of letters, digits and -")
_PORTAL = Text(
    r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z.-]+)(:[1-9][0-9]{0,4})?"
    r"|(?=\S*::|([0-9A-Fa-f]+:){7})[0-9A-Fa-f:.]+",
    "an address, or one with a port, such as 10.0.1.5:3260",
)

_ATTRIBUTES = (
    Attribute(
        "HOST",
        HostName(),
        "The target host, which runs tgt and has the volume group; it is reached by ssh. It also names the "
        "section of sanstone.conf for this host.",
        "localhost",
        _BOX_AND_DATASTORE,
        group=_SYSTEM,
    ),
    Attribute(
        "BASE_IQN",
        Text(
            r"iqn\.[0-9]{4}-(0[1-9]|1[0-2])\.[A-Za-z0-9]([A-Za-z0-9.-]{0,98}[A-Za-z0-9])?",
            "a name such as iqn.2012-02.org.opennebula",
        ),
        "Beginning of the names of targets. Volumes that have one keep being found only while it stays.",
        "iqn.2012-02.org.opennebula",
        option="tgtadm --targetname",
        group=_SYSTEM,
    ),
    Attribute(
        "BASE_TID",
        Integer(1, 1000000),
        "Lowest target number (TID) that new targets get.",
        "1",
        option="tgtadm --tid",
        group=_SYSTEM,
    ),
    Attribute(
        "PORTALS",
        Words(_PORTAL, "addresses, with or without a port, separated by blanks"),
        "Addresses at which hosts reach the targets: one path each.",
        note="those at which tgtd listens; the target host's address when it listens everywhere",
        group=_SYSTEM,
    ),
    Attribute(
        "VG_NAME",
        _GROUP,
        "Volume group in which volumes are made.",
        "vg-one",
        option="lvcreate",
        group=_VOLUMES,
    ),
    Attribute(
        "POOL",
        Text(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,120}", "the name of a logical volume"),
        "Thin pool of the volume group. In a group without one volumes are thick: then clones and snapshots "
        "are full copies.",
        note="the only thin pool of the volume group",
        option="lvcreate --thinpool",
        group=_VOLUMES,
    ),
    Attribute(
        "CHAP",
        Choice(("AUTO", "YES", "NO")),
        "Hosts prove who they are by secrets (CHAP), made for each volume and host. AUTO: those that have "
        "etc/sbin/sanstone-chap, which writes a secret without showing it; YES: the others get no volume.",
        "AUTO",
        group=_ACCESS,
    ),
)


def _problems(settings: Settings) -> list[Problem]:
    if "_" in settings.text("HOST"):
        return [
            Problem(
                f"HOST={settings.text('HOST')} cannot be part of a target's name, because of its _.",
                "Use another name of that machine, or its address.",
            )
        ]
    return []


def _doubts(settings: Settings) -> list[Problem]:
    if settings.text("CHAP") == "NO":
        return [
            Problem(
                "CHAP=NO: a machine that pretends to be a host by its initiator name reaches its volumes."
            )
        ]
    return []


TABLE = Table(
    "iscsi",
    "Linux tgt on LVM",
    _ATTRIBUTES,
    problems=_problems,
    doubts=_doubts,
    tm_conf=BLOCK_TM_CONF,
    ds_conf=BLOCK_DS_CONF,
    box="HOST",
    box_sample=("volume group", "VG_NAME = vg-fast"),
)
