# SPDX-License-Identifier: Apache-2.0
"""VMs: requests about backups of their disks."""

from __future__ import annotations

import time

from lab.oned import documents, vm_documents
from lab.oned.core import Core
from lab.oned.datastores import Datastores
from lab.oned.drivers import Answer
from lab.oned.engine import SCRIPT_ERROR, Engine
from lab.oned.errors import Code, DriverError, RefusedError
from lab.oned.image_drivers import ImageDrivers
from lab.oned.model import IMAGE_TYPES, Datastore, Image, Increment, User, Vm
from lab.oned.scripts import Line, is_volatile
from lab.oned.states import Action, ImageState, LcmState, VmState
from lab.oned.templates import Template, parse
from lab.oned.users import require
from lab.oned.vms import wrong_state

__all__ = ["BackupRequests"]

_STATES = {VmState.ACTIVE: LcmState.BACKUP, VmState.POWEROFF: LcmState.BACKUP_POWEROFF}
_DEFAULTS = {
    "BACKUP_VOLATILE": "NO",
    "FS_FREEZE": "NONE",
    "INCREMENTAL_BACKUP_ID": "-1",
    "INCREMENT_MODE": "CBT",
    "INTERACTIVE": "NO",
    "KEEP_LAST": "0",
    "LAST_INCREMENT_ID": "-1",
    "MODE": "FULL",
}


