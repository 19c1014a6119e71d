# SPDX-License-Identifier: Apache-2.0
"""Volumes, snapshots and targets of one target host.

What is done there is in ``node/``, a program that travels with each request: an operation is one round trip,
and may be sent again, because it reads first what is there. Facts: docs/arrays/iscsi.md.
"""

from __future__ import annotations

import logging
import re
import secrets
import socket
from collections.abc import Mapping
from typing import Any

from sanstone.arrays.base import Abilities, Claim, Extent, Initiators, NameTakenError, NewVolume, Placement
from sanstone.errors import (
    ArrayError,
    ConfigurationError,
    ConflictError,
    ConnectError,
    HostError,
    NotSupportedError,
    UnreachableError,
)
from sanstone.model import MIB, Capacity, Chap, Connection, Initiator, Portal, Target, Volume
from sanstone.secret import Secret
from sanstone.settings import Settings
from sanstone.transport.program import RemoteProgram

__all__ = ["ISCSI"]

log = logging.getLogger(__name__)

_NODE = "sanstone.arrays.iscsi.node"
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_ID_DIGITS = 24
_TAKEN = "name taken"
_EVERYWHERE = ("0.0.0.0", "::")
_PORT = 3260
_LARGEST_EXTENT = 256 * MIB
"""LVM's extents are 4 MiB unless somebody chose otherwise; this is far beyond what anybody does."""
_INITIATOR = re.compile(r"(?:iqn|eui|naa)\.[A-Za-z0-9.:_-]{1,200}")


