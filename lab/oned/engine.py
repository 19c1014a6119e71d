# SPDX-License-Identifier: Apache-2.0
"""The life of a VM: what oned, its transfer manager and its virtual machine driver do one after another."""

from __future__ import annotations

from collections.abc import Sequence

from lab.oned.core import Core
from lab.oned.datastores import Datastores
from lab.oned.deployment import context_script, domain_xml
from lab.oned.disks import Disks
from lab.oned.drivers import Answer
from lab.oned.errors import DriverError
from lab.oned.model import Datastore, History, Host, User, Vm
from lab.oned.scripts import Line
from lab.oned.states import BOOTS, PHASES, Action, LcmState, Shutdown, VmState
from lab.oned.vmm import VmmDriver

__all__ = ["SCRIPT_ERROR", "Engine"]

SCRIPT_ERROR = "Error executing image transfer script"
_POWEROFF_MIGRATIONS = (Action.POFF_MIGRATE, Action.POFF_HARD_MIGRATE)


class Engine:
    """Carries VMs from state to state; every public method is the work of one thread."""

    def __init__(self, core: Core, datastores: Datastores, disks: Disks) -> None:
        self.core = core
        self.disks = disks
        self.vmm = VmmDriver(core, datastores)

    # -- history

    def new_history(self, vm: Vm, host: Host, system: Datastore) -> History:
        """Let a stay of a VM on a host begin."""
        with self.core.lock:
            now = self.core.now()
            if vm.history and not vm.here.etime:
                vm.here.etime = now
            record = History(
                seq=len(vm.history),
                host=host.name,
                host_id=host.id,
                vm_mad=host.vm_mad,
                tm_mad=system.tm_mad,
                datastore_id=system.id,
                stime=now,
            )
            vm.history.append(record)
            return record

    def repeat_history(self, vm: Vm, record: History | None = None) -> History:
        """Let another stay begin where the VM is, or where ``record`` says."""
        with self.core.lock:
            record = record or vm.here
            host = self.core.hosts[record.host_id]
            return self.new_history(vm, host, self.core.get_datastore(record.datastore_id))

    def note(self, vm: Vm, action: Action, user: User) -> None:
        """Write down in the history what was asked for and by whom."""
        with self.core.lock:
            record = vm.here
            record.action, record.uid, record.gid, record.request_id = action, user.id, user.gid, 0

    def begin(self, vm: Vm, action: Action, user: User) -> None:
        """Write down a change of disks: it ends the VM's stay, and another one begins where the VM is."""
        with self.core.lock:
            before = vm.here.action
            self.note(vm, action, user)
            record = self.repeat_history(vm)
            if vm.state is not VmState.ACTIVE:
                record.action = before
            else:
                record.rstime = self.core.now()

    # -- transfer scripts

    def run_script(self, vm: Vm, lines: Sequence[Line], is_stubborn: bool = False) -> None:
        """Run the calls of a transfer script up to the first failure, which is raised with its text."""
        with self.core.tm_slot():
            for line in lines:
                answer = self.core.drivers.run("tm", line.driver, line.action, line.argv)
                if answer.rc and not is_stubborn:
                    raise DriverError(self.core.error_text(answer.stderr))

    # -- phases and boots

    def phase(self, vm: Vm, state: LcmState) -> None:
        """Enter a state of the transfer manager, do its work, and go on."""
        self._carry_out(vm, state, self._begin_phase(vm, state))

    def start_phase(self, vm: Vm, state: LcmState, name: str) -> None:
        """Enter a state of the transfer manager at once; the rest is work of a thread called ``name``."""
        lines = self._begin_phase(vm, state)
        self.core.spawn(lambda: self._carry_out(vm, state, lines), name)

    def _begin_phase(self, vm: Vm, state: LcmState) -> list[Line]:
        with self.core.lock:
            lines = self._lines(vm, state)
            self._stamp(vm, state, begins=True)
        self.core.enter_lcm(vm, state)
        return lines

    def _carry_out(self, vm: Vm, state: LcmState, lines: Sequence[Line]) -> None:
        try:
            self.run_script(vm, lines)
        except DriverError as failure:
            if self._is_still(vm, state):
                self.core.set_vm_error(vm, SCRIPT_ERROR, failure.text)
                self.core.enter_lcm(vm, PHASES[state].failure)
            return
        if self._is_still(vm, state):
            self.after_phase(vm, state)

    def _is_still(self, vm: Vm, state: LcmState) -> bool:
        """Tell whether a VM is in a state: what a driver answers after it was given up changes nothing."""
        with self.core.lock:
            return vm.state is VmState.ACTIVE and vm.lcm_state is state

    def after_phase(self, vm: Vm, state: LcmState) -> None:
        """Go on after the work of a transfer manager's state has been done."""
        plan = PHASES[state]
        with self.core.lock:
            self._stamp(vm, state, begins=False)
        if state is LcmState.EPILOG:
            self.finish(vm)
        elif plan.boot is LcmState.BOOT_MIGRATE and vm.here.action in _POWEROFF_MIGRATIONS:
            self.boot(vm, LcmState.BOOT)
        elif plan.boot is not None:
            self.boot(vm, plan.boot)
        elif plan.rest is not None:
            vm.is_stored = plan.rest in (VmState.STOPPED, VmState.UNDEPLOYED)
            self.core.enter_vm(vm, plan.rest)

    def _stamp(self, vm: Vm, state: LcmState, begins: bool) -> None:
        now = self.core.now()
        name = "e" if state.name.startswith("EPILOG") else "p"
        setattr(vm.here, f"{name}stime" if begins else f"{name}etime", now)

    def _lines(self, vm: Vm, state: LcmState) -> list[Line]:
        writer, front_end = self.core.writer, self.core.config.hostname
        here = vm.here
        if state is LcmState.PROLOG:
            return writer.prolog(vm)
        if state in (LcmState.PROLOG_RESUME, LcmState.PROLOG_UNDEPLOY):
            return writer.move(vm, (front_end, vm.history[-2]), (here.host, here))
        if state in (LcmState.EPILOG_STOP, LcmState.EPILOG_UNDEPLOY):
            return writer.move(vm, (here.host, here), (front_end, here))
        if state is LcmState.EPILOG:
            return writer.epilog(vm, front_end if vm.is_stored else None)
        before = vm.history[-2]
        return writer.move(vm, (before.host, before), (here.host, here))

    def boot(self, vm: Vm, state: LcmState) -> None:
        """Make the context disk and start or restore the domain."""
        self._begin_boot(vm, state)
        self._start_domain(vm, state)

    def start_boot(self, vm: Vm, state: LcmState, name: str) -> None:
        """Enter a state of booting at once; the rest is work of a thread called ``name``."""
        self._begin_boot(vm, state)
        self.core.spawn(lambda: self._start_domain(vm, state), name)

    def _begin_boot(self, vm: Vm, state: LcmState) -> None:
        with self.core.lock:
            self.write_files(vm)
        self.core.enter_lcm(vm, state)

    def _start_domain(self, vm: Vm, state: LcmState) -> None:
        plan = BOOTS[state]
        try:
            answer = self.vmm.start(vm, plan.action)
        except DriverError as failure:
            if not self._is_still(vm, state):
                return
            self.core.set_vm_error(vm, plan.action.upper(), failure.text)
            if isinstance(plan.failure, VmState):
                self.core.enter_vm(vm, plan.failure)
            else:
                self.core.enter_lcm(vm, plan.failure)
            return
        if self._is_still(vm, state):
            self._is_running(vm, answer)

    def _is_running(self, vm: Vm, answer: Answer) -> None:
        with self.core.lock:
            if answer.stdout.strip():
                vm.deploy_id = answer.stdout.strip()
            vm.here.rstime = self.core.now()
        self.core.enter_lcm(vm, LcmState.RUNNING)

    def write_files(self, vm: Vm) -> None:
        """Write deployment.K and context.sh to the VM's directory on the front-end."""
        directory = self.core.config.vms / str(vm.id)
        directory.mkdir(parents=True, exist_ok=True)
        where = self.core.writer.directory(vm.here, vm.id)
        version = ".".join(map(str, self.core.config.version))
        (directory / f"deployment.{vm.here.seq}").write_text(domain_xml(vm, where, version))
        context = vm.template.vector("CONTEXT")
        if context is not None:
            (directory / "context.sh").write_text(context_script(context))

    # -- ends

    def start_shutdown(self, vm: Vm, plan: Shutdown, name: str) -> None:
        """Begin to end the domain; that and what follows is work of a thread called ``name``."""
        self.core.enter_lcm(vm, plan.state)
        self.core.spawn(lambda: self._shut_down(vm, plan), name)

    def _shut_down(self, vm: Vm, plan: Shutdown) -> None:
        try:
            self.vmm.stop(vm, plan.vmm_action)
        except DriverError as failure:
            self.core.set_vm_error(vm, plan.vmm_action.upper(), failure.text)
            self.core.enter_lcm(vm, LcmState.RUNNING)
            return
        with self.core.lock:
            vm.here.retime = self.core.now()
        if plan.phase is not None:
            self.phase(vm, plan.phase)
        elif plan.rest is not None:
            with self.core.lock:
                vm.here.etime = self.core.now()
            self.core.enter_vm(vm, plan.rest)

    def finish(self, vm: Vm, failed: bool = False) -> None:
        """Let a VM end: images are released, the VM is kept as DONE."""
        self.disks.release_all(vm, failed)
        with self.core.lock:
            vm.etime = self.core.now()
            if vm.history and not vm.here.etime:
                vm.here.etime = vm.etime
        self.core.enter_vm(vm, VmState.DONE)

    def reboot(self, vm: Vm) -> None:
        """Reboot the domain; failing changes nothing but the error text."""
        try:
            self.vmm.stop(vm, "reboot")
        except DriverError as failure:
            self.core.set_vm_error(vm, "REBOOT", failure.text)

    def clean_up(self, vm: Vm, has_domain: bool) -> None:
        """Cancel the domain and remove every disk, whatever fails."""
        self.vmm.clean_up(vm, has_domain)

    # -- migrations

    def start_migrate_live(self, vm: Vm, host: Host, system: Datastore, name: str) -> None:
        """Begin to move the running domain to another host, or to another system datastore on its host."""
        before = vm.here
        with self.core.lock:
            before.retime = self.core.now()
            after = self.new_history(vm, host, system)
            self._place_volatile(vm, system)
        self.core.enter_lcm(vm, LcmState.MIGRATE)
        self.core.spawn(lambda: self._migrate_live(vm, before, after), name)

    def _migrate_live(self, vm: Vm, before: History, after: History) -> None:
        try:
            self.vmm.migrate(vm, before, after)
        except DriverError as failure:
            self.core.set_vm_error(vm, "MIGRATE", failure.text)
            with self.core.lock:
                self._return(vm, before)
        else:
            with self.core.lock:
                after.rstime = self.core.now()
        self.core.enter_lcm(vm, LcmState.RUNNING)

    def _place_volatile(self, vm: Vm, system: Datastore) -> None:
        for disk in vm.disks:
            if "IMAGE_ID" not in disk:
                self.disks.place_disk(disk, system, is_attach=False)

    def arrive(self, vm: Vm, host: Host, system: Datastore) -> None:
        """Write down that a VM goes to a host and system datastore, before anything is moved."""
        with self.core.lock:
            vm.here.retime = vm.here.retime or self.core.now()
            self.new_history(vm, host, system)
            self._place_volatile(vm, system)

    def start_migrate_cold(self, vm: Vm, before: History, vmm_action: str, name: str) -> None:
        """Begin to end the domain where it was ``before``, move its disks and start it again."""
        self.core.enter_lcm(vm, LcmState.SAVE_MIGRATE)
        self.core.spawn(lambda: self._migrate_cold(vm, before, vmm_action), name)

    def _migrate_cold(self, vm: Vm, before: History, vmm_action: str) -> None:
        try:
            self.vmm.stop(vm, vmm_action, before)
        except DriverError as failure:
            self.core.set_vm_error(vm, vmm_action.upper(), failure.text)
            with self.core.lock:
                self._return(vm, before)
            self.core.enter_lcm(vm, LcmState.RUNNING)
            return
        self.phase(vm, LcmState.PROLOG_MIGRATE)

    def _return(self, vm: Vm, before: History) -> None:
        """Write down that a VM is still where it was."""
        self.repeat_history(vm, before)
        vm.here.rstime = self.core.now()
        self._place_volatile(vm, self.core.get_datastore(before.datastore_id))