class BackupRequests:
    """Requests about backups."""

    def __init__(self, core: Core, datastores: Datastores, engine: Engine, images: ImageDrivers) -> None:
        self.core = core
        self.datastores = datastores
        self.engine = engine
        self.images = images

    def configure(self, user: User, vm_id: int, text: str, merge: int = 0) -> int:
        """Change the configuration of a VM: BACKUP_CONFIG, OS and CONTEXT; replaced ones are dropped."""
        with self.core.lock:
            vm = self.core.get_vm(vm_id)
            require(user, vm.owner, "MANAGE", "VM", vm_id)
            given = parse(text)
            config = given.vector("BACKUP_CONFIG")
            if config is not None:
                vm.backups.config = {**_DEFAULTS, **config}
            system = given.vector("OS")
            if system is not None:
                vm.template.set("OS", system)
            elif not merge:
                vm.template.remove("OS")
        return vm_id

    def backup(self, user: User, vm_id: int, datastore_id: int, is_reset: bool = False) -> int:
        """Back up the disks of a VM to a backup datastore."""
        core = self.core
        with core.lock:
            vm = core.get_vm(vm_id)
            require(user, vm.owner, "MANAGE", "VM", vm_id)
            datastore = core.get_datastore(datastore_id)
            is_busy = vm.state is VmState.ACTIVE and vm.lcm_state is not LcmState.RUNNING
            if vm.state not in _STATES or is_busy:
                raise wrong_state("backup", vm)
            if datastore.type != 3:
                raise RefusedError(Code.ACTION, "Backups can only be created in a BACKUP_DS.")
            before = vm.state
            vm.backups.config = {**_DEFAULTS, **vm.backups.config, "LAST_DATASTORE_ID": str(datastore_id)}
            self.engine.begin(vm, Action.BACKUP, user)
            if is_reset:
                vm.backups.config |= {"INCREMENTAL_BACKUP_ID": "-1", "LAST_INCREMENT_ID": "-1"}
            core.enter_lcm(vm, _STATES[before])
        core.spawn(lambda: self._backup(vm, datastore, before), f"backup-{vm_id}")
        return vm_id

    def _backup(self, vm: Vm, datastore: Datastore, before: VmState) -> None:
        core = self.core
        suffix = "_live" if before is VmState.ACTIVE else ""
        disks = _backed_up(vm)
        flatten = None
        try:
            answer = self._run(vm, datastore, suffix, disks)
        except DriverError as failure:
            core.set_vm_error(vm, "BACKUP", failure.text)
        else:
            flatten = self._keep(vm, datastore, answer, disks)
        if before is VmState.ACTIVE:
            core.enter_lcm(vm, LcmState.RUNNING)
        else:
            core.enter_vm(vm, before)
        if flatten is not None:
            self._flatten(flatten, int(vm.backups.config["KEEP_LAST"]))

    def _run(self, vm: Vm, datastore: Datastore, suffix: str, disks: list[str]) -> Answer:
        """Let the transfer manager prepare, the backup driver copy, and the transfer manager end."""
        core, here = self.core, vm.here
        bridges = datastore.template.get("BRIDGE_LIST").split()
        argv = (
            f"{here.host}:{core.writer.directory(here, vm.id)}",
            ":".join(disks),
            vm.deploy_id,
            bridges[0] if bridges else "-",
            str(vm.id),
            str(here.datastore_id),
        )
        with core.lock:
            document = vm_documents.vm_xml(vm)
            shown = self.datastores.document(datastore, is_plain=True)
        wrapped = documents.datastore_action("\n  ", shown, "\n  ", document, "\n")
        with core.vmm_slot():
            try:
                prepared = core.drivers.run("tm", here.tm_mad, f"prebackup{suffix}", argv, document, "raw")
                if prepared.rc:
                    raise DriverError(core.error_text(prepared.stderr))
                answer = core.drivers.run("datastore", datastore.ds_mad, "backup", argv, wrapped, "raw")
                if answer.rc:
                    raise DriverError(core.error_text(answer.stderr))
                return answer
            finally:
                core.drivers.run("tm", here.tm_mad, f"postbackup{suffix}", argv, document, "raw")

    def _keep(self, vm: Vm, datastore: Datastore, answer: Answer, disks: list[str]) -> Image | None:
        """Keep what was backed up as an image, or as an increment of one; give it if it has too many."""
        core = self.core
        source, size, kind = (*answer.stdout.split(), "-", "0", "raw")[:3]
        config = vm.backups.config
        is_chain = config.get("MODE") == "INCREMENT"
        with core.lock:
            image = core.images.get(int(config.get("INCREMENTAL_BACKUP_ID", "-1"))) if is_chain else None
            if image is not None:
                parent = image.increments[-1].id
                image.increments.append(
                    Increment(parent + 1, parent, "INCREMENT", core.now(), int(size), source)
                )
                image.size += int(size)
                config["LAST_INCREMENT_ID"] = str(parent + 1)
                keep_last = int(config.get("KEEP_LAST", "0"))
                return image if keep_last and len(image.increments) > keep_last else None
            image = self._image(vm, datastore, source, int(size), kind, disks)
            if is_chain:
                image.increments.append(Increment(0, -1, "FULL", core.now(), int(size), source))
                config["INCREMENTAL_BACKUP_ID"] = str(image.id)
                config["LAST_INCREMENT_ID"] = "0"
            vm.backups.ids.append(image.id)
        core.announce_image(image, ImageState.READY)
        return None

    def _image(
        self, vm: Vm, datastore: Datastore, source: str, size: int, kind: str, disks: list[str]
    ) -> Image:
        core = self.core
        moment = time.strftime("%d-%b %H.%M.%S", time.localtime(core.config.clock()))
        image = Image(
            id=core.next_id("IMAGE"),
            name=f"{vm.id} {moment}",
            owner=vm.owner,
            type=IMAGE_TYPES.index("BACKUP"),
            disk_type=datastore.disk_type,
            datastore_id=datastore.id,
            datastore=datastore.name,
            template=Template(),
            regtime=core.now(),
            is_persistent=True,
            source=source,
            format=kind,
            size=size,
            vms=[vm.id],
            backup_disks=[int(disk) for disk in disks],
        )
        core.images[image.id] = image
        datastore.images.append(image.id)
        return image

    def _flatten(self, image: Image, keep_last: int) -> None:
        core = self.core
        answer = self.images.flatten_increments(image, keep_last)
        if not answer.rc:
            size, *chain = answer.stdout.split()
            with core.lock:
                kept = image.increments[-keep_last:]
                sources = dict(link.partition(":")[::2] for link in ",".join(chain).split(",") if ":" in link)
                first = kept[0]
                source = sources.get(str(first.id), first.source)
                kept[0] = Increment(first.id, -1, "FULL", first.date, int(size), source)
                image.increments = kept
                image.size = sum(one.size for one in kept)
                image.source = kept[0].source
        core.enter_image(image, ImageState.READY)

    def restore(
        self, user: User, vm_id: int, image_id: int, increment_id: int = -1, disk_id: int = -1
    ) -> int:
        """Restore the disks of a resting VM from a backup."""
        core = self.core
        with core.lock:
            vm = core.get_vm(vm_id)
            require(user, vm.owner, "MANAGE", "VM", vm_id)
            if vm.state is not VmState.POWEROFF:
                raise wrong_state("restore", vm)
            core.get_image(image_id)
            here = vm.here
            place = f"{here.host}:{core.writer.directory(here, vm.id)}"
            argv = (place, str(vm_id), str(image_id), str(increment_id), str(disk_id))
            line = Line(here.tm_mad, "restore", argv)
            core.enter_lcm(vm, LcmState.RESTORE)

        def work() -> None:
            try:
                self.engine.run_script(vm, [line])
            except DriverError as failure:
                core.set_vm_error(vm, SCRIPT_ERROR, failure.text)
            else:
                _forget(vm)
            core.enter_vm(vm, VmState.POWEROFF)

        core.spawn(work, f"restore-{vm_id}")
        return vm_id


def _forget(vm: Vm) -> None:
    """Drop what a restore ends (source of 7.4.0, trigger_disk_restore_success): the chain, and snapshots."""
    vm.backups.config |= {"INCREMENTAL_BACKUP_ID": "-1", "LAST_INCREMENT_ID": "-1"}
    kept = {int(disk["DISK_ID"]) for disk in vm.disks if disk.get("SAVE") == "YES"}
    vm.snapshots = [each for each in vm.snapshots if each.disk_id in kept]


def _backed_up(vm: Vm) -> list[str]:
    with_volatile = vm.backups.config.get("BACKUP_VOLATILE") == "YES"
    return [
        disk["DISK_ID"]
        for disk in vm.disks
        if disk.get("TYPE") not in ("CDROM", "swap") and (with_volatile or not is_volatile(disk))
    ]