class ISCSI:
    """One target host with the settings of one datastore."""

    abilities = Abilities(expands_copies=True, target_per_volume=True, size_step=_LARGEST_EXTENT)

    def __init__(self, settings: Settings, *, initiators: Initiators | None = None) -> None:
        """``initiators`` tells the initiator of a host: access rules name initiators, not hosts."""
        self.settings = settings
        self.host = settings.text("HOST")
        self.name = f"{self.host}/{settings.text('VG_NAME')}"
        self._initiators = initiators
        self._program = RemoteProgram(
            _NODE,
            self.host,
            ssh_options=settings.words("SSH_OPTIONS"),
            is_local=self.host in _THIS_MACHINE,
            connect_timeout=settings.seconds("CONNECT_TIMEOUT"),
        )

    @property
    def round_trips(self) -> int:
        """Tell how many connections were made."""
        return self._program.round_trips

    def close(self) -> None:
        """There is nothing to close: a connection ends with its request."""

    def refresh(self) -> None:
        """There is nothing to forget: each request reads what is there."""

    def source(self, name: str) -> str:
        """As the existing iSCSI add-on spells it: the name of the volume's target."""
        return f"{self.settings.text('BASE_IQN')}:{self.host}.{self.settings.text('VG_NAME')}.lv-{name}"

    # what is there

    def capacity(self) -> Capacity:
        """Read the room of the thin pool, or of the volume group; lost targets come back by the way."""
        is_secret = self.settings.text("CHAP") == "YES"
        found, mended = self._run(self._operation("Capacity"), self._operation("Mend", is_secret=is_secret))
        for warning in (*found["warnings"], *mended["warnings"]):
            log.warning("%s: %s", self.name, warning)
        return Capacity(found["total"], found["total"] - found["free"], found["free"])

    def needed(self, *, size: int, data: int) -> int:
        """As for a thin volume; a thick one is given no less than its size on the target host."""
        return data

    def find(self, *names: str) -> tuple[Volume | None, ...]:
        return tuple(_volume(each) if each else None for each in self._find(names=names))

    def find_wwid(self, wwid: str) -> Volume | None:
        found = self._find(wwid=wwid)
        return _volume(found[0]) if found else None

    def snapshots(self, name: str) -> tuple[Volume, ...]:
        return tuple(_volume(each) for each in self._find(snapshots_of=name))

    def changes(self, older: str, newer: str) -> tuple[Extent, ...]:
        raise NotSupportedError(f"{self.name} does not tell where {older} and {newer} differ.")

    def mapped_hosts(self, name: str) -> tuple[str, ...]:
        (found,) = self._find(names=(name,))
        return tuple(found["hosts"]) if found else ()

    def _find(self, **wanted: Any) -> list[Any]:
        (found,) = self._run(self._operation("Find", **wanted))
        volumes: list[Any] = found["volumes"]
        return volumes

    # volumes

    def create(self, new: NewVolume, *, claim: Claim, host: str | None = None) -> Placement:
        mapping = [self._mapping(new.name, host)] if host else []
        (before,) = self.find(new.name)
        claim(before)
        make = self._operation(
            "Create",
            name=new.name,
            size=new.size,
            source=new.source,
            needs=new.needs,
            expected=before.wwid if before else None,
            identity=secrets.token_hex(_ID_DIGITS // 2),
        )
        try:
            made, *mapped = self._run(make, *mapping, deadline=self._copy_seconds(new.source))
        except ConflictError as err:
            if err.details == _TAKEN:
                raise NameTakenError(err.message, err.hint) from err
            raise
        return Placement(_volume(made), self._connection(new.name, mapped[0]) if mapped else None)

    def copy(self, source: str, target: str) -> None:
        self._run(self._operation("Copy", source=source, target=target), deadline=self._copy_seconds(source))

    def delete(self, name: str, *, wait: float, host: str | None = None, wwid: str | None = None) -> bool:
        """``wait`` has no meaning here: no copy reads from a volume for longer than its own request."""
        operation = self._operation("Delete", name=name, from_host=host, wwid=wwid)
        (found,) = self._run(operation, deadline=self.settings.seconds("COPY_TIMEOUT"))
        return bool(found["is_gone"])

    def resize(self, name: str, size: int, *, wait: float = 0.0) -> None:
        """``wait`` has no meaning here: nothing stands in the way of growth but a lack of room."""
        self._run(self._operation("Resize", name=name, size=size))

    # mappings

    def map(self, name: str, host: str, *, is_shared: bool = False) -> Connection:
        (found,) = self._run(self._mapping(name, host, is_shared=is_shared))
        return self._connection(name, found)

    def _mapping(self, name: str, host: str, *, is_shared: bool = False) -> dict[str, Any]:
        initiator = self._initiator(host)
        return self._operation(
            "Map",
            name=name,
            to_host=host,
            initiator=initiator.name,
            is_shared=is_shared,
            is_secret=initiator.takes_secrets and self.settings.text("CHAP") != "NO",
        )

    def _connection(self, name: str, found: Mapping[str, Any]) -> Connection:
        target = Target(found["iqn"], self._portals(found["portals"]))
        chap = Chap(found["user"], Secret(found["password"])) if found["password"] else None
        return Connection(name, found["wwid"], found["size"], found["lun"], (target,), chap)

    def unmap(self, name: str, host: str) -> None:
        self._run(self._operation("Unmap", name=name, from_host=host))

    def _initiator(self, host: str) -> Initiator:
        """Ask for the initiator of a host that shall get a volume.

        Raises: ConfigurationError when it could not prove who it is, as CHAP=YES wants.
        """
        if self._initiators is None:
            raise ConfigurationError(f"The initiator name of {host} is not known.")
        found = self._initiators(host)
        if not _INITIATOR.fullmatch(found.name):
            raise ConfigurationError(
                f"Host {host} has the initiator name {found.name[:80]!r}, which tgt does not take.",
                "Give it a name such as iqn.1993-08.org.debian:01:node1 in /etc/iscsi/initiatorname.iscsi.",
            )
        if self.settings.text("CHAP") == "YES" and not found.takes_secrets:
            raise ConfigurationError(
                f"Host {host} cannot be given a CHAP secret without showing it to all of its users.",
                "Install etc/sbin/sanstone-chap and etc/sudoers.d/sanstone of the add-on there.",
            )
        return found

    def _portals(self, listening: list[str]) -> tuple[Portal, ...]:
        """Choose the addresses that hosts shall use: the attribute's, tgtd's own, the target host's."""
        named = self.settings.words("PORTALS")
        found = [_portal(each) for each in named or listening]
        chosen = tuple(dict.fromkeys(each for each in found if each.address not in _EVERYWHERE))
        if not named:  # tgtd lists them in no order that lasts
            chosen = tuple(sorted(chosen, key=str))
        if chosen:
            return chosen
        ports = [each.port for each in found] or [_PORT]
        place = socket.gethostname() if self.host in _THIS_MACHINE else self.host
        try:
            address = socket.getaddrinfo(place, ports[0], type=socket.SOCK_STREAM)[0][4][0]
        except OSError as err:
            raise ConfigurationError(
                f"HOST={self.host}: its address is not known: {err.strerror}.",
                "Say in PORTALS of the datastore at which addresses hosts reach it.",
            ) from err
        return (Portal(str(address), ports[0]),)

    # how it is asked

    def _operation(self, op: str, **fields: Any) -> dict[str, Any]:
        text = self.settings.text
        return {
            "op": op,
            "group": text("VG_NAME"),
            "pool": text("POOL"),
            "place": self.name,
            "base_iqn": text("BASE_IQN"),
            "host": self.host,
            "base_tid": self.settings.integer("BASE_TID"),
            **fields,
        }

    def _copy_seconds(self, source: str | None) -> float:
        """A thick volume is copied byte by byte; how a volume lies is known on the target host only."""
        return self.settings.seconds("COPY_TIMEOUT" if source else "COMMAND_TIMEOUT")

    def _run(self, *operations: Mapping[str, Any], deadline: float | None = None) -> list[Any]:
        """Have operations done; a connection that breaks is no reason to fail, for they are repeatable."""
        seconds = deadline or self.settings.seconds("COMMAND_TIMEOUT")
        try:
            try:
                return self._program.run(operations, deadline=seconds, progress=_say)
            except UnreachableError:
                raise
            except ConnectError as err:
                log.info("%s; once more", err.message)
                return self._program.run(operations, deadline=seconds, progress=_say)
        except HostError as err:
            raise ArrayError(err.message, err.hint, err.details) from err


def _say(progress: str) -> None:
    log.info("%s", progress)


def _volume(found: Mapping[str, Any]) -> Volume:
    return Volume(
        found["name"], found["wwid"], found["size"], found["pool"], found["is_online"], bool(found["pool"])
    )


def _portal(text: str) -> Portal:
    """Read ``address``, ``address:port``, ``[address]`` or ``[address]:port``."""
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") > 1:
        address, port = text, ""
    else:
        address, _, port = text.partition(":")
    return Portal(address, int(port) if port else _PORT)
