# SPDX-License-Identifier: Apache-2.0
"""A user of the cloud: random requests about images and VMs of their own, and what they have to hold."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial

from lab.killing.world import StuckError, World
from lab.oned.model import Vm
from lab.oned.states import ImageState, LcmState, VmState
from lab.soak.faults import Faults

__all__ = ["User"]

_SECONDS = 300.0
_MOST_VMS, _MOST_IMAGES = 3, 3
_PATHS = 2
_BUSY_IMAGES = (ImageState.LOCKED, ImageState.DELETE)


class User:
    """Owns images and VMs; ``done`` counts the requests by name."""

    def __init__(self, world: World, faults: Faults, seed: int) -> None:
        self.world = world
        self.faults = faults
        self.done: Counter[str] = Counter()
        self.vms: list[int] = []
        self.images: list[int] = []
        self.persistent: set[int] = set()
        self._random = random.Random(seed)
        self._seen: dict[int, tuple[str, int]] = {}
        self._leaving: dict[int, int] = {}
        self._dropping: dict[int, tuple[int, int]] = {}

    def act(self) -> None:
        """Do one thing that can be done now, and see it through."""
        choices: list[tuple[str, Callable[[], None]]] = []
        if len(self.images) < _MOST_IMAGES:
            choices += [("create", self._create), ("import", self._import), ("clone image", self._clone)]
        if len(self.vms) < _MOST_VMS:
            choices += [("instantiate", self._instantiate)] * 4
        if self._free_images():
            choices.append(("delete image", self._delete_image))
        for vm in self._at_rest():
            choices += [(name, partial(act, vm)) for name, act in self._possible(vm)]
        name, work = self._random.choice(choices)
        self.done[name] += 1
        try:
            work()
        except StuckError:
            self.done["refused by OpenNebula"] += 1
        self.look_after(is_patient=False)

    # requests

    def _ask(self, method: str, *parameters: object) -> int:
        is_done, answer = self.world.ask(method, *parameters)
        if not is_done:
            raise StuckError(f"{method}: {answer}")
        return int(answer)

    def _allocate(self, text: str, *, is_persistent: bool) -> int:
        flag = "YES" if is_persistent else "NO"
        template = f'NAME="{self._name()}"\n{text}\nPERSISTENT="{flag}"'
        image = self._ask("image.allocate", template, self.world.san)
        self.images.append(image)
        if is_persistent:
            self.persistent.add(image)
        self._wait_image(image)
        return image

    def _name(self) -> str:
        return f"{self._random.getrandbits(64):x}"

    def _create(self) -> None:
        image = self._allocate('TYPE="DATABLOCK"\nSIZE="1"', is_persistent=self._random.random() < 0.7)
        if self._image_state(image) is ImageState.READY:
            content = self._pattern()
            self.world.array_of(self.world.san).write(f"one-{image}", content)
            self.world.contents[f"one-{image}"] = content

    def _import(self) -> None:
        content = self._pattern()
        path = self.world.images_folder / f"{self._name()}.raw"
        path.write_bytes(content)
        image = self._allocate(f'TYPE="OS"\nPATH="{path}"', is_persistent=self._random.random() < 0.5)
        self.world.contents[f"one-{image}"] = content

    def _clone(self) -> None:
        image = self._ask("image.clone", self.world.base, self._name(), -1)
        self.images.append(image)
        self.world.contents[f"one-{image}"] = self.world.contents[f"one-{self.world.base}"]
        self._wait_image(image)

    def _delete_image(self) -> None:
        image = self._random.choice(self._free_images())
        self._ask("image.delete", image)
        self._wait_image(image)

    def _pattern(self) -> bytes:
        return self._random.randbytes(4096) * 256

    def _free_images(self) -> list[int]:
        found = self.world.oned.core.images
        return [one for one in self.images if one in found and not found[one].vms and not found[one].clones]

    def _usable_images(self) -> list[int]:
        return [one for one in self._free_images() if self._image_state(one) is ImageState.READY]

    def _disk(self) -> str:
        image = self._random.choice([self.world.base, *self._usable_images()])
        return f'IMAGE_ID="{image}"'

    def _instantiate(self) -> None:
        disks = {self._disk() for _ in range(self._random.choice((1, 1, 2)))}
        text = f'NAME="{self._name()}"\nCPU="0.1"\nMEMORY="64"\n' + "\n".join(f"DISK=[{d}]" for d in disks)
        vm = self._ask("vm.allocate", text, True)
        self.vms.append(vm)
        for disk in self._vm(vm).disks:
            self._note_clone(vm, disk)
        self._deploy(vm)

    def _note_clone(self, vm: int, disk: dict[str, str]) -> None:
        content = self.world.contents.get(f"one-{disk['IMAGE_ID']}")
        if disk["CLONE"] == "YES" and content is not None:
            self.world.contents[f"one-{disk['IMAGE_ID']}-{vm}-{disk['DISK_ID']}"] = content

    def _deploy(self, vm: int) -> None:
        self._ask("vm.deploy", vm, self._random.randrange(2), False, self.world.files, "")
        self._wait(vm)

    # what can be done with a VM

    def _possible(self, number: int) -> list[tuple[str, Callable[[int], None]]]:
        vm = self._vm(number)
        state = vm.shown_state
        found: list[tuple[str, Callable[[int], None]]] = []
        if state == "RUNNING":
            found += [
                ("write", self._write), ("write", self._write), ("poweroff", self._poweroff),
                ("undeploy", self._undeploy), ("migrate", self._migrate),
                ("live migrate", self._migrate_live),
            ]  # fmt: skip
        if state in ("RUNNING", "POWEROFF"):
            found += [
                ("attach", self._attach), ("snapshot", self._snapshot), ("resize", self._resize),
                ("save as", self._save), ("terminate", self._terminate),
            ]  # fmt: skip
            if len(vm.disks) > 1:
                found.append(("detach", self._detach))
            if any(snapshots.items for snapshots in vm.snapshots):
                found.append(("drop snapshot", self._drop_snapshot))
        if state == "POWEROFF":
            found.append(("resume", lambda vm: self._act(vm, "resume")))
            if any(snapshots.items for snapshots in vm.snapshots):
                found += [("revert", self._revert)] * 3
        if state == "UNDEPLOYED":
            found += [("deploy undeployed", self._redeploy)] * 3
        if state in ("HOLD", "PENDING"):
            found += [("deploy", self._deploy)] * 3
        return found

    def _act(self, vm: int, action: str) -> None:
        self._ask("vm.action", action, vm)
        self._wait(vm)

    def _poweroff(self, vm: int) -> None:
        self._act(vm, "poweroff-hard")

    def _undeploy(self, vm: int) -> None:
        self._act(vm, "undeploy-hard")

    def _terminate(self, vm: int) -> None:
        self._act(vm, "terminate-hard")

    def _redeploy(self, vm: int) -> None:
        self._act(vm, "resume")
        self._deploy(vm)

    def _migrate(self, vm: int) -> None:
        self._ask("vm.migrate", vm, self._random.randrange(2), False, False, -1, self._random.choice((0, 2)))
        self._wait(vm)

    def _migrate_live(self, vm: int) -> None:
        other = 1 - self._vm(vm).here.host_id
        self._ask("vm.migrate", vm, other, True, False, -1, 0)
        self._wait(vm)

    def _write(self, vm: int) -> None:
        disk = self._random.choice(self._vm(vm).disks)
        name = self.world.volume_of(self._vm(vm), disk)
        try:
            self.world.write(vm, int(disk["DISK_ID"]), self._pattern())
        except OSError:  # no path to it at the moment: what has arrived is not known
            self.world.contents.pop(str(name), None)

    def _attach(self, vm: int) -> None:
        before = self._vm(vm).next_disk
        vector = self._disk()
        image = vector.split('"')[1]
        if int(image) not in self.persistent:
            self._note_clone(vm, {"IMAGE_ID": image, "CLONE": "YES", "DISK_ID": str(before)})
        self._ask("vm.attach", vm, f"DISK=[{vector}]")
        self._wait(vm)

    def _detach(self, vm: int) -> None:
        self._leaving[vm] = int(self._random.choice(self._vm(vm).disks)["DISK_ID"])
        self._detach_again(vm)

    def _detach_again(self, vm: int) -> None:
        """Detach until it is done: a disk may be gone while OpenNebula still has it."""
        disk = self._leaving.get(vm)
        for _ in range(5):
            if disk is None or self._vm(vm).disk(disk) is None:
                self._leaving.pop(vm, None)
                return
            self.world.ask("vm.detach", vm, disk)
            self._wait(vm)

    def _snapshot(self, vm: int) -> None:
        disk = self._random.choice(self._vm(vm).disks)
        name = self.world.volume_of(self._vm(vm), disk)
        number = self._ask("vm.disksnapshotcreate", vm, int(disk["DISK_ID"]), "one")
        content = self.world.contents.get(str(name))
        if content is not None:
            self.world.contents[f"{name}-s{number}"] = content
        self._wait(vm)

    def _chosen_snapshot(self, vm: int) -> tuple[int, int]:
        snapshots = self._random.choice([each for each in self._vm(vm).snapshots if each.items])
        return int(snapshots.disk_id or 0), self._random.choice(snapshots.items).id

    def _drop_snapshot(self, vm: int) -> None:
        self._dropping[vm] = self._chosen_snapshot(vm)
        self._drop_again(vm)

    def _drop_again(self, vm: int) -> None:
        """Delete a snapshot until it is done: it may be gone while OpenNebula still has it."""
        for _ in range(5):
            disk, snapshot = self._dropping.get(vm, (-1, -1))
            kept = [each.items for each in self._vm(vm).snapshots if int(each.disk_id or 0) == disk]
            if not any(item.id == snapshot for items in kept for item in items):
                self._dropping.pop(vm, None)
                return
            self.world.ask("vm.disksnapshotdelete", vm, disk, snapshot)
            self._wait(vm)

    def _revert(self, vm: int) -> None:
        disk, snapshot = self._chosen_snapshot(vm)
        vector = self._vm(vm).disk(disk)
        assert vector is not None
        name = self.world.volume_of(self._vm(vm), vector)
        self.world.contents.pop(str(name), None)
        for _ in range(5):  # until it is done: in between the disk has parts of both
            calls = len(self.world.oned.calls)
            self._ask("vm.disksnapshotrevert", vm, disk, snapshot)
            self._wait(vm)
            made = [call for call in self.world.oned.calls[calls:] if call.action == "snap_revert"]
            if any(call.rc == 0 and str(vm) in call.argv for call in made):
                content = self.world.contents.get(f"{name}-s{snapshot}")
                if content is not None:
                    self.world.contents[str(name)] = content
                return

    def _resize(self, vm: int) -> None:
        disk = self._random.choice(self._vm(vm).disks)
        self._ask("vm.diskresize", vm, int(disk["DISK_ID"]), str(int(disk["SIZE"]) + self.world.step))
        self._wait(vm)

    def _save(self, vm: int) -> None:
        disk = self._random.choice(self._vm(vm).disks)
        name = self.world.volume_of(self._vm(vm), disk)
        image = self._ask("vm.disksaveas", vm, int(disk["DISK_ID"]), self._name(), "", -1)
        self.images.append(image)
        content = self.world.contents.get(str(name))
        if content is not None:
            self.world.contents[f"one-{image}"] = content
        self._wait(vm)
        self._wait_image(image)

    # looking after what has failed

    def look_after(self, *, is_patient: bool) -> None:
        """Recover what failed, delete what is in ERROR; ``is_patient``: until all is well."""
        for vm in list(self.vms):
            self._recover(vm, 4 if is_patient else 1)
        for image in list(self.images):
            if image not in self.world.oned.core.images:
                self.images.remove(image)
            elif self._image_state(image) is ImageState.ERROR and image in self._free_images():
                self.world.ask("image.delete", image)
                self._wait_image(image)

    def _recover(self, vm: int, times: int) -> None:
        for _ in range(times):
            if not self._vm(vm).shown_state.endswith("_FAILURE"):
                break
            self.done["recover --retry"] += 1
            self.world.ask("vm.recover", vm, 2)
            self._wait(vm)
        found = self._vm(vm)
        if times > 1 and found.shown_state in ("RUNNING", "POWEROFF"):
            self._detach_again(vm)
            self._drop_again(vm)
        if found.shown_state.endswith("_FAILURE") and (times > 1 or self._random.random() < 0.5):
            self.done["recover --delete"] += 1
            self.world.ask("vm.recover", vm, 3)
            self._wait(vm)
        if found.state is VmState.DONE:
            self.vms.remove(vm)
            self._seen.pop(vm, None)
            for image in self.persistent & set(self.images):  # used by a VM that was given up
                if image in self.world.oned.core.images and self._image_state(image) is ImageState.ERROR:
                    self.world.ask("image.enable", image, True)
        elif found.shown_state == "RUNNING":
            self._reattach(found)
        if times > 1 and self._lacks_paths(found):
            self._begin_anew(found)

    def _reattach(self, vm: Vm) -> None:
        """Begin anew on another host, or the same, when the host of a VM has lost its power."""
        now = (vm.here.host, self.faults.crashes[vm.here.host])
        seen = self._seen.setdefault(vm.id, now)
        if seen[0] != now[0]:
            self._seen[vm.id] = now
        elif seen != now:
            self._begin_anew(vm)

    def _lacks_paths(self, vm: Vm) -> bool:
        """Tell whether a disk is not there by all paths, as after a crash of the host or without a portal."""
        if vm.shown_state not in ("RUNNING", "POWEROFF"):
            return False
        there = Counter(disk.wwid for disk in self.world.scene.hosts[vm.here.host].devices())
        for disk in vm.disks:
            name = self.world.volume_of(vm, disk)
            wwid = self.world.array_of(self.world.san).volumes().get(str(name))
            if there[str(wwid)] != _PATHS or self.world.wrong_disk(vm, disk, vm.here.host):
                return True
        return False

    def _begin_anew(self, vm: Vm) -> None:
        """Undeploy and deploy: that brings the disks again."""
        self.done["begin anew"] += 1
        self._seen.pop(vm.id, None)
        self.world.ask("vm.action", "undeploy-hard", vm.id)
        self._wait(vm.id)
        if vm.state is VmState.UNDEPLOYED:
            self.world.ask("vm.action", "resume", vm.id)
            self.world.ask("vm.deploy", vm.id, self._random.randrange(2), False, self.world.files, "")
            self._wait(vm.id)

    # waiting

    def _vm(self, vm: int) -> Vm:
        return self.world.oned.core.vms[vm]

    def _image_state(self, image: int) -> ImageState:
        return self.world.oned.core.images[image].state

    def _at_rest(self) -> list[int]:
        return [vm for vm in self.vms if _is_at_rest(self._vm(vm))]

    def _wait(self, vm: int) -> None:
        core = self.world.oned.core
        with core.lock:
            if not core.lock.wait_for(lambda: _is_at_rest(core.vms[vm]), _SECONDS):
                raise RuntimeError(f"VM {vm} is {core.vms[vm].shown_state} for {_SECONDS:.0f} s")

    def _wait_image(self, image: int) -> None:
        core = self.world.oned.core

        def is_done() -> bool:
            return image not in core.images or core.images[image].state not in _BUSY_IMAGES

        with core.lock:
            if not core.lock.wait_for(is_done, _SECONDS):
                raise RuntimeError(f"image {image} is {core.images[image].state.name} for {_SECONDS:.0f} s")


def _is_at_rest(vm: Vm) -> bool:
    if vm.state is VmState.ACTIVE:
        return vm.lcm_state in (LcmState.RUNNING, LcmState.UNKNOWN) or vm.shown_state.endswith("_FAILURE")
    return vm.state is not VmState.INIT
