# SPDX-License-Identifier: Apache-2.0
"""``iscsiadm`` of open-iscsi 2.1.8: options, texts and exit codes."""

from __future__ import annotations

import getopt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lab.host import initiator
from lab.host.calls import Answer, Call, fail
from lab.host.devices import IscsiError, Session, Timings
from lab.host.kernel import Kernel
from lab.host.records import DEFAULTS, Record, Records, settings_of

__all__ = ["Iscsiadm"]

SHORT = "hVm:t:p:T:I:U:L:r:n:v:o:P:d:C:H:luRSsDa:b:A:k:x:"
LONG = [
    "help", "version", "mode=", "type=", "portal=", "targetname=", "interface=", "logoutall=", "loginall=",
    "sid=", "name=", "value=", "op=", "print=", "debug=", "submode=", "host=", "login", "logout", "rescan",
    "show", "stats", "discover",
]  # fmt: skip
LONG_TO_SHORT = {
    "mode": "m", "type": "t", "portal": "p", "targetname": "T", "interface": "I", "sid": "r", "name": "n",
    "value": "v", "op": "o", "print": "P", "debug": "d", "login": "l", "logout": "u", "rescan": "R",
    "show": "S", "stats": "s", "discover": "D", "loginall": "L", "logoutall": "U", "host": "H",
}  # fmt: skip

ERR, SESS_NOT_FOUND, TRANS, TRANS_TIMEOUT, INVAL, ACCESS, SESS_EXISTS, NO_OBJS = 1, 2, 4, 8, 7, 13, 15, 21
LOGOUT_FAILED, AUTH_FAILED, NOTCONN = 10, 24, 20
MEANING = {
    ERR: "unknown error",
    SESS_NOT_FOUND: "session not found",
    TRANS: "encountered connection failure",
    5: "encountered iSCSI login failure",
    INVAL: "invalid parameter",
    TRANS_TIMEOUT: "connection timed out",
    LOGOUT_FAILED: "iSCSI logout failure",
    SESS_EXISTS: "session exists",
    19: "encountered non-retryable iSCSI login failure",
    NO_OBJS: "no records found",
    AUTH_FAILED: "iSCSI login failed due to authorization failure",
}
DISCOVERY_RETRIES = 6


@dataclass(slots=True)
class _Options:
    values: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    ops: set[str] = field(default_factory=set)

    def __contains__(self, option: str) -> bool:
        return option in self.values

    def get(self, option: str) -> str | None:
        return self.values.get(option)

    @property
    def portal(self) -> tuple[str, int | None] | None:
        text = self.get("p")
        if text is None:
            return None
        text = text.partition(",")[0]
        if text.startswith("["):
            address, _, port = text[1:].partition("]")
            port = port.removeprefix(":")
        elif text.count(":") > 1:
            address, port = text, ""
        else:
            address, _, port = text.partition(":")
        return address, int(port) if port else None


class _UsageError(Exception):
    pass


