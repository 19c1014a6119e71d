# SPDX-License-Identifier: Apache-2.0
"""What requests about disks of a VM have in common: a state to enter, work, and a way back."""

from __future__ import annotations

from collections.abc import Callable

from lab.oned.core import Core
from lab.oned.engine import SCRIPT_ERROR, Engine
from lab.oned.errors import Code, DriverError, RefusedError
from lab.oned.model import User, Vm
from lab.oned.states import LcmState, VmState
from lab.oned.users import require

__all__ = ["SCRIPT_ERROR", "DiskRequests"]


class DiskRequests:
    """The base of requests about disks."""

    def __init__(self, core: Core, engine: Engine) -> None:
        self.core = core
        self.engine = engine

    def _begin(
        self, user: User, vm_id: int, what: str, states: dict[VmState, LcmState]
    ) -> tuple[Vm, LcmState]:
        """Give the VM and the state that it is to enter, or refuse the request."""
        vm = self.core.get_vm(vm_id)
        require(user, vm.owner, "MANAGE", "VM", vm_id)
        is_busy = vm.state is VmState.ACTIVE and vm.lcm_state is not LcmState.RUNNING
        if is_busy or vm.state not in states:
            raise RefusedError(Code.ACTION, f"Could not {what} VM {vm.id}, wrong state {vm.shown_state}.")
        return vm, states[vm.state]

    def _disk(self, vm: Vm, disk_id: int) -> dict[str, str]:
        disk = vm.disk(disk_id)
        if disk is None:
            text = f"VM disk with ID {disk_id} does not exist"
            raise RefusedError(Code.ACTION, text)
        return disk

    def _go_back(self, vm: Vm, before: VmState) -> None:
        if before is VmState.ACTIVE:
            self.core.enter_lcm(vm, LcmState.RUNNING)
        else:
            self.core.enter_vm(vm, before)

    def _do(
        self,
        vm: Vm,
        state: LcmState,
        prefix: str,
        work: Callable[[], None],
        then: Callable[[bool], None],
    ) -> None:
        """Enter ``state``, work in the background, call ``then`` with the success, and go back."""
        before = vm.state
        self.core.enter_lcm(vm, state)

        def run() -> None:
            is_done = True
            try:
                work()
            except DriverError as failure:
                is_done = False
                self.core.set_vm_error(vm, prefix, failure.text)
            then(is_done)
            self._go_back(vm, before)

        self.core.spawn(run, f"{state.name.lower()}-{vm.id}")
