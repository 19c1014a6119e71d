# SPDX-License-Identifier: Apache-2.0
"""All recorded operations of a real oned as one story, in an order in which each has what it needs.

A step without a name was not recorded but has to happen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[1] / "data" / "opennebula-7.4"
LIFE_CYCLES: dict[str, Any] = json.loads((RECORD / "life-cycles.json").read_text())

#: Operations of the record that are not played, and why.
NOT_COVERED: dict[str, str] = {}

FULL = """
DISK=[IMAGE_ID="1"]
DISK=[IMAGE_ID="2"]
DISK=[TYPE="fs",SIZE="16",FORMAT="raw",FS="ext4",TARGET="vdk"]
DISK=[TYPE="swap",SIZE="16",TARGET="vdl"]
DISK=[IMAGE_ID="4"]
CONTEXT=[NETWORK="NO",ROLE="db"]
"""


@dataclass(frozen=True)
class Step:
    """Requests that are one recorded operation, or (without a name) lead to the next."""

    requests: tuple[tuple[Any, ...], ...]
    name: str = ""
    next_ids: dict[str, int] = field(default_factory=dict)
    failing: tuple[tuple[str, str], ...] = ()


def op(name: str, *requests: tuple[Any, ...], **next_ids: int) -> Step:
    return Step(requests, name, next_ids)


def hidden(*requests: tuple[Any, ...], failing: tuple[tuple[str, str], ...] = (), **next_ids: int) -> Step:
    return Step(requests, "", next_ids, failing)


def image(name: str, kind: str = "OS", datastore: int = 100, extra: str = "") -> tuple[Any, ...]:
    origin = 'SIZE="16"' if kind == "DATABLOCK" else 'PATH="/var/tmp/os.raw"'
    return ("one.image.allocate", f'NAME="{name}"\nTYPE="{kind}"\n{origin}\n{extra}', datastore, True)


def vm(name: str, disks: str = FULL) -> tuple[Any, ...]:
    return ("one.vm.allocate", f'NAME="{name}"\nCPU="0.1"\nMEMORY="64"\n{disks}', True)


def act(name: str, number: int) -> tuple[Any, ...]:
    return ("one.vm.action", name, number)


def deploy(number: int, host: int = 0, datastore: int = 103) -> tuple[Any, ...]:
    return ("one.vm.deploy", number, host, False, datastore, "")


def migrate(
    number: int, host: int, live: bool = False, datastore: int = -1, kind: int = 0
) -> tuple[Any, ...]:
    return ("one.vm.migrate", number, host, live, False, datastore, kind)


def attach(number: int, disk: str) -> tuple[Any, ...]:
    return ("one.vm.attach", number, f"DISK=[{disk}]")


def recover(number: int, operation: int) -> tuple[Any, ...]:
    return ("one.vm.recover", number, operation)


def configure(number: int, config: str) -> tuple[Any, ...]:
    return ("one.vm.updateconf", number, f"BACKUP_CONFIG=[{config}]")


VD = 'DEV_PREFIX="vd"\n'
IMAGE_3, IMAGE_2 = 'IMAGE_ID="3"', 'IMAGE_ID="2"'
FULL_BACKUP = 'MODE="FULL",BACKUP_VOLATILE="YES",KEEP_LAST="3"'
CHAIN = 'MODE="INCREMENT",BACKUP_VOLATILE="NO",KEEP_LAST='

IMAGES = [
    op("image-create-os-path", image("os", extra=VD + 'DRIVER="raw"'), IMAGE=1, SYNC=2),
    op("image-create-datablock-persistent", image("dbp", "DATABLOCK", extra=VD + 'PERSISTENT="YES"')),
    op("image-create-datablock-nonpersistent", image("dbn", "DATABLOCK", extra='FS="ext4"')),
    op("image-create-cdrom", image("cd", "CDROM")),
    op("image-create-os-ln-ds", image("osln", datastore=102, extra=VD)),
    op("image-create-stat-fails", image("nostat")),
    hidden(image("pl0")),
    op("image-create-cp-fails-plain", image("fplain")),
    op("image-create-cp-fails-delimited", image("fdelimited")),
    op("image-create-cp-fails-tagged", image("ftagged")),
    op("image-create-cp-fails-empty", image("fempty")),
    op("image-create-cp-no-format", image("fnofmt")),
    op("image-create-mkfs-fails", image("fmk", "DATABLOCK")),
    op("image-clone-same-ds", ("one.image.clone", 1, "oscl", -1)),
    op("image-clone-other-ds", ("one.image.clone", 1, "oscl2", 101)),
    op("image-clone-ds-with-other-tm", ("one.image.clone", 1, "oscl3", 102)),
    op("image-clone-fails", ("one.image.clone", 1, "clf", -1)),
    op("image-persistent-on", ("one.image.persistent", 14, True)),
    op("image-persistent-off", ("one.image.persistent", 14, False)),
    op("image-disable", ("one.image.enable", 14, False)),
    op("image-enable", ("one.image.enable", 14, True)),
    op("image-chtype", ("one.image.chtype", 14, "DATABLOCK")),
    op("image-delete-fails", ("one.image.delete", 14, False)),
    op("image-delete-retry", ("one.image.delete", 14, False)),
    op("image-delete-force", ("one.image.delete", 13, True)),
    op("image-delete-in-error", ("one.image.delete", 7, False)),
    hidden(*(("one.image.delete", number, True) for number in (8, 9, 10, 11, 12, 16))),
]

LIFE = [
    op("vm-instantiate-hold", vm("a"), VM=0),
    op("vm-deploy", deploy(0)),
    op("vm-poweroff", act("poweroff", 0)),
    op("vm-resume-from-poweroff", act("resume", 0)),
    op("vm-poweroff-hard", act("poweroff-hard", 0)),
    hidden(act("resume", 0)),
    op("vm-suspend", act("suspend", 0)),
    op("vm-resume-from-suspended", act("resume", 0)),
    op("vm-stop", act("stop", 0)),
    op("vm-resume-from-stopped", act("resume", 0), deploy(0, 1)),
    op("vm-undeploy", act("undeploy", 0)),
    op("vm-resume-from-undeployed", act("resume", 0), deploy(0)),
    op("vm-undeploy-hard", act("undeploy-hard", 0)),
    hidden(act("resume", 0), deploy(0)),
    op("vm-reboot", act("reboot", 0)),
    op("vm-migrate-live", migrate(0, 1, True)),
    op("vm-migrate-cold-save", migrate(0, 0)),
    op("vm-migrate-cold-poff", migrate(0, 1, kind=1)),
    op("vm-migrate-cold-poff-hard", migrate(0, 0, kind=2)),
    op("vm-migrate-cold-other-system-ds", migrate(0, 1, datastore=104)),
    op("vm-migrate-cold-other-system-ds-same-host", migrate(0, 1, datastore=103)),
    op("vm-migrate-live-other-system-ds", migrate(0, 0, True, 104)),
    hidden(migrate(0, 0, True), act("poweroff", 0)),
    op("vm-migrate-while-poweroff", migrate(0, 1)),
    op("vm-migrate-while-poweroff-other-system-ds", migrate(0, 1, datastore=104)),
    hidden(migrate(0, 0, datastore=103)),
]

DISKS = [
    op("vm-disk-attach-image-poweroff", attach(0, IMAGE_3)),
    op("vm-disk-detach-image-poweroff", ("one.vm.detach", 0, 6)),
    op("vm-disk-attach-volatile-poweroff", attach(0, 'TYPE="fs",SIZE="8",FORMAT="raw"')),
    op("vm-disk-detach-volatile-poweroff", ("one.vm.detach", 0, 6)),
    op("vm-disk-detach-persistent-poweroff", ("one.vm.detach", 0, 1)),
    op("vm-disk-attach-persistent-poweroff", attach(0, IMAGE_2)),
    hidden(act("resume", 0)),
    op("vm-disk-attach-image-running", attach(0, IMAGE_3)),
    op("vm-disk-detach-image-running", ("one.vm.detach", 0, 7)),
    op("vm-disk-attach-volatile-running", attach(0, 'TYPE="swap",SIZE="8"')),
    op("vm-disk-detach-volatile-running", ("one.vm.detach", 0, 7)),
    op("vm-disk-detach-persistent-running", ("one.vm.detach", 0, 6)),
    op("vm-disk-attach-persistent-running", attach(0, IMAGE_2)),
    op("vm-disk-attach-vmm-fails", attach(0, IMAGE_3)),
    op("vm-disk-attach-tm-fails", attach(0, IMAGE_3)),
    hidden(attach(0, IMAGE_3)),
    op("vm-disk-detach-tm-fails", ("one.vm.detach", 0, 7)),
    hidden(("one.vm.detach", 0, 7)),
    op("vm-disk-saveas-running", ("one.vm.disksaveas", 0, 0, "sv1", "", -1), IMAGE=17),
    op("vm-disk-saveas-persistent-running", ("one.vm.disksaveas", 0, 6, "sv2", "", -1)),
    op("vm-disk-saveas-cpds-fails", ("one.vm.disksaveas", 0, 0, "sv3", "", -1)),
    hidden(act("poweroff", 0)),
    op("vm-disk-saveas-poweroff", ("one.vm.disksaveas", 0, 0, "sv4", "", -1)),
    hidden(act("resume", 0), act("suspend", 0)),
    op("vm-disk-saveas-suspended", ("one.vm.disksaveas", 0, 0, "sv5", "", -1)),
    hidden(act("resume", 0)),
    op("vm-disk-snapshot-create-running-live", ("one.vm.disksnapshotcreate", 0, 0, "s0")),
    op("vm-disk-snapshot-create-running-live-persistent", ("one.vm.disksnapshotcreate", 0, 6, "p0")),
    op("vm-disk-snapshot-revert-running", ("one.vm.disksnapshotrevert", 0, 0, 0)),
    op("vm-disk-snapshot-delete-running", ("one.vm.disksnapshotdelete", 0, 6, 0)),
    hidden(act("poweroff", 0)),
    op("vm-disk-snapshot-create-poweroff", ("one.vm.disksnapshotcreate", 0, 0, "s1")),
    op("vm-disk-snapshot-create-poweroff-persistent", ("one.vm.disksnapshotcreate", 0, 6, "p1")),
    hidden(("one.vm.disksnapshotcreate", 0, 6, "p2"), ("one.vm.disksnapshotcreate", 0, 6, "p3")),
    op("vm-disk-snapshot-revert-poweroff", ("one.vm.disksnapshotrevert", 0, 0, 0)),
    op("vm-disk-snapshot-delete-poweroff", ("one.vm.disksnapshotdelete", 0, 0, 1)),
    op("vm-disk-snapshot-create-fails", ("one.vm.disksnapshotcreate", 0, 0, "s2")),
    op("vm-disk-resize-poweroff", ("one.vm.diskresize", 0, 0, "64")),
    op("vm-disk-resize-volatile-poweroff", ("one.vm.diskresize", 0, 2, "32")),
    hidden(act("resume", 0)),
    op("vm-disk-resize-running", ("one.vm.diskresize", 0, 0, "128")),
    op("vm-disk-resize-volatile-running", ("one.vm.diskresize", 0, 2, "64")),
    op("vm-disk-resize-fails", ("one.vm.diskresize", 0, 2, "65")),
    op("vm-snapshot-create", ("one.vm.snapshotcreate", 0, "sys0")),
    op("vm-snapshot-revert", ("one.vm.snapshotrevert", 0, 0)),
    op("vm-snapshot-delete", ("one.vm.snapshotdelete", 0, 0)),
]

BACKUPS = [
    hidden(configure(0, FULL_BACKUP)),
    op("vm-backup-full-running", ("one.vm.backup", 0, 109, False), IMAGE=22),
    op("vm-backup-ds-fails", ("one.vm.backup", 0, 109, False)),
    op("vm-backup-tm-fails", ("one.vm.backup", 0, 109, False)),
    hidden(configure(0, CHAIN + '"3"')),
    op("vm-backup-increment-0", ("one.vm.backup", 0, 109, False)),
    op("vm-backup-increment-1", ("one.vm.backup", 0, 109, False)),
    hidden(configure(0, FULL_BACKUP), act("poweroff", 0)),
    op("vm-backup-full-poweroff", ("one.vm.backup", 0, 109, False)),
    op("image-backup-restore", ("one.image.restore", 23, 100, 'NAME="rst"\nNO_IP="YES"'), SYNC=12),
    op("image-backup-delete", ("one.image.delete", 23, False)),
    op("vm-disk-detach-persistent-with-snapshots", ("one.vm.detach", 0, 6)),
    op("image-snapshot-revert", ("one.image.snapshotrevert", 2, 1)),
    op("image-snapshot-delete", ("one.image.snapshotdelete", 2, 2)),
    op("image-snapshot-delete-fails", ("one.image.snapshotdelete", 2, 1)),
    op("image-snapshot-delete-active", ("one.image.snapshotdelete", 2, 1)),
    op("image-persistent-off-with-snapshots", ("one.image.persistent", 2, False)),
    op("image-clone-with-snapshots", ("one.image.clone", 2, "no", -1)),
]

ENDS = [
    hidden(configure(0, FULL_BACKUP), attach(0, IMAGE_2), act("resume", 0)),
    op("vm-instantiate-with-bigger-disk-hold", vm("big", 'DISK=[IMAGE_ID="1",SIZE="256"]\n'), VM=1),
    op("vm-deploy-with-bigger-disk", deploy(1)),
    op("vm-terminate-hard", act("terminate-hard", 1)),
    op("vm-terminate-running", act("terminate", 0)),
    hidden(vm("t2"), deploy(2), act("undeploy", 2)),
    op("vm-terminate-undeployed", act("terminate", 2)),
    hidden(vm("t3"), deploy(3), act("poweroff", 3)),
    op("vm-terminate-poweroff", act("terminate", 3)),
    hidden(vm("t4"), deploy(4), act("suspend", 4)),
    op("vm-stop-from-suspended", act("stop", 4)),
    op("vm-terminate-stopped", act("terminate", 4)),
]

FAILURES = [
    hidden(vm("f1")),
    op("vm-deploy-tm-ln-fails", deploy(5)),
    op("vm-recover-retry-still-failing", recover(5, 2)),
    op("vm-recover-retry", recover(5, 2)),
    op("vm-recover-delete-recreate", recover(5, 4)),
    op("vm-deploy-vmm-fails", deploy(5)),
    op("vm-recover-retry-boot-failure", recover(5, 2)),
    op("vm-migrate-live-fails", migrate(5, 1, True)),
    op("vm-migrate-live-premigrate-fails", migrate(5, 1, True)),
    op("vm-migrate-live-postmigrate-fails", migrate(5, 1, True)),
    op("vm-migrate-cold-mv-fails", migrate(5, 0)),
    op("vm-recover-retry-migrate-failure", recover(5, 2)),
    op("vm-poweroff-fails", act("poweroff", 5)),
    op("vm-terminate-epilog-fails", act("terminate-hard", 5)),
    op("vm-recover-retry-epilog", recover(5, 2)),
    hidden(vm("m1"), deploy(6)),
    op("vm-migrate-live-other-system-ds-same-host", migrate(6, 0, True, 104)),
    hidden(act("terminate-hard", 6), vm("f2"), deploy(7)),
    hidden(*(image(f"h{number}", "DATABLOCK") for number in (25, 26, 27)), IMAGE=25),
    op("vm-recover-delete", recover(7, 3)),
    op("image-enable-from-error", ("one.image.enable", 2, True)),
    hidden(vm("f3"), deploy(8), failing=(("tm.rec.clone", "clone: no"),)),
    op("vm-recover-delete-from-prolog-failure", recover(8, 3)),
    hidden(("one.image.enable", 2, True)),
    hidden(vm("f4"), deploy(9), failing=(("tm.rec.clone", "clone: no"),)),
    op("vm-recover-success-from-prolog-failure", recover(9, 1)),
    op("vm-recover-delete-db", recover(9, 5)),
]


def mixed(kind: str, number: int, system: int, saved: int, host: int) -> list[Step]:
    """Play a VM on a system datastore of another transfer manager."""
    name = f"mixed-sys-{kind}-vm-"
    steps = [
        hidden(vm(f"y_sys_{kind}"), VM=number),
        op(f"{name}deploy", deploy(number, 0, system)),
        op(f"{name}migrate-live", migrate(number, 1, True)),
        op(f"{name}migrate-cold-save", migrate(number, 0)),
    ]
    if kind == "shared":
        steps += [
            op(f"{name}migrate-cold-other-system-ds", migrate(number, 1, datastore=106)),
            op(f"{name}migrate-live-other-system-ds-same-host", migrate(number, 1, True, 105)),
            op(f"{name}migrate-live-fails", migrate(number, 0, True)),
        ]
    return [
        *steps,
        op(f"{name}disk-snapshot-create-running-live", ("one.vm.disksnapshotcreate", number, 0, "s0")),
        op(
            f"{name}disk-saveas-running",
            ("one.vm.disksaveas", number, 0, f"svysys_{kind}", "", -1),
            IMAGE=saved,
        ),
        hidden(attach(number, IMAGE_3)),
        op(f"{name}disk-resize-running", ("one.vm.diskresize", number, 0, "64")),
        op(f"{name}undeploy", act("undeploy", number)),
        op(f"{name}resume-from-undeployed", act("resume", number), deploy(number, 0, system)),
        op(f"{name}terminate", act("terminate-hard", number)),
    ]


TARGET_SYSTEM = [
    op("image-snapshot-flatten", ("one.image.snapshotflatten", 2, 3)),
    hidden(vm("ln", 'DISK=[IMAGE_ID="5"]\nDISK=[TYPE="fs",SIZE="16",FORMAT="raw"]\n'), VM=16),
    op("target-system-vm-deploy", deploy(16, 0, 108)),
    hidden(vm("other", 'DISK=[IMAGE_ID="2"]\n'), VM=13),
    op("system-ds-of-other-tm-vm-deploy", deploy(13, 0, 108)),
    hidden(act("terminate", 13)),
    op("target-system-vm-migrate-cold-save", migrate(16, 1)),
    op("vm-disk-snapshot-create-running-pair-not-listed", ("one.vm.disksnapshotcreate", 16, 0, "s")),
    op("target-system-vm-terminate", act("terminate-hard", 16)),
    op(
        "host-error",
        ("one.host.allocate", "bad1", "kvm", "rec", -1),
        ("one.host.status", 1, 1),
        ("one.host.status", 1, 2),
        ("one.host.status", 1, 0),
        HOST=2,
    ),
]

SAN2 = 'DS_MAD="rec"\nTM_MAD="rec"\nDISK_TYPE="BLOCK"\nMGMT="v7000-b"\nREPLICATION="0"\nSAFE_DIRS="/var/tmp"'
ONE_DISK = 'DISK=[IMAGE_ID="1"]\n'
FOUR_DISKS = FULL.replace('DISK=[IMAGE_ID="2"]\n', "")
VOLATILE = (
    ONE_DISK + 'DISK=[TYPE="fs",SIZE="16",FORMAT="raw"]\nDISK=[TYPE="swap",SIZE="16"]\nCONTEXT=[ROLE="db"]\n'
)
TEXTS = [
    hidden(vm("e1", ONE_DISK), VM=22),
    op("vm-deploy-tm-fails-delimited", deploy(22)),
    hidden(vm("e2", ONE_DISK)),
    op("vm-deploy-tm-fails-tagged", deploy(23)),
    hidden(vm("e3", ONE_DISK)),
    op("vm-deploy-tm-fails-tagged-and-plain", deploy(24)),
    hidden(vm("e4", ONE_DISK)),
    op("vm-deploy-tm-fails-long", deploy(25)),
    hidden(vm("e5", FOUR_DISKS)),
    op("vm-deploy-vmm-fails-delimited", deploy(26)),
    hidden(("plain:one.image.allocate", 'NAME="pl"\nTYPE="DATABLOCK"\nSIZE="16"\n', 100, True), IMAGE=32),
    hidden(vm("bk", FOUR_DISKS), deploy(27), configure(27, CHAIN + '"2"')),
    op("vm-backup-increment-keep-last-2-n0", ("one.vm.backup", 27, 109, False)),
    op("vm-backup-increment-keep-last-2-n1", ("one.vm.backup", 27, 109, False)),
    op("vm-backup-increment-keep-last-2-n2", ("one.vm.backup", 27, 109, False)),
    hidden(act("poweroff", 27)),
    op("vm-restore-in-place", ("one.vm.restore", 27, 33, -1, -1)),
    hidden(
        ("one.datastore.update", 101, SAN2, 0), ("one.datastore.update", 100, 'COST="2"', 1), ("monitor",)
    ),
    hidden(("one.datastore.update", 101, 'NETAPP_PASS="s3cret"\nSAN_PASS="plain1"', 1)),
    op("image-create-in-ds-with-encrypted-attr", image("enc", "DATABLOCK", 101)),
    op("image-delete", ("one.image.delete", 34, False)),
    op("image-create-oversize-as-oneadmin", image("nocap2"), SYNC=13, IMAGE=35),
    hidden(("one.datastore.update", 101, SAN2.partition("\nREPLICATION")[0], 0), ("monitor",)),
    op("datastore-monitor", ("monitor",)),
    op("image-create-source-with-colon", image("colon", "DATABLOCK")),
    op("image-create-mkfs-prints-format", image("mkfmt", "DATABLOCK")),
    op("image-create-cp-two-stdout-lines", image("cp2")),
    hidden(("one.image.persistent", 36, True), vm("col1", 'DISK=[IMAGE_ID="36"]\n'), VM=28),
    op("vm-deploy-source-with-colon", deploy(28)),
    hidden(act("terminate-hard", 28), vm("col2", 'DISK=[IMAGE_ID="36"]\n'), deploy(29)),
    op("vm-terminate-source-with-colon", act("terminate", 29)),
    hidden(vm("mg", ONE_DISK), deploy(30)),
    op("vm-migrate-live-fails-and-failmigrate-fails", migrate(30, 1, True)),
    hidden(attach(30, IMAGE_3)),
    op("vm-disk-detach-vmm-fails", ("one.vm.detach", 30, 1)),
    op("vm-terminate-hard-vmm-fails", act("terminate-hard", 30)),
    hidden(vm("blk", VOLATILE), VM=32),
    op("vm-deploy-system-ds-disk-type-block", deploy(32, 0, 112)),
]

STORY = [
    *IMAGES,
    *LIFE,
    *DISKS,
    *BACKUPS,
    *ENDS,
    *FAILURES,
    *mixed("shared", 14, 105, 28, 1),
    *mixed("ssh", 15, 107, 29, 0),
    *TARGET_SYSTEM,
    *TEXTS,
]

PLAYED = [step.name for step in STORY if step.name]


def test_every_recorded_operation_is_played_or_said_not_to_be() -> None:
    assert set(PLAYED) | set(NOT_COVERED) == set(LIFE_CYCLES)
    assert not set(PLAYED) & set(NOT_COVERED)
    assert len(PLAYED) == len(set(PLAYED))
