# SPDX-License-Identifier: Apache-2.0
"""The recorded operations as stories, with the record's ids, and those that are not played.

Where the recorder was told to fail, the array, the hypervisor or the input is what fails here.
"""

from __future__ import annotations

from lab.life_cycles.play import Step, Story
from lab.life_cycles.requests import (
    FULL,
    IMAGE_2,
    IMAGE_3,
    VD,
    act,
    attach,
    base,
    both,
    cannot_grow,
    cannot_save,
    configure,
    deploy,
    fails,
    hidden,
    image,
    migrate,
    op,
    recover,
    refuses,
    vm,
)

__all__ = ["NOT_PLAYED", "STORIES"]

_WORDS = "a form of a recorder's standard error, told apart by oned alone; the real failure is "
_STDOUT = "garbage on a recorder's standard output, which the driver never prints"
_SYSTEM_TARGET = (
    "LN_TARGET=SYSTEM and CLONE_TARGET=SYSTEM: a disk of ours is always a volume of its own (NONE, SELF)"
)
_NO_CALL = "oned refuses it before any driver is asked"

NOT_PLAYED: dict[str, str] = {
    "image-create-cp-fails-delimited": f"{_WORDS}image-create-cp-fails-plain",
    "image-create-cp-fails-tagged": f"{_WORDS}image-create-cp-fails-plain",
    "image-create-cp-fails-empty": f"{_WORDS}image-create-cp-fails-plain",
    "image-create-cp-no-format": _STDOUT,
    "image-create-cp-two-stdout-lines": _STDOUT,
    "image-create-mkfs-prints-format": _STDOUT,
    "image-create-os-ln-ds": _SYSTEM_TARGET,
    "image-clone-ds-with-other-tm": _SYSTEM_TARGET,
    "target-system-vm-deploy": _SYSTEM_TARGET,
    "target-system-vm-migrate-cold-save": _SYSTEM_TARGET,
    "target-system-vm-terminate": _SYSTEM_TARGET,
    "system-ds-of-other-tm-vm-deploy": _NO_CALL,
    "vm-disk-snapshot-create-running-pair-not-listed": _NO_CALL,
    "vm-deploy-tm-fails-delimited": f"{_WORDS}vm-deploy-tm-ln-fails",
    "vm-deploy-tm-fails-tagged": f"{_WORDS}vm-deploy-tm-ln-fails",
    "vm-deploy-tm-fails-tagged-and-plain": f"{_WORDS}vm-deploy-tm-ln-fails",
    "vm-deploy-tm-fails-long": f"{_WORDS}vm-deploy-tm-ln-fails",
    "host-error": "no storage: a host cannot be monitored, or is disabled by a person",
}
"""Operations that do not touch storage through our drivers, and why."""

FULL_BACKUP = 'MODE="FULL",BACKUP_VOLATILE="YES",KEEP_LAST="3"'
CHAIN = 'MODE="INCREMENT",BACKUP_VOLATILE="NO",KEEP_LAST='

IMAGES = Story(
    "images",
    (
        op("image-create-os-path", image("os", extra=VD + 'DRIVER="raw"'), IMAGE=1),
        op("image-create-datablock-persistent", image("dbp", "DATABLOCK", extra=VD + 'PERSISTENT="YES"')),
        op("image-create-datablock-nonpersistent", image("dbn", "DATABLOCK", extra='FS="ext4"')),
        op("image-create-cdrom", image("cd", "CDROM", file="cd")),
        op("image-create-stat-fails", image("nostat", file="nothing"), own_words=True),
        op(
            "image-create-cp-fails-plain",
            image("fplain"),
            trouble=refuses("create", "one-7"),
            own_words=True,
            IMAGE=7,
        ),
        op(
            "image-create-mkfs-fails",
            image("fmk", "DATABLOCK"),
            trouble=refuses("create", "one-12"),
            own_words=True,
            IMAGE=12,
        ),
        op("image-clone-same-ds", ("one.image.clone", 1, "oscl", -1)),
        op("image-clone-other-ds", ("one.image.clone", 1, "oscl2", 101)),
        op(
            "image-clone-fails",
            ("one.image.clone", 1, "clf", -1),
            trouble=refuses("copy", "one-16"),
            own_words=True,
            IMAGE=16,
        ),
        op("image-persistent-on", ("one.image.persistent", 14, True)),
        op("image-persistent-off", ("one.image.persistent", 14, False)),
        op("image-disable", ("one.image.enable", 14, False)),
        op("image-enable", ("one.image.enable", 14, True)),
        op("image-chtype", ("one.image.chtype", 14, "DATABLOCK")),
        op("image-delete-fails", ("one.image.delete", 14, False), trouble=refuses("delete", "one-14")),
        op("image-delete-retry", ("one.image.delete", 14, False)),
        op("image-delete-force", ("one.image.delete", 13, True)),
        op("image-delete-in-error", ("one.image.delete", 7, False)),
        hidden(*(("one.image.delete", number, True) for number in (12, 16))),
        hidden(("one.datastore.update", 101, 'NETAPP_PASS="s3cret"', 1)),
        op("image-create-in-ds-with-encrypted-attr", image("enc", "DATABLOCK", 101), IMAGE=34),
        op("image-delete", ("one.image.delete", 34, False)),
        hidden(("lab.full", 100)),
        op("image-create-oversize-as-oneadmin", image("nocap2"), IMAGE=35),
        op("datastore-monitor", ("monitor",)),
        op("image-create-source-with-colon", image("colon", "DATABLOCK"), IMAGE=36),
        hidden(("one.image.persistent", 36, True), vm("col1", 'DISK=[IMAGE_ID="36"]\n'), VM=28),
        op("vm-deploy-source-with-colon", deploy(28)),
        hidden(act("terminate-hard", 28), vm("col2", 'DISK=[IMAGE_ID="36"]\n'), deploy(29)),
        op("vm-terminate-source-with-colon", act("terminate", 29)),
    ),
    has_two_arrays=True,
)

