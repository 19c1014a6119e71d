# SPDX-License-Identifier: Apache-2.0
"""A small iSCSI initiator (RFC 7143): discovery, login with CHAP, and the SCSI commands of a bus scan.

It plays the session that a kernel holds; the bytes of a disk travel in sessions of their own (``exports``).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

__all__ = ["Chap", "CheckConditionError", "Connection", "Inquiry", "LoginRefusedError", "send_targets"]

LOGIN, TEXT, COMMAND, NOP_OUT, LOGOUT = 0x43, 0x44, 0x01, 0x40, 0x46
LOGIN_RESPONSE, TEXT_RESPONSE, RESPONSE, DATA_IN, NOP_IN = 0x23, 0x24, 0x21, 0x25, 0x20
NO_TAG = 0xFFFFFFFF
SECURITY, OPERATIONAL, FULL_FEATURE = 0, 1, 3
REDIRECTED = 1
UNIT_ATTENTION = 0x06
_ATTENTIONS = 100
"""A target keeps one for each LUN that came or went since the last command, and tells one at a time."""
OPERATIONAL_KEYS = {
    "HeaderDigest": "None",
    "DataDigest": "None",
    "MaxRecvDataSegmentLength": "262144",
    "DefaultTime2Wait": "2",
    "DefaultTime2Retain": "0",
    "ErrorRecoveryLevel": "0",
}


class LoginRefusedError(Exception):
    """The target said no: RFC 7143's status class and detail (0x0201 is an authentication failure)."""

    def __init__(self, status_class: int, detail: int) -> None:
        super().__init__(f"login status {status_class:02x}{detail:02x}")
        self.status_class = status_class
        self.detail = detail


class CheckConditionError(Exception):
    """A SCSI command ended with sense: key and additional code."""

    def __init__(self, key: int, code: int) -> None:
        super().__init__(f"sense {key:x}/{code:04x}")
        self.key = key
        self.code = code


@dataclass(frozen=True, slots=True)
class Chap:
    """Names and passwords: ours, and the target's for mutual authentication."""

    username: str = ""
    password: str = field(default="", repr=False)
    username_in: str = ""
    password_in: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Inquiry:
    """Standard INQUIRY data. ``qualifier`` 0 means that a device is there."""

    qualifier: int
    kind: int
    vendor: str
    model: str
    revision: str


@dataclass(frozen=True, slots=True)
class _PDU:
    header: bytes
    payload: bytes

    @property
    def opcode(self) -> int:
        return self.header[0] & 0x3F

    def word(self, offset: int) -> int:
        return int(struct.unpack_from(">I", self.header, offset)[0])


