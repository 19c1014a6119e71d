# SPDX-License-Identifier: Apache-2.0
"""What the demonstration does, from the administrator's template to the last deleted volume."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pyone

from lab.demo.guest import EmulatingHypervisor
from lab.demo.screen import Screen, size
from lab.prepare import PrepareError, default_image
from lab.scene import MIB, Scene
from lab.target import LVMError
from lab.v7000.errors import CommandError

__all__ = ["Story", "StoryError"]

_CHUNK = 1 << 20
_SECONDS = 300.0
_BOOT_SECONDS = 90.0
_DATABLOCK_MIB = 64
_PATTERN = 4 * MIB


class StoryError(Exception):
    """Something did not go as it should; the text is for the person who watches."""


class Story:
    """The demonstration's lab and steps; a context manager that stops what it started."""

    def __init__(
        self, screen: Screen, folder: Path, *, system: str = "v7000", image: str | None = None
    ) -> None:
        self.screen = screen
        self.system = system
        self.folder = folder
        self.image = image
        self.rows: list[tuple[str, ...]] = []
        self._stack = ExitStack()
        self.hypervisor = EmulatingHypervisor(folder / "guests")

    def __enter__(self) -> Story:
        try:
            self._set_the_scene()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _set_the_scene(self) -> None:
        self.screen.heading("A cloud with a SAN, on this machine")
        if self.image is None:
            try:
                self.image = str(default_image())
            except PrepareError as err:
                raise StoryError(str(err)) from err
        elif "://" not in self.image:
            self.image = str(Path(self.image).expanduser().resolve())
            if not Path(self.image).is_file():
                raise StoryError(
                    f"There is no image file {self.image}; IMAGE takes a path or an http(s) URL."
                )
        with self.screen.step("start it"):
            self._stack.callback(self.hypervisor.stop)
            scene = Scene(
                self.folder,
                system=self.system,
                attributes={"SAFE_DIRS": self._safe_folder()},
                hypervisor=self.hypervisor,
                say=self.screen.line,
            )
            self.scene = self._stack.enter_context(scene)
            self.one = pyone.OneServer(self.scene.oned.endpoint, session=self.scene.oned.session)

    def _safe_folder(self) -> str:
        """The image's folder, so that it may be taken even from a home; a list of folders takes no blanks."""
        assert self.image is not None
        folder = "/var/tmp" if "://" in self.image else str(Path(self.image).parent)
        return folder if re.fullmatch(r"[A-Za-z0-9_./-]+", folder) else "/"

    def tell(self) -> None:
        """Go through the whole life of an image and a VM."""
        started = time.monotonic()
        self.screen.heading("Datastores, from templates as an administrator writes them")
        datastore, system = self._register()
        self.screen.heading("Images")
        boot = self._import(datastore)
        data = self._make_datablock(datastore)
        self.screen.heading("A virtual machine with three disks on node1")
        vm = self._deploy(boot, data, system)
        pattern = self._write_through(vm)
        self.screen.heading("The end of it all")
        self._terminate(vm, data, pattern)
        self._delete(boot, data)
        self.screen.heading("What it took")
        self.screen.table(("", "seconds", "array logins", "array commands", "host connections"), self.rows)
        self.screen.line()
        self.screen.line(f"all of it in {time.monotonic() - started:.0f} s, and nothing was left behind")

    def invite(self) -> None:
        """Say how to look around."""
        array, command = self._array_script()
        host = self._script("node1", ["ssh", "-q", "-F", str(self.folder / "ssh_config"), "node1"])
        self.screen.heading("The lab stays up until Ctrl-C")
        self.screen.line(f"the array   {array} {command}")
        self.screen.line(f"a host      {host} iscsiadm -m session")
        self.screen.line(f"OpenNebula  {self.scene.oned.endpoint} as {self.scene.oned.session}")

    def _array_script(self) -> tuple[Path, str]:
        """A script that runs a command on the array, and a command to try."""
        if self.system == "iscsi":
            login = ["ssh", "-q", "-F", str(self.folder / "ssh_config"), self.scene.array.name]
            return self._script("array", login), "lvs"
        box, known = self.scene.box, self.folder / "known_hosts"
        login = ["ssh", "-q", "-i", str(self.scene.key), "-o", f"UserKnownHostsFile={known}"]
        place = ["-p", str(box.ssh_port), f"oneadmin@{box.ssh_host}"]
        return self._script("array", [*login, *place]), "lsmdiskgrp"

    def _script(self, name: str, command: list[str]) -> Path:
        path = self.folder / "try" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        path.chmod(0o700)
        return path

    # the steps

    def _register(self) -> tuple[int, int]:
        template = self.scene.datastore_template()
        for line in template.splitlines():
            self.screen.line(line)
        with self._measured("register", "register the datastore"):
            datastore = int(self.one.datastore.allocate(template, -1))
            system = int(self.one.datastore.allocate(self.scene.system_template(), -1))
            self.scene.oned.monitor_datastore(datastore)
            seen = self.one.datastore.info(datastore)
        if not int(seen.TOTAL_MB):
            raise StoryError(f"the datastore was not monitored: {self._last_error()}")
        total, free = int(seen.TOTAL_MB) * MIB, int(seen.FREE_MB) * MIB
        self.screen.line(
            f"datastore {datastore}: {size(total)} on {self.scene.array.name}, {size(free)} free"
        )
        return datastore, system

    def _import(self, datastore: int) -> int:
        assert self.image is not None
        self.screen.line(self.image)
        template = f'NAME = "boot disk"\nTYPE = "OS"\nPATH = "{self.image}"\n'
        image = -1

        def progress() -> str:
            try:
                written = self.scene.array.path(f"one-{image}").stat().st_blocks * 512
            except (CommandError, LVMError, OSError):
                return self._array_does()
            return f"{size(written)} on the array" if written else self._array_does()

        with self._measured("import", "import it to a volume of the array", progress):
            image = int(self._call(self.one.image.allocate, template, datastore))
            seen = self._wait_for_image(image)
        volume = self.scene.array.path(f"one-{image}")
        with self.screen.step("compare the bytes that went in with those on the array"):
            expected, length = self._hash_of_image()
            found = digest(volume, length)
        if expected != found:
            raise StoryError(f"the volume has other bytes than the image: {found}, not {expected}")
        self.screen.line(f"sha256 {found[:32]}…  of {size(length)}, the same on both sides")
        self.screen.line(
            f"{size(volume.stat().st_size)} as a disk, {size(volume.stat().st_blocks * 512)} of it written"
        )
        self.screen.line(f"SOURCE {seen.SOURCE}")
        return image

    def _make_datablock(self, datastore: int) -> int:
        template = (
            f'NAME = "data"\nTYPE = "DATABLOCK"\nSIZE = "{_DATABLOCK_MIB}"\nFS = "ext4"\nPERSISTENT = "YES"\n'
        )
        with self._measured("datablock", f"make an empty datablock of {_DATABLOCK_MIB} MiB with ext4"):
            image = int(self._call(self.one.image.allocate, template, datastore))
            self._wait_for_image(image)
        kind = output_of(
            ["blkid", "-p", "-o", "value", "-s", "TYPE", str(self.scene.array.path(f"one-{image}"))]
        )
        if kind != "ext4":
            raise StoryError(f"the volume has no ext4 file system but {kind or 'nothing'}")
        self.screen.line("blkid finds ext4 on the volume")
        return image

    def _deploy(self, boot: int, data: int, system: int) -> int:
        template = (
            'NAME = "guest"\nCPU = "1"\nMEMORY = "256"\n'
            f'DISK = [ IMAGE_ID = "{boot}" ]\nDISK = [ IMAGE_ID = "{data}" ]\n'
            'CONTEXT = [ GREETING = "hello from the array" ]\n'
        )
        text = "deploy: a snapshot of the boot disk, the datablock itself, the context"
        with self._measured("deploy", text):
            vm = int(self._call(self.one.vm.allocate, template, True))
            host = next(each.ID for each in self.one.hostpool.info().HOST if each.NAME == "node1")
            self._call(self.one.vm.deploy, vm, host, False, system)
            self._wait_for_vm(vm, "RUNNING")
        self._show_disks(vm)
        if not self.hypervisor.is_there:
            self.screen.line("no QEMU here: the guest is not booted")
            return vm
        with self.screen.step("boot the guest from the linked disk, in software emulation"):
            said = self.hypervisor.wait_for_console(vm, first_words, _BOOT_SECONDS)
        if said is None:
            if self.image == str(default_image()):
                raise StoryError(f"the guest did not boot:\n{self.hypervisor.console(vm)[-800:]}")
            lines = [line for line in self.hypervisor.console(vm).splitlines() if line.strip()]
            said = f"{lines[-1].strip()[:60] if lines else 'nothing'} (is the image made to boot?)"
        self.screen.line(f"its console says: {said}")
        return vm

    def _show_disks(self, vm: int) -> None:
        folder = next(self.folder.glob(f"datastores/*/{vm}"))
        names = {wwid: name for name, wwid in self.scene.array.volumes().items()}
        for disk in sorted(folder.glob("disk.*")):
            if not disk.is_symlink():
                self.screen.line(f"{disk.name}  a file of {size(disk.stat().st_size)}")
                continue
            wwid = disk.readlink().name
            self.screen.line(f"{disk.name}  {wwid}  is {names.get(wwid, 'not on the array')}")
        self._show_listing()

    def _show_listing(self, limit: int = 90) -> None:
        for command, lines in self.scene.array.listings():
            self.screen.line(f"the array's own listing, {command}:")
            for line in lines or ["(nothing)"]:
                self.screen.line(f"  {line[:limit]}")

    def _write_through(self, vm: int) -> str:
        """Write random bytes through the persistent disk's link, as a guest would."""
        link = next(self.folder.glob(f"datastores/*/{vm}/disk.1"))
        content = os.urandom(_PATTERN)
        text = f"write {size(_PATTERN)} through the persistent disk"
        with self.screen.step(text), link.open("r+b") as device:
            device.seek(16 * MIB)
            device.write(content)
            device.flush()
            os.fsync(device.fileno())
        return hashlib.sha256(content).hexdigest()

    def _terminate(self, vm: int, data: int, pattern: str) -> None:
        with self._measured("terminate", "terminate: disks detached, the snapshot deleted"):
            self._call(self.one.vm.action, "terminate-hard", vm)
            self._wait_for_vm(vm, "DONE")
        if mapped := self.scene.array.mappings():
            raise StoryError(f"volumes are still mapped: {mapped}")
        with self.scene.array.path(f"one-{data}").open("rb") as volume:
            volume.seek(16 * MIB)
            found = hashlib.sha256(volume.read(_PATTERN)).hexdigest()
        if found != pattern:
            raise StoryError("what was written through the disk is not on the volume")
        self.screen.line(f"sha256 {found[:32]}…  of what was written, the same on the array")

    def _delete(self, *images: int) -> None:
        with self._measured("delete", "delete both images"):
            for image in images:
                self._call(self.one.image.delete, image)
            for image in images:
                self._wait_for_image(image, gone=True)
        left = self.scene.leftovers()
        if left:
            raise StoryError("left behind: " + "; ".join(left))
        self._show_listing()
        self.screen.line(f"{self.scene.array.nothing_left}; no device, path or map on the hosts")

    # what the steps use

    def _measured(
        self, name: str, text: str, progress: Callable[[], str] | None = None
    ) -> AbstractContextManager[None]:
        return self._measure(name, self.screen.step(text, progress or self._array_does))

    @contextmanager
    def _measure(self, name: str, step: AbstractContextManager[None]) -> Iterator[None]:
        """Do a step whose cost goes into the table."""
        before, started = self.counts(), time.monotonic()
        with step:
            yield
        spent = [str(after - there) for after, there in zip(self.counts(), before, strict=True)]
        self.rows.append((name, f"{time.monotonic() - started:.1f}", *spent))

    def _array_does(self) -> str:
        """What the array was told last."""
        commands = self.scene.array.journal.commands
        return f"array: {commands[-1].text[:48]}" if commands else ""

    def counts(self) -> tuple[int, int, int]:
        """Array logins, array commands and host connections so far."""
        journal = self.scene.array.journal
        return (
            journal.connections,
            len(journal.commands),
            sum(h.ssh_connections for h in self.scene.hosts.values()),
        )

    def _wait_for_image(self, image: int, *, gone: bool = False) -> Any:
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            try:
                seen = self.one.image.info(image)
            except pyone.OneNoExistsException:
                if gone:
                    return None
                raise
            state = int(seen.STATE)
            if state == 5:
                raise StoryError(f"image {image} failed: {seen.TEMPLATE.get('ERROR')}\n{self._last_error()}")
            if state == 1 and not gone:
                return seen
            time.sleep(0.05)
        raise StoryError(f"image {image} did not get ready within {_SECONDS:.0f} s")

    def _wait_for_vm(self, vm: int, wanted: str) -> None:
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            seen = self.one.vm.info(vm)
            state, lcm = int(seen.STATE), int(seen.LCM_STATE)
            if (wanted == "RUNNING" and (state, lcm) == (3, 3)) or (wanted == "DONE" and state == 6):
                return
            if lcm in _FAILURES:
                raise StoryError(f"VM {vm} failed: {seen.USER_TEMPLATE.get('ERROR')}\n{self._last_error()}")
            time.sleep(0.05)
        raise StoryError(f"VM {vm} was not {wanted} within {_SECONDS:.0f} s")

    def _last_error(self) -> str:
        failed = [call for call in self.scene.oned.calls if call.rc]
        return failed[-1].stderr if failed else "no driver call failed"

    def _call(self, method: Callable[..., Any], *args: object) -> Any:
        try:
            return method(*args)
        except pyone.OneException as err:
            raise StoryError(f"OpenNebula refused: {err}") from err

    def _hash_of_image(self) -> tuple[str, int]:
        """Hash what the image holds as a disk; a URL is read by the stand-in's own copy of it."""
        assert self.image is not None
        raw = self.folder / "compare.raw"
        source = self.image
        if "://" in source:
            fetched = self.folder / "compare.image"
            output_of(["curl", "-sSfL", "-o", str(fetched), "--", source])
            source = str(fetched)
        output_of(["qemu-img", "convert", "-O", "raw", "--", source, str(raw)])
        length = raw.stat().st_size
        try:
            return digest(raw, length), length
        finally:
            raw.unlink()


_FAILURES = {36, 37, 38, 39, 40, 41, 42, 44, 46, 47, 48, 49, 50, 61}


def digest(path: Path, length: int) -> str:
    """Hash the first ``length`` bytes of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while length > 0 and (chunk := file.read(min(_CHUNK, length))):
            found.update(chunk)
            length -= len(chunk)
    return found.hexdigest()


def first_words(console: str) -> str | None:
    """Find the line by which the guest's boot loader or kernel introduces itself."""
    if "No bootable device" in console:
        return "No bootable device, says the firmware"
    whole_lines = console.rpartition("\n")[0].splitlines()
    for line in whole_lines:
        if any(word in line for word in ("GNU GRUB", "Linux version", "login:", "ISOLINUX", "SYSLINUX")):
            return " ".join(line.split())[:70]
    return None


def output_of(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, timeout=_SECONDS, check=False)
    if done.returncode not in (0, 2):
        raise StoryError(f"{argv[0]} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace").strip()
