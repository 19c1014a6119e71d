# SPDX-License-Identifier: Apache-2.0
"""What a kernel has in memory: sessions and SCSI disks, and the times that things take."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from lab.host.exports import Export
from lab.host.initiator import Chap, Connection
from lab.host.sysfs import disk_number

__all__ = ["Disk", "IscsiError", "Portal", "Session", "SessionSettings", "Timings"]

Portal = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Timings:
    """How long things take, in seconds.

    ``second`` is the length of a second of iscsid and multipathd: their time-outs are whole numbers, and a
    test shortens them all by making it small. ``uevent`` passes between a kernel event and what udev and
    multipathd make of it, ``delete`` between the order to delete a disk and its end.
    """

    second: float = 1.0
    uevent: float = 0.01
    delete: float = 0.05


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """A node record's settings that shape a session. Times are in iscsid's seconds."""

    chap: Chap | None = None
    login_timeout: int = 15
    login_retries: int = 8
    replacement_timeout: int = 120
    noop_interval: int = 5
    noop_timeout: int = 5
    scan: str = "auto"


class IscsiError(Exception):
    """A failure with open-iscsi's exit code."""

    def __init__(self, code: int, text: str = "") -> None:
        super().__init__(text or f"error {code}")
        self.code = code


@dataclass(eq=False, slots=True)
class Session:
    """One session, hence one SCSI host."""

    sid: int
    host: int
    target: str
    portal: Portal
    tpgt: int
    settings: SessionSettings
    connection: Connection
    isid: bytes
    state: str = "LOGGED_IN"
    failed_at: float = 0.0
    scanning: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False, slots=True)
class Disk:
    """One sd device. ``wwid`` and ``page_83`` are what a scan or rescan found, whatever is there since."""

    name: str
    index: int
    session: Session
    lun: int
    size: int
    wwid: str
    page_83: bytes
    vendor: str
    model: str
    revision: str
    read_only: bool
    export: Export
    sysfs: Path
    is_up: bool = False
    is_deleted: bool = False
    is_leaving: bool = False
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def hctl(self) -> str:
        return f"{self.session.host}:0:0:{self.lun}"

    @property
    def number(self) -> str:
        return disk_number(self.index)
