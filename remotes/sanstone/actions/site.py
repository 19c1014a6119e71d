# SPDX-License-Identifier: Apache-2.0
"""Where an action runs: the front-end with its configuration, OpenNebula, arrays and hosts."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sanstone.arrays import Array, open_array
from sanstone.hosts.client import Host
from sanstone.hosts.ops import ReadInitiator
from sanstone.model import Initiator
from sanstone.opennebula.documents import DatastoreDocument, ImageDocument
from sanstone.settings import COMMON, ConfigFile, Settings, refuse_unsupported, resolve
from sanstone.store.ledger import Ledger
from sanstone.transport.facts import Facts

if TYPE_CHECKING:
    from sanstone.opennebula.api import OpenNebula

__all__ = ["Site"]

log = logging.getLogger(__name__)

_LOCK_SECONDS = 600.0
_ASK_SECONDS = 60.0


class Site:
    """The front-end for the length of one action.

    Arrays and hosts are opened at their first use and closed with the site.
    """

    def __init__(
        self, config: ConfigFile, opennebula: OpenNebula | None = None, *, remotes: Path | None = None
    ) -> None:
        """``remotes`` is where oned finds its drivers; by default the directory that this package is in."""
        self.config = config
        self.remotes = remotes or Path(__file__).resolve().parents[2]
        self.common = resolve(COMMON, config, datastore={})
        self._opennebula = opennebula
        self.state: Path = self.common.path("STATE_DIR")
        self.ledger = Ledger(self.state)
        self._arrays: list[Array] = []
        self._hosts: dict[str, Host] = {}

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        for array in self._arrays:
            array.close()

    @property
    def opennebula(self) -> OpenNebula:
        if self._opennebula is None:
            from sanstone.opennebula.api import OpenNebula  # HTTP takes its time: for those who ask

            self._opennebula = OpenNebula()
        return self._opennebula

    def settings(self, datastore: DatastoreDocument, image: ImageDocument | None = None) -> Settings:
        """Resolve and check the attributes of a datastore (and an image in it).

        Raises: ConfigurationError, NotSupportedError for what the driver cannot do yet.
        """
        driver = datastore.ds_mad if datastore.ds_mad not in ("", "-") else datastore.tm_mad
        named = {**datastore.template, "NAME": datastore.name, "ID": str(datastore.id)}
        settings = resolve(driver, self.config, datastore=named, image=image.template if image else None)
        for warning in settings.warnings:
            log.warning("%s", warning)
        refuse_unsupported(settings)
        return settings

    def array(self, settings: Settings) -> Array:
        array = open_array(settings.driver, settings, state=self.state, initiators=self.initiator)
        self._arrays.append(array)
        return array

    def host(self, name: str) -> Host:
        """A host by the name that OpenNebula has for it; the front-end itself needs no ssh."""
        if name not in self._hosts:
            self._hosts[name] = Host(
                name,
                ssh_options=self.common.words("SSH_OPTIONS"),
                is_local=self.is_frontend(name),
                connect_timeout=self.common.seconds("CONNECT_TIMEOUT"),
            )
        return self._hosts[name]

    def initiator(self, host: str) -> Initiator:
        """Ask a host for its iSCSI initiator, unless it was asked a while ago.

        Raises: ConnectError, HostError.
        """
        facts = Facts(self.state / "facts", f"host {host}")
        known = facts.get("initiator")
        if known is None:
            (found,) = self.host(host).run([ReadInitiator()], deadline=_ASK_SECONDS)
            assert isinstance(found, Initiator)
            facts.put("initiator", asdict(found))
            return found
        return Initiator(**known)

    def forget_initiator(self, host: str) -> None:
        """Ask the host again next time: something did not fit."""
        Facts(self.state / "facts", f"host {host}").forget()

    @property
    def frontend_name(self) -> str:
        return self.common.text("FRONTEND") or socket.gethostname()

    def is_frontend(self, name: str) -> bool:
        """Tell whether ``name`` is this machine: there oned keeps the disks of undeployed VMs."""
        short = socket.gethostname()
        if name in (self.frontend_name, short, "localhost"):
            return True
        # the long name takes a look-up, which hangs where names are not served: only where it can matter
        return name.startswith(f"{short}.") and name == socket.getfqdn()

    def bridges(self, settings: Settings, turn: int) -> list[str]:
        """List the hosts that may prepare disks, beginning with the one whose ``turn`` it is."""
        names = list(settings.words("BRIDGE_LIST")) or [self.frontend_name]
        turn %= len(names)
        return names[turn:] + names[:turn]

    @contextmanager
    def volume(self, array: Array, name: str, *, seconds: float = _LOCK_SECONDS) -> Iterator[None]:
        """Hold one volume for the length of an action, after a wait of at most ``seconds``."""
        with self.ledger.lock(array.name, name, seconds=seconds):
            yield
