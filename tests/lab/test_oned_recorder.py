# SPDX-License-Identifier: Apache-2.0
"""Drivers that write down how they were called and answer as they are told, and what they see of oned."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lab.oned import SAN_TM_CONF, Oned, OnedConfig

TM_ACTIONS = [
    "clone",
    "ln",
    "mkimage",
    "mkswap",
    "context",
    "mv",
    "mvds",
    "delete",
    "cpds",
    "snap_create",
    "snap_create_live",
    "snap_delete",
    "snap_revert",
    "resize",
    "premigrate",
    "postmigrate",
    "failmigrate",
    "prebackup",
    "prebackup_live",
    "postbackup",
    "postbackup_live",
    "restore",
    "monitor",
]
SUFFIXED = ["clone", "ln", "mv", "mvds", "delete", "cpds", "snap_create_live", "resize"]
DS_ACTIONS = [
    "stat",
    "cp",
    "mkfs",
    "clone",
    "rm",
    "monitor",
    "snap_delete",
    "snap_revert",
    "snap_flatten",
    "backup",
    "restore",
    "increment_flatten",
]
ALL_ACTIONS = sorted({*TM_ACTIONS, *DS_ACTIONS, *(f"{a}.{s}" for a in SUFFIXED for s in ("shared", "ssh"))})
PROGRAMS = (*ALL_ACTIONS, "mkdir", "truncate", "dd", "genisoimage", "sh", "cat", "test", "mv", "rm")

#: Every driver action: writes itself down in $RECORDER/log, then does what $RECORDER/answers says.
RECORDER = """#!/bin/sh
action=${0##*/}; directory=${0%/*}; driver=${directory##*/}; kind=${directory%/*}; kind=${kind##*/}
stdin=$(cat); entry='%s\\036%s\\036%s\\036%s\\036%s\\035\\n'
printf "$entry" "$kind" "$driver" "$action" "$stdin" "$(pwd)" >> "$RECORDER/log"
[ -r "$RECORDER/answers/$kind.$driver.$action" ] && . "$RECORDER/answers/$kind.$driver.$action"
case $kind.$action in
    datastore.stat) echo 16 ;;
    datastore.cp | datastore.clone) echo "hidden-$1 raw" ;;
    datastore.mkfs) echo "hidden-$1" ;;
    datastore.monitor) printf 'USED_MB=100\\nTOTAL_MB=100000\\nFREE_MB=99900\\n' ;;
    tm.monitor) printf 'USED_MB=200\\nTOTAL_MB=200000\\nFREE_MB=199800\\n' ;;
esac
exit 0
"""

SAN = 'DS_MAD="rec"\nTM_MAD="rec"\nDISK_TYPE="BLOCK"\n'
BRIDGES = 'BRIDGE_LIST="h1 h2"\n'
SYSTEM = 'TYPE="SYSTEM_DS"\n'
DATASTORES = [
    (100, f'NAME="san"\n{SAN}{BRIDGES}MGMT="v7000-a"\nREPLICATION="1"'),
    (101, f'NAME="san2"\n{SAN}{BRIDGES}MGMT="v7000-b"\nREPLICATION="0"'),
    (102, f'NAME="sanln"\n{SAN.replace("""TM_MAD="rec""", """TM_MAD="recln""")}{BRIDGES}'),
    (103, f'NAME="sys_rec"\n{SYSTEM}TM_MAD="rec"\nMGMT="v7000-a"'),
    (104, f'NAME="sys_rec2"\n{SYSTEM}TM_MAD="rec"\nMGMT="v7000-b"'),
    (105, f'NAME="sys_shared"\n{SYSTEM}TM_MAD="shared"'),
    (106, f'NAME="sys_shared2"\n{SYSTEM}TM_MAD="shared"'),
    (107, f'NAME="sys_ssh"\n{SYSTEM}TM_MAD="ssh"'),
    (108, f'NAME="sys_recln"\n{SYSTEM}TM_MAD="recln"'),
    (109, 'NAME="bak"\nTYPE="BACKUP_DS"\nDS_MAD="recbak"'),
    (112, f'NAME="sys_blk"\n{SYSTEM}TM_MAD="rec"\nDISK_TYPE="BLOCK"'),
]

RECLN_TM_CONF = {
    "LN_TARGET": "SYSTEM",
    "CLONE_TARGET": "SYSTEM",
    "DRIVER": "raw",
    "ALLOW_ORPHANS": "YES",
    "SHARED": "YES",
    "DS_MIGRATE": "NO",
    "DS_LIVE_MIGRATE": "NO",
    "DS_MIGRATE_SNAP": "NO",
}


