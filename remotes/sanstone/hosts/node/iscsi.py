# SPDX-License-Identifier: Apache-2.0
"""iSCSI sessions: read from sysfs, opened and closed by ``iscsiadm``."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.lock import hold, state_directory
from sanstone.transport.remote.run import Completed, Deadline, in_parallel, run, wait_until

from . import chap, sysfs

__all__ = ["Chap", "Portal", "Session", "log_in", "log_out", "portal", "sessions", "sessions_by_host"]

LOGGED_IN = "LOGGED_IN"

# Exit codes of iscsiadm(8)
_IDBM = 6
_SESS_NOT_FOUND = 2
_SESS_EXISTS = 15
_NO_RECORD = (21, 255)
"""The second one is that of old versions."""
_REASONS = {
    4: "cannot connect",
    5: "login refused",
    8: "no answer in time",
    11: "the target hangs",
    12: "the kernel module iscsi_tcp is not loaded",
    13: "not allowed to run iscsiadm as root",
    18: "iscsid is not running",
    19: "login refused for good",
    20: "iscsid is not running",
    21: "no node record",
    24: "CHAP name or secret is wrong",
}
_FATAL = frozenset({5, 12, 13, 18, 19, 20, 24})
"""These say nothing about the portal's network, so that it is not remembered as dead."""

_CROWDED = 20.0
"""How long others may have the database of records."""

_TARGET = re.compile(r"(?:iqn|eui|naa)\.[\w.:-]{1,220}")
_ADDRESS = re.compile(r"[0-9A-Za-z][0-9A-Za-z.-]*|\[?[0-9A-Fa-f:.]+(?:%[0-9A-Za-z._-]+)?\]?")

_HOST = re.compile(r"/host(\d+)/session\d+/")

_PROBE_LIMIT = 3.0
_PROBE_AGAIN = 0.5
_LOGIN_LIMIT = 60.0
_DEAD_FOR = 300.0
_SETTINGS = (
    ("node.session.scan", "manual"),
    ("node.startup", "manual"),
    ("node.session.initial_login_retry_max", "2"),
)


class Portal(NamedTuple):
    target: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class Chap(NamedTuple):
    """What proves to a target that this host may log in."""

    user: str
    password: str


class _Dead(NamedTuple):
    """Until when (epoch) a portal counts as dead; ``was_silent``: nothing even took the connection."""

    until: float
    was_silent: bool


class _PortalError(NodeError):
    """It is the portal that does not answer; ``was_silent``: nothing takes a connection there."""

    def __init__(self, family: str, message: str, details: str = "", *, was_silent: bool = False) -> None:
        super().__init__(family, message, "", details)
        self.was_silent = was_silent


class Session(NamedTuple):
    name: str
    portal: Portal
    host: int
    target_id: int
    state: str

    @property
    def is_live(self) -> bool:
        return self.state == LOGGED_IN


def portal(target: str, address: str, port: int) -> Portal:
    """Return a portal. Raises NodeError: RequestError for what is no name, address or port."""
    if not (_TARGET.fullmatch(target) and _ADDRESS.fullmatch(address) and 0 < port < 1 << 16):
        raise NodeError("RequestError", f"{target!r} at {address!r}, port {port}, is not an iSCSI portal.")
    return Portal(target, address_of(address), port)


def address_of(text: str) -> str:
    """Return an address in one form, so that two spellings of an IPv6 address compare equal."""
    bare = text.strip("[]").lower()
    if ":" not in bare:
        return bare
    import socket  # only where it is needed: it takes long to load

    try:
        return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, bare))
    except OSError:
        return bare


def sessions(targets: Iterable[str] | None = None) -> list[Session]:
    """Return the sessions with these targets (None: all), by the portal that was logged in to.

    That is the persistent one: an EqualLogic group sends the connection on to another address.
    """
    wanted = None if targets is None else frozenset(targets)
    found = []
    for name in sysfs.names(sysfs.node("class", "iscsi_session")):
        base = sysfs.node("class", "iscsi_session", name)
        target = sysfs.text(base / "targetname")
        if target is None or (wanted is not None and target not in wanted):
            continue
        host = _host_of(name)
        if host is None:
            continue
        connection = sysfs.node("class", "iscsi_connection", f"connection{name[len('session') :]}:0")
        address = sysfs.text(connection / "persistent_address") or sysfs.text(connection / "address") or ""
        port = sysfs.text(connection / "persistent_port") or sysfs.text(connection / "port") or ""
        portal = Portal(target, address_of(address), int(port) if port.isdigit() else 0)
        number = sysfs.text(base / "target_id") or ""
        state = sysfs.text(base / "state") or "gone"
        found.append(
            Session(
                name, portal, host, int(number) if number.isdigit() and int(number) < 1 << 16 else 0, state
            )
        )
    return found


