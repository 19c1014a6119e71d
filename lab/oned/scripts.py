# SPDX-License-Identifier: Apache-2.0
"""Transfer scripts: the lists of transfer manager calls that a state of a VM means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.oned.model import History, Vm

__all__ = ["Line", "ScriptWriter", "is_volatile", "text"]


@dataclass(frozen=True, slots=True)
class Line:
    """One call of a transfer manager; ``action`` may have a suffix."""

    driver: str
    action: str
    argv: tuple[str, ...]

    def __str__(self) -> str:
        name, dot, suffix = self.action.partition(".")
        return " ".join((f"{name.upper()}{dot}{suffix}", self.driver, *self.argv))


def text(lines: list[Line]) -> str:
    """Write lines as oned shows them in TM_COMMAND."""
    return "".join(f"{line}\n" for line in lines)


def is_volatile(disk: dict[str, str]) -> bool:
    """Tell whether a disk has no image."""
    return "IMAGE_ID" not in disk


def _is_persistent(disk: dict[str, str]) -> bool:
    return disk.get("SAVE") == "YES"


def _is_linked(disk: dict[str, str]) -> bool:
    return disk.get("CLONE") == "NO"


def _suffix(disk: dict[str, str]) -> str:
    system = disk.get("TM_MAD_SYSTEM", "")
    return f".{system}" if system else ""


@dataclass(frozen=True)
class ScriptWriter:
    """Writes the transfer scripts of VMs, with the paths of one front-end."""

    hostname: str
    datastores: Path
    vms: Path

    def directory(self, history: History, vm_id: int) -> str:
        """Give the directory of a VM in a system datastore."""
        return f"{self.datastores}/{history.datastore_id}/{vm_id}"

    def disk_path(self, history: History, vm_id: int, disk: dict[str, str]) -> str:
        """Give the path of disk.N."""
        return f"{self.directory(history, vm_id)}/disk.{disk['DISK_ID']}"

    def _at(self, history: History, vm: Vm, disk: dict[str, str], host: str | None = None) -> str:
        return f"{host or history.host}:{self.disk_path(history, vm.id, disk)}"

    def _datastore(self, history: History, disk: dict[str, str]) -> str:
        return str(history.datastore_id) if is_volatile(disk) else disk["DATASTORE_ID"]

    def source(self, disk: dict[str, str]) -> str:
        """Give SOURCE as clone and ln get it."""
        source = disk["SOURCE"]
        return source if ":" in source else f"{self.hostname}:{source}"

    def create(self, vm: Vm, disk: dict[str, str]) -> Line:
        """Make disk.N: clone or link an image, or make a volatile disk."""
        here = vm.here
        place = (self._at(here, vm, disk), str(vm.id), self._datastore(here, disk))
        if not is_volatile(disk):
            action = "ln" if _is_linked(disk) else "clone"
            return Line(disk["TM_MAD"], action + _suffix(disk), (self.source(disk), *place))
        if disk.get("TYPE", "").lower() == "swap":
            return Line(here.tm_mad, "mkswap", (disk["SIZE"], *place))
        return Line(here.tm_mad, "mkimage", (disk["SIZE"], disk.get("FORMAT", "raw"), *place))

    def delete(self, vm: Vm, disk: dict[str, str], host: str | None = None) -> Line:
        """Remove disk.N."""
        here = vm.here
        driver = here.tm_mad if is_volatile(disk) else disk["TM_MAD"]
        argv = (self._at(here, vm, disk, host), str(vm.id), self._datastore(here, disk))
        return Line(driver, "delete" + _suffix(disk), argv)

    def give_back(self, vm: Vm, disk: dict[str, str], host: str | None = None) -> Line:
        """End the use of disk.N: a persistent one goes back to its datastore, others are removed."""
        if is_volatile(disk) or not _is_persistent(disk):
            return self.delete(vm, disk, host)
        argv = (self._at(vm.here, vm, disk, host), disk["SOURCE"], str(vm.id), disk["DATASTORE_ID"])
        return Line(disk["TM_MAD"], "mvds" + _suffix(disk), argv)

    def context(self, vm: Vm) -> list[Line]:
        """Make the context disk, if there is one."""
        context = vm.template.vector("CONTEXT")
        if context is None:
            return []
        here = vm.here
        files = context.get("FILES", "").split()
        argv = (
            f"{self.vms}/{vm.id}/context.sh",
            *files,
            f"{here.host}:{self.directory(here, vm.id)}/disk.{context['DISK_ID']}",
            str(vm.id),
            str(here.datastore_id),
        )
        return [Line(here.tm_mad, "context", argv)]

    def prolog(self, vm: Vm) -> list[Line]:
        """Make every disk."""
        return [self.create(vm, disk) for disk in vm.disks]

    def epilog(self, vm: Vm, host: str | None = None) -> list[Line]:
        """Give back every disk and remove the directory, on ``host`` if not where the VM was."""
        return [*(self.give_back(vm, disk, host) for disk in vm.disks), self._delete_directory(vm, host)]

    def cleanup(self, vm: Vm) -> list[Line]:
        """Remove every disk, the persistent ones too."""
        return [*(self.delete(vm, disk) for disk in vm.disks), self._delete_directory(vm, None)]

    def _delete_directory(self, vm: Vm, host: str | None) -> Line:
        here = vm.here
        place = f"{host or here.host}:{self.directory(here, vm.id)}"
        return Line(here.tm_mad, "delete", (place, str(vm.id), str(here.datastore_id)))

    def move(self, vm: Vm, source: tuple[str, History], destination: tuple[str, History]) -> list[Line]:
        """Move every disk, then the directory, between two places: a host and a stay (for the path)."""
        (from_host, before), (to_host, after) = source, destination
        argv = (
            f"{from_host}:{self.directory(before, vm.id)}",
            f"{to_host}:{self.directory(after, vm.id)}",
            str(vm.id),
            str(after.datastore_id),
        )
        return [*self._move_disks(vm, from_host, before, to_host, after), Line(after.tm_mad, "mv", argv)]

    def _move_disks(
        self, vm: Vm, from_host: str, before: History, to_host: str, after: History
    ) -> Iterator[Line]:
        suffix = ""  # a volatile disk inherits it from the image disk before it
        for disk in vm.disks:
            if not is_volatile(disk):
                suffix = _suffix(disk)
            yield Line(
                after.tm_mad if is_volatile(disk) else disk["TM_MAD"],
                f"mv{suffix}",
                (
                    self._at(before, vm, disk, from_host),
                    self._at(after, vm, disk, to_host),
                    str(vm.id),
                    self._datastore(after, disk),
                ),
            )

    def on_disk(self, vm: Vm, disk: dict[str, str], action: str, *first: str) -> Line:
        """Write a call about one disk: ``host:disk.N``, what the action needs, VM and datastore."""
        here = vm.here
        driver = here.tm_mad if is_volatile(disk) else disk["TM_MAD"]
        argv = (self._at(here, vm, disk), *first, str(vm.id), self._datastore(here, disk))
        return Line(driver, action + _suffix(disk), argv)
