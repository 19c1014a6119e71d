# SPDX-License-Identifier: Apache-2.0
"""A hypervisor that really boots: QEMU by software emulation, its console on a file."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from lab.oned.hypervisor import HostCall, HypervisorError, QuietHypervisor

__all__ = ["EMULATOR", "EmulatingHypervisor"]

EMULATOR = "qemu-system-x86_64"
_ESCAPES = re.compile(rb"\x1b[\[(][0-9;?]*[A-Za-z]|\x1b[c=>]|[\x00-\x08\x0b-\x1f]")
_END_SECONDS = 10.0


class EmulatingHypervisor(QuietHypervisor):
    """Boots each domain from its disks under QEMU; without QEMU nothing runs and all succeeds."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.is_there = shutil.which(EMULATOR) is not None
        self._guests: dict[int, subprocess.Popen[bytes]] = {}

    def deploy(self, call: HostCall) -> str:
        if self.is_there:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._console(call.vm_id).open("wb") as console:
                self._guests[call.vm_id] = subprocess.Popen(
                    self._argv(call.stdin), stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
                )
        return f"one-{call.vm_id}"

    def shutdown(self, call: HostCall) -> None:
        self._end(call.vm_id)

    def cancel(self, call: HostCall) -> None:
        self._end(call.vm_id)

    def stop(self) -> None:
        """End every guest."""
        for number in list(self._guests):
            self._end(number)

    def console(self, vm_id: int) -> str:
        """What the guest has printed so far, without the terminal's control sequences."""
        path = self._console(vm_id)
        raw = path.read_bytes() if path.exists() else b""
        return _ESCAPES.sub(b"\n", raw).decode("ascii", "ignore")

    def wait_for_console(self, vm_id: int, wanted: Callable[[str], str | None], seconds: float) -> str | None:
        """Wait until ``wanted`` finds something on the console; None when it does not come."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := wanted(self.console(vm_id)):
                return found
            guest = self._guests.get(vm_id)
            if guest is None or guest.poll() is not None:
                return wanted(self.console(vm_id))
            time.sleep(0.1)
        return None

    def _argv(self, domain: str) -> list[str]:
        argv = [
            EMULATOR, "-nodefaults", "-no-user-config", "-accel", "tcg", "-m", "256",
            "-machine", "pc,graphics=off", "-display", "none", "-serial", "stdio", "-monitor", "none",
        ]  # fmt: skip
        for number, disk in enumerate(ElementTree.fromstring(domain).iter("disk")):
            source, driver = disk.find("source"), disk.find("driver")
            path = "" if source is None else source.get("dev") or source.get("file") or ""
            if not Path(path).exists():
                raise HypervisorError(f"{path} is not there")
            kind = "raw" if driver is None else driver.get("type", "raw")
            is_cdrom = disk.get("device") == "cdrom"
            options = f"id=d{number},if=none,format={kind},file={path.replace(',', ',,')}"
            argv += ["-drive", f"{options},readonly={'on' if is_cdrom else 'off'},cache=writeback"]
            frontend = "ide-cd" if is_cdrom else "virtio-blk-pci"
            argv += ["-device", f"{frontend},drive=d{number}" + (",bootindex=1" if number == 0 else "")]
        return argv

    def _console(self, vm_id: int) -> Path:
        return self.directory / f"console-{vm_id}.log"

    def _end(self, vm_id: int) -> None:
        guest = self._guests.pop(vm_id, None)
        if guest is not None:
            guest.terminate()
            try:
                guest.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                guest.kill()
                guest.wait()
