# SPDX-License-Identifier: Apache-2.0
"""What all parts of the stand-in share: the objects, the lock around them, events, threads and drivers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from lab.oned import documents, vm_documents
from lab.oned.config import OnedConfig
from lab.oned.drivers import Drivers
from lab.oned.errors import Code, RefusedError, driver_error_text, vm_error_text
from lab.oned.hypervisor import Hypervisor
from lab.oned.model import Datastore, Host, Image, Owner, User, Vm
from lab.oned.scripts import ScriptWriter
from lab.oned.states import HostState, ImageState, LcmState, VmState

__all__ = ["ApiEvent", "Core", "Event", "StateEvent"]

_Object = TypeVar("_Object", Datastore, Image, Vm, Host, User)


@dataclass(frozen=True, slots=True)
class StateEvent:
    """An object changed its state; ``lcm`` is empty but for VMs, ``document`` is its XML at that time."""

    kind: str
    id: int
    state: str
    lcm: str = ""
    document: str = field(default="", repr=False, compare=False)

    def as_recorded(self) -> list[object]:
        """Give the event as the recorded life cycles write it."""
        return [self.kind, self.id, self.state, *([self.lcm] if self.lcm else [])]


@dataclass(frozen=True, slots=True)
class ApiEvent:
    """A request was answered; ``document`` is the XML of the object that it made, if any."""

    method: str
    is_success: bool
    parameters: tuple[object, ...]
    answer: tuple[object, ...]
    document: str = field(default="", repr=False, compare=False)


Event = StateEvent | ApiEvent


class Core:
    """The objects by kind and id. Hold ``lock`` while touching them; it is notified at every change."""

    def __init__(self, config: OnedConfig, drivers: Drivers, hypervisor: Hypervisor) -> None:
        self.config = config
        self.drivers = drivers
        self.hypervisor = hypervisor
        self.writer = ScriptWriter(config.hostname, config.datastores, config.vms)
        self.lock = threading.Condition(threading.RLock())
        self.users: dict[int, User] = {}
        self.datastores: dict[int, Datastore] = {}
        self.images: dict[int, Image] = {}
        self.vms: dict[int, Vm] = {}
        self.hosts: dict[int, Host] = {}
        self.last_ids = {
            "DATASTORE": config.first_datastore - 1,
            "IMAGE": -1,
            "VM": -1,
            "HOST": -1,
            "SYNC": -1,
        }
        self.events: list[StateEvent] = []
        self.subscribers: list[Callable[[Event], None]] = []
        self._threads: set[threading.Thread] = set()

    # -- time and ids

    def now(self) -> int:
        """Give the time in seconds."""
        return int(self.config.clock())

    def date(self) -> str:
        """Give the time as error attributes write it."""
        return time.ctime(self.config.clock())

    def next_id(self, kind: str) -> int:
        """Give the next id of a kind of object."""
        with self.lock:
            self.last_ids[kind] += 1
            return self.last_ids[kind]

    # -- threads

    def spawn(self, work: Callable[[], None], name: str) -> None:
        """Do work in a thread of its own."""

        def run() -> None:
            try:
                work()
            finally:
                with self.lock:
                    self._threads.discard(threading.current_thread())
                    self.lock.notify_all()

        thread = threading.Thread(target=run, name=f"oned-{name}", daemon=True)
        with self.lock:
            self._threads.add(thread)
        thread.start()

    def idle(self, deadline: float) -> bool:
        """Wait until no work is being done; tell whether that came about in ``deadline`` seconds."""
        with self.lock:
            return self.lock.wait_for(lambda: not self._threads, deadline)

    # -- events

    def publish(self, event: Event) -> None:
        """Keep a state event and tell the subscribers."""
        with self.lock:
            if isinstance(event, StateEvent):
                self.events.append(event)
            subscribers = list(self.subscribers)
            self.lock.notify_all()
        for subscriber in subscribers:
            subscriber(event)

    def enter_image(self, image: Image, state: ImageState) -> None:
        """Give an image a state; the event is sent when it is another one."""
        with self.lock:
            before = image.state
            image.state = image.prev_state = state
            changed = state is not before
            document = documents.image_xml(image)
        if changed:
            self.publish(StateEvent("IMAGE", image.id, state.event_name, "", document))

    def announce_image(self, image: Image, state: ImageState) -> None:
        """Give a new image its first shown state and send the event, changed or not."""
        with self.lock:
            image.state = image.prev_state = state
            document = documents.image_xml(image)
        self.publish(StateEvent("IMAGE", image.id, state.event_name, "", document))

    def enter_vm(self, vm: Vm, state: VmState, lcm: LcmState = LcmState.LCM_INIT) -> None:
        """Give a VM a state and send the event."""
        with self.lock:
            vm.state, vm.lcm_state = state, lcm
            document = vm_documents.vm_xml(vm, whole_history=True)
        self.publish(StateEvent("VM", vm.id, state.name, lcm.name, document))

    def enter_lcm(self, vm: Vm, lcm: LcmState) -> None:
        """Let an active VM do something."""
        self.enter_vm(vm, VmState.ACTIVE, lcm)

    def enter_host(self, host: Host, state: HostState) -> None:
        """Give a host a state and send the event."""
        with self.lock:
            host.state = state
            document = documents.host_xml(host)
        self.publish(StateEvent("HOST", host.id, state.name, "", document))

    # -- errors

    def error_text(self, stderr: str) -> str:
        """Form what is kept of a driver's stderr."""
        return driver_error_text(stderr, self.config.version[:2])

    def set_vm_error(self, vm: Vm, prefix: str, text: str) -> None:
        """Set a VM's ERROR attribute, unless there is nothing to say."""
        message = vm_error_text(prefix, text)
        if message is None:
            return
        with self.lock:
            vm.user_template.set("ERROR", f"{self.date()}: {message}")

    def set_image_error(self, image: Image, text: str) -> None:
        """Set an image's ERROR attribute."""
        with self.lock:
            image.template.set("ERROR", f"{self.date()} : {text}")

    # -- finding

    def get_datastore(self, datastore_id: int) -> Datastore:
        """Give a datastore or refuse the request."""
        return _found(self.datastores, datastore_id, "datastore")

    def get_image(self, image_id: int) -> Image:
        """Give an image or refuse the request."""
        return _found(self.images, image_id, "image")

    def get_vm(self, vm_id: int) -> Vm:
        """Give a VM or refuse the request."""
        return _found(self.vms, vm_id, "virtual machine")

    def get_host(self, host_id: int) -> Host:
        """Give a host or refuse the request."""
        return _found(self.hosts, host_id, "host")

    def owner(self, user: User) -> Owner:
        """Give the owner that a user's new objects have."""
        return Owner(user.id, user.gid, user.name, user.gname)

    # -- tm calls

    @contextmanager
    def tm_slot(self) -> Iterator[None]:
        """Take a place of the transfer manager driver."""
        with self.drivers.slot("tm"):
            yield

    @contextmanager
    def vmm_slot(self) -> Iterator[None]:
        """Take a place of the virtual machine driver."""
        with self.drivers.slot("vmm"):
            yield


def _found(objects: dict[int, _Object], object_id: int, name: str) -> _Object:
    try:
        return objects[object_id]
    except KeyError:
        raise RefusedError(Code.NO_EXISTS, f"Error getting {name} [{object_id}].", object_id) from None
