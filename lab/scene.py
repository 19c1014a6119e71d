# SPDX-License-Identifier: Apache-2.0
"""A small cloud with a SAN on one machine: a box, hosts that attach in user space, a stand-in for oned.

What runs in between is the product: oned's stand-in starts the driver scripts as oned does, and they reach
the box and the hosts over real SSH. Used by the demonstration, by the tests of life cycles and by the bench.
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

from lab.host import UserSpaceHost, ssh_config
from lab.oned import Oned, OnedConfig
from lab.oned.hypervisor import Hypervisor
from lab.sshd import User
from lab.v7000 import Box, BoxConfig

__all__ = ["MIB", "POOL", "Scene"]

MIB = 1024 * 1024
POOL = "mdiskgrp0"
REMOTES = Path(__file__).resolve().parent.parent / "remotes"
_KEY_SECONDS = 30.0


class Scene:
    """Everything below ``directory``; a context manager that leaves nothing running.

    ``box`` changes the box's configuration (BoxConfig fields), ``further_boxes`` names more of them (see
    ``boxes``); ``attributes`` are added to the datastore, ``settings`` to sanstone.conf, where the driver's
    section is; ``oned`` changes the stand-in's configuration (OnedConfig fields). ``say`` is told what is
    being started.
    """

    def __init__(
        self,
        directory: Path,
        *,
        hosts: Sequence[str] = ("node1", "node2"),
        box: Mapping[str, object] | None = None,
        further_boxes: Sequence[str] = (),
        attributes: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
        oned: Mapping[str, object] | None = None,
        hypervisor: Hypervisor | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.directory = directory
        self.host_names = tuple(hosts)
        self.attributes = dict(attributes or {})
        self._box_fields = dict(box or {})
        self._further_boxes = tuple(further_boxes)
        self._oned_fields = dict(oned or {})
        self._settings = dict(settings or {})
        self._hypervisor = hypervisor
        self._say = say
        self._stack = ExitStack()
        self.box: Box
        self.boxes: dict[str, Box] = {}
        """All boxes by name; they listen on addresses of their own, which is what MGMT names."""
        self.hosts: dict[str, UserSpaceHost] = {}
        self.oned: Oned

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
        self._say("the array: a V7000 with its CLI over SSH and its volumes over iSCSI")
        for number, name in enumerate(("v7000-a", *self._further_boxes), 1):
            config = BoxConfig(
                name=name,
                pools={POOL: 100 * 1024 * MIB},
                directory=self.directory / ("array" if number == 1 else f"array-{name}"),
                data_plane=True,
                listen=(f"127.0.0.{number}", 0),
                users={"oneadmin": User(keys=(public,))},
            )
            config = replace(config, **self._box_fields)  # type: ignore[arg-type]
            self.boxes[name] = self._stack.enter_context(Box(config))
        self.box = self.boxes["v7000-a"]
        for name in self.host_names:
            self._say(f"host {name}: attaches in user space")
            host = UserSpaceHost(
                name=name,
                root=self.directory / "hosts" / name,
                iqn=f"iqn.1994-05.com.redhat:{name}",
                authorized_key=public,
            )
            self.hosts[name] = self._stack.enter_context(host)
            for box in self.boxes.values():
                box.add_host(name, host.initiator_name)
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
            "DS_MAD": "v7000",
            "TM_MAD": "v7000",
            "DISK_TYPE": "BLOCK",
            "MGMT": self.box.ssh_host,
            "MDISK_GROUP": POOL,
            "BRIDGE_LIST": " ".join(self.host_names),
            "SAFE_DIRS": "/",
            **self.attributes,
            **attributes,
        }
        return "\n".join(f'{key} = "{value}"' for key, value in wanted.items())

    def system_template(self, name: str = "system", **attributes: str) -> str:
        wanted = {"NAME": name, "TYPE": "SYSTEM_DS", "TM_MAD": "v7000", **attributes}
        return "\n".join(f'{key} = "{value}"' for key, value in wanted.items())

    def leftovers(self) -> list[str]:
        """What is on the arrays and the hosts; empty when nothing is left behind."""
        found = []
        for label, box in self.boxes.items():
            label = "array" if box is self.box else label
            stdout, _, _ = box.run("lsvdisk -nohdr -delim :")
            found += [f"{label}: volume {line.split(':')[1]}" for line in stdout.splitlines()]
            stdout, _, _ = box.run("lsfcmap -nohdr -delim :")
            found += [f"{label}: FlashCopy map {line.split(':')[1]}" for line in stdout.splitlines()]
            stdout, _, _ = box.run("lshostvdiskmap -nohdr -delim :")
            found += [f"{label}: mapping {line}" for line in stdout.splitlines()]
        for name, host in self.hosts.items():
            # hosts stay logged in to the box: its targets are shared by all volumes
            found += [f"{name}: {what}" for what in host.leftovers() if not what.startswith("session ")]
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
        ssh = self.directory / "ssh_config"  # writing it puts the hosts' keys into known_hosts
        ssh.write_text(ssh_config(list(self.hosts.values()), self.key))
        known = self.directory / "known_hosts"
        with known.open("a") as file:
            for box in self.boxes.values():
                file.write(box.known_hosts_line(f"[{box.ssh_host}]:{box.ssh_port}") + "\n")
        lines = {
            "sanstone": {"STATE_DIR": str(self.directory / "state"), "FRONTEND": "frontend"},
            "hosts": {"SSH_OPTIONS": f"-F {ssh}"},
            "v7000": {
                "MGMT_KEY": str(self.key),
                "MGMT_KNOWN_HOSTS": str(known),
                "STAGING_DIR": str(self._folder("staging")),
                **self._settings,
            },
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
