# SPDX-License-Identifier: Apache-2.0
"""A small cloud with a SAN on one machine: an array, hosts that attach in user space, a stand-in for oned.

What runs in between is the product: oned's stand-in starts the driver scripts as oned does, and they reach
the array and the hosts over real SSH. The demonstration, the tests of life cycles and the bench use it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from lab.host import UserSpaceHost
from lab.login import ssh_config
from lab.oned import Oned, OnedConfig
from lab.oned.hypervisor import Hypervisor
from lab.sshd import User
from lab.systems import POOL, BoxSystem, System, TargetSystem
from lab.target import TargetHost
from lab.v7000 import Box, BoxConfig

__all__ = ["MIB", "POOL", "Scene"]

MIB = 1024 * 1024
_NAMES = {"v7000": "v7000-a", "iscsi": "tgt1"}
REMOTES = Path(__file__).resolve().parent.parent / "remotes"
_KEY_SECONDS = 30.0


class Scene:
    """Everything below ``directory``; a context manager that leaves nothing running.

    ``system`` is the driver. ``box`` (fields of BoxConfig) changes a V7000's configuration, ``target``
    (arguments of TargetHost) a target host's; ``further_boxes`` and ``further_targets`` name more of them
    (see ``arrays``); what is for another system counts for nothing. ``attributes`` are added to the
    datastore, ``settings`` to sanstone.conf, where the driver's section is; ``oned`` changes the stand-in's
    configuration (OnedConfig fields). ``say`` is told what is being started.
    """

    def __init__(
        self,
        directory: Path,
        *,
        system: str = "v7000",
        hosts: Sequence[str] = ("node1", "node2"),
        box: Mapping[str, object] | None = None,
        target: Mapping[str, object] | None = None,
        further_boxes: Sequence[str] = (),
        further_targets: Sequence[str] = (),
        attributes: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
        oned: Mapping[str, object] | None = None,
        hypervisor: Hypervisor | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.directory = directory
        self.system = system
        self.host_names = tuple(hosts)
        self.attributes = dict(attributes or {})
        is_box = system == "v7000"
        self._array_fields = dict((box if is_box else target) or {})
        self._array_names = (_NAMES[system], *(further_boxes if is_box else further_targets))
        self._oned_fields = dict(oned or {})
        self._settings = dict(settings or {})
        self._hypervisor = hypervisor
        self._say = say
        self._stack = ExitStack()
        self.arrays: dict[str, System] = {}
        """All arrays by name; a datastore names one by what its ``attributes()`` say."""
        self.hosts: dict[str, UserSpaceHost] = {}
        self.oned: Oned

    @property
    def array(self) -> System:
        """The first array, which is the datastore's."""
        return next(iter(self.arrays.values()))

    @property
    def boxes(self) -> dict[str, Box]:
        """All boxes by name; they listen on addresses of their own, which is what MGMT names."""
        return {name: one.box for name, one in self.arrays.items() if isinstance(one, BoxSystem)}

    @property
    def box(self) -> Box:
        """The V7000 of the datastore; LookupError where it is on another system."""
        if not isinstance(self.array, BoxSystem):
            raise LookupError(f"{self.array.name} is no V7000")
        return self.array.box

    @property
    def targets(self) -> dict[str, TargetHost]:
        """All target hosts by name."""
        return {name: one.host for name, one in self.arrays.items() if isinstance(one, TargetSystem)}

    @property
    def target(self) -> TargetHost:
        """The target host of the datastore; LookupError where it is on another system."""
        if not isinstance(self.array, TargetSystem):
            raise LookupError(f"{self.array.name} is no target host")
        return self.array.host

    def __enter__(self) -> Scene:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.key = self._make_key()
        public = self.key.with_suffix(".pub").read_text().strip()
        start = self._start_box if self.system == "v7000" else self._start_target
        for number, name in enumerate(self._array_names, 1):
            self.arrays[name] = start(name, number, public)
        for name in self.host_names:
            self._say(f"host {name}: attaches in user space")
            host = UserSpaceHost(
                name=name,
                root=self.directory / "hosts" / name,
                iqn=f"iqn.1994-05.com.redhat:{name}",
                authorized_key=public,
            )
            self.hosts[name] = self._stack.enter_context(host)
            for array in self.arrays.values():
                array.add_host(name, host.initiator_name)
        self._configure()
        self._say("OpenNebula: a stand-in for oned that calls the drivers as oned does")
        oned = OnedConfig(
            remotes=REMOTES,
            datastores=self.directory / "datastores",
            vms=self.directory / "vms",
            hostname="frontend",
            hosts=self.host_names,
            environment=self.environment,
            hypervisor=self._hypervisor,
        )
        oned = replace(oned, **self._oned_fields)  # type: ignore[arg-type]
        self.oned = self._stack.enter_context(Oned(oned))

    def _start_box(self, name: str, number: int, public: str) -> System:
        self._say(f"array {name}: a V7000 with its CLI over SSH and its volumes over iSCSI")
        config = BoxConfig(
            name=name,
            pools={POOL: 100 * 1024 * MIB},
            directory=self.directory / ("array" if number == 1 else f"array-{name}"),
            data_plane=True,
            listen=(f"127.0.0.{number}", 0),
            users={"oneadmin": User(keys=(public,))},
        )
        config = replace(config, **self._array_fields)  # type: ignore[arg-type]
        return BoxSystem(self._stack.enter_context(Box(config)))

    def _start_target(self, name: str, number: int, public: str) -> System:
        self._say(f"array {name}: a target host, LVM's commands over SSH and its volumes by tgt over iSCSI")
        folder = self.directory / ("array" if number == 1 else f"array-{name}")
        host = TargetHost(name, folder, public, **self._array_fields)  # type: ignore[arg-type]
        return TargetSystem(self._stack.enter_context(host))

    @property
    def environment(self) -> dict[str, str]:
        """What a driver's environment has besides oned's own."""
        return {
            "SANSTONE_CONF": str(self.directory / "sanstone.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "HOME": str(self.directory),
        }

    def datastore_template(self, name: str = "san", **attributes: str) -> str:
        """The template an administrator would write."""
        wanted = {
            "NAME": name,
            "TYPE": "IMAGE_DS",
            "DS_MAD": self.system,
            "TM_MAD": self.system,
            "DISK_TYPE": "BLOCK",
            **self.array.attributes(),
            "BRIDGE_LIST": " ".join(self.host_names),
            "SAFE_DIRS": "/",
            **self.attributes,
            **attributes,
        }
        return "\n".join(f'{key} = "{value}"' for key, value in wanted.items())

    def system_template(self, name: str = "system", **attributes: str) -> str:
        wanted = {"NAME": name, "TYPE": "SYSTEM_DS", "TM_MAD": self.system, **attributes}
        return "\n".join(f'{key} = "{value}"' for key, value in wanted.items())

    def leftovers(self) -> list[str]:
        """What is on the arrays and the hosts; empty when nothing is left behind."""
        found = []
        for label, array in self.arrays.items():
            label = "array" if array is self.array else label
            found += [f"{label}: {what}" for what in array.leftovers()]
        for name, host in self.hosts.items():
            # hosts stay logged in to targets that are shared by all volumes
            left = host.leftovers(with_sessions=not self.array.is_shared_target)
            found += [f"{name}: {what}" for what in left]
        return found

    def _make_key(self) -> Path:
        key = self.directory / "id"
        if not key.exists():
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(key)],
                check=True,
                timeout=_KEY_SECONDS,
                stdin=subprocess.DEVNULL,
            )
        return key

    def _configure(self) -> None:
        """Write what an administrator writes: ssh's configuration, known hosts, sanstone.conf."""
        ssh = self.directory / "ssh_config"  # writing it puts the machines' keys into known_hosts
        ssh.write_text(ssh_config([*self.hosts.values(), *self.targets.values()], self.key))
        known = self.directory / "known_hosts"
        with known.open("a") as file:
            for box in self.boxes.values():
                file.write(box.known_hosts_line(f"[{box.ssh_host}]:{box.ssh_port}") + "\n")
        access = {"MGMT_KEY": str(self.key), "MGMT_KNOWN_HOSTS": str(known)} if self.boxes else {}
        lines = {
            "sanstone": {"STATE_DIR": str(self.directory / "state"), "FRONTEND": "frontend"},
            "hosts": {"SSH_OPTIONS": f"-F {ssh}"},
            self.system: {**access, "STAGING_DIR": str(self._folder("staging")), **self._settings},
            **{f'v7000 "{box.ssh_host}"': {"MGMT_PORT": str(box.ssh_port)} for box in self.boxes.values()},
        }
        text = []
        for section, values in lines.items():
            text += [f"[{section}]", *(f"{key} = {value}" for key, value in values.items()), ""]
        (self.directory / "sanstone.conf").write_text("\n".join(text))

    def _folder(self, name: str) -> Path:
        folder = self.directory / name
        folder.mkdir(exist_ok=True)
        return folder
