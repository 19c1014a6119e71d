# SPDX-License-Identifier: Apache-2.0
"""open-iscsi's node records: one file per target and portal, which outlive the host's power."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from lab.host.devices import SessionSettings
from lab.host.initiator import Chap

__all__ = ["DEFAULTS", "Record", "Records", "settings_of"]

Key = tuple[str, str, int]

DEFAULTS: dict[str, str] = {
    "node.startup": "manual",
    "node.leading_login": "No",
    "iface.iscsi_ifacename": "default",
    "iface.net_ifacename": "",
    "iface.transport_name": "tcp",
    "node.discovery_type": "send_targets",
    "node.session.scan": "auto",
    "node.session.initial_cmdsn": "0",
    "node.session.initial_login_retry_max": "8",
    "node.session.xmit_thread_priority": "-20",
    "node.session.cmds_max": "128",
    "node.session.queue_depth": "32",
    "node.session.nr_sessions": "1",
    "node.session.reopen_max": "0",
    "node.session.auth.authmethod": "None",
    "node.session.auth.username": "",
    "node.session.auth.password": "",
    "node.session.auth.username_in": "",
    "node.session.auth.password_in": "",
    "node.session.auth.chap_algs": "MD5",
    "node.session.timeo.replacement_timeout": "120",
    "node.session.err_timeo.abort_timeout": "15",
    "node.session.err_timeo.lu_reset_timeout": "30",
    "node.session.err_timeo.tgt_reset_timeout": "30",
    "node.session.err_timeo.host_reset_timeout": "60",
    "node.session.iscsi.FastAbort": "Yes",
    "node.session.iscsi.InitialR2T": "No",
    "node.session.iscsi.ImmediateData": "Yes",
    "node.session.iscsi.FirstBurstLength": "262144",
    "node.session.iscsi.MaxBurstLength": "16776192",
    "node.conn[0].startup": "manual",
    "node.conn[0].tcp.window_size": "524288",
    "node.conn[0].timeo.logout_timeout": "15",
    "node.conn[0].timeo.login_timeout": "15",
    "node.conn[0].timeo.auth_timeout": "45",
    "node.conn[0].timeo.noop_out_interval": "5",
    "node.conn[0].timeo.noop_out_timeout": "5",
    "node.conn[0].iscsi.MaxRecvDataSegmentLength": "262144",
    "node.conn[0].iscsi.HeaderDigest": "None",
    "node.conn[0].iscsi.DataDigest": "None",
}
IDENTITY = ("node.name", "node.tpgt", "node.conn[0].address", "node.conn[0].port")


@dataclass(frozen=True, slots=True)
class Record:
    """What the initiator knows about one portal of one target."""

    target: str
    address: str
    port: int
    tpgt: int
    values: dict[str, str]

    @property
    def portal(self) -> tuple[str, int]:
        return self.address, self.port

    def text(self, *, shows_secrets: bool) -> str:
        """Write the record as ``iscsiadm -o show`` does."""
        identity = zip(IDENTITY, (self.target, str(self.tpgt), self.address, str(self.port)), strict=True)
        lines = ["# BEGIN RECORD 2.1.8"]
        for name, value in [*identity, *self.values.items()]:
            hidden = "password" in name and value and not shows_secrets
            lines.append(f"{name} = {'********' if hidden else value or '<empty>'}")
        return "\n".join([*lines, "# END RECORD", ""])


class Records:
    """The record database below ``folder`` (``etc/iscsi/nodes``)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def all(self) -> list[Record]:
        with self._lock:
            return [self._read(path) for path in sorted(self._folder.glob("*/*/default"))]

    def select(self, target: str | None, portal: tuple[str, int | None] | None) -> list[Record]:
        """List the records of a target, a portal (port None: any), or both."""
        found = [one for one in self.all() if target in (None, one.target)]
        if portal is None:
            return found
        address, port = portal
        return [one for one in found if one.address == address and port in (None, one.port)]

    def write(self, record: Record) -> None:
        """Add a record or replace the one of that target and portal."""
        self.delete(record)
        with self._lock:
            folder = self._folder / record.target / f"{record.address},{record.port},{record.tpgt}"
            folder.mkdir(parents=True)
            path = folder / "default"
            path.touch(mode=0o600)
            path.write_text(record.text(shows_secrets=True), encoding="utf-8")

    def delete(self, record: Record) -> None:
        with self._lock:
            for path in self._folder.glob(f"*/{record.address},{record.port},*/default"):
                if path.parent.parent.name == record.target:
                    path.unlink(missing_ok=True)
                    path.parent.rmdir()
                    if not any(path.parent.parent.iterdir()):
                        path.parent.parent.rmdir()

    @staticmethod
    def new(target: str, address: str, port: int, tpgt: int) -> Record:
        return Record(target, address, port, tpgt, dict(DEFAULTS))

    @staticmethod
    def _read(path: Path) -> Record:
        lines = (line.partition(" = ") for line in path.read_text(encoding="utf-8").splitlines())
        values = {name: "" if value == "<empty>" else value for name, mark, value in lines if mark}
        target, tpgt, address, port = (values.pop(name) for name in IDENTITY)
        return Record(target, address, int(port), int(tpgt), values)


def settings_of(record: Record) -> SessionSettings:
    """Read what the kernel must know from a record."""
    value = record.values
    chap = None
    if value["node.session.auth.authmethod"] == "CHAP":
        auth = "node.session.auth."
        chap = Chap(
            value[f"{auth}username"],
            value[f"{auth}password"],
            value[f"{auth}username_in"],
            value[f"{auth}password_in"],
        )
    timeouts = "node.conn[0].timeo."
    return SessionSettings(
        chap=chap,
        login_timeout=int(value[f"{timeouts}login_timeout"]),
        login_retries=int(value["node.session.initial_login_retry_max"]),
        replacement_timeout=int(value["node.session.timeo.replacement_timeout"]),
        noop_interval=int(value[f"{timeouts}noop_out_interval"]),
        noop_timeout=int(value[f"{timeouts}noop_out_timeout"]),
        scan=value["node.session.scan"],
    )
