# SPDX-License-Identifier: Apache-2.0
"""The DISK vectors of a VM: what they take from images and datastores, and their targets."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterable

from lab.oned.core import Core
from lab.oned.errors import Code, RefusedError
from lab.oned.model import Datastore, Image, Snapshots, Vm
from lab.oned.states import ImageState
from lab.oned.templates import Template

__all__ = ["Disks"]

_VOLATILE_TYPES = ("fs", "swap")


class Disks:
    """Makes DISK vectors and takes and releases the images behind them."""

    def __init__(self, core: Core) -> None:
        self.core = core

    # -- making

    def add(self, vm: Vm, given: dict[str, str], is_attach: bool) -> tuple[dict[str, str], Image | None]:
        """Add a disk to a VM; the image, if there is one, is acquired."""
        kind = given.get("TYPE", "").lower()
        number = str(vm.next_disk)
        if "IMAGE" not in given and "IMAGE_ID" not in given:
            if kind not in _VOLATILE_TYPES:
                raise RefusedError(Code.INTERNAL, "DISK needs an IMAGE, an IMAGE_ID, or TYPE fs or swap.")
            disk = {"DEV_PREFIX": "sd", "FORMAT": "raw", "DRIVER": given.get("FORMAT", "raw"), **given}
            disk |= {"DISK_ID": number, "TYPE": kind}
            image = None
        else:
            image = self._image(given, vm)
            self.acquire(image, vm.id, is_attach)
            disk = self._image_disk(given, image, number)
            if image.snapshots.items:
                vm.snapshots.append(_taken_along(image, int(number)))
                disk["DISK_SNAPSHOT_TOTAL_SIZE"] = str(_snapshot_size(image.snapshots))
        vm.template.add("DISK", disk)
        return disk, image

    def _image(self, given: dict[str, str], vm: Vm) -> Image:
        with self.core.lock:
            if "IMAGE_ID" in given:
                number = int(given["IMAGE_ID"])
                if number not in self.core.images:
                    raise RefusedError(Code.ACTION, f"Image with ID: {number} does not exist")
                return self.core.images[number]
            for image in self.core.images.values():
                if image.name == given["IMAGE"] and image.owner.uid == vm.owner.uid:
                    return image
        name = given["IMAGE"]
        raise RefusedError(Code.ACTION, f"User {vm.owner.uid} does not own an image with name: {name} .")

    def _image_disk(self, given: dict[str, str], image: Image, number: str) -> dict[str, str]:
        datastore = self.core.get_datastore(image.datastore_id)
        attributes = datastore.template
        is_linked = image.is_persistent or image.is_cdrom
        disk = dict(given)
        disk |= {
            "CLONE": "NO" if is_linked else "YES",
            "CLUSTER_ID": "0",
            "DATASTORE": datastore.name,
            "DATASTORE_ID": str(datastore.id),
            "DISK_ID": number,
            "DISK_SNAPSHOT_TOTAL_SIZE": "0",
            "FORMAT": image.format,
            "DRIVER": given.get("DRIVER") or attributes.get("DRIVER") or image.format,
            "IMAGE": image.name,
            "IMAGE_ID": str(image.id),
            "IMAGE_STATE": str(int(image.state)),
            "ORIGINAL_SIZE": str(image.size),
            "READONLY": "YES" if image.is_cdrom else "NO",
            "SAVE": "YES" if image.is_persistent else "NO",
            "SOURCE": image.source,
            "TM_MAD": datastore.tm_mad,
            "TYPE": "CDROM" if image.is_cdrom else attributes.get("DISK_TYPE", "FILE"),
        }
        disk["SIZE"] = given.get("SIZE") or str(image.size)
        if image.is_persistent:
            disk["PERSISTENT"] = "YES"
        for name in ("ALLOW_ORPHANS", "CLONE_TARGET", "LN_TARGET", "PERSISTENT_SNAPSHOTS", "DISK_TYPE"):
            disk[name] = attributes.get(name)
        for name in ("DEV_PREFIX", "TARGET"):
            if name in image.template and not image.is_cdrom:
                disk.setdefault(name, image.template.get(name))
        return disk

    # -- images

    def acquire(self, image: Image, vm_id: int, is_attach: bool) -> None:
        """Let a VM use an image."""
        with self.core.lock:
            number, state = image.id, image.state
            if state in (ImageState.READY, ImageState.USED) or (state is ImageState.LOCKED and not is_attach):
                image.vms.append(vm_id)
                wanted = {
                    ImageState.LOCKED: (ImageState.LOCKED_USED, ImageState.LOCKED_USED_PERS),
                }.get(state, (ImageState.USED, ImageState.USED_PERS))[image.is_persistent]
            elif state in (ImageState.USED_PERS, ImageState.LOCKED_USED_PERS):
                text = f"Cannot acquire image {number}, it is persistent and already in use"
                raise RefusedError(Code.ACTION, text)
            elif state is ImageState.LOCKED:
                raise RefusedError(Code.ACTION, f"Cannot acquire image {number}, it is locked")
            else:
                text = f"Cannot acquire image {number}, it is in state: {state.event_name}"
                raise RefusedError(Code.ACTION, text)
        self.core.enter_image(image, wanted)

    def release(self, vm: Vm, disk: dict[str, str], failed: bool = False) -> None:
        """End a VM's use of an image; a persistent one takes the disk's size and snapshots along."""
        with self.core.lock:
            image = self.core.images.get(int(disk.get("IMAGE_ID", "-1")))
            if image is None or vm.id not in image.vms:
                return
            image.vms.remove(vm.id)
            is_last = not image.vms and not image.clones
            state = image.state
            if image.is_persistent and state is ImageState.USED_PERS:
                image.size = int(disk.get("SIZE", image.size))
                snapshots = vm.disk_snapshots(int(disk["DISK_ID"]))
                if snapshots is not None:
                    image.snapshots = Snapshots(
                        None, snapshots.allow_orphans, snapshots.next_id, snapshots.items
                    )
        if state is ImageState.USED_PERS and failed:
            self.core.enter_image(image, ImageState.ERROR)
        elif is_last and state in (ImageState.USED, ImageState.USED_PERS):
            self.core.enter_image(image, ImageState.READY)
        elif is_last and state in (ImageState.LOCKED_USED, ImageState.LOCKED_USED_PERS):
            self.core.enter_image(image, ImageState.LOCKED)

    def release_all(self, vm: Vm, failed: bool = False) -> None:
        """End a VM's use of all its images, in the order of its disks."""
        for disk in vm.disks:
            self.release(vm, disk, failed)

    # -- targets

    def set_targets(self, vm: Vm) -> None:
        """Give the next free target to what has none: system images, CDROMs, the context disk, all others."""
        context = vm.template.vector("CONTEXT")
        waiting = [disk for disk in vm.disks if "TARGET" not in disk]
        ranks = {id(disk): self._rank(disk) for disk in waiting}
        if context is not None and "TARGET" not in context:
            waiting.append(context)
            ranks[id(context)] = 2
        for disk in sorted(waiting, key=lambda each: ranks[id(each)]):
            disk["TARGET"] = self._free_target(vm, disk.get("DEV_PREFIX", "sd"))

    def _rank(self, disk: dict[str, str]) -> int:
        if disk.get("TYPE") == "CDROM":
            return 1
        image = self.core.images.get(int(disk.get("IMAGE_ID", "-1")))
        return 0 if image is not None and image.type == 0 else 3

    def _free_target(self, vm: Vm, prefix: str) -> str:
        context = vm.template.vector("CONTEXT") or {}
        taken = {disk.get("TARGET") for disk in vm.disks} | {context.get("TARGET")}
        return next(name for name in _names(prefix) if name not in taken)

    # -- system datastores

    def place(self, vm: Vm, system: Datastore) -> None:
        """Let the disks take what they take from the system datastore that the VM goes to."""
        vm.template.set("TM_MAD_SYSTEM", system.tm_mad)
        for disk in vm.disks:
            self.place_disk(disk, system, is_attach=False)

    def place_disk(self, disk: dict[str, str], system: Datastore, is_attach: bool) -> None:
        """Let one disk take what it takes from the system datastore, or refuse the request."""
        if "IMAGE_ID" not in disk:
            disk |= _volatile_attributes(system)
            if is_attach:
                disk["TM_MAD_SYSTEM"] = system.tm_mad
            return
        datastore = self.core.get_datastore(int(disk["DATASTORE_ID"]))
        if datastore.tm_mad == system.tm_mad:
            disk.pop("TM_MAD_SYSTEM", None)
            if is_attach:
                disk["TM_MAD_SYSTEM"] = system.tm_mad
            return
        self.check_mode(datastore, system)
        disk["TM_MAD_SYSTEM"] = system.tm_mad
        suffix = system.tm_mad.upper()
        for name in ("LN_TARGET", "CLONE_TARGET", "DISK_TYPE"):
            value = datastore.template.get(f"{name}_{suffix}")
            if value:
                disk[name] = value
        if disk.get("TYPE") != "CDROM":
            disk["TYPE"] = disk.get("DISK_TYPE", disk["TYPE"])

    def check_modes(self, vm: Vm, system: Datastore) -> None:
        """Refuse a system datastore that the image datastores of a VM cannot work with."""
        for disk in vm.disks:
            if "IMAGE_ID" in disk:
                self.check_mode(self.core.get_datastore(int(disk["DATASTORE_ID"])), system)

    def check_mode(self, datastore: Datastore, system: Datastore) -> None:
        """Refuse a system datastore that an image datastore cannot work with."""
        modes = [mode.strip() for mode in datastore.template.get("TM_MAD_SYSTEM").split(",")]
        if system.tm_mad != datastore.tm_mad and system.tm_mad not in modes:
            text = f"Image Datastore does not support transfer mode: {system.tm_mad}"
            raise RefusedError(Code.ACTION, text)


def _volatile_attributes(system: Datastore) -> dict[str, str]:
    template: Template = system.template
    return {
        "ALLOW_ORPHANS": template.get("ALLOW_ORPHANS", "NO"),
        "CLUSTER_ID": "0",
        "DATASTORE": system.name,
        "DATASTORE_ID": str(system.id),
        "DISK_TYPE": template.get("DISK_TYPE", "FILE"),
        "PERSISTENT_SNAPSHOTS": template.get("PERSISTENT_SNAPSHOTS", "YES"),
        "TM_MAD": system.tm_mad,
    }


def _taken_along(image: Image, disk_id: int) -> Snapshots:
    kept = image.snapshots
    return Snapshots(disk_id, kept.allow_orphans, kept.next_id, list(kept.items))


def _snapshot_size(snapshots: Snapshots) -> int:
    return sum(snapshot.size for snapshot in snapshots.items)


def _names(prefix: str) -> Iterable[str]:
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield prefix + "".join(letters)
