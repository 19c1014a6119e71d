# SPDX-License-Identifier: Apache-2.0
"""A small cloud whose driver processes can be killed, and the requests that are made of it."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import subprocess
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from lab.backup import install
from lab.killing.drivers import DriverServer
from lab.killing.inventory import Inventory, inventory
from lab.oned import Answer, HostCall, QuietHypervisor
from lab.oned.model import Datastore, Image, Vm
from lab.oned.states import VmState
from lab.scene import MIB, REMOTES, Scene
from lab.systems import ALL_ARRAYS

__all__ = ["MIB", "StuckError", "World"]

T = TypeVar("T")

SYSTEMS = ALL_ARRAYS

_SECONDS = 120.0
_UNIT_ATTENTIONS = 100
_BACKUP_DRIVER = "files"
_RECOVER = ("failure", "success", "retry", "delete", "delete-recreate", "delete-db")


class StuckError(Exception):
    """OpenNebula did not come to where it should be; the text says where it is and what the drivers said."""


class _Guests(QuietHypervisor):
    """Notes disks that a guest would have found missing, or to be another one, when it was started."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.wrong: list[str] = []

    def execute(self, call: HostCall) -> Answer:
        if call.action in ("deploy", "restore", "attach_disk"):
            vm = self.world.oned.core.vms[call.vm_id]
            only = Path(call.disk).name if call.disk else None
            for disk in vm.disks:
                if only in (None, f"disk.{disk['DISK_ID']}"):
                    self.wrong += self.world.wrong_disk(vm, disk, call.host)
        return super().execute(call)


