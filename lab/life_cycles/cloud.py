# SPDX-License-Identifier: Apache-2.0
"""The cloud of the record with the real drivers in it, and what a guest would do there."""

from __future__ import annotations

import os
import random
import xmlrpc.client
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any
from xml.etree import ElementTree

from lab.life_cycles import backup_store
from lab.life_cycles.contents import MIB, Content
from lab.life_cycles.model import Disk, Model, disk_of
from lab.oned import Answer, DriverCall, HostCall, QuietHypervisor
from lab.oned.states import LcmState
from lab.scene import REMOTES, Scene
from lab.systems import System

__all__ = ["HOSTS", "Cloud", "Guests"]

HOSTS = ("h1", "h2")
SECONDS = 120.0
_PATTERN = 4096
_IMAGE_MIB = 4

SYSTEM = 'TYPE="SYSTEM_DS"\n'


class Guests(QuietHypervisor):
    """Domains that look at their disks when they start and arrive, and keep their memory in checkpoints."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.complaints: list[str] = []
        self.may_miss_disks = False
        self.arrived: tuple[str, str] | None = None
        self.failing: dict[str, str] = {}
        self._memory: dict[int, bytes] = {}

    def execute(self, call: HostCall) -> Answer:
        """Carry out an action, or let it fail with the text that ``failing`` has for it."""
        if call.action in self.failing:
            return Answer(1, "", self.failing[call.action])
        return super().execute(call)

    def deploy(self, call: HostCall) -> str:
        self._look(call, call.host)
        return "one-deploy-id"

    def save(self, call: HostCall) -> None:
        self._memory[call.vm_id] = self.cloud.random.randbytes(_PATTERN)
        Path(call.checkpoint).write_bytes(self._memory[call.vm_id])

    def restore(self, call: HostCall) -> None:
        self._look(call, call.host)
        if Path(call.checkpoint).read_bytes() != self._memory[call.vm_id]:
            self.complaints.append(f"the checkpoint of VM {call.vm_id} is not the one that was saved")

    def snapshot_create(self, call: HostCall) -> str:
        return "snap-hyp-2373"  # as recorded

    def attach_disk(self, call: HostCall) -> None:
        if not Path(call.disk).exists():
            self.complaints.append(f"{Path(call.disk).name} leads nowhere at attach_disk")

    def migrate(self, call: HostCall) -> None:
        """Check the disks where the domain goes; to another directory, copy the disks that are files."""
        new = ElementTree.fromstring(call.stdin).findtext("DISK_TARGET_PATH", "")
        if new != call.directory:
            self.arrived = (call.directory, new)
            Path(new).mkdir(parents=True, exist_ok=True)
            for disk in Path(call.directory).glob("disk.*"):
                if disk.is_file() and not disk.is_symlink():
                    Path(new, disk.name).write_bytes(disk.read_bytes())
                    disk.unlink()
            return
        self._look(call, call.destination)
        self.complaints += self.cloud.not_on_both(call.vm_id, call.host, call.destination)

    def _look(self, call: HostCall, host: str) -> None:
        directory = Path(call.directory)
        wanted = [f"disk.{disk['DISK_ID']}" for disk in self.cloud.scene.oned.core.vms[call.vm_id].disks]
        for name in wanted:
            disk = directory / name
            if not os.path.lexists(disk):
                if not self.may_miss_disks:
                    self.complaints.append(f"{name} is not there at {call.action} on {host}")
            elif not disk.exists():
                self.complaints.append(f"{name} leads nowhere at {call.action} on {host}")
            elif disk.is_symlink() and f"/{host}/" not in str(disk.readlink()):
                self.complaints.append(f"{name} leads to another host than {host} at {call.action}")


class Cloud:
    """Everything below ``directory``; a context manager.

    ``system`` is the driver, ``system_datastore`` what 103 and 104 are (own, shared, ssh, block). A second
    array is there when ``has_two_arrays``; datastore 101 is on it then. ``model`` is kept along by ``learn``.
    """

    def __init__(
        self,
        directory: Path,
        system: str,
        *,
        system_datastore: str = "own",
        has_two_arrays: bool = False,
        seed: int = 0,
    ) -> None:
        self.directory = directory.resolve()
        self.system = system
        self.system_datastore = system_datastore
        self.random = random.Random(seed)
        self.guests = Guests(self)
        self.files = self.directory / "files"
        self.remotes = self.directory / "remotes"
        self.datastores = self.directory / "cloud/datastores"
        self.backups = self.directory / "backups"
        self._checked: set[tuple[str, ...]] = set()
        self._has_two_arrays = has_two_arrays
        self._stack = ExitStack()
        self._sources: dict[str, Content] = {}
        self.mending: list[Callable[[], object]] = []
        self.model = Model(system, "frontend", lambda path: self._sources[path], self.disk, self.increments)

    def __enter__(self) -> Cloud:
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
        self.files.mkdir(parents=True)
        self._lay_out_drivers()
        self.scene = self._stack.enter_context(
            Scene(
                self.directory / "cloud",
                system=self.system,
                hosts=HOSTS,
                hypervisor=self.guests,
                box={"copy_speed": 1000.0},
                further_boxes=("v7000-b",) if self._has_two_arrays else (),
                further_targets=("tgt2",) if self._has_two_arrays else (),
                attributes={"SAFE_DIRS": str(self.files), "NO_ISCSI": ""},
                oned={
                    "remotes": self.remotes,
                    "monitor_after_operations": False,
                    "ds_encrypted_attrs": ("NETAPP_PASS",),
                    "required_attrs": {"recbak": ()},
                },
            )
        )
        self._tell_remotes()
        self.oned = self.scene.oned
        self.arrays: list[System] = list(self.scene.arrays.values())
        self._proxy = self._stack.enter_context(xmlrpc.client.ServerProxy(self.oned.endpoint))
        for name in ("os", "cd"):
            self._write_source(name)
        for number, template in self._templates():
            self.oned.core.last_ids["DATASTORE"] = number - 1
            self.ask("one.datastore.allocate", template, -1)

    def _lay_out_drivers(self) -> None:
        """Let oned find the real drivers beside one that keeps backups."""
        for kind in ("datastore", "tm"):
            (self.remotes / kind).mkdir(parents=True)
            (self.remotes / kind / self.system).symlink_to(REMOTES / kind / self.system)
        (self.remotes / "sanstone-driver").symlink_to(REMOTES / "sanstone-driver")
        backup_store.install(self.remotes, "recbak", self.backups)

    def _tell_remotes(self) -> None:
        """Tell our drivers where OpenNebula's other drivers are."""
        configuration = self.directory / "cloud/sanstone.conf"
        text = configuration.read_text()
        configuration.write_text(text.replace("[sanstone]\n", f"[sanstone]\nREMOTES_DIR = {self.remotes}\n"))

    def _templates(self) -> Iterator[tuple[int, str]]:
        """The datastores of the record, with their ids."""
        yield 100, self.scene.datastore_template("san")
        yield 101, self.scene.datastore_template("san2", **self.arrays[-1].attributes())
        own = f'{SYSTEM}TM_MAD="{self.system}"\n'
        block = self._block()
        kind = own + block if self.system_datastore == "block" else own
        if self.system_datastore in ("shared", "ssh"):
            kind = f'{SYSTEM}TM_MAD="{self.system_datastore}"\n'
        yield 103, f'NAME="sys_rec"\n{kind}'
        yield 104, f'NAME="sys_rec2"\n{kind}'
        for number, name, mad in (
            (105, "sys_shared", "shared"),
            (106, "sys_shared2", "shared"),
            (107, "sys_ssh", "ssh"),
        ):
            yield number, f'NAME="{name}"\n{SYSTEM}TM_MAD="{mad}"'
        yield 109, 'NAME="bak"\nTYPE="BACKUP_DS"\nDS_MAD="recbak"'
        yield 112, f'NAME="sys_blk"\n{own}{block}'

    def _block(self) -> str:
        """What a system datastore needs for volatile disks that are volumes: the array's attributes."""
        lines = self.scene.datastore_template("x").splitlines()
        kept = [
            line
            for line in lines
            if line.split(" ")[0] not in ("NAME", "TYPE", "DS_MAD", "TM_MAD", "DISK_TYPE")
        ]
        return "\n".join(['DISK_TYPE="BLOCK"', *kept])

    def _write_source(self, name: str) -> None:
        """Write an image file: two of its MiB have bytes."""
        content = Content(_IMAGE_MIB * MIB).written(0, self.random.randbytes(MIB))
        content = content.written(2 * MIB, self.random.randbytes(MIB))
        path = self.files / f"{name}.raw"
        with path.open("wb") as file:
            file.truncate(content.size)
            for number, block in content.blocks.items():
                file.seek(number * MIB)
                file.write(block)
        self._sources[str(path)] = content

    # requests

    def ask(self, method: str, *parameters: object) -> list[Any]:
        """Send a request and wait for all that follows; ``{files}`` is filled in."""
        filled = [
            each.replace("{files}", str(self.files)) if isinstance(each, str) else each for each in parameters
        ]
        if method == "monitor":
            self.oned.monitor_all()
            return [True, "", 0]
        if method == "lab.full":
            self.oned.core.datastores[int(str(filled[0]))].free_mb = 0
            return [True, "", 0]
        session = self.oned.session
        answer: list[Any] = getattr(self._proxy, method)(session, *filled)
        self.oned.wait_idle(SECONDS)
        return answer

    # what oned says

    def disk(self, vm: int, number: int) -> Disk:
        """Tell what oned has of a disk."""
        with self.oned.core.lock:
            known = self.oned.core.vms.get(vm)
            disk = known.disk(number) if known else None
            if disk is None:
                return Disk(0, False, None, "")
            is_volatile = "IMAGE_ID" not in disk
            volume = None
            if not is_volatile:
                clone = f"one-{disk['IMAGE_ID']}-{vm}-{number}"
                volume = clone if disk.get("CLONE") == "YES" else f"one-{disk['IMAGE_ID']}"
            elif disk.get("DISK_TYPE") == "BLOCK":
                volume = f"one-sys-{vm}-{number}"
            made = "swap" if disk.get("TYPE") == "swap" else disk.get("FS", "")
            return Disk(int(disk.get("SIZE", "0")) * MIB, disk.get("TYPE") == "CDROM", volume, made)

    def not_on_both(self, vm: int, source: str, target: str) -> list[str]:
        """Say which disks of a VM that migrates are not open to both hosts."""
        mappings = {pair for array in self.arrays for pair in array.mappings()}
        names = {name for (owner, _), name in self.model.volumes.items() if owner == vm}
        return [
            f"{name} is not open to {host} while the domain migrates"
            for name in sorted(names & {linked for _, linked in self.model.links.values()})
            for host in (source, target)
            if (host, name) not in mappings
        ]

    def is_running(self, vm: int) -> bool:
        with self.oned.core.lock:
            return vm in self.oned.core.vms and self.oned.core.vms[vm].lcm_state is LcmState.RUNNING

    def increments(self, image: int) -> list[str]:
        """List the sources of a backup image's increments, of a full backup its only one."""
        with self.oned.core.lock:
            found = self.oned.core.images[image]
            return [each.source for each in found.increments] or [found.source]

    def wrong_backups(self) -> Iterator[str]:
        """Put together what the backup driver has, once for each state, and compare it with what was then."""
        with self.oned.core.lock:
            images = [image.id for image in self.oned.core.images.values() if image.backup_disks]
        for image in images:
            sources = self.increments(image)
            if tuple(sources) in self._checked:
                continue
            self._checked.add(tuple(sources))
            for disk, wanted in self.model.backups[sources[-1]].items():
                joined = self.backups / "joined"
                backup_store.join(self.backups, sources, str(disk), joined, "raw")
                if difference := wanted.differs_from(Content.of(joined)):
                    yield f"disk {disk} in backup {image} ({len(sources)} increments) has {difference}"
                joined.unlink()

    # what a guest does

    def write_all(self) -> None:
        """Let every running VM write a little to each of its disks, through the link or to the file."""
        for path, (_, volume) in list(self.model.links.items()):
            content = self.model.contents.get(volume)
            if content is None or not self._may_write(path) or not Path(path).is_symlink():
                continue
            if (device := self.device(path)).exists():
                self.model.contents[volume] = self._write(device, content)
        for path, content in list(self.model.files.items()):
            if content is not None and self._may_write(path) and Path(path).exists():
                self.model.files[path] = self._write(Path(path), content)

    def _may_write(self, path: str) -> bool:
        key = disk_of(path)
        if key is None or not self.is_running(key[0]):
            return False
        found = self.disk(*key)
        return found.size > 0 and not found.is_cdrom

    def device(self, path: str) -> Path:
        """Give what a link leads to on the disk's host: the same text means a device of its own there."""
        host = self.model.links[path][0]
        target = Path(path).readlink()
        for root in (self.directory / "cloud/hosts" / each for each in HOSTS):
            if target.is_relative_to(root):
                return self.directory / "cloud/hosts" / host / target.relative_to(root)
        return target

    def _write(self, path: Path, content: Content) -> Content:
        data = self.random.randbytes(_PATTERN)
        offset = self.random.randrange(content.size // _PATTERN) * _PATTERN
        with path.open("r+b", buffering=0) as device:
            device.seek(offset)
            device.write(data)
            os.fsync(device.fileno())
        return content.written(offset, data)

    # what goes wrong

    def refuse(self, what: str, volume: str) -> None:
        """Let the arrays refuse something until all recovers (see System.refuse)."""
        for array in self.arrays:
            array.refuse(what, volume, times=None)

    def recover(self) -> None:
        """Let nothing go wrong any more."""
        for array in self.arrays:
            array.faults.clear()
        self.guests.failing.clear()
        while self.mending:
            self.mending.pop()()

    def refuse_backups(self) -> None:
        """Let the arrays refuse to make what a backup freezes."""
        self.refuse("create", "one-.*-b[0-9]+")

    def fail_backup(self, text: str) -> None:
        """Let the backup driver fail."""
        failing = self.backups / "failing"
        failing.write_text(text)
        self.mending.append(failing.unlink)

    def hide(self, path: str) -> None:
        """Move a file below the datastores away for a while."""
        there = self.datastores / path
        if not there.exists():
            return
        there.rename(there.with_suffix(".hidden"))
        self.mending.append(lambda: there.with_suffix(".hidden").rename(there))

    # what happens meanwhile

    @contextmanager
    def watched(self, look: Callable[[str, str, tuple[str, ...], bool], None]) -> Iterator[None]:
        """Call ``look`` with driver, action and arguments before (False) and after (True) each tm call."""
        drivers = self.oned.core.drivers
        inner = drivers.run

        def run(
            kind: str,
            driver: str,
            action: str,
            argv: tuple[str, ...],
            stdin: str = "",
            encoding: str = "empty",
        ) -> Answer:
            look(driver, action, argv, False)
            answer = inner(kind, driver, action, argv, stdin, encoding)
            look(driver, action, argv, True)
            return answer

        drivers.run = run  # type: ignore[method-assign]
        try:
            yield
        finally:
            del drivers.run

    def learn(self, calls: list[DriverCall]) -> None:
        """Let the model follow calls."""
        for call in calls:
            if call.kind == "vmm" and call.action == "migrate" and not call.rc and self.guests.arrived:
                self.model.moved_files(*self.guests.arrived)
                self.guests.arrived = None
            self.model.apply(call)

    def plain_path(self, path: str) -> str:
        """Write a path below the datastores as short as it is unique."""
        return (
            str(PurePosixPath(path).relative_to(self.datastores))
            if path.startswith(str(self.datastores))
            else path
        )