LIFE = Story(
    "life",
    (
        *base(),
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
        hidden(migrate(0, 0), act("poweroff", 0)),
        op("vm-migrate-while-poweroff", migrate(0, 1)),
        op("vm-migrate-while-poweroff-other-system-ds", migrate(0, 1, datastore=104)),
    ),
)

DISKS = Story(
    "disks",
    (
        *base(with_spare=True),
        hidden(vm("a"), deploy(0), act("poweroff", 0), VM=0),
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
        op(
            "vm-disk-attach-vmm-fails",
            attach(0, IMAGE_3),
            trouble=fails("attach_disk", "attach: device busy"),
        ),
        op(
            "vm-disk-attach-tm-fails",
            attach(0, IMAGE_3),
            trouble=refuses("copy", "one-3-0-7"),
            own_words=True,
        ),
        hidden(attach(0, IMAGE_3)),
        op(
            "vm-disk-detach-tm-fails",
            ("one.vm.detach", 0, 7),
            trouble=refuses("unmap", "one-3-0-7"),
            own_words=True,
        ),
        hidden(("one.vm.detach", 0, 7)),
        op("vm-disk-saveas-running", ("one.vm.disksaveas", 0, 0, "sv1", "", -1), IMAGE=17),
        op("vm-disk-saveas-persistent-running", ("one.vm.disksaveas", 0, 6, "sv2", "", -1)),
        op(
            "vm-disk-saveas-cpds-fails",
            ("one.vm.disksaveas", 0, 0, "sv3", "", -1),
            trouble=cannot_save("one-19"),
            own_words=True,
        ),
        hidden(act("poweroff", 0)),
        op("vm-disk-saveas-poweroff", ("one.vm.disksaveas", 0, 0, "sv4", "", -1)),
        hidden(act("resume", 0), act("suspend", 0)),
        op("vm-disk-saveas-suspended", ("one.vm.disksaveas", 0, 0, "sv5", "", -1)),
    ),
)

SNAPSHOTS = Story(
    "snapshots",
    (
        *base(),
        hidden(vm("a"), deploy(0), ("one.vm.detach", 0, 1), attach(0, IMAGE_2), VM=0),
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
        op(
            "vm-disk-snapshot-create-fails",
            ("one.vm.disksnapshotcreate", 0, 0, "s2"),
            trouble=refuses("create", "one-1-0-0-s2"),
            own_words=True,
        ),
        op("vm-disk-resize-poweroff", ("one.vm.diskresize", 0, 0, "64")),
        op("vm-disk-resize-volatile-poweroff", ("one.vm.diskresize", 0, 2, "32")),
        # V7000's code level 7 expands nothing that has a snapshot
        hidden(("one.vm.disksnapshotdelete", 0, 0, 0), act("resume", 0)),
        op("vm-disk-resize-running", ("one.vm.diskresize", 0, 0, "128")),
        op("vm-disk-resize-volatile-running", ("one.vm.diskresize", 0, 2, "64")),
        op(
            "vm-disk-resize-fails",
            ("one.vm.diskresize", 0, 2, "65"),
            trouble=cannot_grow("one-sys-0-2", "103/0/disk.2"),
            own_words=True,
        ),
        op("vm-snapshot-create", ("one.vm.snapshotcreate", 0, "sys0")),
        op("vm-snapshot-revert", ("one.vm.snapshotrevert", 0, 0)),
        op("vm-snapshot-delete", ("one.vm.snapshotdelete", 0, 0)),
        hidden(act("poweroff", 0)),
        op("vm-disk-detach-persistent-with-snapshots", ("one.vm.detach", 0, 6)),
        op("image-snapshot-revert", ("one.image.snapshotrevert", 2, 1)),
        op("image-snapshot-delete", ("one.image.snapshotdelete", 2, 2)),
        op(
            "image-snapshot-delete-fails",
            ("one.image.snapshotdelete", 2, 1),
            trouble=refuses("delete", "one-2-s1"),
            own_words=True,
        ),
        # its contents may be gone, so that going back to it is refused and the image stays what it is
        hidden(("one.image.snapshotrevert", 2, 1)),
        op("image-snapshot-delete-active", ("one.image.snapshotdelete", 2, 1)),
        op("image-persistent-off-with-snapshots", ("one.image.persistent", 2, False)),
        op("image-clone-with-snapshots", ("one.image.clone", 2, "no", -1)),
        op("image-snapshot-flatten", ("one.image.snapshotflatten", 2, 3)),
    ),
)

