# SPDX-License-Identifier: Apache-2.0
"""A small cloud that runs the product whole, and the questions that the tests of life cycles ask of it.

oned's stand-in starts the real driver scripts; they reach a simulated array and hosts over real SSH, and the
volumes are served over real iSCSI. A test that asks only what is asked here runs for every storage system.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import subprocess
import xmlrpc.client
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest

from lab.host import PROGRAMS as HOST_PROGRAMS
from lab.oned import Answer, HostCall, QuietHypervisor
from lab.oned.drivers import DriverCall
from lab.scene import MIB, REMOTES, Scene
from lab.systems import BoxSystem, System
from lab.target import PROGRAMS as TARGET_PROGRAMS
from lab.v7000 import Box

__all__ = ["MIB", "PROGRAMS", "V7000_ONLY", "Cloud", "RefusedError", "digest", "written_file"]

V7000_ONLY = pytest.mark.parametrize("system", ["v7000"])
"""For tests of what only that system has, or does in its own way."""

ACTIONS = sorted({path.name for path in REMOTES.glob("*/*/*")})
PROGRAMS = (
    *HOST_PROGRAMS,
    *TARGET_PROGRAMS,
    *ACTIONS,
    *("tgtd", "tgtadm", "ssh-keygen", "qemu-img", "genisoimage", "blkid"),
    *("mkdir", "truncate", "dd", "cat", "test", "mv", "rm"),  # oned's own transfer managers
)
"""For ``@pytest.mark.real(*PROGRAMS)``. What the drivers and hosts start themselves is not in here."""

_CHUNK = 1 << 20
_SECONDS = 60.0
_IMAGE_STATES = ("INIT", "READY", "USED", "DISABLED", "LOCKED", "ERROR", "CLONE", "DELETE", "USED_PERS")

Mappings = Mapping[str, str | set[str]]


class RefusedError(Exception):
    """oned refused a request; the text is its own."""


class WatchingHypervisor(QuietHypervisor):
    """Notes what the links of a VM's disks led to when its domain was started."""

    def __init__(self, datastores: Path) -> None:
        super().__init__()
        self.datastores = datastores
        self.broken: list[str] = []

    def execute(self, call: HostCall) -> Answer:
        if call.action in ("deploy", "restore"):
            for disk in self.datastores.glob(f"*/{call.vm_id}/disk.*"):
                if not disk.exists():
                    self.broken.append(f"{disk} leads nowhere at {call.action} on {call.host}")
                elif disk.is_symlink() and f"/{call.host}/" not in str(disk.readlink()):
                    self.broken.append(f"{disk} leads to another host than {call.host} at {call.action}")
        return super().execute(call)


