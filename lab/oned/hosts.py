# SPDX-License-Identifier: Apache-2.0
"""Hosts: requests about them."""

from __future__ import annotations

from lab.oned import documents
from lab.oned.core import Core
from lab.oned.errors import Code, RefusedError
from lab.oned.model import Host, User
from lab.oned.states import HostState, VmState

__all__ = ["Hosts"]

_STATUS = (HostState.INIT, HostState.DISABLED, HostState.OFFLINE)


class Hosts:
    """Requests about hosts."""

    def __init__(self, core: Core) -> None:
        self.core = core
        for name in core.config.hosts:
            number = core.next_id("HOST")
            core.hosts[number] = Host(number, name, core.config.vm_mad)

    def allocate(
        self, user: User, name: str, im_mad: str = "kvm", vm_mad: str = "kvm", _cluster: int = -1
    ) -> int:
        """Add a host; one that cannot be reached ends in ERROR."""
        core = self.core
        self._require_admin(user, "CREATE HOST")
        with core.lock:
            taken = next((host for host in core.hosts.values() if host.name == name), None)
            if taken is not None:
                raise RefusedError(Code.INTERNAL, f"NAME is already taken by HOST {taken.id}.")
            number = core.next_id("HOST")
            host = core.hosts[number] = Host(number, name, vm_mad, im_mad, HostState.INIT)
            core.enter_host(host, HostState.INIT)
            is_there = name not in core.config.unreachable_hosts
            core.enter_host(host, HostState.MONITORED if is_there else HostState.ERROR)
        return number

    def status(self, user: User, host_id: int, status: int) -> int:
        """Enable (0), disable (1) or take offline (2) a host."""
        with self.core.lock:
            host = self.core.get_host(host_id)
            self._require_admin(user, f"ADMIN HOST [{host_id}]")
            if not 0 <= status < len(_STATUS):
                raise RefusedError(Code.INTERNAL, "Wrong status code")
            self.core.enter_host(host, _STATUS[status])
        return host_id

    def info(self, user: User, host_id: int, _decrypt: bool = False) -> str:
        """Give the XML of a host."""
        with self.core.lock:
            return self._document(self.core.get_host(host_id))

    def pool(self, user: User) -> str:
        """Give the XML of all hosts, the newest first."""
        with self.core.lock:
            hosts = sorted(self.core.hosts.values(), key=lambda host: -host.id)
            return documents.pool_xml("HOST", map(self._document, hosts))

    def _document(self, host: Host) -> str:
        running = [
            vm.id
            for vm in self.core.vms.values()
            if vm.state is VmState.ACTIVE and vm.history and vm.here.host_id == host.id
        ]
        return documents.host_xml(host, running)

    def _require_admin(self, user: User, right: str) -> None:
        if not user.is_admin:
            text = f"User [{user.id}] : Not authorized to perform {right}."
            raise RefusedError(Code.AUTHORIZATION, text)