class Connection:
    """One connection, logged in for discovery (``target`` None) or to a target.

    Each exchange has ``timeout`` seconds. Raises: OSError (TimeoutError included) when the portal is dead,
    LoginRefusedError, CheckConditionError.
    """

    def __init__(
        self,
        portal: tuple[str, int],
        initiator: str,
        target: str | None,
        chap: Chap | None,
        timeout: float,
        isid: bytes = b"",
    ) -> None:
        self.portal = portal
        self.tpgt = 1
        self._initiator = initiator
        self._target = target
        self._chap = chap
        self._timeout = timeout
        self._isid = isid or b"\x80" + os.urandom(5)
        self._lock = threading.Lock()
        self._tag = 0
        self._sequence = 1
        self._expected = 0
        self._tsih = 0
        self._challenge = b""
        self._deadline = time.monotonic() + timeout
        for _ in range(3):
            self._sock = socket.create_connection(self.portal, timeout)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                redirect = self._log_in()
            except BaseException:
                self._sock.close()
                raise
            if redirect is None:
                return
            self._sock.close()
            self.portal = redirect
        raise LoginRefusedError(REDIRECTED, 1)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self, *, politely: bool = False) -> None:
        """Log out first when ``politely``, else just cut."""
        if politely:
            with contextlib.suppress(OSError, LoginRefusedError), self._lock:
                self._arm()
                header = bytearray(48)
                header[0], header[1] = LOGOUT, 0x80
                struct.pack_into(">IIII", header, 16, self._next_tag(), 0, self._sequence, self._expected)
                self._send(header, b"")
                self._receive()
        with contextlib.suppress(OSError):
            # wakes whoever waits for the socket
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def serve(self) -> None:
        """Take what the target sent unasked. Raises OSError when the connection is over."""
        with self._lock:
            self._arm()
            while select.select([self._sock], [], [], 0)[0]:
                self._handle_unsolicited(self._receive())

    def ping(self, timeout: float) -> None:
        """Send a NOP-Out and wait for its answer."""
        with self._lock:
            self._deadline = time.monotonic() + timeout
            tag = self._next_tag()
            self._send(self._nop(tag, NO_TAG, bytes(8)), b"")
            self._await(NOP_IN, tag)

    def text(self, **keys: str) -> list[tuple[str, str]]:
        """Exchange a text request, for SendTargets."""
        with self._lock:
            self._arm()
            header = bytearray(48)
            header[0], header[1] = TEXT, 0x80
            tag = self._next_tag()
            struct.pack_into(">IIII", header, 16, tag, NO_TAG, self._sequence, self._expected)
            self._send(header, _encode(keys))
            return _decode(self._await(TEXT_RESPONSE, tag).payload)

    def inquire(self, lun: int) -> Inquiry:
        answer = self._command(lun, struct.pack(">BBHBB", 0x12, 0, 0, 96, 0), 96)
        words = [answer[a:b].decode("ascii", "replace") for a, b in ((8, 16), (16, 32), (32, 36))]
        return Inquiry(answer[0] >> 5, answer[0] & 0x1F, *words)

    def vpd(self, lun: int, page: int) -> bytes:
        """Return a vital product data page, header included."""
        answer = self._command(lun, struct.pack(">BBBHB", 0x12, 1, page, 1024, 0), 1024)
        return answer[: 4 + struct.unpack_from(">H", answer, 2)[0]]

    def capacity(self, lun: int) -> int:
        """Return the size in bytes (READ CAPACITY 16)."""
        answer = self._command(lun, struct.pack(">BBQIBB", 0x9E, 0x10, 0, 32, 0, 0), 32)
        last, block = struct.unpack_from(">QI", answer)
        return int((last + 1) * block)

    def is_write_protected(self, lun: int) -> bool:
        answer = self._command(lun, struct.pack(">BBBBBB", 0x1A, 0x08, 0x3F, 0, 192, 0), 192)
        return bool(answer[2] & 0x80)

    def test_unit_ready(self, lun: int) -> None:
        self._command(lun, bytes(6), 0)

    def report_luns(self) -> list[int]:
        answer = self._command(0, struct.pack(">BBBBBBIBB", 0xA0, 0, 0, 0, 0, 0, 8192, 0, 0), 8192)
        count = int(struct.unpack_from(">I", answer)[0]) // 8
        return sorted(_lun_number(answer[8 + 8 * n : 16 + 8 * n]) for n in range(count))

    def _command(self, lun: int, cdb: bytes, length: int) -> bytes:
        for attempt in range(_ATTENTIONS):
            try:
                return self._command_once(lun, cdb, length)
            except CheckConditionError as err:
                if err.key != UNIT_ATTENTION or attempt == _ATTENTIONS - 1:
                    raise
        raise AssertionError("unreachable")

    def _command_once(self, lun: int, cdb: bytes, length: int) -> bytes:
        with self._lock:
            self._arm()
            header = bytearray(48)
            header[0], header[1] = COMMAND, 0x81 | (0x40 if length else 0)
            header[8:16] = _lun_bytes(lun)
            tag = self._next_tag()
            struct.pack_into(">IIII", header, 16, tag, length, self._sequence, self._expected)
            header[32 : 32 + len(cdb)] = cdb
            self._sequence += 1
            self._send(header, b"")
            received = bytearray()
            while True:
                pdu = self._await_any(tag)
                if pdu.opcode == DATA_IN:
                    received += pdu.payload
                    if not pdu.header[1] & 0x01:
                        continue
                status, sense = pdu.header[3], b"" if pdu.opcode == DATA_IN else pdu.payload[2:]
                if pdu.opcode == RESPONSE and pdu.header[2]:
                    raise OSError(f"the target failed the command: {pdu.header[2]}")
                if status:
                    key, code = _sense(sense)
                    raise CheckConditionError(key, code)
                return bytes(received)

    def _log_in(self) -> tuple[str, int] | None:
        """Negotiate. Returns the address of a redirection, None when logged in."""
        keys = {"InitiatorName": self._initiator, "SessionType": "Discovery"}
        if self._target is not None:
            keys |= {"SessionType": "Normal", "TargetName": self._target}
        keys["AuthMethod"] = "CHAP" if self._chap else "None"
        stage, leave = SECURITY, self._chap is None
        for _ in range(8):
            header = bytearray(48)
            after = OPERATIONAL if stage == SECURITY else FULL_FEATURE
            header[0] = LOGIN
            header[1] = stage << 2 | (0x80 | after if leave else 0)
            header[8:14] = self._isid
            struct.pack_into(">HI", header, 14, self._tsih, self._next_tag())
            struct.pack_into(">II", header, 24, self._sequence, self._expected)
            self._send(header, _encode(keys))
            pdu = self._receive()
            answer = dict(_decode(pdu.payload))
            if pdu.opcode != LOGIN_RESPONSE:
                raise ConnectionError("the target does not speak iSCSI")
            if pdu.header[36] == REDIRECTED:
                return _address(answer["TargetAddress"])
            if pdu.header[36]:
                raise LoginRefusedError(pdu.header[36], pdu.header[37])
            self.tpgt = int(answer.get("TargetPortalGroupTag", self.tpgt))
            self._tsih = int(struct.unpack_from(">H", pdu.header, 14)[0])
            if pdu.header[1] & 0x80:
                stage = pdu.header[1] & 3
            if stage == FULL_FEATURE:
                return None
            keys, leave = self._next_login(stage, answer)
        raise LoginRefusedError(2, 0)

    def _next_login(self, stage: int, answer: dict[str, str]) -> tuple[dict[str, str], bool]:
        if stage == OPERATIONAL:
            self._check_target(answer)
            return OPERATIONAL_KEYS, True
        if "CHAP_C" not in answer:
            return {"CHAP_A": "5"}, False
        assert self._chap is not None
        challenge = _unhex(answer["CHAP_C"])
        response = _chap(int(answer["CHAP_I"]), self._chap.password, challenge)
        keys = {"CHAP_N": self._chap.username, "CHAP_R": "0x" + response.hex()}
        if self._chap.username_in:
            self._challenge = os.urandom(16)
            keys |= {"CHAP_I": "1", "CHAP_C": "0x" + self._challenge.hex()}
        return keys, True

    def _check_target(self, answer: dict[str, str]) -> None:
        if not self._challenge or self._chap is None:
            return
        expected = _chap(1, self._chap.password_in, self._challenge)
        is_right = hmac.compare_digest(_unhex(answer.get("CHAP_R", "0x00")), expected)
        if answer.get("CHAP_N") != self._chap.username_in or not is_right:
            raise LoginRefusedError(2, 1)

    def _arm(self) -> None:
        self._deadline = time.monotonic() + self._timeout

    def _next_tag(self) -> int:
        self._tag = (self._tag + 1) % NO_TAG
        return self._tag

    def _nop(self, tag: int, transfer_tag: int, lun: bytes) -> bytearray:
        header = bytearray(48)
        header[0], header[1] = NOP_OUT, 0x80
        header[8:16] = lun
        struct.pack_into(">IIII", header, 16, tag, transfer_tag, self._sequence, self._expected)
        return header

    def _handle_unsolicited(self, pdu: _PDU) -> None:
        if pdu.opcode == NOP_IN and pdu.word(20) != NO_TAG:
            self._send(self._nop(NO_TAG, pdu.word(20), pdu.header[8:16]), b"")

    def _await_any(self, tag: int) -> _PDU:
        while True:
            pdu = self._receive()
            if pdu.word(16) == tag:
                return pdu
            self._handle_unsolicited(pdu)

    def _await(self, opcode: int, tag: int) -> _PDU:
        pdu = self._await_any(tag)
        if pdu.opcode != opcode:
            raise ConnectionError(f"unexpected answer 0x{pdu.opcode:02x}")
        return pdu

    def _send(self, header: bytearray, payload: bytes) -> None:
        header[5:8] = len(payload).to_bytes(3, "big")
        self._sock.settimeout(self._left())
        self._sock.sendall(bytes(header) + payload + bytes(-len(payload) % 4))

    def _receive(self) -> _PDU:
        header = self._read(48)
        self._read(header[4] * 4)
        length = int.from_bytes(header[5:8], "big")
        payload = self._read(length + -length % 4)[:length]
        pdu = _PDU(header, payload)
        if pdu.opcode != DATA_IN or header[1] & 0x01:
            self._expected = (pdu.word(24) + 1) % (1 << 32)
        return pdu

    def _read(self, length: int) -> bytes:
        received = bytearray()
        while len(received) < length:
            self._sock.settimeout(self._left())
            chunk = self._sock.recv(length - len(received))
            if not chunk:
                raise ConnectionResetError("the target closed the connection")
            received += chunk
        return bytes(received)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the target does not answer")
        return left


