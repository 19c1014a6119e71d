# SPDX-License-Identifier: Apache-2.0
"""VMs: requests about their life."""

from __future__ import annotations

import uuid
from functools import partial

from lab.oned import documents, vm_documents
from lab.oned.core import Core
from lab.oned.disks import Disks
from lab.oned.engine import Engine
from lab.oned.errors import Code, RefusedError
from lab.oned.model import Datastore, Host, User, Vm
from lab.oned.states import BOOTS, PHASES, SHUTDOWNS, Action, LcmState, VmState
from lab.oned.templates import Template, TemplateError, parse
from lab.oned.users import require

__all__ = ["Vms", "wrong_state"]

_KNOWN = frozenset(
    (
        "CPU",
        "VCPU",
        "MEMORY",
        "OS",
        "CONTEXT",
        "DISK",
        "NIC",
        "GRAPHICS",
        "FEATURES",
        "INPUT",
        "RAW",
        "CPU_MODEL",
    )
)
_COLD = {
    0: ("save", Action.MIGRATE),
    1: ("shutdown", Action.POFF_MIGRATE),
    2: ("cancel", Action.POFF_HARD_MIGRATE),
}
_RESTING = (VmState.POWEROFF, VmState.SUSPENDED, VmState.STOPPED, VmState.UNDEPLOYED)


def wrong_state(what: str, vm: Vm) -> RefusedError:
    """Refuse what a VM's state does not allow."""
    return RefusedError(Code.ACTION, f"Could not {what} VM {vm.id}, wrong state {vm.shown_state}.")