def write_recorders(remotes: Path) -> None:
    """Write the recorder under the name of every action of every driver of the record."""
    suffixed = [f"{action}.{suffix}" for action in SUFFIXED for suffix in ("shared", "ssh")]
    for kind, driver, actions in (
        ("datastore", "rec", DS_ACTIONS),
        ("datastore", "recbak", DS_ACTIONS),
        ("tm", "rec", [*TM_ACTIONS, *suffixed]),
        ("tm", "recln", TM_ACTIONS),
        ("tm", "shared", ["monitor"]),
    ):
        place = remotes / kind / driver
        place.mkdir(parents=True)
        for action in actions:
            script = place / action
            script.write_text(RECORDER)
            script.chmod(0o755)


def recorded_config(directory: Path, **changes: object) -> OnedConfig:
    """Give the configuration of the oned of the record, with recorders for drivers."""
    (directory / "answers").mkdir()
    write_recorders(directory / "remotes")
    settings: dict[str, object] = {
        "remotes": directory / "remotes",
        "datastores": directory / "datastores",
        "vms": directory / "vms",
        "vm_mad": "rec",
        "environment": {"RECORDER": str(directory)},
        "tm_mad_conf": {"rec": SAN_TM_CONF, "recln": RECLN_TM_CONF},
        "required_attrs": {"rec": ("DISK_TYPE",), "recbak": ()},
        "ds_encrypted_attrs": ("NETAPP_PASS",),
        "live_disk_snapshots": ("rec-rec",),
        "users": {"plain": "plainpass", "plain2": "plainpass2"},
        "monitor_after_operations": False,
        "unreachable_hosts": ("bad1",),
    }
    return OnedConfig(**{**settings, **changes})  # type: ignore[arg-type]


def make_datastores(oned: Oned) -> None:
    """Make the datastores of the record, with their ids."""
    for number, template in DATASTORES:
        oned.core.last_ids["DATASTORE"] = number - 1
        oned.datastores.allocate(oned.core.users[0], template)


@dataclass(frozen=True)
class Seen:
    """One call as the driver saw it."""

    kind: str
    driver: str
    action: str
    stdin: str
    directory: str


def seen(directory: Path) -> list[Seen]:
    """Give the calls that the recorders have written down."""
    text = (directory / "log").read_text()
    return [Seen(*entry.lstrip("\n").split("\036")) for entry in text.split("\035") if entry.strip()]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def oned(directory: Path) -> Iterator[Oned]:
    with Oned(recorded_config(directory)) as oned:
        make_datastores(oned)
        yield oned


pytestmark = pytest.mark.real(*PROGRAMS)


def test_a_datastore_action_reads_its_document_in_base64(oned: Oned, directory: Path) -> None:
    oned.images.allocate(oned.core.users[0], 'NAME="a b"\nTYPE="DATABLOCK"\nSIZE="16"', 100)
    oned.wait(image=0, state="READY")
    (call,) = seen(directory)
    document = ElementTree.fromstring(base64.b64decode(call.stdin, validate=True))
    assert (call.kind, call.driver, call.action) == ("datastore", "rec", "mkfs")
    assert document.findtext("IMAGE/NAME") == "a b"


def test_a_backup_action_reads_its_document_as_it_is(oned: Oned, directory: Path) -> None:
    admin = oned.core.users[0]
    oned.images.allocate(admin, 'NAME="a"\nTYPE="DATABLOCK"\nSIZE="16"', 100)
    oned.wait(image=0, state="READY")
    oned.vms.allocate(admin, 'NAME="v"\nDISK=[IMAGE_ID="0"]')
    oned.vms.deploy(admin, 0, 0, False, 103)
    oned.wait_vm(0, "RUNNING")
    oned.backups.backup(admin, 0, 109)
    oned.wait_idle()
    by_action = {call.action: call for call in seen(directory)}
    assert by_action["clone"].stdin == ""
    assert by_action["backup"].stdin.startswith("<DS_DRIVER_ACTION_DATA>")
    assert by_action["prebackup_live"].stdin.startswith("<VM>")


def test_actions_run_in_the_home_of_the_remotes(oned: Oned, directory: Path) -> None:
    oned.monitor_datastore(100)
    assert seen(directory)[0].directory == str(directory)