class Iscsiadm:
    """Answers calls of ``iscsiadm`` from the records and the kernel's sessions."""

    def __init__(self, kernel: Kernel, records: Records, timings: Timings) -> None:
        self._kernel = kernel
        self._records = records
        self._timings = timings
        self.is_iscsid_running = True

    def __call__(self, call: Call) -> Answer:
        try:
            options = _parse(call.argv)
        except (_UsageError, ValueError) as err:
            return fail(INVAL, f"iscsiadm: {err}")
        if "V" in options:
            return Answer(out="iscsiadm version 2.1.8\n")
        if not call.is_root:
            return fail(ACCESS, "iscsiadm: Must be run as root")
        modes: dict[str, Callable[[_Options], Answer]] = {
            "discovery": self._discovery,
            "node": self._node,
            "session": self._session,
            "iface": self._iface,
        }
        mode = modes.get(options.get("m") or "")
        if mode is None:
            return fail(INVAL, "iscsiadm: Invalid or missing mode. Try --help")
        try:
            return mode(options)
        except _UsageError as err:
            return fail(INVAL, f"iscsiadm: {err}")

    def _discovery(self, options: _Options) -> Answer:
        portal = options.portal
        if options.get("t") not in ("st", "sendtargets") or portal is None:
            raise _UsageError("discovery needs -t st and -p")
        address = portal[0], portal[1] or 3260
        refused = None
        for attempt in range(DISCOVERY_RETRIES):
            if attempt and self._kernel.halted.wait(self._timings.second):
                break
            try:
                found = initiator.send_targets(address, self._kernel.initiator, 15 * self._timings.second)
                break
            except OSError as err:
                refused = err
            except initiator.LoginRefusedError:
                return fail(AUTH_FAILED, "iscsiadm: Login authorization failed")
        else:
            return Answer(
                TRANS,
                "",
                f"iscsiadm: cannot make connection to {address[0]}: {refused}\n"
                "iscsiadm: connection login retries (reopen_max) 5 exceeded\n"
                "iscsiadm: Could not perform SendTargets discovery: encountered connection failure\n",
            )
        if not found:
            return fail(NO_OBJS, "iscsiadm: No portals found")
        self._keep_discovered(address, [Records.new(iqn, *place) for iqn, place in found], options.ops)
        lines = [f"{_portal(host, port)},{tpgt} {iqn}" for iqn, (host, port, tpgt) in found]
        return Answer(out="".join(f"{line}\n" for line in lines))

    def _keep_discovered(self, portal: tuple[str, int], found: list[Record], ops: set[str]) -> None:
        """Write records: without -o all are set back to the defaults, with it only what is named."""
        known = {(one.target, one.portal) for one in self._records.all()}
        for record in found:
            is_known = (record.target, record.portal) in known
            if not ops or (is_known and "update" in ops) or (not is_known and "new" in ops):
                self._records.write(record)
        if "delete" in ops:
            names = {(one.target, one.portal) for one in found}
            for record in self._records.select(None, portal):
                if (record.target, record.portal) not in names:
                    self._records.delete(record)

    def _node(self, options: _Options) -> Answer:
        target, portal = options.get("T"), options.portal
        if options.ops == {"new"}:
            return self._new_record(target, portal)
        found = self._records.select(target, portal)
        if not found:
            return fail(NO_OBJS, "iscsiadm: No records found")
        if "l" in options:
            return self._login(found)
        if "u" in options:
            return self._logout(self._sessions_of(found))
        if "R" in options:
            return self._rescan(self._sessions_of(found))
        if "update" in options.ops:
            return self._update(found, options)
        if "delete" in options.ops:
            return self._delete(found)
        if options.ops - {"show"}:
            raise _UsageError(f"unsupported operation {sorted(options.ops)}")
        if target is None and "show" not in options.ops and "S" not in options:
            lines = [f"{_portal(*one.portal)},{one.tpgt} {one.target}" for one in found]
            return Answer(out="".join(f"{line}\n" for line in lines))
        return Answer(out="".join(one.text(shows_secrets="S" in options) for one in found))

    def _new_record(self, target: str | None, portal: tuple[str, int | None] | None) -> Answer:
        if target is None or portal is None:
            raise _UsageError("portal and target are required for -o new")
        record = Records.new(target, portal[0], portal[1] or 3260, -1)
        self._records.write(record)
        where = f"{record.address},{record.port},-1"
        return Answer(out=f"New iSCSI node [tcp:[hw=,ip=,net_if=,iscsi_if=default] {where} {target}] added\n")

    def _update(self, found: list[Record], options: _Options) -> Answer:
        if not options.names or len(options.names) != len(options.settings):
            raise _UsageError("update requires name and value")
        changes = dict(zip(options.names, options.settings, strict=True))
        for name in changes:
            if name not in DEFAULTS:
                return fail(INVAL, f"iscsiadm: Cannot modify {name}. Invalid param name.")
        for record in found:
            changed = {**record.values, **changes}
            self._records.write(Record(record.target, record.address, record.port, record.tpgt, changed))
        return Answer()

    def _delete(self, found: list[Record]) -> Answer:
        busy = [one for one in found if self._sessions_of([one])]
        for record in found:
            if record not in busy:
                self._records.delete(record)
        if not busy:
            return Answer()
        lines = [
            f"iscsiadm: This command will remove the record [{_named(one.target, one.portal)}], but a "
            "session is using it. Logout session then rerun command to remove record."
            for one in busy
        ]
        lines.append("iscsiadm: Could not execute operation on all records: session exists")
        return fail(SESS_EXISTS, "\n".join(lines))

    def _login(self, found: list[Record]) -> Answer:
        if not self.is_iscsid_running:
            return fail(NOTCONN, "iscsiadm: can not connect to iSCSI daemon (111)!")
        first, out, err = 0, [], []
        for record in found:
            place = _named(record.target, record.portal)
            try:
                settings = settings_of(record)
                if self._sessions_of([record]):
                    raise IscsiError(SESS_EXISTS)
                out.append(f"Logging in to [{place}]")
                self._kernel.login(record.target, record.portal, settings)
                out.append(f"Login to [{place}] successful.")
            except IscsiError as failure:
                first = first or failure.code
                if failure.code == SESS_EXISTS:
                    err.append("iscsiadm: default: 1 session requested, but 1 already present.")
                    continue
                meaning = MEANING.get(failure.code, "unknown error")
                err.append(f"iscsiadm: Could not login to [{place}].")
                err.append(f"iscsiadm: initiator reported error ({failure.code} - {meaning})")
        if first:
            err.append("iscsiadm: Could not log into all portals")
        return _answer(first, out, err)

    def _logout(self, sessions: list[Session]) -> Answer:
        if not sessions:
            return fail(NO_OBJS, "iscsiadm: No matching sessions found")
        out = []
        for session in sessions:
            place = f"[sid: {session.sid}, target: {session.target}, portal: {_comma(session.portal)}]"
            out.append(f"Logging out of session {place}")
            self._kernel.logout(session)
            out.append(f"Logout of {place} successful.")
        return _answer(0, out, [])

    def _rescan(self, sessions: list[Session]) -> Answer:
        if not sessions:
            return fail(NO_OBJS, "iscsiadm: No session found.")
        out = []
        for session in sessions:
            out.append(
                f"Rescanning session [sid: {session.sid}, target: {session.target}, "
                f"portal: {_comma(session.portal)}]"
            )
            for disk in self._kernel.disks():
                if disk.session is session:
                    self._kernel.rescan(disk.name)
            self._kernel.scan(session.host, None)
        return _answer(0, out, [])

    def _session(self, options: _Options) -> Answer:
        sessions = self._kernel.sessions()
        sid = options.get("r")
        if sid is not None:
            number = sid.rpartition("/session")[2]
            sessions = [one for one in sessions if str(one.sid) == number]
            if not sessions:
                return fail(NO_OBJS, "iscsiadm: No session found.")
        if not sessions:
            return fail(NO_OBJS, "iscsiadm: No active sessions.")
        if "u" in options:
            return self._logout(sessions)
        if "R" in options:
            return self._rescan(sessions)
        if options.ops:
            raise _UsageError("operation is not supported in session mode")
        level = int(options.get("P") or 0)
        if level == 0:
            return Answer(
                out="".join(
                    f"tcp: [{one.sid}] {_portal(*one.portal)},{one.tpgt} {one.target} (non-flash)\n"
                    for one in sessions
                )
            )
        return Answer(out=self._print_sessions(sessions, level))

    def _print_sessions(self, sessions: list[Session], level: int) -> str:
        lines: list[str] = []
        for target in dict.fromkeys(one.target for one in sessions):
            lines.append(f"Target: {target} (non-flash)")
            for session in (one for one in sessions if one.target == target):
                lines += self._print_session(session, level)
        return "\n".join([*lines, ""])

    def _print_session(self, session: Session, level: int) -> list[str]:
        current = f"{_portal(*session.portal)},{session.tpgt}"
        is_up = session.state == "LOGGED_IN"
        lines = [
            f"\tCurrent Portal: {current}",
            f"\tPersistent Portal: {current}",
            "\t\t**********",
            "\t\tInterface:",
            "\t\t**********",
            "\t\tIface Name: default",
            "\t\tIface Transport: tcp",
            f"\t\tIface Initiatorname: {self._kernel.initiator}",
            "\t\tIface IPaddress: <empty>",
            "\t\tIface HWaddress: <empty>",
            "\t\tIface Netdev: <empty>",
            f"\t\tSID: {session.sid}",
            f"\t\tiSCSI Connection State: {'LOGGED IN' if is_up else 'TRANSPORT WAIT'}",
            f"\t\tiSCSI Session State: {session.state}",
            f"\t\tInternal iscsid Session State: {'NO CHANGE' if is_up else 'REPOEN'}",
        ]
        if level >= 2:
            chap = session.settings.chap
            lines += [
                "\t\t*********",
                "\t\tTimeouts:",
                "\t\t*********",
                f"\t\tRecovery Timeout: {session.settings.replacement_timeout}",
                "\t\t*****",
                "\t\tCHAP:",
                "\t\t*****",
                f"\t\tusername: {chap.username if chap else '<empty>'}",
                f"\t\tpassword: {'********' if chap else '<empty>'}",
            ]
        if level >= 3:
            host = session.host
            lines += [
                "\t\t************************",
                "\t\tAttached SCSI devices:",
                "\t\t************************",
                f"\t\tHost Number: {host}\tState: running",
            ]
            for disk in (one for one in self._kernel.disks() if one.session is session):
                lines.append(f"\t\tscsi{host} Channel 00 Id 0 Lun: {disk.lun}")
                lines.append(f"\t\t\tAttached scsi disk {disk.name}\t\tState: running")
        return lines

    def _iface(self, options: _Options) -> Answer:
        if options.ops - {"show"} or (options.get("I") or "default") != "default":
            raise _UsageError("only the interface default is there")
        if options.get("I") is None:
            return Answer(
                out="default tcp,<empty>,<empty>,<empty>,<empty>\niser iser,<empty>,<empty>,<empty>,<empty>\n"
            )
        return Answer(
            out="# BEGIN RECORD 2.1.8\niface.iscsi_ifacename = default\niface.net_ifacename = <empty>\n"
            "iface.ipaddress = <empty>\niface.hwaddress = <empty>\niface.transport_name = tcp\n"
            "iface.initiatorname = <empty>\n# END RECORD\n"
        )

    def _sessions_of(self, found: list[Record]) -> list[Session]:
        keys = {(one.target, one.portal) for one in found}
        return [one for one in self._kernel.sessions() if (one.target, one.portal) in keys]


def _parse(argv: Sequence[str]) -> _Options:
    try:
        pairs, rest = getopt.gnu_getopt(list(argv), SHORT, LONG)
    except getopt.GetoptError as err:
        raise _UsageError(str(err)) from err
    if rest:
        raise _UsageError(f"unrecognized argument {rest[0]}")
    options = _Options()
    for flag, value in pairs:
        name = flag.lstrip("-")
        short = LONG_TO_SHORT.get(name, name)
        if short == "n":
            options.names.append(value)
        elif short == "v":
            options.settings.append(value)
        elif short == "o":
            options.ops.add(value)
        else:
            options.values[short] = value
    unknown = options.ops - {"new", "update", "delete", "show", "nonpersistent"}
    if unknown:
        raise _UsageError(f"unknown operation {sorted(unknown)}")
    return options


def _answer(code: int, out: list[str], err: list[str]) -> Answer:
    return Answer(code, "".join(f"{one}\n" for one in out), "".join(f"{one}\n" for one in err))


def _portal(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _comma(portal: tuple[str, int]) -> str:
    return f"{portal[0]},{portal[1]}"


def _named(target: str, portal: tuple[str, int]) -> str:
    return f"iface: default, target: {target}, portal: {_comma(portal)}"
