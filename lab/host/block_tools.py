# SPDX-License-Identifier: Apache-2.0
"""``blockdev``, ``udevadm``, ``lsscsi``, and ``tee`` into sysfs, where a write makes the kernel act."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from lab.host.calls import Answer, Call, fail, plain_device
from lab.host.devices import Disk
from lab.host.kernel import Kernel
from lab.host.mapper import Map, Mapper

__all__ = ["Blockdev", "Lsscsi", "Tee", "Udevadm"]


class Blockdev:
    """Answers ``blockdev``: commands, then devices."""

    def __init__(self, kernel: Kernel, mapper: Mapper) -> None:
        self._kernel = kernel
        self._mapper = mapper

    def __call__(self, call: Call) -> Answer:
        if not call.is_root:
            return fail(1, "blockdev: cannot open: Permission denied")
        commands = [word for word in call.argv if word.startswith("--")]
        devices = [word for word in call.argv if not word.startswith("--")]
        if not commands or not devices:
            return fail(1, "blockdev: no device specified")
        out = ""
        for device in devices:
            for command in commands:
                answer = self._one(command, device, call)
                if answer.code:
                    return answer
                out += answer.out
        return Answer(out=out)

    def _one(self, command: str, device: str, call: Call) -> Answer:
        path = Path(call.cwd, device)
        try:
            real = path.resolve(strict=True)
        except OSError as err:
            if not path.is_symlink():
                return fail(1, f"blockdev: cannot open {device}: {err.strerror}")
            real = path.resolve()
        if not real.is_relative_to(self._kernel.root / "dev"):
            return fail(1, f"blockdev: ioctl error on {command}: Inappropriate ioctl for device")
        found = self._mapper.find(plain_device(str(path), self._kernel.root)) or self._map_behind(path)
        disk = self._kernel.disk(real.name)
        if found is None and disk is None:
            return fail(1, f"blockdev: cannot open {device}: No such device or address")
        size = found.size if found is not None else disk.size if disk is not None else 0
        read_only = disk.read_only if disk is not None else False
        match command:
            case "--getsize64":
                return Answer(out=f"{size}\n")
            case "--getsz" | "--getsize":
                return Answer(out=f"{size // 512}\n")
            case "--getss" | "--getpbsz":
                return Answer(out="512\n")
            case "--getbsz":
                return Answer(out="4096\n")
            case "--getro":
                return Answer(out=f"{int(read_only)}\n")
            case "--flushbufs":
                return self._flush(real, device, found, disk, call)
            case "--setrw" | "--setro":
                if disk is not None:
                    self._kernel.set_read_only(disk, command == "--setro")
                return Answer()
            case "--rereadpt":
                return Answer()
        return fail(1, f"blockdev: Unknown command: {command}")

    def _map_behind(self, path: Path) -> Map | None:
        while path.is_symlink():
            path = path.parent / path.readlink()
            if (found := self._mapper.find(path.name)) is not None:
                return found
        return None

    def _flush(self, real: Path, device: str, found: Map | None, disk: Disk | None, call: Call) -> Answer:
        """Wait as the kernel does when no path is left: until there is one, or I/O is let fail."""

        def is_stuck() -> bool:
            if found is not None:
                return self._mapper.is_hung(found)
            return disk is not None and disk.session.state != "LOGGED_IN" and disk.export.is_running

        if not call.wait_while(is_stuck, self._kernel.halted):
            return fail(1, f"blockdev: ioctl error on --flushbufs: {device}: interrupted")
        # Linux does not tell of writes that failed here, only fsync does
        with contextlib.suppress(OSError):
            descriptor = os.open(real, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
        return Answer()


class Tee:
    """Answers ``tee`` for paths in sysfs."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def __call__(self, call: Call) -> Answer:
        code, err = 0, ""
        text = call.stdin.decode("utf-8", "replace")
        for word in (word for word in call.argv if word not in ("-a", "--append")):
            reason = self._write(Path(call.cwd, word), text.strip(), call)
            if reason:
                code, err = 1, f"{err}tee: {word}: {reason}\n"
        return Answer(code, text, err)

    def _write(self, path: Path, value: str, call: Call) -> str:
        """Do what a write to this attribute does. Returns the error's text."""
        if not path.exists():
            return "No such file or directory"
        if not call.is_root:
            return "Permission denied"
        place = str(path.resolve().relative_to(self._kernel.root / "sys"))
        try:
            if found := re.search(r"/scsi_host/host(\d+)/scan$", place):
                return self._scan(int(found[1]), value)
            if found := re.search(r"/(\d+:0:0:\d+)/(delete|rescan)$", place):
                return self._device(found[1], found[2], value, call)
        except FileNotFoundError:
            return "No such device"
        return "Permission denied"

    def _scan(self, host: int, value: str) -> str:
        words = value.split()
        if len(words) != 3 or not all(re.fullmatch(r"-|\d+", word) for word in words):
            return "Invalid argument"
        channel, target, lun = words
        if channel in ("0", "-") and target in ("0", "-"):
            self._kernel.scan(host, None if lun == "-" else int(lun))
        return ""

    def _device(self, hctl: str, attribute: str, value: str, call: Call) -> str:
        disk = next((one for one in self._kernel.disks() if one.hctl == hctl), None)
        if disk is None:
            return "Operation not permitted"
        if attribute == "rescan":
            self._kernel.rescan(disk.name)
            return ""
        if value != "1":
            return "Invalid argument"
        is_dead = disk.session.state != "LOGGED_IN"
        gone = self._kernel.delete(disk.name)
        if is_dead:
            call.wait_while(lambda: not gone.is_set(), self._kernel.halted)
        return ""


class Udevadm:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def __call__(self, call: Call) -> Answer:
        words = list(call.argv)
        if words[:1] != ["settle"]:
            known = words[:1] in (["trigger"], ["control"])
            return Answer() if known else fail(1, "udevadm: only settle, trigger and control are there")
        timeout = 120.0
        for number, word in enumerate(words):
            if word in ("-t", "--timeout") and number + 1 < len(words):
                timeout = float(words[number + 1])
            elif found := re.fullmatch(r"(?:-t|--timeout=)(\d+)", word):
                timeout = float(found[1])
        return Answer(0 if self._kernel.uevents.settle(timeout) else 1)


class Lsscsi:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def __call__(self, call: Call) -> Answer:
        rows = [f"[{'0:0:0:0'}]    disk    ATA      LOCAL DISK             /dev/sda"]
        for disk in self._kernel.disks():
            words = f"disk    {disk.vendor:8} {disk.model:16} {disk.revision:4}"
            rows.append(f"[{disk.hctl}]    {words}  /dev/{disk.name}")
        return Answer(out="".join(f"{row}\n" for row in rows))