def send_targets(
    portal: tuple[str, int], initiator: str, timeout: float
) -> list[tuple[str, tuple[str, int, int]]]:
    """List (target, (address, port, portal group)) as a portal answers SendTargets=All."""
    connection = Connection(portal, initiator, None, None, timeout)
    try:
        answer = connection.text(SendTargets="All")
    finally:
        connection.close(politely=True)
    found: list[tuple[str, tuple[str, int, int]]] = []
    target = ""
    for key, value in answer:
        if key == "TargetName":
            target = value
        elif key == "TargetAddress":
            address, _, group = value.partition(",")
            found.append((target, (*_address(address), int(group or 1))))
    return found


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.partition(",")[0].rpartition(":")
    return host.strip("[]"), int(port)


def _encode(keys: dict[str, str]) -> bytes:
    return b"".join(f"{key}={value}\0".encode() for key, value in keys.items())


def _decode(payload: bytes) -> list[tuple[str, str]]:
    words = (word.partition("=") for word in payload.decode("utf-8", "replace").split("\0") if word)
    return [(key, value) for key, _, value in words]


def _unhex(text: str) -> bytes:
    digits = text[2:]
    return bytes.fromhex(digits if len(digits) % 2 == 0 else "0" + digits)


def _chap(identifier: int, password: str, challenge: bytes) -> bytes:
    return hashlib.md5(bytes([identifier]) + password.encode() + challenge, usedforsecurity=False).digest()


def _lun_bytes(lun: int) -> bytes:
    """Put the kernel's number of a LUN on the wire; from 256 on it has the addressing method in it."""
    return struct.pack(">H6x", lun)


def _lun_number(field: bytes) -> int:
    return int(struct.unpack_from(">H", field)[0])


def _sense(sense: bytes) -> tuple[int, int]:
    if len(sense) < 8:
        return 0, 0
    if sense[0] & 0x7F in (0x72, 0x73):
        return sense[1] & 0x0F, int(struct.unpack_from(">H", sense, 2)[0])
    return sense[2] & 0x0F, int(struct.unpack_from(">H", sense, 12)[0]) if len(sense) >= 14 else 0
