# SPDX-License-Identifier: Apache-2.0
"""Lives of images and virtual machines, made of every action that is measured."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyone

from bench.cost import Cost
from bench.starter import BenchError, Call, Starter
from lab.scene import Scene

__all__ = ["CROWDS", "ROWS", "Cloud", "Fleet"]

_SECONDS = 120.0
_IMAGE_MIB = 16
_BLOCK_MIB = 16

#: what a row of the table is called, by stage of the life and by the call's name, in the table's order
ROWS: dict[tuple[str, str], str] = {
    ("monitor", "datastore/monitor"): "datastore monitor",
    ("import", "datastore/stat"): "datastore stat",
    ("import", "datastore/cp"): "datastore cp",
    ("raw", "datastore/mkfs"): "datastore mkfs, raw",
    ("ext4", "datastore/mkfs"): "datastore mkfs, ext4",
    ("clone", "datastore/clone"): "datastore clone, same box",
    ("delete", "datastore/rm"): "datastore rm",
    ("cold", "tm/ln disk.0"): "tm ln, nothing remembered",
    ("deploy", "tm/ln disk.1"): "tm ln",
    ("deploy", "tm/clone disk.0"): "tm clone",
    ("deploy", "tm/mkimage disk.2"): "tm mkimage, a file",
    ("block", "tm/mkimage disk.0"): "tm mkimage, a volume",
    ("deploy", "tm/context disk.3"): "tm context",
    ("save", "tm/cpds disk.0"): "tm cpds",
    ("move", "tm/mv disk.1"): "tm mv, host to host",
    ("end", "tm/mvds disk.1"): "tm mvds",
    ("end", "tm/delete disk.0"): "tm delete of a clone",
    ("end", "tm/delete disk.2"): "tm delete of a file",
    ("end", "tm/delete directory"): "tm delete of a directory",
}

#: what is done by many at once, in this order: each leaves what the next one needs
CROWDS = {
    "tm/ln disk.1": "tm ln",
    "tm/mvds disk.1": "tm mvds",
    "tm/clone disk.0": "tm clone",
    "tm/delete disk.0": "tm delete",
}


class Cloud:
    """The scene with two hosts, an image datastore, and system datastores for files and for volumes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # the background copy of a clone is not what is measured: let it be over at once
        self.scene = Scene(folder, box={"copy_speed": 10_000.0})
        self.costs: dict[str, list[Cost]] = {}

    def __enter__(self) -> Cloud:
        self.scene.__enter__()
        try:
            self.starter = Starter(self.scene)
            self.starter.skipped.add("datastore/monitor")
            self.one = pyone.OneServer(self.scene.oned.endpoint, session=self.scene.oned.session)
            self.datastore = self.one.datastore.allocate(self.scene.datastore_template())
            self.files = self.one.datastore.allocate(self.scene.system_template())
            self.volumes = self.one.datastore.allocate(
                self.scene.system_template(
                    "volumes", DISK_TYPE="BLOCK", MGMT=self.scene.box.ssh_host, MDISK_GROUP="mdiskgrp0"
                )
            )
            self.image = self._make_image()
            self.scene.oned.wait_idle()
        except BaseException:
            self.scene.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.scene.__exit__(None, None, None)

    def _make_image(self) -> Path:
        path = self.folder / "image.qcow2"
        raw = self.folder / "image.raw"
        raw.write_bytes(b"sanstone" * (1 << 17))
        for words in (
            ["convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)],
            ["resize", "-q", str(path), f"{_IMAGE_MIB}M"],
        ):
            subprocess.run(["qemu-img", *words], check=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
        return path

    def slow_down(self, latency: float, handshake: float) -> None:
        """Set the box's seconds for a command and for a handshake."""
        self.scene.box.latency, self.scene.box.handshake_latency = latency, handshake

    def forget(self) -> None:
        """Let the drivers know nothing of the box."""
        shutil.rmtree(self.folder / "state" / "facts", ignore_errors=True)

    def life(self) -> None:
        """Go once through all that is measured; the costs go into ``costs``."""
        boot, empty, data, copy = self._images()
        template = (
            f"CPU = 1\nMEMORY = 64\nDISK = [ IMAGE_ID = {boot} ]\nDISK = [ IMAGE_ID = {data} ]\n"
            f"DISK = [ TYPE = fs, SIZE = {_BLOCK_MIB} ]\nCONTEXT = [ NETWORK = YES ]\n"
        )
        with self.stage("deploy"):
            vm = self.vm(template, "node1", self.files)
        with self.stage("save"):
            saved = self.one.vm.disksaveas(vm, 0, "saved", "", -1)
            self.wait_image(saved, "READY")
        with self.stage("move"):
            self.one.vm.migrate(vm, self._host("node2"), False, False, -1, 0)
            self.wait_vm(vm, "RUNNING")
        with self.stage("end"):
            self.end(vm)
        self.forget()
        with self.stage("cold"):
            vm = self.vm(f"CPU = 1\nMEMORY = 64\nDISK = [ IMAGE_ID = {data} ]\n", "node1", self.files)
        with self.stage(""):
            self.end(vm)
        with self.stage("block"):
            text = f"CPU = 1\nMEMORY = 64\nDISK = [ TYPE = fs, SIZE = {_BLOCK_MIB} ]\n"
            vm = self.vm(text, "node1", self.volumes)
        with self.stage(""):
            self.end(vm)
        with self.stage("delete"):
            for image in (boot, empty, data, copy, saved):
                self.remove(image)

    def _images(self) -> tuple[int, int, int, int]:
        with self.stage("monitor"):
            self.starter.skipped.clear()
            self.scene.oned.monitor_datastore(self.datastore)
            self.starter.skipped.add("datastore/monitor")
        with self.stage("import"):
            boot = self.make_image(f'NAME = boot\nTYPE = OS\nPATH = "{self.image}"\n')
        with self.stage("raw"):
            empty = self.make_image(f"NAME = empty\nTYPE = DATABLOCK\nSIZE = {_BLOCK_MIB}\n")
        with self.stage("ext4"):
            data = self.make_image(
                f"NAME = data\nTYPE = DATABLOCK\nSIZE = {_BLOCK_MIB}\nFS = ext4\nPERSISTENT = YES\n"
            )
        with self.stage("clone"):
            copy = self.one.image.clone(boot, "copy")
            self.wait_image(copy, "READY")
        return boot, empty, data, copy

    # steps

    def stage(self, name: str) -> _Stage:
        return _Stage(self, name)

    def make_image(self, template: str) -> int:
        image = int(self.one.image.allocate(template, self.datastore))
        self.wait_image(image, "READY")
        return image

    def remove(self, image: int) -> None:
        self.one.image.delete(image)
        self.wait_image(image, "GONE")

    def vm(self, template: str, host: str, system: int) -> int:
        vm = int(self.one.vm.allocate(template, False))
        self.one.vm.deploy(vm, self._host(host), False, system)
        self.wait_vm(vm, "RUNNING")
        return vm

    def end(self, vm: int) -> None:
        self.one.vm.action("terminate-hard", vm)
        self.wait_vm(vm, "DONE")

    def _host(self, name: str) -> int:
        return int(next(each.ID for each in self.one.hostpool.info().HOST if name == each.NAME))

    def wait_image(self, image: int, state: str) -> None:
        images = self.scene.oned.core.images
        self._wait(lambda: images[image].state.name if image in images else "GONE", state, f"image {image}")

    def wait_vm(self, vm: int, state: str) -> None:
        self._wait(lambda: self.scene.oned.core.vms[vm].shown_state, state, f"VM {vm}")

    def _wait(self, shown: Callable[[], str], state: str, what: str) -> None:
        core = self.scene.oned.core
        with core.lock:
            core.lock.wait_for(lambda: self.starter.failure or shown() == state, _SECONDS)
        self.scene.oned.wait_idle(_SECONDS)
        if self.starter.failure is not None:
            raise self.starter.failure
        if shown() != state:
            raise BenchError(f"{what} is {shown()}, not {state}, after {_SECONDS:.0f} s.")


class _Stage:
    """What is measured meanwhile belongs to one stage of the life."""

    def __init__(self, cloud: Cloud, name: str) -> None:
        self._cloud = cloud
        self._name = name

    def __enter__(self) -> None:
        self._first = len(self._cloud.starter.measured)

    def __exit__(self, *_: object) -> None:
        for name, cost in self._cloud.starter.measured[self._first :]:
            row = ROWS.get((self._name, name))
            if row is not None:
                self._cloud.costs.setdefault(row, []).append(cost)


class Fleet:
    """Virtual machines, half of them on either host, whose disks are attached and deleted all at once."""

    def __init__(self, cloud: Cloud, count: int) -> None:
        self._cloud = cloud
        self.count = count
        self.calls: dict[str, list[Call]] = {}

    def make(self) -> None:
        """Make images and machines; their transfers are kept for ``at_once``."""
        cloud = self._cloud
        boot = cloud.make_image(f'NAME = fleet\nTYPE = OS\nPATH = "{cloud.image}"\n')
        self.images = [boot]
        for number in range(self.count):
            text = f"NAME = fleet-{number}\nTYPE = DATABLOCK\nSIZE = {_BLOCK_MIB}\nPERSISTENT = YES\n"
            self.images.append(cloud.make_image(text))
        starter = cloud.starter
        starter.keeps = True
        machines = [
            cloud.vm(
                f"CPU = 1\nMEMORY = 64\nDISK = [ IMAGE_ID = {boot} ]\nDISK = [ IMAGE_ID = {data} ]\n",
                ("node1", "node2")[number % 2],
                cloud.files,
            )
            for number, data in enumerate(self.images[1:])
        ]
        for vm in machines:
            cloud.end(vm)
        starter.keeps = False
        for call in starter.kept:
            self.calls.setdefault(call.name, []).append(call)
        starter.kept.clear()

    def at_once(self, name: str) -> Cost:
        """Run the calls of one name together."""
        counts, cpu, wall = self._cloud.starter.at_once(self.calls[name])
        return Cost(counts, cpu, wall)

    def remove(self) -> None:
        for image in self.images:
            self._cloud.remove(image)
