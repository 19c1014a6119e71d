# SPDX-License-Identifier: Apache-2.0
"""VMs: requests about their disks."""

from __future__ import annotations

from lab.oned.core import Core
from lab.oned.disk_requests import SCRIPT_ERROR, DiskRequests
from lab.oned.disks import Disks
from lab.oned.engine import Engine
from lab.oned.errors import Code, DriverError, RefusedError
from lab.oned.image_drivers import ImageDrivers
from lab.oned.model import IMAGE_TYPES, Image, User, Vm
from lab.oned.scripts import is_volatile
from lab.oned.states import Action, ImageState, LcmState, VmState
from lab.oned.templates import Template, parse

__all__ = ["Hotplug"]

_ATTACH = {VmState.ACTIVE: LcmState.HOTPLUG, VmState.POWEROFF: LcmState.HOTPLUG_PROLOG_POWEROFF}
_DETACH = {VmState.ACTIVE: LcmState.HOTPLUG, VmState.POWEROFF: LcmState.HOTPLUG_EPILOG_POWEROFF}
_SAVE = {
    VmState.ACTIVE: LcmState.HOTPLUG_SAVEAS,
    VmState.POWEROFF: LcmState.HOTPLUG_SAVEAS_POWEROFF,
    VmState.SUSPENDED: LcmState.HOTPLUG_SAVEAS_SUSPENDED,
}
_RESIZE = {VmState.ACTIVE: LcmState.DISK_RESIZE, VmState.POWEROFF: LcmState.DISK_RESIZE_POWEROFF}


