# SPDX-License-Identifier: Apache-2.0
"""The virtual machine driver: vmm actions on hosts and the transfer manager calls around them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from lab.oned import elements, scripts, vm_documents
from lab.oned.core import Core
from lab.oned.datastores import Datastores
from lab.oned.drivers import Answer, DriverCall
from lab.oned.errors import DriverError
from lab.oned.hypervisor import HostCall
from lab.oned.model import History, Vm
from lab.oned.scripts import Line

__all__ = ["VmmDriver"]


class VmmDriver:
    """Each public method is one request to the driver; :class:`DriverError` has the text to show."""

    def __init__(self, core: Core, datastores: Datastores) -> None:
        self.core = core
        self.datastores = datastores

    # -- one action

    def _action(
        self,
        vm: Vm,
        action: str,
        argv: tuple[str, ...],
        stdin: str,
        host: History,
        *,
        destination: str = "",
        checkpoint: str = "",
        disk: str = "",
        target: str = "",
        size_mb: int = 0,
        snapshot: str = "",
    ) -> Answer:
        call = HostCall(
            action=action,
            host=host.host,
            mad=host.vm_mad,
            vm_id=vm.id,
            argv=(*argv, str(vm.id), host.host),
            stdin=stdin,
            deploy_id=vm.deploy_id,
            destination=destination,
            directory=self.core.writer.directory(host, vm.id),
            checkpoint=checkpoint,
            disk=disk,
            target=target,
            size_mb=size_mb,
            snapshot=snapshot,
        )
        started = time.monotonic()
        answer = self.core.hypervisor.execute(call)
        self.core.drivers.record(
            DriverCall(
                kind="vmm",
                driver=host.vm_mad,
                action=action,
                where=f"host {host.host}",
                argv=call.argv,
                stdin_encoding="raw",
                stdin=stdin,
                rc=answer.rc,
                stdout=answer.stdout,
                stderr=answer.stderr,
                seconds=time.monotonic() - started,
            )
        )
        if answer.rc:
            raise DriverError(f"{self.core.error_text(answer.stderr)}ExitCode: {answer.rc}")
        return answer

    def _document(
        self,
        vm: Vm,
        where: History,
        *,
        destination: str = "",
        checkpoint: str = "",
        commands: Sequence[Line] = (),
        rollback: Sequence[Line] = (),
        target: str = "",
    ) -> str:
        with self.core.lock:
            return vm_documents.vmm_action(
                vm,
                self.core.get_datastore(where.datastore_id),
                host=where.host,
                destination=destination,
                checkpoint=checkpoint,
                command=scripts.text(list(commands)),
                rollback=scripts.text(list(rollback)),
                target=target,
            )

    def _tm(self, lines: Sequence[Line]) -> None:
        for line in lines:
            answer = self.core.drivers.run("tm", line.driver, line.action, line.argv)
            if answer.rc:
                raise DriverError(self.core.error_text(answer.stderr))

    # -- starting and ending

    def start(self, vm: Vm, action: str) -> Answer:
        """Make the context disk, then deploy or restore the domain."""
        here = vm.here
        directory = self.core.writer.directory(here, vm.id)
        with self.core.lock:
            context = self.core.writer.context(vm)
            target = context[0].argv[-3].partition(":")[2] if context else ""
            name = f"deployment.{here.seq}"
            domain = (self.core.config.vms / str(vm.id) / name).read_text()
        with self.core.vmm_slot():
            self._tm(context)
            if action == "deploy":
                return self._action(vm, "deploy", (f"{directory}/{name}", here.host), domain, here)
            checkpoint = f"{directory}/checkpoint"
            stdin = self._document(vm, here, checkpoint=checkpoint, commands=context, target=target)
            argv = (checkpoint, here.host, vm.deploy_id)
            return self._action(vm, "restore", argv, stdin, here, checkpoint=checkpoint)

    def stop(self, vm: Vm, action: str, where: History | None = None) -> None:
        """Shut down, cancel, reboot or save the domain, where it is or where ``where`` says."""
        here = where or vm.here
        checkpoint = f"{self.core.writer.directory(here, vm.id)}/checkpoint" if action == "save" else ""
        with self.core.vmm_slot():
            stdin = self._document(vm, here, checkpoint=checkpoint)
            argv = (vm.deploy_id, checkpoint, here.host) if checkpoint else (vm.deploy_id, here.host)
            self._action(vm, action, argv, stdin, here, checkpoint=checkpoint)

    def clean_up(self, vm: Vm, has_domain: bool) -> None:
        """Cancel the domain and remove every disk; nothing that fails stops it."""
        here = vm.here
        with self.core.lock:
            lines = self.core.writer.cleanup(vm)
        with self.core.vmm_slot():
            if has_domain:
                stdin = self._document(vm, here, commands=lines)
                with suppress(DriverError):
                    self._action(vm, "cancel", (vm.deploy_id, here.host), stdin, here)
            for line in lines:
                self.core.drivers.run("tm", line.driver, line.action, line.argv)

    # -- migration

    def migrate(self, vm: Vm, before: History, after: History) -> None:
        """Migrate live: premigrate, migrate, postmigrate; failmigrate when one of the first two fails."""
        directory = self.core.writer.directory(after, vm.id)
        argv = (before.host, after.host, directory, str(vm.id), str(after.datastore_id))
        command = Line(after.tm_mad, "migrate", argv)
        with self.core.lock:
            document = vm_documents.vm_xml(vm)

        def tell(action: str) -> Answer:
            return self.core.drivers.run("tm", after.tm_mad, action, argv, document, "base64")

        with self.core.vmm_slot():
            answer = tell("premigrate")
            if answer.rc:
                if self.core.config.version >= (7, 4):
                    tell("failmigrate")
                raise DriverError(self.core.error_text(answer.stderr))
            stdin = self._document(vm, before, destination=after.host, commands=(command,), target=directory)
            try:
                self._action(
                    vm,
                    "migrate",
                    (vm.deploy_id, after.host, before.host),
                    stdin,
                    before,
                    destination=after.host,
                )
            except DriverError:
                tell("failmigrate")
                raise
            tell("postmigrate")

    # -- disks

    def attach_disk(self, vm: Vm, disk: dict[str, str]) -> None:
        """Make disk.N and give it to the domain; taken back when that fails."""
        here = vm.here
        with self.core.lock:
            create = self.core.writer.create(vm, disk)
            remove = self.core.writer.give_back(vm, disk)
            path = self.core.writer.disk_path(here, vm.id, disk)
        with self.core.vmm_slot():
            self._tm([create])
            stdin = self._document(vm, here, commands=[create], rollback=[remove], target=path)
            argv = (
                vm.deploy_id,
                path,
                disk["TARGET"],
                str(_index(disk["TARGET"])),
                elements.base64_text(stdin),
            )
            try:
                self._action(vm, "attach_disk", argv, stdin, here, disk=path, target=disk["TARGET"])
            except DriverError:
                self.core.drivers.run("tm", remove.driver, remove.action, remove.argv)
                raise

    def detach_disk(self, vm: Vm, disk: dict[str, str]) -> None:
        """Take disk.N from the domain and end its use."""
        here = vm.here
        with self.core.lock:
            line = self.core.writer.give_back(vm, disk)
            path = self.core.writer.disk_path(here, vm.id, disk)
            stdin = self._document(vm, here, commands=[line], target=path)
        with self.core.vmm_slot():
            argv = (vm.deploy_id, path, disk["TARGET"], str(_index(disk["TARGET"])))
            self._action(vm, "detach_disk", argv, stdin, here, disk=path, target=disk["TARGET"])
            self._tm([line])

    def resize_disk(self, vm: Vm, disk: dict[str, str], size_mb: int) -> None:
        """Resize disk.N and tell the domain."""
        here = vm.here
        with self.core.lock:
            line = self.core.writer.on_disk(vm, disk, "resize", str(size_mb))
            path = self.core.writer.disk_path(here, vm.id, disk)
            stdin = self._document(vm, here, commands=[line], target=path)
        with self.core.vmm_slot():
            self._tm([line])
            argv = (vm.deploy_id, disk["DISK_ID"], str(size_mb), elements.base64_text(stdin), here.host)
            self._action(
                vm, "resize_disk", argv, stdin, here, disk=path, target=disk["TARGET"], size_mb=size_mb
            )

    def disk_snapshot_create(self, vm: Vm, line: Line) -> None:
        """Take a snapshot of a disk of the running domain."""
        here = vm.here
        allowed = self.core.config.live_disk_snapshots
        if allowed is not None and f"{here.vm_mad}-{line.driver}" not in allowed:
            raise DriverError("Cannot perform a live DISKSNAPSHOTCREATE operation")
        with self.core.vmm_slot():
            self._tm([line])

    # -- snapshots of the whole VM

    def snapshot(self, vm: Vm, action: str, name: str) -> Answer:
        """Take, go back to, or delete a snapshot of the whole VM."""
        here = vm.here
        with self.core.vmm_slot():
            stdin = self._document(vm, here)
            return self._action(vm, action, (vm.deploy_id, name), stdin, here, snapshot=name)


def _index(target: str) -> int:
    """Give the number of a target's last letter: sdc is 2."""
    return ord(target[-1]) - ord("a")