def _host_of(session: str) -> int | None:
    """Return the number of the SCSI host that a session lives on."""
    base = sysfs.node("class", "iscsi_session", session)
    with contextlib.suppress(OSError):
        if match := _HOST.search(os.readlink(base)):  # noqa: PTH115 (quick, and taken for every session)
            return int(match.group(1))
    for path in (base / "device", base):
        match = _HOST.search(str(path.resolve()) + "/")
        if match:
            return int(match.group(1))
    for host in sysfs.names(sysfs.node("class", "iscsi_host")):
        if sysfs.node("class", "iscsi_host", host, "device", session).exists():
            return int(host[len("host") :])
    return None


def sessions_by_host() -> dict[int, Session]:
    """Return the sessions by SCSI host number: a software initiator has one session on each."""
    return {session.host: session for session in sessions()}


def log_in(
    portals: Iterable[Portal], deadline: Deadline, *, is_urgent: bool, proof: Chap | None = None
) -> dict[Portal, str]:
    """Log in, at once, to each portal that is not remembered as dead; return why some failed.

    One that was silent gets a moment to show that it is back: whoever attaches without it stays without it.
    When every portal is remembered as dead and it ``is_urgent``, all are tried all the same.
    """
    wanted = list(portals)
    dead = _dead_portals()
    patience = {
        portal: _PROBE_AGAIN if _key(portal) in dead else _PROBE_LIMIT
        for portal in wanted
        if _key(portal) not in dead or dead[_key(portal)].was_silent
    }
    if is_urgent and all(_key(portal) in dead for portal in wanted):
        patience = dict.fromkeys(wanted, _PROBE_LIMIT)
    reasons = {
        portal: "did not answer a moment ago and was not asked again"
        for portal in wanted
        if portal not in patience
    }
    tried = list(patience)
    faults = in_parallel(
        [
            lambda portal=portal: _log_in(portal, proof, patience[portal], _key(portal) in dead, deadline)  # type: ignore[misc]
            for portal in tried
        ]
    )
    failed: dict[str, bool] = {}
    for index, portal in enumerate(tried):
        fault = faults[index]
        if fault is not None:
            reasons[portal] = fault.message
            if isinstance(fault, _PortalError):
                failed[_key(portal)] = fault.was_silent
    if failed or dead:
        _remember(
            failed, {_key(portal) for portal, fault in zip(tried, faults, strict=True) if fault is None}
        )
    return reasons


def _log_in(portal: Portal, proof: Chap | None, patience: float, was_dead: bool, deadline: Deadline) -> None:
    _probe(portal, deadline.within(patience))
    # Two logins to one portal at once have crashed iscsiadm. Those of a crowd may take long all together.
    with hold("login", f"{portal.target} {portal}", deadline):
        if any(session.portal == portal for session in sessions([portal.target])):
            return
        if not was_dead and _key(portal) in _dead_portals():
            raise NodeError("ConnectError", "did not answer another action that has just tried")
        limit = deadline.within(_LOGIN_LIMIT)
        is_new = _write_record(portal, deadline)
        try:
            if proof is not None:
                _write_proof(portal, proof, deadline)
            _try_login(portal, limit)
        except NodeError as fault:
            if isinstance(fault, _PortalError):
                _remember({_key(portal): fault.was_silent}, ())
            # Nobody logs out of what was never logged in to, and the record may hold a secret.
            if is_new:
                with contextlib.suppress(NodeError):
                    _iscsiadm(portal, ["-o", "delete"], deadline)
            raise
    wait_until(
        lambda: any(session.portal == portal and session.is_live for session in sessions([portal.target])),
        deadline.within(5),
    )


def _probe(portal: Portal, deadline: Deadline) -> None:
    """Connect and hang up: a dead portal then costs three seconds and not iscsid's retries."""
    import socket

    try:
        socket.create_connection((portal.address, portal.port), timeout=deadline.left() + 0.01).close()
    except OSError as err:
        reason = "no answer" if isinstance(err, TimeoutError) else (err.strerror or str(err)).lower()
        raise _PortalError("ConnectError", reason, was_silent=True) from None


def _iscsiadm(portal: Portal, arguments: list[str], deadline: Deadline) -> Completed:
    """Run iscsiadm for a portal's record; wait while others have the database of records."""
    outcome: list[Completed] = []

    def is_decided() -> bool:
        words = ["iscsiadm", "-m", "node", "-T", portal.target, "-p", str(portal), *arguments]
        outcome[:] = [run(words, deadline, ok=None)]
        return outcome[0].code != _IDBM

    wait_until(is_decided, deadline, first=0.05)
    return outcome[0]


