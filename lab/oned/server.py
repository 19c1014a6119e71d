# SPDX-License-Identifier: Apache-2.0
"""The stand-in as a whole: objects, drivers and the XML-RPC interface, in the threads of this process."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from lab.oned import documents, store, vm_documents
from lab.oned.backups import BackupRequests
from lab.oned.config import OnedConfig
from lab.oned.core import ApiEvent, Core, Event, StateEvent
from lab.oned.datastores import Datastores
from lab.oned.disks import Disks
from lab.oned.drivers import Builtin, DriverCall, Drivers
from lab.oned.engine import Engine
from lab.oned.hosts import Hosts
from lab.oned.hotplug import Hotplug
from lab.oned.hypervisor import FaultyHypervisor, LocalRunner, QuietHypervisor
from lab.oned.image_drivers import ImageDrivers
from lab.oned.images import Images
from lab.oned.model import Image, User, Vm
from lab.oned.rpc import RpcServer
from lab.oned.snapshots import SnapshotRequests
from lab.oned.stock_tm import STOCK_DRIVERS, StockTransferManager
from lab.oned.users import Users
from lab.oned.vms import Vms

__all__ = ["Oned"]

_TIME_TO_END = 5.0


class Oned:
    """A stand-in for oned; a context manager that serves while it is entered.

    ``hypervisor`` is what runs domains (by default one that does nothing and can be told to fail),
    ``calls`` are the driver calls in order, ``events`` the state changes.
    """

    def __init__(self, config: OnedConfig) -> None:
        self.config = config
        for path in (config.datastores, config.vms):
            path.mkdir(parents=True, exist_ok=True)
        self.session = f"oneadmin:{config.password}"
        self.auth_file = config.vms / ".one_auth"
        self.hypervisor = FaultyHypervisor(config.hypervisor or QuietHypervisor())
        runner = config.runner or LocalRunner()
        self._stock = {
            name: StockTransferManager(name, runner, str(config.datastores), config.version[:2])
            for name in STOCK_DRIVERS
        }
        self._drivers = Drivers(
            config.remotes, self._environment(), config.concurrency, config.driver_deadline, self._builtin
        )
        for stock in self._stock.values():
            stock.drivers = self._drivers
        self.core = Core(config, self._drivers, self.hypervisor)
        self.users = Users(self.core)
        self.hosts = Hosts(self.core)
        self.datastores = Datastores(self.core)
        image_drivers = ImageDrivers(self.core, self.datastores)
        disks = Disks(self.core)
        engine = Engine(self.core, self.datastores, disks)
        self.images = Images(self.core, self.datastores, image_drivers)
        self.vms = Vms(self.core, disks, engine)
        self.hotplug = Hotplug(self.core, disks, engine, image_drivers)
        self.snapshots = SnapshotRequests(self.core, engine)
        self.backups = BackupRequests(self.core, self.datastores, engine, image_drivers)
        self._rpc: RpcServer | None = None
        self._ending = threading.Event()
        self._monitor: threading.Thread | None = None

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL") if name in os.environ}
        return {**kept, "ONE_MAD_DEBUG": "", "PRIORITY": "19", **self.config.environment}

    def _builtin(self, driver: str, action: str) -> Builtin | None:
        stock = self._stock.get(driver)
        return None if stock is None else stock.action(action)

    # -- serving

    def start(self) -> None:
        """Begin to serve, and to monitor if an interval is configured."""
        _write_secret(self.auth_file, f"{self.session}\n")
        self._rpc = RpcServer(self.config.listen, self._methods(), self.users.authenticate, self._note)
        self._rpc.start()
        if self.config.give_endpoint:
            self._drivers.environment.setdefault("ONE_XMLRPC", self.endpoint)
            self._drivers.environment.setdefault("ONE_AUTH", str(self.auth_file))
        if self.config.monitor_interval is not None:
            self._monitor = threading.Thread(target=self._monitor_for_ever, name="oned-monitor", daemon=True)
            self._monitor.start()

    def stop(self) -> None:
        """End to serve; driver actions that still run are killed."""
        self._ending.set()
        if self._monitor is not None:
            self._monitor.join(_TIME_TO_END)
        if not self.core.idle(_TIME_TO_END if not self._drivers.is_busy else 0.2):
            self._drivers.stop()
            self.core.idle(_TIME_TO_END)
        if self._rpc is not None:
            self._rpc.stop()
            self._rpc = None

    def __enter__(self) -> Oned:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """Give the URL of the XML-RPC interface."""
        assert self._rpc is not None
        host, port = self._rpc.address
        return f"http://{host}:{port}/RPC2"

    def _methods(self) -> dict[str, Callable[..., object]]:
        datastores, images, vms = self.datastores, self.images, self.vms
        hotplug, snapshots = self.hotplug, self.snapshots
        version = ".".join(map(str, self.config.version))

        def system_version(user: User) -> str:
            return version

        return {
            "one.system.version": system_version,
            "one.user.login": self.users.login,
            "one.user.info": self.users.info,
            "one.datastore.allocate": datastores.allocate,
            "one.datastore.info": datastores.info,
            "one.datastore.update": datastores.update,
            "one.datastore.delete": datastores.delete,
            "one.datastore.enable": datastores.enable,
            "one.datastore.rename": datastores.rename,
            "one.datastorepool.info": datastores.pool,
            "one.image.allocate": images.allocate,
            "one.image.clone": images.clone,
            "one.image.delete": images.delete,
            "one.image.info": images.info,
            "one.image.persistent": images.persistent,
            "one.image.enable": images.enable,
            "one.image.chtype": images.chtype,
            "one.image.rename": images.rename,
            "one.image.update": images.update,
            "one.image.snapshotdelete": images.snapshot_delete,
            "one.image.snapshotrevert": images.snapshot_revert,
            "one.image.snapshotflatten": images.snapshot_flatten,
            "one.image.restore": images.restore,
            "one.imagepool.info": images.pool,
            "one.vm.allocate": vms.allocate,
            "one.vm.deploy": vms.deploy,
            "one.vm.action": vms.action,
            "one.vm.info": vms.info,
            "one.vm.migrate": vms.migrate,
            "one.vm.recover": vms.recover,
            "one.vm.attach": hotplug.attach,
            "one.vm.detach": hotplug.detach,
            "one.vm.disksaveas": hotplug.save_as,
            "one.vm.diskresize": hotplug.resize,
            "one.vm.disksnapshotcreate": snapshots.snapshot_create,
            "one.vm.disksnapshotdelete": snapshots.snapshot_delete,
            "one.vm.disksnapshotrevert": snapshots.snapshot_revert,
            "one.vm.snapshotcreate": snapshots.vm_snapshot_create,
            "one.vm.snapshotrevert": snapshots.vm_snapshot_revert,
            "one.vm.snapshotdelete": snapshots.vm_snapshot_delete,
            "one.vm.updateconf": self.backups.configure,
            "one.vm.backup": self.backups.backup,
            "one.vm.restore": self.backups.restore,
            "one.vmpool.info": vms.pool,
            "one.vmpool.infoextended": vms.pool_extended,
            "one.host.allocate": self.hosts.allocate,
            "one.host.status": self.hosts.status,
            "one.host.info": self.hosts.info,
            "one.hostpool.info": self.hosts.pool,
        }

    def _note(self, method: str, parameters: tuple[object, ...], answer: tuple[object, ...]) -> None:
        """Tell subscribers of a request that can change something; ``*.info`` is no event."""
        if method.endswith((".info", ".infoextended", ".version")):
            return
        document = ""
        if answer[0] and method.endswith((".allocate", ".clone")) and isinstance(answer[1], int):
            document = self._document(method, answer[1])
        self.core.publish(ApiEvent(method, bool(answer[0]), parameters, answer, document))

    def _document(self, method: str, number: int) -> str:
        with self.core.lock:
            if method.startswith("one.datastore."):
                return self.datastores.document(self.core.datastores[number])
            if method.startswith("one.image."):
                return documents.image_xml(self.core.images[number])
            if method.startswith("one.vm."):
                return vm_documents.vm_xml(self.core.vms[number], whole_history=True)
            return documents.host_xml(self.core.hosts[number])

    # -- watching

    @property
    def calls(self) -> list[DriverCall]:
        """Give the driver calls that have been made, in the order in which they began."""
        return self._drivers.finished()

    @property
    def events(self) -> list[StateEvent]:
        """Give the state changes, in order."""
        with self.core.lock:
            return list(self.core.events)

    def subscribe(self, subscriber: Callable[[Event], None]) -> None:
        """Let ``subscriber`` be called with every state change and every request that is no question.

        It is called in the thread of the change, which may hold the lock: it hands over and does not wait.
        """
        with self.core.lock:
            self.core.subscribers.append(subscriber)

    def wait(self, image: int, state: str, deadline: float = 30.0) -> None:
        """Wait until an image is in a state; GONE when it is no more. Raises TimeoutError."""

        def shown() -> str:
            found: Image | None = self.core.images.get(image)
            return "GONE" if found is None else found.state.name

        self._wait(shown, state, f"image {image}", deadline)

    def wait_vm(self, vm: int, state: str, deadline: float = 30.0) -> None:
        """Wait until a VM is in a state, named as LCM state while it is active. Raises TimeoutError."""

        def shown() -> str:
            found: Vm | None = self.core.vms.get(vm)
            return "GONE" if found is None else found.shown_state

        self._wait(shown, state, f"VM {vm}", deadline)

    def _wait(self, shown: Callable[[], str], state: str, what: str, deadline: float) -> None:
        with self.core.lock:
            if not self.core.lock.wait_for(lambda: shown() == state, deadline):
                raise TimeoutError(f"{what} is {shown()}, not {state}, after {deadline} seconds")

    def wait_idle(self, deadline: float = 30.0) -> None:
        """Wait until no work is being done in the background. Raises TimeoutError."""
        if not self.core.idle(deadline):
            raise TimeoutError(f"still working after {deadline} seconds")

    # -- monitoring

    def monitor_datastore(self, datastore_id: int) -> None:
        """Monitor one datastore now."""
        self.datastores.monitor(datastore_id)

    def monitor_all(self) -> None:
        """Monitor every datastore now."""
        with self.core.lock:
            numbers = sorted(self.core.datastores)
        for number in numbers:
            self.monitor_datastore(number)

    def _monitor_for_ever(self) -> None:
        assert self.config.monitor_interval is not None
        while not self._ending.wait(self.config.monitor_interval):
            self.monitor_all()

    # -- keeping

    def save(self, path: Path) -> None:
        """Write all objects, passwords among them, to a JSON file."""
        with self.core.lock:
            _write_secret(path, json.dumps(store.dump(self.core), indent=1))

    def load(self, path: Path) -> None:
        """Take all objects from a file that :meth:`save` has written."""
        with self.core.lock:
            store.restore(self.core, json.loads(path.read_text()))
            self.core.lock.notify_all()


def _write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)