class World:
    """Everything below ``directory``; a context manager.

    There are two datastores on two arrays (``san``, ``other``), a system datastore for disks that are files
    (``files``) and one for disks that are volumes (``system``), an image ``base`` that VMs clone and a
    persistent one, ``data``. ``contents`` is what volumes have to hold, as far as that is known.
    """

    def __init__(self, directory: Path, system: str = "v7000", *, seed: int = 0, **scene: Any) -> None:
        if system not in SYSTEMS:
            raise ValueError(f"there is no system {system!r}; there are {', '.join(SYSTEMS)}")
        self.directory = directory
        self.system_name = system
        self.random = random.Random(seed)
        self.drivers = DriverServer(REMOTES, directory / "drivers")
        self.contents: dict[str, bytes] = {}
        self.stored: dict[int, dict[str, bytes]] = {}
        """What the volumes of a VM held when it was backed up."""
        self.guests = _Guests(self)
        self._scene_fields = scene
        self._number = 0
        self._stack = ExitStack()
        self.cloud = directory / "cloud"
        self.images_folder = directory / "images"

    def __enter__(self) -> World:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.images_folder.mkdir()
        fields = self._scene_fields
        self._stack.enter_context(self.drivers)
        self.scene = self._stack.enter_context(
            Scene(
                self.cloud,
                system=self.system_name,
                hypervisor=self.guests,
                further_boxes=("v7000-b",),
                further_targets=("tgt2",),
                box={"copy_speed": 1000.0, **fields.get("box", {})},
                attributes={
                    "SAFE_DIRS": str(self.images_folder),
                    "NO_ISCSI": "",
                    **fields.get("attributes", {}),
                },
                settings=fields.get("settings"),
                hosts=fields.get("hosts", ("node1", "node2")),
                oned={
                    "remotes": self.drivers.entries,
                    "monitor_after_operations": False,
                    **fields.get("oned", {}),
                },
            )
        )
        self.oned = self.scene.oned
        install(self.drivers.entries, _BACKUP_DRIVER)
        conf = self.cloud / "sanstone.conf"
        section = f"[sanstone]\nREMOTES_DIR = {self.drivers.entries}\n"
        conf.write_text(conf.read_text().replace("[sanstone]\n", section))
        store = f'NAME="backups"\nTYPE="BACKUP_DS"\nDS_MAD="{_BACKUP_DRIVER}"\nTM_MAD="-"'
        self.backups = self.call("datastore.allocate", store, -1)
        first, second = self.scene.arrays.values()
        self.san = self.call("datastore.allocate", self.scene.datastore_template("san"), -1)
        far = second.attributes()
        self.other = self.call("datastore.allocate", self.scene.datastore_template("other", **far), -1)
        self.files = self.call("datastore.allocate", self.scene.system_template("files"), -1)
        block = {"DISK_TYPE": "BLOCK", **first.attributes(), "BRIDGE_LIST": self.host_names[0]}
        self.system = self.call("datastore.allocate", self.scene.system_template("system", **block), -1)
        self._arrays: dict[int, Inventory] = {self.san: inventory(first), self.other: inventory(second)}
        self._arrays[self.system] = self._arrays[self.san]
        self.step = 1 if self.system_name == "v7000" else 4
        """MiB by which a volume has to grow so that the array has to do something: LVM has extents."""
        self.larger = 1 + 2 * self.step
        self.base = self.filled()
        self.data = self.filled(persistent=True)
        self._kept = {self.base, self.data}

    def warm_up(self) -> None:
        """Let the front-end learn once what it keeps of hosts, so that steps have the same numbers later."""
        if self.system_name != "v7000":
            for number in range(len(self.host_names)):
                self.run(f'IMAGE_ID="{self.base}"', host=number)
            self.clear()

    @property
    def host_names(self) -> Sequence[str]:
        return self.scene.host_names

    @property
    def arrays(self) -> list[Inventory]:
        return [self._arrays[self.san], self._arrays[self.other]]

    def array_of(self, datastore: int) -> Inventory:
        return self._arrays[datastore]

    # requests to oned

    def ask(self, method: str, *parameters: object) -> tuple[bool, Any]:
        """Send a request; its success and what came back."""
        with xmlrpc.client.ServerProxy(self.oned.endpoint) as proxy:
            answer = getattr(proxy, f"one.{method}")(self.oned.session, *parameters)
        return bool(answer[0]), answer[1]

    def call(self, method: str, *parameters: object) -> Any:
        """Send a request and wait for all that follows from it."""
        is_done, answer = self.ask(method, *parameters)
        self.oned.wait_idle(_SECONDS)
        if not is_done:
            raise StuckError(f"{method}: {answer}")
        return answer

    def _name(self) -> str:
        self._number += 1
        return f"object {self._number}"

    def pattern(self, size: int = MIB) -> bytes:
        """Give bytes that no other call gives."""
        return self.random.randbytes(4096) * (size // 4096)

    def new_image(
        self, *, datastore: int | None = None, persistent: bool = False, **attributes: object
    ) -> int:
        """Ask for an image; a datablock of 1 MiB unless PATH or SIZE are given. It may end in ERROR."""
        given: dict[str, object] = {"NAME": self._name(), "TYPE": "OS", **attributes}
        if "PATH" not in given:
            given = {"SIZE": 1, **given, "TYPE": "DATABLOCK"}
        if persistent:
            given["PERSISTENT"] = "YES"
        text = "\n".join(f'{key} = "{value}"' for key, value in given.items())
        return int(self.call("image.allocate", text, self.san if datastore is None else datastore))

    def filled(self, *, datastore: int | None = None, persistent: bool = False, **attributes: object) -> int:
        """Make an image with contents, put there behind all backs."""
        image = self.new_image(datastore=datastore, persistent=persistent, **attributes)
        self.expect_image(image, "READY")
        content = self.pattern()
        self.array_of(self.san if datastore is None else datastore).write(f"one-{image}", content)
        self.contents[f"one-{image}"] = content
        return image

    def file(self, content: bytes) -> Path:
        """Write an image file that can be imported."""
        path = self.images_folder / f"{self._name().replace(' ', '-')}.raw"
        path.write_bytes(content)
        return path

    def new_vm(self, *disks: str, context: bool = False) -> int:
        """Register a VM on hold; a disk is what stands in ``DISK=[...]``."""
        lines = [f'NAME="{self._name()}"\nCPU="0.1"\nMEMORY="64"']
        lines += [f"DISK=[{disk}]" for disk in disks]
        lines += ['CONTEXT=[ROLE="db"]'] if context else []
        return int(self.call("vm.allocate", "\n".join(lines), True))

    def deploy(self, vm: int, host: int = 0, datastore: int | None = None) -> None:
        self.call("vm.deploy", vm, host, False, self.files if datastore is None else datastore, "")

    def run(self, *disks: str, host: int = 0, datastore: int | None = None, context: bool = False) -> int:
        """Register a VM and deploy it."""
        vm = self.new_vm(*disks, context=context)
        self.deploy(vm, host, datastore)
        self.expect(vm, "RUNNING")
        return vm

    def act(self, vm: int, action: str) -> None:
        self.call("vm.action", action, vm)

    def recover(self, vm: int, operation: str) -> None:
        self.call("vm.recover", vm, _RECOVER.index(operation))

    def migrate(self, vm: int, host: int, *, is_live: bool = False, kind: int = 2) -> None:
        """Migrate; cold: by saving (0), powering off (1) or hard (2)."""
        self.call("vm.migrate", vm, host, is_live, False, -1, kind)

    def delete_image(self, image: int) -> None:
        self.call("image.delete", image)
        self.expect_image(image, "GONE")

    def monitor(self) -> None:
        """Monitor the image datastores, as oned does from time to time; let it be an hour later for files.

        A datastore of which the state directory has nothing unfinished is left out: that takes time only.
        """
        for folder in (self.cloud / "staging", self.drivers.folder / "tmp"):
            for path in folder.iterdir():
                moment = time.time() - 3600
                os.utime(path, (moment, moment), follow_symlinks=False)
        self.oned.monitor_datastore(self.san)
        if self.unfinished():
            self.oned.monitor_datastore(self.other)

    def unfinished(self) -> bool:
        """Tell whether an array's state directory has something that waits to be put in order."""
        state = self.cloud / "state"
        if any(path for kind in ("locks", "visits") for path in (state / kind).glob("*")):
            return True
        entries = [path.read_text() for path in (state / "volumes").glob("*.json")]
        return any('"is_ready": false' in text or '"is_doomed": true' in text for text in entries)

    # states

    def expect(self, vm: int, state: str) -> None:
        """Raises: StuckError."""
        try:
            self.oned.wait_vm(vm, state, 0)
        except TimeoutError as err:
            raise StuckError(f"{err}: {self.complaints()}") from None

    def expect_image(self, image: int, state: str) -> None:
        """Raises: StuckError."""
        try:
            self.oned.wait(image, state, 0)
        except TimeoutError as err:
            raise StuckError(f"{err}: {self.complaints()}") from None

    def complaints(self) -> str:
        """What the last driver call that failed said."""
        failed = [call for call in self.oned.calls if call.rc]
        return f"{failed[-1].kind}/{failed[-1].action}: {failed[-1].stderr.strip()}" if failed else ""

    # disks

    def volume_of(self, vm: Vm, disk: dict[str, str]) -> str | None:
        """Name the volume of a disk, None when it is a file."""
        if "IMAGE_ID" in disk:
            clone = f"one-{disk['IMAGE_ID']}-{vm.id}-{disk['DISK_ID']}"
            return clone if disk["CLONE"] == "YES" else f"one-{disk['IMAGE_ID']}"
        return f"one-sys-{vm.id}-{disk['DISK_ID']}" if disk.get("DISK_TYPE") == "BLOCK" else None

    def link(self, vm: Vm, disk: dict[str, str]) -> Path:
        return self.cloud / "datastores" / str(vm.here.datastore_id) / str(vm.id) / f"disk.{disk['DISK_ID']}"

    def wrong_disk(self, vm: Vm, disk: dict[str, str], host: str) -> list[str]:
        """Say what is wrong with the link of a disk that is a volume; nothing when it leads to it."""
        name = self.volume_of(vm, disk)
        if name is None:
            return []
        link = self.link(vm, disk)
        where = f"disk {disk['DISK_ID']} of VM {vm.id} on {host}"
        wwid = self.array_of(int(disk["DATASTORE_ID"])).volumes().get(name)
        try:
            is_there = link.is_symlink() and link.exists()
        except OSError:  # the device of a host that is losing its power
            is_there = False
        if not is_there:
            return [f"{where} leads nowhere"]
        target = link.readlink()
        if target.name != wwid or not target.is_relative_to(self.cloud / "hosts" / host / "dev"):
            return [f"{where} leads to {target}, not to {name} ({wwid})"]
        known = self.contents.get(name)
        if known is not None:
            try:
                is_right = _read(link, len(known)) == known
            except OSError as err:
                return [f"{where}, {name}, cannot be read: {err.strerror}"]
            if not is_right:
                return [f"{where} does not read as {name}"]
        return []

    def clone_contents(self, image: int, vm: int, disk: int) -> None:
        """Note that a clone has to hold what its image holds."""
        self.contents[f"one-{image}-{vm}-{disk}"] = self.contents[f"one-{image}"]

    def write(self, vm: int, disk: int, content: bytes) -> None:
        """Write through a disk's link, as a guest would."""
        found = self.oned.core.vms[vm]
        vector = found.disk(disk)
        assert vector is not None
        name = self.volume_of(found, vector)
        _write(self.link(found, vector), content)
        if name is not None:
            self.contents[name] = content

    def take_notice(self) -> None:
        """Let hosts read each path of their disks, as guests do now and then: see ``_past_attentions``."""
        for host in self.scene.hosts.values():
            for disk in host.devices():
                with suppress(OSError):  # a path that is no more
                    _read(host.root / "dev" / disk.name, 512)

    # backups

    def backup_files(self, vm: int, disk: int) -> list[Path]:
        """The files of a disk that are stored for the newest backup, oldest first."""
        kept = self.oned.core.vms[vm].backups.ids
        image = self.oned.core.images[kept[-1]] if kept else None
        if image is None:
            return []
        sources = [each.source for each in image.increments] or [image.source]
        place = self.cloud / "datastores" / str(self.backups) / str(vm)
        return [path for source in sources for path in (place / source).glob(f"disk.{disk}.*")]

    def merged(self, files: Sequence[Path]) -> bytes:
        """Read a chain of QCOW2 files as its last one reads; copies, for links between them are written."""
        with tempfile.TemporaryDirectory(dir=self.directory) as folder:
            copies = [Path(folder, f"{number}.qcow2") for number in range(len(files))]
            for path, copy in zip(files, copies, strict=True):
                shutil.copyfile(path, copy)
            for below, above in itertools.pairwise(copies):
                _qemu_img("rebase", "-u", "-F", "qcow2", "-b", below, above)
            raw = Path(folder, "raw")
            _qemu_img("convert", "-f", "qcow2", "-O", "raw", copies[-1], raw)
            return raw.read_bytes()

    # ends

    def clear(self) -> None:
        """Delete through OpenNebula what a case has left there; what was there from the start stays."""
        self.take_notice()
        for vm in [vm.id for vm in self.oned.core.vms.values() if vm.state is not VmState.DONE]:
            is_done, _ = self.ask("vm.action", "terminate-hard", vm)
            self.oned.wait_idle(_SECONDS)
            if not is_done or self.oned.core.vms[vm].state is not VmState.DONE:
                self.recover(vm, "delete")
                self.expect(vm, "DONE")
        for image in [image for image in self.oned.core.images if image not in self._kept]:
            self.delete_image(image)
        for image in self._kept:
            if self.oned.core.images[image].state.name == "ERROR":
                self.call("image.enable", image, True)
        self.contents = {
            name: content for name, content in self.contents.items() if name in self._kept_volumes()
        }

    def _kept_volumes(self) -> set[str]:
        return {f"one-{image}" for image in self._kept}

    # objects

    def images(self) -> list[Image]:
        with self.oned.core.lock:
            return list(self.oned.core.images.values())

    def vms(self) -> list[Vm]:
        with self.oned.core.lock:
            return [vm for vm in self.oned.core.vms.values() if vm.state is not VmState.DONE]

    def datastore(self, number: int) -> Datastore:
        return self.oned.core.datastores[number]


def _read(device: Path, length: int) -> bytes:
    def read() -> bytes:
        with device.open("rb") as file:
            return file.read(length)

    return _past_attentions(read)


def _write(device: Path, content: bytes) -> None:
    def write() -> None:
        with device.open("r+b") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    _past_attentions(write)


def _past_attentions(work: Callable[[], T]) -> T:
    """Read or write a device of a host in user space.

    tgt queues a unit attention for each LUN that comes or goes, and QEMU's initiator fails a request with
    EINVAL after eight of them, where a kernel goes on.
    """
    for _ in range(_UNIT_ATTENTIONS):
        try:
            return work()
        except OSError as err:
            if err.errno != errno.EINVAL:
                raise
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def _qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, timeout=_SECONDS, stdout=subprocess.DEVNULL)