class Cloud:
    """A Scene with one image datastore (``san``) and one system datastore (``system``) in it.

    A context manager. ``files`` is a directory for images to import; keyword arguments go to Scene.
    """

    def __init__(self, directory: Path, system: str = "v7000", **scene: Any) -> None:
        self.driver = system
        self.files = directory / "files"
        self.files.mkdir()
        self.directory = directory / "cloud"
        self.hypervisor = WatchingHypervisor(self.directory / "datastores")
        scene["attributes"] = {"SAFE_DIRS": str(self.files), "NO_ISCSI": "", **scene.get("attributes", {})}
        scene["oned"] = {"monitor_after_operations": False, **scene.get("oned", {})}
        self.scene = Scene(self.directory, system=system, hypervisor=self.hypervisor, **scene)
        self._names = itertools.count()
        self._system: int | None = None

    def __enter__(self) -> Cloud:
        self.scene.__enter__()
        self.oned = self.scene.oned
        self._proxy = xmlrpc.client.ServerProxy(self.oned.endpoint)
        self.san = self.datastore("san")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._proxy("close")()
        self.scene.__exit__(kind, value, trace)

    # requests to oned

    def call(self, method: str, *parameters: object) -> Any:
        """Send a request and wait for all that follows from it; raises RefusedError."""
        answer = getattr(self._proxy, f"one.{method}")(self.oned.session, *parameters)
        self.oned.wait_idle(_SECONDS)
        if not answer[0]:
            raise RefusedError(answer[1])
        return answer[1]

    def datastore(self, name: str, **attributes: str) -> int:
        return int(self.call("datastore.allocate", self.scene.datastore_template(name, **attributes), -1))

    def system_datastore(self, name: str, **attributes: str) -> int:
        return int(self.call("datastore.allocate", self.scene.system_template(name, **attributes), -1))

    @property
    def system(self) -> int:
        """The system datastore, made when it is first needed."""
        if self._system is None:
            self._system = self.system_datastore("system")
        return self._system

    def image(self, *, state: str = "READY", datastore: int | None = None, **attributes: Any) -> int:
        """Make an image and wait for ``state``; a datablock of 4 MiB unless PATH or SIZE are given."""
        given = {"NAME": f"image {next(self._names)}", "TYPE": "OS", **attributes}
        if "PATH" not in given:
            given = {**given, "TYPE": "DATABLOCK", "SIZE": given.get("SIZE", 4)}
        text = "".join(f"<{key}>{escape(str(value))}</{key}>" for key, value in given.items())
        image = int(
            self.call(
                "image.allocate", f"<TEMPLATE>{text}</TEMPLATE>", self.san if datastore is None else datastore
            )
        )
        assert self.image_state(image) == state, self.failures()
        return image

    def imported(self, content: bytes, name: str = "disk.raw", **attributes: Any) -> int:
        """Import a raw image of ``content``."""
        return self.image(PATH=written_file(self.files / name, content), **attributes)

    def filled(self, content: bytes, **attributes: Any) -> int:
        """Make an image of ``content`` without an import: an empty volume, filled behind all backs."""
        image = self.image(SIZE=-(-len(content) // MIB), **attributes)
        with self.array.path(f"one-{image}").open("r+b") as volume:
            volume.write(content)
        return image

    def delete(self, *images: int) -> None:
        """Delete images, all at once, and see that they are gone."""
        for image in images:
            getattr(self._proxy, "one.image.delete")(self.oned.session, image)
        self.oned.wait_idle(_SECONDS)
        assert {self.image_state(image) for image in images} == {"GONE"}, self.failures()

    def make_vm(self, *disks: str, context: bool = False) -> int:
        """Register a VM on hold; a disk is what stands in ``DISK=[...]``."""
        lines = [f'NAME="vm {next(self._names)}"\nCPU="0.1"\nMEMORY="64"']
        lines += [f"DISK=[{disk}]" for disk in disks]
        lines += ['CONTEXT=[ROLE="db"]'] if context else []
        return int(self.call("vm.allocate", "\n".join(lines), True))

    def deploy(
        self, vm: int, host: str = "node1", datastore: int | None = None, state: str = "RUNNING"
    ) -> None:
        number = self.scene.host_names.index(host)
        self.call("vm.deploy", vm, number, False, self.system if datastore is None else datastore, "")
        self.expect(vm, state)

    def run(
        self, *disks: str, host: str = "node1", datastore: int | None = None, context: bool = False
    ) -> int:
        """Register a VM and deploy it."""
        vm = self.make_vm(*disks, context=context)
        self.deploy(vm, host, datastore)
        return vm

    def act(self, vm: int, action: str, state: str) -> None:
        self.call("vm.action", action, vm)
        self.expect(vm, state)

    def migrate(
        self, vm: int, host: str, *, kind: int = 0, datastore: int = -1, state: str = "RUNNING"
    ) -> None:
        """Migrate cold: by saving (0), powering off (1) or hard (2)."""
        self.call("vm.migrate", vm, self.scene.host_names.index(host), False, False, datastore, kind)
        self.expect(vm, state)

    def recover(self, vm: int, operation: str, state: str) -> None:
        operations = ("failure", "success", "retry", "delete", "delete-recreate", "delete-db")
        self.call("vm.recover", vm, operations.index(operation))
        self.expect(vm, state)

    def attach(self, vm: int, disk: str, state: str = "RUNNING") -> None:
        self.call("vm.attach", vm, f"DISK=[{disk}]")
        self.expect(vm, state)

    def detach(self, vm: int, disk: int, state: str = "RUNNING") -> None:
        self.call("vm.detach", vm, disk)
        self.expect(vm, state)

    def save_as(self, vm: int, disk: int) -> int:
        return int(self.call("vm.disksaveas", vm, disk, f"saved {next(self._names)}", "", -1))

    # what oned says

    def image_state(self, image: int) -> str:
        try:
            return _IMAGE_STATES[int(self.image_says(image, "STATE"))]
        except RefusedError:
            return "GONE"

    def image_says(self, image: int, element: str) -> str:
        return self._says("image.info", image, element)

    def image_error(self, image: int) -> str:
        return self.image_says(image, "TEMPLATE/ERROR")

    def vm_error(self, vm: int) -> str:
        return self._says("vm.info", vm, "USER_TEMPLATE/ERROR")

    def _says(self, method: str, number: int, element: str) -> str:
        return ElementTree.fromstring(self.call(method, number)).findtext(element, "")

    def expect(self, vm: int, state: str) -> None:
        try:
            self.oned.wait_vm(vm, state, 0)
        except TimeoutError as err:
            pytest.fail(f"{err}\n{self.failures()}")

    def failures(self) -> str:
        """What the drivers said that failed."""
        return "\n".join(f"{call.action}: {call.stderr}" for call in self.oned.calls if call.rc)

    def calls(self, action: str | None = None) -> list[DriverCall]:
        """The driver calls so far, or those of one action, without the monitoring."""
        return [
            call
            for call in self.oned.calls
            if (call.action.split(".")[0] == action if action else call.action != "monitor")
        ]

    def again(self, call: DriverCall) -> Answer:
        """Make the same driver call once more."""
        return self._run(call.kind, call.action, *call.argv, data=self.wire(call))

    def drive(self, kind: str, action: str, *argv: str, stdin: str = "") -> Answer:
        """Call an entry point by hand; a datastore's document goes in as base64."""
        data = stdin.encode()
        return self._run(kind, action, *argv, data=base64.b64encode(data) if kind == "datastore" else data)

    @staticmethod
    def wire(call: DriverCall) -> bytes:
        """The standard input of a call as it was on the wire."""
        data = call.stdin.encode()
        return base64.b64encode(data) if call.stdin_encoding == "base64" else data

    @property
    def environment(self) -> dict[str, str]:
        """What a driver of ours finds in its environment."""
        own = {"ONE_XMLRPC": self.oned.endpoint, "ONE_AUTH": str(self.oned.auth_file)}
        return {**self.scene.environment, **own}

    def _run(self, kind: str, action: str, *argv: str, data: bytes) -> Answer:
        done = subprocess.run(
            [str(REMOTES / kind / self.driver / action.split(".")[0]), *argv],
            input=data,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            env=self.environment,
        )
        return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())

    # what is on the array and the hosts

    @property
    def array(self) -> System:
        """The array of the datastore ``san``."""
        return self.scene.array

    @property
    def box(self) -> Box:
        """The same as a V7000, for tests of that."""
        return self.scene.box

    def rows(self, command: str) -> list[dict[str, str]]:
        """A listing of the V7000, by hand."""
        return BoxSystem(self.box).rows(command)

    def make_foreign(self, volume: str) -> None:
        """Let the array have a volume of 4 MiB that no driver made."""
        self.array.make_foreign(volume)

    def volumes(self) -> set[str]:
        return set(self.array.volumes())

    def maps(self) -> set[str]:
        """FlashCopy maps; other systems have none."""
        return self.array.copies()

    def mappings(self) -> set[tuple[str, str]]:
        return self.array.mappings()

    def wwid(self, volume: str) -> str:
        return self.array.volumes()[volume]

    def block_datastore(self, name: str = "block", **attributes: str) -> int:
        """A system datastore whose volatile disks are volumes."""
        wanted = {"DISK_TYPE": "BLOCK", **self.array.attributes(), "BRIDGE_LIST": "node1", **attributes}
        return self.system_datastore(name, **wanted)

    def assert_copies(self, volumes: Iterable[str]) -> None:
        """Exactly these volumes are bound to their sources, where the system has objects that bind them."""
        if isinstance(self.array, BoxSystem):
            assert self.maps() == set(volumes)

    def assert_array(self, volumes: Iterable[str], mapped: Mappings | None = None) -> None:
        """Exactly these volumes are on the array, mapped to just these hosts, which see these and no others.

        FlashCopy maps are looked at by the tests that make them.
        """
        assert self.volumes() == set(volumes)
        wanted = {
            (host, volume)
            for volume, hosts in (mapped or {}).items()
            for host in ([hosts] if isinstance(hosts, str) else hosts)
        }
        assert self.mappings() == wanted
        for name, host in self.scene.hosts.items():
            wwids = sorted(self.wwid(volume) for where, volume in wanted if where == name)
            assert sorted(disk.wwid for disk in host.devices()) == sorted(wwids * self.array.paths), name
            assert host.leftovers(wwids, with_sessions=not self.array.is_shared_target) == []

    def assert_nothing_left(self) -> None:
        """Nothing is on any array or host, or in a VM's directory, and no link led astray at a deployment."""
        assert self.scene.leftovers() == []
        left = [str(path) for path in self.directory.glob("datastores/*/*/disk.*")]
        assert left == []
        assert [str(path) for path in self.directory.glob("staging/*")] == []
        assert self.hypervisor.broken == []

    # bytes

    def link(self, vm: int, disk: int) -> Path:
        (link,) = self.directory.glob(f"datastores/*/{vm}/disk.{disk}")
        return link

    def assert_linked(self, vm: int, disk: int, volume: str, host: str = "node1") -> None:
        """The disk is a link to the volume's device on that host."""
        target = self.link(vm, disk).readlink()
        assert target.is_relative_to(self.directory / "hosts" / host / "dev")
        assert target.name == self.wwid(volume)

    def write(self, vm: int, disk: int, content: bytes, offset: int = 0) -> None:
        """Write through a disk's link, as a guest would."""
        with self.link(vm, disk).open("r+b") as device:
            device.seek(offset)
            device.write(content)
            device.flush()
            os.fsync(device.fileno())

    def read(self, vm: int, disk: int, length: int, offset: int = 0) -> bytes:
        with self.link(vm, disk).open("rb") as device:
            device.seek(offset)
            return device.read(length)

    def stored(self, volume: str, length: int = 0, offset: int = 0, *, array: System | None = None) -> bytes:
        """What the array has of a volume; all of it by default."""
        with (array or self.array).path(volume).open("rb") as file:
            file.seek(offset)
            return file.read(length or -1)


def written_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def digest(content: bytes | Path) -> str:
    if isinstance(content, Path):
        content = content.read_bytes()
    return hashlib.sha256(content).hexdigest()