class Hotplug(DiskRequests):
    """Requests about the disks of VMs that run or rest."""

    def __init__(self, core: Core, disks: Disks, engine: Engine, images: ImageDrivers) -> None:
        super().__init__(core, engine)
        self.disks = disks
        self.images = images

    # -- attach and detach

    def attach(self, user: User, vm_id: int, text: str) -> int:
        """Give a VM one more disk."""
        core, engine = self.core, self.engine
        with core.lock:
            vm, state = self._begin(user, vm_id, "attach disk to", _ATTACH)
            given = parse(text).vector("DISK")
            if given is None:
                raise RefusedError(Code.INTERNAL, "No DISK in template")
            system = core.get_datastore(vm.here.datastore_id)
            disk, _ = self.disks.add(vm, given, is_attach=True)
            try:
                self.disks.place_disk(disk, system, is_attach=True)
            except RefusedError:
                self._remove(vm, disk)
                raise
            self.disks.set_targets(vm)
            disk["ATTACH"] = "YES"
            engine.begin(vm, Action.DISK_ATTACH, user)
            is_running = vm.state is VmState.ACTIVE

            def work() -> None:
                if is_running:
                    engine.vmm.attach_disk(vm, disk)
                else:
                    engine.run_script(vm, [core.writer.create(vm, disk)])

            def then(is_done: bool) -> None:
                with core.lock:
                    disk.pop("ATTACH", None)
                if not is_done:
                    self._remove(vm, disk)

            self._do(vm, state, "ATTACHDISK" if is_running else SCRIPT_ERROR, work, then)
        return vm_id

    def _remove(self, vm: Vm, disk: dict[str, str]) -> None:
        """Take a disk out of a VM and release its image."""
        with self.core.lock:
            vm.template.values["DISK"] = [d for d in vm.disks if d is not disk]
        self.disks.release(vm, disk)
        with self.core.lock:
            vm.snapshots = [s for s in vm.snapshots if str(s.disk_id) != disk["DISK_ID"]]

    def detach(self, user: User, vm_id: int, disk_id: int) -> int:
        """Take a disk from a VM."""
        core, engine = self.core, self.engine
        with core.lock:
            vm, state = self._begin(user, vm_id, "detach disk from", _DETACH)
            disk = self._disk(vm, disk_id)
            disk["ATTACH"] = "YES"
            engine.begin(vm, Action.DISK_DETACH, user)
            is_running = vm.state is VmState.ACTIVE

            def work() -> None:
                if is_running:
                    engine.vmm.detach_disk(vm, disk)
                else:
                    engine.run_script(vm, [core.writer.give_back(vm, disk)])

            def then(is_done: bool) -> None:
                with core.lock:
                    disk.pop("ATTACH", None)
                if is_done:
                    self._remove(vm, disk)

            self._do(vm, state, "DETACHDISK" if is_running else SCRIPT_ERROR, work, then)
        return vm_id

    # -- save as an image

    def save_as(
        self, user: User, vm_id: int, disk_id: int, name: str, kind: str = "", snapshot_id: int = -1
    ) -> int:
        """Copy a disk to a new image; gives the image's id."""
        core = self.core
        with core.lock:
            vm, state = self._begin(user, vm_id, "save disk of", _SAVE)
            disk = self._disk(vm, disk_id)
            if is_volatile(disk):
                raise RefusedError(Code.ACTION, f"Cannot save volatile disk {disk_id} of VM {vm_id}")
            before = vm.state
            core.enter_lcm(vm, state)
            image = self._new_image(user, vm, disk, name, kind)
            datastore = core.get_datastore(image.datastore_id)
        self.images.create(
            image,
            datastore,
            has_path=False,
            then=lambda is_made: self._save(vm, disk, image, snapshot_id, before, is_made),
        )
        return image.id

    def _new_image(self, user: User, vm: Vm, disk: dict[str, str], name: str, kind: str) -> Image:
        core = self.core
        datastore = core.get_datastore(int(disk["DATASTORE_ID"]))
        template = Template()
        for key, value in (
            ("DEV_PREFIX", disk.get("DEV_PREFIX", "sd")),
            ("SAVED_DISK_ID", disk["DISK_ID"]),
            ("SAVED_IMAGE_ID", disk["IMAGE_ID"]),
            ("SAVED_VM_ID", str(vm.id)),
            ("SAVE_AS_HOT", "YES"),
        ):
            template.set(key, value)
        return Image(
            id=core.next_id("IMAGE"),
            name=name,
            owner=core.owner(user),
            type=IMAGE_TYPES.index(kind.upper() or "OS"),
            disk_type=datastore.disk_type,
            datastore_id=datastore.id,
            datastore=datastore.name,
            template=template,
            regtime=core.now(),
            format="save_as",
            size=int(disk["SIZE"]),
        )

    def _save(
        self, vm: Vm, disk: dict[str, str], image: Image, snapshot_id: int, before: VmState, is_made: bool
    ) -> None:
        core = self.core
        if not is_made:
            self._go_back(vm, before)
            return
        with core.lock:
            line = core.writer.on_disk(vm, disk, "cpds", image.source, str(snapshot_id))
        end = ImageState.READY
        try:
            self.engine.run_script(vm, [line])
        except DriverError as failure:
            core.set_vm_error(vm, SCRIPT_ERROR, failure.text)
            end = ImageState.ERROR
        with core.lock:
            image.template.remove("SAVE_AS_HOT")
            image.format = disk.get("FORMAT", "raw")
        self._go_back(vm, before)
        core.enter_image(image, end)

    # -- size

    def resize(self, user: User, vm_id: int, disk_id: int, size: str) -> int:
        """Make a disk bigger; ``size`` is MiB."""
        core, engine = self.core, self.engine
        with core.lock:
            vm, state = self._begin(user, vm_id, "resize disk of", _RESIZE)
            disk = self._disk(vm, disk_id)
            old, new = int(disk["SIZE"]), int(size)
            if new <= old:
                raise RefusedError(Code.ACTION, "New disk size has to be greater than current one")
            is_running = vm.state is VmState.ACTIVE
            engine.begin(vm, Action.DISK_RESIZE, user)
            disk |= {"RESIZE": "YES", "SIZE": str(new), "SIZE_PREV": str(old)}
            line = core.writer.on_disk(vm, disk, "resize", str(new))

            def work() -> None:
                if is_running:
                    engine.vmm.resize_disk(vm, disk, new)
                else:
                    engine.run_script(vm, [line])

            def then(is_done: bool) -> None:
                with core.lock:
                    for name in ("RESIZE", "SIZE_PREV"):
                        disk.pop(name, None)
                    if not is_done:
                        disk["SIZE"] = str(old)

            self._do(vm, state, "RESIZEDISK" if is_running else SCRIPT_ERROR, work, then)
        return vm_id
