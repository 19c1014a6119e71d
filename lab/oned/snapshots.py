# SPDX-License-Identifier: Apache-2.0
"""VMs: requests about snapshots of their disks and of whole VMs."""

from __future__ import annotations

from collections.abc import Callable

from lab.oned.disk_requests import SCRIPT_ERROR, DiskRequests
from lab.oned.errors import Code, RefusedError
from lab.oned.model import Snapshot, Snapshots, User, Vm
from lab.oned.scripts import Line, is_volatile
from lab.oned.states import Action, LcmState, VmState

__all__ = ["SnapshotRequests"]

_SNAPSHOT_CREATE = {
    VmState.ACTIVE: LcmState.DISK_SNAPSHOT,
    VmState.POWEROFF: LcmState.DISK_SNAPSHOT_POWEROFF,
    VmState.SUSPENDED: LcmState.DISK_SNAPSHOT_SUSPENDED,
}
_SNAPSHOT_DELETE = {
    VmState.ACTIVE: LcmState.DISK_SNAPSHOT_DELETE,
    VmState.POWEROFF: LcmState.DISK_SNAPSHOT_DELETE_POWEROFF,
    VmState.SUSPENDED: LcmState.DISK_SNAPSHOT_DELETE_SUSPENDED,
}
_SNAPSHOT_REVERT = {
    VmState.POWEROFF: LcmState.DISK_SNAPSHOT_REVERT_POWEROFF,
    VmState.SUSPENDED: LcmState.DISK_SNAPSHOT_REVERT_SUSPENDED,
}