BACKUPS = Story(
    "backups",
    (
        *base(),
        hidden(
            vm("a"), deploy(0), ("one.vm.detach", 0, 1), attach(0, IMAGE_2), configure(0, FULL_BACKUP), VM=0
        ),
        op("vm-backup-full-running", ("one.vm.backup", 0, 109, False), IMAGE=22),
        op(
            "vm-backup-ds-fails",
            ("one.vm.backup", 0, 109, False),
            trouble=lambda cloud: cloud.fail_backup("backup: repository locked"),
        ),
        op(
            "vm-backup-tm-fails",
            ("one.vm.backup", 0, 109, False),
            trouble=lambda cloud: cloud.refuse_backups(),
            own_words=True,
        ),
        hidden(configure(0, CHAIN + '"3"')),
        op("vm-backup-increment-0", ("one.vm.backup", 0, 109, False)),
        op("vm-backup-increment-1", ("one.vm.backup", 0, 109, False)),
        hidden(configure(0, FULL_BACKUP), act("poweroff", 0)),
        op("vm-backup-full-poweroff", ("one.vm.backup", 0, 109, False)),
        op("image-backup-restore", ("one.image.restore", 23, 100, 'NAME="rst"\nNO_IP="YES"')),
        op("image-backup-delete", ("one.image.delete", 23, False)),
        hidden(act("terminate", 0)),
        hidden(
            vm("bk", FULL.replace('DISK=[IMAGE_ID="2"]\n', "")),
            deploy(27),
            configure(27, CHAIN + '"2"'),
            VM=27,
        ),
        op("vm-backup-increment-keep-last-2-n0", ("one.vm.backup", 27, 109, False), IMAGE=33),
        op("vm-backup-increment-keep-last-2-n1", ("one.vm.backup", 27, 109, False)),
        op("vm-backup-increment-keep-last-2-n2", ("one.vm.backup", 27, 109, False)),
        hidden(act("poweroff", 27)),
        op("vm-restore-in-place", ("one.vm.restore", 27, 33, -1, -1)),
    ),
    system_datastore="block",  # of a volatile disk that is a file no state can be taken while it is in use
)

ENDS = Story(
    "ends",
    (
        *base(),
        hidden(vm("a"), deploy(0), ("one.vm.detach", 0, 1), attach(0, IMAGE_2), VM=0),
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
    ),
)

FAILURES = Story(
    "failures",
    (
        *base(),
        hidden(vm("f1"), VM=5),
        op("vm-deploy-tm-ln-fails", deploy(5), trouble=refuses("map", "one-2"), own_words=True),
        op("vm-recover-retry-still-failing", recover(5, 2), trouble=refuses("map", "one-2"), own_words=True),
        op("vm-recover-retry", recover(5, 2)),
        op("vm-recover-delete-recreate", recover(5, 4)),
        op("vm-deploy-vmm-fails", deploy(5), trouble=fails("deploy", "deploy: could not create domain")),
        op("vm-recover-retry-boot-failure", recover(5, 2)),
        op(
            "vm-migrate-live-fails",
            migrate(5, 1, True),
            trouble=fails("migrate", "migrate: connection reset"),
        ),
        op(
            "vm-migrate-live-premigrate-fails",
            migrate(5, 1, True),
            trouble=refuses("map", "one-2"),
            own_words=True,
        ),
        op("vm-migrate-live-postmigrate-fails", migrate(5, 1, True), trouble=refuses("unmap", "one-2")),
        hidden(("monitor",)),
        op("vm-migrate-cold-mv-fails", migrate(5, 0), trouble=refuses("map", "one-1-5-0"), own_words=True),
        op("vm-recover-retry-migrate-failure", recover(5, 2)),
        op("vm-poweroff-fails", act("poweroff", 5), trouble=fails("shutdown", "shutdown: timeout")),
        op(
            "vm-terminate-epilog-fails",
            act("terminate-hard", 5),
            trouble=refuses("delete", "one-1-5-0"),
            own_words=True,
        ),
        op("vm-recover-retry-epilog", recover(5, 2)),
        hidden(vm("m1"), deploy(6)),
        op("vm-migrate-live-other-system-ds-same-host", migrate(6, 0, True, 104)),
        hidden(act("terminate-hard", 6), vm("f2"), deploy(7)),
        op("vm-recover-delete", recover(7, 3)),
        op("image-enable-from-error", ("one.image.enable", 2, True)),
        hidden(vm("f3"), deploy(8), trouble=refuses("copy", "one-1-8-0")),
        op("vm-recover-delete-from-prolog-failure", recover(8, 3), own_words=True),
        hidden(("one.image.enable", 2, True)),
        hidden(vm("f4"), deploy(9), trouble=refuses("copy", "one-1-9-0")),
        op("vm-recover-success-from-prolog-failure", recover(9, 1), own_words=True, misses_disks=True),
        op("vm-recover-delete-db", recover(9, 5)),
        hidden(vm("e5", FULL.replace('DISK=[IMAGE_ID="2"]\n', "")), VM=26),
        op(
            "vm-deploy-vmm-fails-delimited",
            deploy(26),
            trouble=fails(
                "deploy",
                "ERROR MESSAGE --8<------\ncannot start domain\nERROR MESSAGE ------>8--\n",
            ),
        ),
        hidden(recover(26, 3)),
    ),
)