def _write_record(portal: Portal, deadline: Deadline) -> bool:
    """Make sure of a record, and tell whether it is new.

    One that is there is kept, for it may hold the CHAP names of this target.
    """
    words = [word for name, value in _SETTINGS for word in ("-n", name, "-v", value)]
    if _iscsiadm(portal, ["-o", "update", *words], deadline).code not in _NO_RECORD:
        return False
    made = _iscsiadm(portal, ["-o", "new"], deadline)
    if made.code:
        raise NodeError("HostError", f"iscsiadm made no node record (exit code {made.code})", "", made.words)
    _iscsiadm(portal, ["-o", "update", *words], deadline)
    return True


def _write_proof(portal: Portal, proof: Chap, deadline: Deadline) -> None:
    if os.geteuid() == 0:
        chap.write(portal.target, portal.address, portal.port, *proof)
        return
    request = {**portal._asdict(), **proof._asdict()}
    done = run(["sanstone-chap"], deadline, stdin=json.dumps(request).encode(), ok=None)
    if done.code:
        raise NodeError("HostError", "the CHAP secret could not be written", "", done.words)


def _try_login(portal: Portal, deadline: Deadline) -> None:
    try:
        done = _iscsiadm(portal, ["-l"], deadline)
    except NodeError as fault:
        if fault.family != "DeadlineError":
            raise
        raise _PortalError(fault.family, fault.message, fault.details) from None
    if done.code not in (0, _SESS_EXISTS):
        raise _login_fault(done)


def _login_fault(completed: Completed) -> NodeError:
    reason = _REASONS.get(completed.code)
    if reason is None:
        lines = completed.words.splitlines() or ["no message"]
        reason = f"iscsiadm exit code {completed.code}: {lines[-1]}"
    if completed.code in _FATAL:
        return NodeError("HostError", reason, "", completed.words)
    return _PortalError("ConnectError", reason, completed.words)


def log_out(target: str, deadline: Deadline) -> list[str]:
    """Log out of every portal of ``target``, unless the host still has a LUN of it; return warnings.

    Its records go too, also when there is no session: they outlive a reboot of the host.
    The lock keeps the sessions as they are while an attach, which holds it shared, is about to use them.
    """
    warnings = []
    with hold("target", target, deadline):
        ours = sessions([target])
        hosts = {session.host for session in ours}
        if any(disk.host in hosts for disk in sysfs.disks()):
            return []
        for session in ours:
            left = _iscsiadm(session.portal, ["-u"], deadline)
            if left.code not in (0, _SESS_NOT_FOUND, *_NO_RECORD):
                warnings.append(f"logging out of {target} at {session.portal}: {left.words or left.code}")
        if not warnings:
            left = _forget(target, deadline)
            if left.code not in (0, *_NO_RECORD):
                warnings.append(f"forgetting {target}: {left.words or left.code}")
    return warnings


def _forget(target: str, deadline: Deadline) -> Completed:
    """Delete the records of a target.

    iscsiadm looks at those of all targets for it, and stumbles when another one's go at that moment (seen
    with 2.1.8).
    """
    outcome: list[Completed] = []

    def is_clear() -> bool:
        outcome[:] = [run(["iscsiadm", "-m", "node", "-T", target, "-o", "delete"], deadline, ok=None)]
        return outcome[0].code != _IDBM

    wait_until(is_clear, deadline.within(_CROWDED))
    return outcome[0]


def _key(portal: Portal) -> str:
    return f"{portal.target} {portal}"


def _dead_portals() -> dict[str, _Dead]:
    """Return the portals that did not answer lately."""
    try:
        noted = json.loads((state_directory() / "dead-portals.json").read_text())
        now = time.time()
        dead = {str(key): _Dead(float(until), bool(silent)) for key, (until, silent) in noted.items()}
        return {key: one for key, one in dead.items() if now < one.until <= now + _DEAD_FOR}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(dead: Mapping[str, bool], alive: Collection[str]) -> None:
    """Note portals: those that did not answer, each with ``was_silent``, and those that did."""
    noted = {key: one for key, one in _dead_portals().items() if key not in alive}
    noted.update((key, _Dead(time.time() + _DEAD_FOR, silent)) for key, silent in dead.items())
    path = state_directory() / "dead-portals.json"
    temporary = path.with_name(f"dead-portals.{os.getpid()}")
    # A note that gets lost costs one more try.
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(noted))
        temporary.replace(path)