class SnapshotRequests(DiskRequests):
    """Requests about snapshots of VMs that run or rest."""

    # -- snapshots of a disk

    def snapshot_create(self, user: User, vm_id: int, disk_id: int, name: str) -> int:
        """Take a snapshot of a disk; gives its id."""
        core, engine = self.core, self.engine
        with core.lock:
            vm, state = self._begin(user, vm_id, "create disk snapshot for", _SNAPSHOT_CREATE)
            disk = self._disk(vm, disk_id)
            snapshots = vm.disk_snapshots(disk_id)
            if snapshots is None:
                snapshots = Snapshots(disk_id, disk.get("ALLOW_ORPHANS", "NO"))
                vm.snapshots.append(snapshots)
            number = snapshots.next_id
            snapshots.next_id += 1
            engine.begin(vm, Action.DISK_SNAPSHOT_CREATE, user)
            snapshot = Snapshot(number, name, core.now(), int(disk["SIZE"]))
            is_running = vm.state is VmState.ACTIVE
            action = "snap_create_live" if is_running else "snap_create"
            line = core.writer.on_disk(vm, disk, action, str(number))

            def work() -> None:
                if is_running:
                    engine.vmm.disk_snapshot_create(vm, line)
                else:
                    engine.run_script(vm, [line])

            def then(is_done: bool) -> None:
                with core.lock:
                    if is_done:
                        snapshots.items.append(snapshot)
                        snapshots.activate(number)
                        _count(disk, snapshots)

            prefix = "DISKSNAPSHOTCREATE" if is_running else SCRIPT_ERROR
            self._do(vm, state, prefix, work, then)
        return number

    def snapshot_delete(self, user: User, vm_id: int, disk_id: int, snapshot_id: int) -> int:
        """Delete a snapshot of a disk."""

        def then(disk: dict[str, str], snapshots: Snapshots) -> None:
            snapshots.items = [s for s in snapshots.items if s.id != snapshot_id]
            _count(disk, snapshots)

        what = "delete disk snapshot for"
        return self._on_snapshot(
            user, vm_id, (disk_id, snapshot_id), "snap_delete", what, _SNAPSHOT_DELETE, then
        )

    def snapshot_revert(self, user: User, vm_id: int, disk_id: int, snapshot_id: int) -> int:
        """Take a disk of a resting VM back to a snapshot."""

        def then(disk: dict[str, str], snapshots: Snapshots) -> None:
            snapshots.activate(snapshot_id)

        what = "revert to disk snapshot for"
        return self._on_snapshot(
            user, vm_id, (disk_id, snapshot_id), "snap_revert", what, _SNAPSHOT_REVERT, then
        )

    def _on_snapshot(
        self,
        user: User,
        vm_id: int,
        ids: tuple[int, int],
        action: str,
        what: str,
        states: dict[VmState, LcmState],
        change: Callable[[dict[str, str], Snapshots], None],
    ) -> int:
        core = self.core
        disk_id, snapshot_id = ids
        with core.lock:
            vm, state = self._begin(user, vm_id, what, states)
            disk = self._disk(vm, disk_id)
            snapshots = vm.disk_snapshots(disk_id)
            if snapshots is None or snapshots.find(snapshot_id) is None:
                raise RefusedError(Code.ACTION, "Snapshot does not exist")
            kept: Snapshots = snapshots
            is_revert = action == "snap_revert"
            self.engine.begin(
                vm, Action.DISK_SNAPSHOT_REVERT if is_revert else Action.DISK_SNAPSHOT_DELETE, user
            )
            line: Line = core.writer.on_disk(vm, disk, action, str(snapshot_id))

            def then(is_done: bool) -> None:
                with core.lock:
                    if is_done:
                        change(disk, kept)

            self._do(vm, state, SCRIPT_ERROR, lambda: self.engine.run_script(vm, [line]), then)
        return vm_id

    # -- snapshots of the whole VM

    def vm_snapshot_create(self, user: User, vm_id: int, name: str) -> int:
        """Take a snapshot of a running VM; gives its id."""
        core = self.core
        with core.lock:
            vm, state = self._begin(
                user, vm_id, "create snapshot for", {VmState.ACTIVE: LcmState.HOTPLUG_SNAPSHOT}
            )
            number = vm.next_system_snapshot
            vm.next_system_snapshot += 1
            record = {"NAME": name, "SNAPSHOT_ID": str(number), "TIME": str(core.now()), "ACTIVE": "YES"}
            record["SYSTEM_DISK_SIZE"] = str(
                max((int(d["SIZE"]) for d in vm.disks if is_volatile(d)), default=0)
            )
            record |= {"ACTION": "CREATE", "HYPERVISOR_ID": ""}
            vm.template.add("SNAPSHOT", record)

            def work() -> None:
                answer = self.engine.vmm.snapshot(vm, "snapshot_create", str(number))
                record["HYPERVISOR_ID"] = answer.stdout.strip()

            def then(is_done: bool) -> None:
                with core.lock:
                    _end_action(record)
                    if not is_done:
                        _forget_snapshot(vm, record)

            self._do(vm, state, "SNAPSHOTCREATE", work, then)
        return number

    def vm_snapshot_revert(self, user: User, vm_id: int, snapshot_id: int) -> int:
        """Take a running VM back to a snapshot."""
        return self._on_vm_snapshot(user, vm_id, snapshot_id, "revert")

    def vm_snapshot_delete(self, user: User, vm_id: int, snapshot_id: int) -> int:
        """Delete a snapshot of a running VM."""
        return self._on_vm_snapshot(user, vm_id, snapshot_id, "delete")

    def _on_vm_snapshot(self, user: User, vm_id: int, snapshot_id: int, verb: str) -> int:
        core = self.core
        states = {VmState.ACTIVE: LcmState.HOTPLUG_SNAPSHOT}
        with core.lock:
            vm, state = self._begin(user, vm_id, f"{verb} snapshot for", states)
            records = vm.template.vectors("SNAPSHOT")
            record = next((r for r in records if r["SNAPSHOT_ID"] == str(snapshot_id)), None)
            if record is None:
                raise RefusedError(Code.ACTION, "Snapshot does not exist")
            found: dict[str, str] = record
            found |= {"ACTIVE": "YES", "ACTION": verb.upper()}

            def work() -> None:
                self.engine.vmm.snapshot(vm, f"snapshot_{verb}", found["HYPERVISOR_ID"])

            def then(is_done: bool) -> None:
                with core.lock:
                    _end_action(found)
                    if is_done and verb == "delete":
                        _forget_snapshot(vm, found)

            self._do(vm, state, f"SNAPSHOT{verb.upper()}", work, then)
        return vm_id


def _end_action(record: dict[str, str]) -> None:
    for name in ("ACTIVE", "ACTION"):
        record.pop(name, None)


def _count(disk: dict[str, str], snapshots: Snapshots) -> None:
    disk["DISK_SNAPSHOT_TOTAL_SIZE"] = str(sum(snapshot.size for snapshot in snapshots.items))


def _forget_snapshot(vm: Vm, record: dict[str, str]) -> None:
    left = [r for r in vm.template.vectors("SNAPSHOT") if r is not record]
    vm.template.remove("SNAPSHOT")
    for each in left:
        vm.template.add("SNAPSHOT", each)