class Vms:
    """Requests about the life of VMs."""

    def __init__(self, core: Core, disks: Disks, engine: Engine) -> None:
        self.core = core
        self.disks = disks
        self.engine = engine

    # -- making

    def allocate(self, user: User, text: str, is_held: bool = False) -> int:
        """Make a VM of a template; it waits to be deployed."""
        core = self.core
        try:
            given = parse(text)
        except TemplateError as error:
            raise RefusedError(Code.INTERNAL, str(error)) from error
        with core.lock:
            vm = self._new(user, given, is_held)
            try:
                for disk in given.vectors("DISK"):
                    self.disks.add(vm, disk, is_attach=False)
            except RefusedError:
                self.disks.release_all(vm)
                core.last_ids["VM"] -= 1
                raise
            context = given.vector("CONTEXT")
            if context is not None:
                vm.template.set("CONTEXT", {**context, "DISK_ID": str(vm.next_disk)})
            self.disks.set_targets(vm)
            core.vms[vm.id] = vm
        core.enter_vm(vm, VmState.HOLD if is_held else VmState.PENDING)
        return vm.id

    def _new(self, user: User, given: Template, is_held: bool) -> Vm:
        number = self.core.next_id("VM")
        config = given.vector("BACKUP_CONFIG")
        template, user_template = Template(), Template()
        for name, values in given.copy().values.items():
            if name in ("NAME", "DISK", "CONTEXT", "BACKUP_CONFIG"):
                continue
            target = template if name in _KNOWN else user_template
            target.values[name] = values
        system = dict(template.vector("OS") or {})
        system.setdefault("MACHINE", "q35")
        system.setdefault("UUID", str(uuid.uuid4()))
        template.set("OS", system)
        template.set("VMID", str(number))
        template.set("AUTOMATIC_REQUIREMENTS", "(CLUSTER_ID = 0) & !(PIN_POLICY = PINNED)")
        template.set("AUTOMATIC_DS_REQUIREMENTS", '("CLUSTERS/ID" @> 0)')
        template.set("AUTOMATIC_NIC_REQUIREMENTS", '("CLUSTERS/ID" @> 0)')
        if is_held:
            template.set("SUBMIT_ON_HOLD", "YES")
        vm = Vm(
            id=number,
            name=given.get("NAME") or f"one-{number}",
            owner=self.core.owner(user),
            template=template,
            user_template=user_template,
            stime=self.core.now(),
            state=VmState.INIT,
        )
        if config is not None:
            vm.backups.config = config
        return vm

    # -- showing

    def info(self, user: User, vm_id: int, _decrypt: bool = False) -> str:
        """Give the XML of a VM."""
        with self.core.lock:
            vm = self.core.get_vm(vm_id)
            require(user, vm.owner, "USE", "VM", vm_id)
            return vm_documents.vm_xml(vm, whole_history=True)

    def pool(
        self, user: User, whose: int = -2, start: int = -1, end: int = -1, state: int = -1, _query: str = ""
    ) -> str:
        """Give the short XML of VMs, the newest first: not DONE (-1), all (-2), or in one state."""
        return self._pool(user, whose, start, end, state, is_whole=False)

    def pool_extended(
        self, user: User, whose: int = -2, start: int = -1, end: int = -1, state: int = -1, _query: str = ""
    ) -> str:
        """Give the whole XML of VMs."""
        return self._pool(user, whose, start, end, state, is_whole=True)

    def _pool(self, user: User, whose: int, start: int, end: int, state: int, is_whole: bool) -> str:
        with self.core.lock:
            shown = []
            for vm in sorted(self.core.vms.values(), key=lambda v: -v.id):
                is_visible = (user.is_admin and whose == -2) or vm.owner.uid == (
                    user.id if whose < 0 else whose
                )
                is_in_state = (
                    state == -2 or (state == -1 and vm.state is not VmState.DONE) or int(vm.state) == state
                )
                is_in_range = start < 0 or (start <= vm.id and (end < 0 or vm.id <= end))
                if is_visible and is_in_state and is_in_range:
                    shown.append(vm_documents.vm_xml(vm, True) if is_whole else vm_documents.vm_xml_short(vm))
            return documents.pool_xml("VM", shown)

    # -- placing

    def deploy(
        self,
        user: User,
        vm_id: int,
        host_id: int,
        _enforce: bool = False,
        datastore_id: int = -1,
        _extra: str = "",
    ) -> int:
        """Start a VM on a host with its disks in a system datastore."""
        core = self.core
        with core.lock:
            vm = core.get_vm(vm_id)
            require(user, vm.owner, "ADMIN", "VM", vm_id)
            if vm.state not in (VmState.PENDING, VmState.HOLD):
                raise wrong_state("deploy", vm)
            host = core.get_host(host_id)
            system = self._system_datastore(vm, datastore_id)
            self.disks.check_modes(vm, system)
            state = LcmState.PROLOG
            if vm.is_stored:
                is_stopped = vm.here.action is Action.STOP
                state = LcmState.PROLOG_RESUME if is_stopped else LcmState.PROLOG_UNDEPLOY
            self.engine.new_history(vm, host, system)
            self.disks.place(vm, system)
            vm.is_stored = False
            core.enter_vm(vm, VmState.ACTIVE)
        self.engine.start_phase(vm, state, f"deploy-{vm_id}")
        return vm_id

    def _system_datastore(self, vm: Vm, datastore_id: int) -> Datastore:
        if datastore_id == -1 and vm.history:
            datastore_id = vm.here.datastore_id
        if datastore_id == -1:
            systems = [d for d in self.core.datastores.values() if d.is_system and d.is_enabled]
            if not systems:
                raise RefusedError(Code.ACTION, "No suitable System Datastore found for this VM.")
            return systems[0]
        datastore = self.core.get_datastore(datastore_id)
        if not datastore.is_system:
            raise RefusedError(
                Code.ACTION, f"Trying to use an image datastore {datastore_id} as system datastore"
            )
        return datastore

    def migrate(
        self,
        user: User,
        vm_id: int,
        host_id: int,
        is_live: bool = False,
        _enforce: bool = False,
        datastore_id: int = -1,
        kind: int = 0,
    ) -> int:
        """Move a VM to another host or system datastore; ``kind``: by saving (0), power off (1), hard (2)."""
        core, engine = self.core, self.engine
        with core.lock:
            vm = core.get_vm(vm_id)
            require(user, vm.owner, "ADMIN", "VM", vm_id)
            host = core.get_host(host_id)
            if not vm.history:
                raise wrong_state("migrate", vm)
            system = self._system_datastore(vm, datastore_id)
            if system.id != vm.here.datastore_id:
                self.disks.check_modes(vm, system)
            is_running = vm.lcm_state is LcmState.RUNNING
            if is_running and is_live:
                self._check_live(vm, host, system)
            self._require_same_kind(vm)
            if is_running and is_live:
                engine.note(vm, Action.LIVE_MIGRATE, user)
                engine.start_migrate_live(vm, host, system, f"migrate-{vm_id}")
            elif is_running:
                action, history = _COLD[kind]
                engine.note(vm, history, user)
                before = vm.here
                engine.arrive(vm, host, system)
                engine.note(vm, history, user)
                engine.start_migrate_cold(vm, before, action, f"migrate-{vm_id}")
            elif vm.state in (VmState.POWEROFF, VmState.SUSPENDED):
                state = (
                    LcmState.PROLOG_MIGRATE_POWEROFF
                    if vm.state is VmState.POWEROFF
                    else LcmState.PROLOG_MIGRATE_SUSPEND
                )
                engine.arrive(vm, host, system)
                engine.start_phase(vm, state, f"migrate-{vm_id}")
            else:
                raise wrong_state("migrate", vm)
        return vm_id

    def _require_same_kind(self, vm: Vm) -> None:
        """Bind a VM that has been deployed to system datastores of the same transfer manager."""
        requirement = f'("CLUSTERS/ID" @> 0) & (TM_MAD = "{vm.here.tm_mad}")'
        vm.template.set("AUTOMATIC_DS_REQUIREMENTS", requirement)

    def _check_live(self, vm: Vm, host: Host, system: Datastore) -> None:
        if system.id != vm.here.datastore_id and host.id != vm.here.host_id:
            raise RefusedError(Code.ACTION, "Cannot live migrate host and datastore at the same time.")

    # -- actions

    def action(self, user: User, name: str, vm_id: int) -> int:
        """Do what ``onevm`` calls poweroff, resume, terminate and so on."""
        with self.core.lock:
            vm = self.core.get_vm(vm_id)
            require(user, vm.owner, "MANAGE", "VM", vm_id)
            try:
                self._act(user, vm, name)
            except RefusedError as refused:
                text = f'Error performing action "{name}": {refused.text}'
                raise RefusedError(refused.code, text) from None
        return vm_id

    def _act(self, user: User, vm: Vm, name: str) -> None:
        core, engine = self.core, self.engine
        if name in SHUTDOWNS:
            self._end(user, vm, name)
        elif name == "resume":
            self._resume(user, vm)
        elif name in ("reboot", "reboot-hard") and vm.lcm_state is LcmState.RUNNING:
            core.spawn(lambda: engine.reboot(vm), f"reboot-{vm.id}")
        elif name == "hold" and vm.state is VmState.PENDING:
            core.enter_vm(vm, VmState.HOLD)
        elif name == "release" and vm.state is VmState.HOLD:
            core.enter_vm(vm, VmState.PENDING)
        else:
            raise wrong_state(name.removesuffix("-hard"), vm)

    def _end(self, user: User, vm: Vm, name: str) -> None:
        engine, plan = self.engine, SHUTDOWNS[name]
        verb = name.removesuffix("-hard")
        if vm.state is VmState.ACTIVE and vm.lcm_state in (LcmState.RUNNING, LcmState.UNKNOWN):
            engine.note(vm, plan.history, user)
            engine.start_shutdown(vm, plan, f"{name}-{vm.id}")
            return
        resting = {"stop": (VmState.SUSPENDED,), "undeploy": (VmState.POWEROFF,), "terminate": _RESTING}
        if vm.state in resting.get(verb, ()) and plan.phase is not None:
            phase = plan.phase
            if not vm.is_stored:
                engine.note(vm, plan.history, user)
            engine.start_phase(vm, phase, f"{name}-{vm.id}")
        elif verb == "terminate" and vm.state in (VmState.PENDING, VmState.HOLD):
            engine.finish(vm)
        else:
            raise wrong_state(verb, vm)

    def _resume(self, user: User, vm: Vm) -> None:
        engine = self.engine
        boots = {VmState.POWEROFF: LcmState.BOOT_POWEROFF, VmState.SUSPENDED: LcmState.BOOT_SUSPENDED}
        if vm.state in boots:
            state = boots[vm.state]
            engine.repeat_history(vm)
            if vm.state is VmState.SUSPENDED:
                engine.note(vm, Action.RESUME, user)
            engine.start_boot(vm, state, f"resume-{vm.id}")
        elif vm.state in (VmState.STOPPED, VmState.UNDEPLOYED):
            self._wait_for_placement(vm)
        else:
            raise wrong_state("resume", vm)

    def _wait_for_placement(self, vm: Vm) -> None:
        """Let a VM that had been deployed wait to be deployed again, to a datastore of the same kind."""
        self._require_same_kind(vm)
        self.core.enter_vm(vm, VmState.PENDING)

    # -- recovering

    def recover(self, user: User, vm_id: int, operation: int) -> int:
        """Recover a VM: 1 success, 2 retry, 3 delete, 4 delete and recreate, 5 forget."""
        with self.core.lock:
            vm = self.core.get_vm(vm_id)
            require(user, vm.owner, "ADMIN", "VM", vm_id)
            steps = {1: self._succeed, 2: self._retry, 3: self._delete, 4: self._recreate, 5: self._forget}
            if vm.state is VmState.DONE or operation not in steps:
                raise wrong_state("recover", vm)
            steps[operation](user, vm)
        return vm_id

    def _retry(self, user: User, vm: Vm) -> None:
        engine = self.engine
        phase = next((state for state, plan in PHASES.items() if plan.failure is vm.lcm_state), None)
        boot = next((state for state, plan in BOOTS.items() if plan.failure is vm.lcm_state), None)
        if phase is not None:
            engine.start_phase(vm, phase, f"retry-{vm.id}")
        elif boot is not None:
            engine.start_boot(vm, boot, f"retry-{vm.id}")
        else:
            raise wrong_state("recover", vm)

    def _succeed(self, user: User, vm: Vm) -> None:
        core, engine = self.core, self.engine
        phase = next((state for state, plan in PHASES.items() if plan.failure is vm.lcm_state), None)
        if phase is not None:
            core.spawn(partial(engine.after_phase, vm, phase), f"success-{vm.id}")
        elif any(plan.failure is vm.lcm_state for plan in BOOTS.values()):
            core.enter_lcm(vm, LcmState.RUNNING)
        else:
            raise wrong_state("recover", vm)

    def _has_domain(self, vm: Vm) -> bool:
        """Tell whether a domain may be there, so that it is cancelled before its disks are removed."""
        return vm.state is VmState.ACTIVE and not vm.lcm_state.name.startswith(("PROLOG", "EPILOG"))

    def _delete(self, user: User, vm: Vm) -> None:
        core, engine = self.core, self.engine
        has_domain, was_placed = self._has_domain(vm), bool(vm.history)
        if was_placed:
            engine.note(vm, Action.DELETE, user)
            core.enter_lcm(vm, LcmState.CLEANUP_DELETE)
        engine.finish(vm, failed=was_placed)
        if was_placed:
            core.spawn(lambda: engine.clean_up(vm, has_domain), f"clean-up-{vm.id}")

    def _recreate(self, user: User, vm: Vm) -> None:
        core, engine = self.core, self.engine
        if not vm.history:
            raise wrong_state("recover", vm)
        has_domain = self._has_domain(vm)
        engine.note(vm, Action.DELETE_RECREATE, user)
        core.enter_lcm(vm, LcmState.CLEANUP_RESUBMIT)

        def work() -> None:
            engine.clean_up(vm, has_domain)
            with core.lock:
                vm.here.etime = core.now()
                vm.is_stored = False
                self._wait_for_placement(vm)

        core.spawn(work, f"recreate-{vm.id}")

    def _forget(self, user: User, vm: Vm) -> None:
        self.engine.finish(vm)