MORE_FAILURES = Story(
    "more failures",
    (
        *base(with_spare=True),
        hidden(vm("mg", 'DISK=[IMAGE_ID="1"]\n'), deploy(30), VM=30),
        op(
            "vm-migrate-live-fails-and-failmigrate-fails",
            migrate(30, 1, True),
            trouble=both(fails("migrate", "migrate: no"), refuses("unmap", "one-1-30-0")),
        ),
        hidden(("monitor",)),
        hidden(attach(30, IMAGE_3)),
        op(
            "vm-disk-detach-vmm-fails", ("one.vm.detach", 30, 1), trouble=fails("detach_disk", "detach: busy")
        ),
        op("vm-terminate-hard-vmm-fails", act("terminate-hard", 30), trouble=fails("cancel", "cancel: no")),
        hidden(
            vm(
                "blk",
                'DISK=[IMAGE_ID="1"]\nDISK=[TYPE="fs",SIZE="16",FORMAT="raw"]\n'
                'DISK=[TYPE="swap",SIZE="16"]\nCONTEXT=[ROLE="db"]\n',
            ),
            VM=32,
        ),
        op("vm-deploy-system-ds-disk-type-block", deploy(32, 0, 112)),
        hidden(migrate(32, 1), act("terminate-hard", 32), act("terminate-hard", 30)),
    ),
)


def mixed(kind: str, number: int, system: int, saved: int) -> Story:
    """Play a VM on a system datastore of another transfer manager."""
    name = f"mixed-sys-{kind}-vm-"
    steps: list[Step] = [
        *base(with_spare=True),
        hidden(vm(f"y_sys_{kind}"), VM=number),
        op(f"{name}deploy", deploy(number, 0, system)),
        op(f"{name}migrate-live", migrate(number, 1, True)),
        op(f"{name}migrate-cold-save", migrate(number, 0)),
    ]
    if kind == "shared":
        refused = fails("migrate", "migrate: refused")
        steps += [
            op(f"{name}migrate-cold-other-system-ds", migrate(number, 1, datastore=106)),
            op(f"{name}migrate-live-other-system-ds-same-host", migrate(number, 1, True, 105)),
            op(f"{name}migrate-live-fails", migrate(number, 0, True), trouble=refused),
            hidden(("monitor",)),
        ]
    steps += [
        op(f"{name}disk-snapshot-create-running-live", ("one.vm.disksnapshotcreate", number, 0, "s0")),
        op(
            f"{name}disk-saveas-running",
            ("one.vm.disksaveas", number, 0, f"svysys_{kind}", "", -1),
            IMAGE=saved,
        ),
        # the snapshot stands in the way of V7000's code level 7
        hidden(("one.vm.disksnapshotdelete", number, 0, 0), attach(number, IMAGE_3)),
        op(f"{name}disk-resize-running", ("one.vm.diskresize", number, 0, "64")),
        op(f"{name}undeploy", act("undeploy", number)),
        op(f"{name}resume-from-undeployed", act("resume", number), deploy(number, 0, system)),
        op(f"{name}terminate", act("terminate-hard", number)),
    ]
    return Story(f"system datastore {kind}", tuple(steps))


STORIES = (
    IMAGES,
    LIFE,
    DISKS,
    SNAPSHOTS,
    BACKUPS,
    ENDS,
    FAILURES,
    MORE_FAILURES,
    mixed("shared", 14, 105, 28),
    mixed("ssh", 15, 107, 29),
)
