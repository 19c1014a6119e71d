# SPDX-License-Identifier: Apache-2.0
"""As much of the iSCSI protocol (RFC 7143) as a front needs: logins to look at, discovery to answer."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["AUTHORIZATION_FAILURE", "TARGET_NOT_FOUND", "Pdu", "answer_discovery", "read_pdu", "refuse"]

NOP_OUT, TEXT, LOGIN, LOGOUT = 0x00, 0x04, 0x03, 0x06
BHS = 48
MAX_LOGIN = 1 << 16
NO_TAG = 0xFFFFFFFF
FINAL, CONTINUE = 0x80, 0x40
SUCCESS = (0, 0)
AUTHORIZATION_FAILURE = (2, 2)
TARGET_NOT_FOUND = (2, 3)
MISSING_PARAMETER = (2, 7)

# what our side answers to keys that are negotiated, when the initiator offers them
NEGOTIATED = {
    "AuthMethod": "None",
    "HeaderDigest": "None",
    "DataDigest": "None",
    "ErrorRecoveryLevel": "0",
    "DefaultTime2Wait": "2",
    "DefaultTime2Retain": "0",
    "MaxConnections": "1",
    "InitialR2T": "Yes",
    "ImmediateData": "No",
    "MaxBurstLength": "262144",
    "FirstBurstLength": "65536",
    "MaxOutstandingR2T": "1",
    "DataPDUInOrder": "Yes",
    "DataSequenceInOrder": "Yes",
    "IFMarker": "No",
    "OFMarker": "No",
}
DECLARED = {
    "InitiatorName",
    "InitiatorAlias",
    "SessionType",
    "TargetName",
    "MaxRecvDataSegmentLength",
    "iSCSIProtocolLevel",
}


@dataclass(frozen=True, slots=True)
class Pdu:
    """One PDU as it came: header, data segment without padding, and all its bytes."""

    header: bytes
    payload: bytes
    raw: bytes

    @property
    def opcode(self) -> int:
        return self.header[0] & 0x3F

    @property
    def is_immediate(self) -> bool:
        """An immediate command does not count in the sequence of commands."""
        return bool(self.header[0] & 0x40)

    @property
    def flags(self) -> int:
        return self.header[1]

    @property
    def keys(self) -> dict[str, str]:
        pairs = (part.partition("=") for part in self.payload.decode("utf-8", "replace").split("\0"))
        return {key: value for key, equals, value in pairs if equals}

    def word(self, at: int) -> int:
        return int.from_bytes(self.header[at : at + 4], "big")


def read_pdu(sock: socket.socket) -> Pdu | None:
    """Read one PDU without digests; None at the end of the stream or for what no login can be."""
    header = _read(sock, BHS)
    if header is None:
        return None
    length = int.from_bytes(header[5:8], "big")
    padded = header[4] * 4 + -(-length // 4) * 4
    if length > MAX_LOGIN:
        return None
    body = _read(sock, padded)
    if body is None:
        return None
    start = header[4] * 4
    return Pdu(header, body[start : start + length], header + body)


def _read(sock: socket.socket, size: int) -> bytes | None:
    parts = b""
    while len(parts) < size:
        chunk = sock.recv(size - len(parts))
        if not chunk:
            return None
        parts += chunk
    return parts


def refuse(sock: socket.socket, login: Pdu, status: tuple[int, int]) -> None:
    """Answer a login with a status class and detail that ends it."""
    sock.sendall(_login_response(login, {}, status, flags=0, tsih=0, stat_sn=0))


def _login_response(
    login: Pdu, keys: dict[str, str], status: tuple[int, int], *, flags: int, tsih: int, stat_sn: int
) -> bytes:
    command_sn = login.word(24)
    payload = b"".join(f"{key}={value}\0".encode() for key, value in keys.items())
    command_sn += not login.is_immediate
    header = struct.pack(
        ">BBBB4s6sHIIIIIBB10x",
        0x23,
        flags,
        0,
        0,
        len(payload).to_bytes(4, "big"),
        login.header[8:14],
        tsih,
        login.word(16),
        0,
        stat_sn,
        command_sn,
        command_sn + 8,
        *status,
    )
    return header + _padded(payload)


def _padded(payload: bytes) -> bytes:
    return payload + bytes(-len(payload) % 4)


def answer_discovery(sock: socket.socket, login: Pdu, targets: Sequence[tuple[str, str]]) -> None:
    """Serve a discovery session to its end. ``targets``: names with their ``address:port,group``."""
    stat_sn = 0
    request: Pdu | None = login
    while request is not None and request.opcode == LOGIN:
        keys = {} if request.flags & CONTINUE else _negotiate(request.keys)
        transits = bool(request.flags & FINAL)
        stage = request.flags & 0x0F if transits else request.flags & 0x0C
        is_last = transits and request.flags & 0x03 == 0x03
        flags = (FINAL if transits else 0) | stage
        sock.sendall(_login_response(request, keys, SUCCESS, flags=flags, tsih=int(is_last), stat_sn=stat_sn))
        stat_sn += 1
        request = read_pdu(sock)
        if is_last:
            break
    while request is not None:
        answer = _full_feature(request, targets, stat_sn)
        if answer is not None:
            sock.sendall(answer)
            stat_sn += 1
        if request.opcode == LOGOUT:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            return
        request = read_pdu(sock)


def _negotiate(offered: dict[str, str]) -> dict[str, str]:
    """Answer what was offered. TargetPortalGroupTag belongs to normal sessions only."""
    answers = {"MaxRecvDataSegmentLength": "8192"}
    if "AuthMethod" in offered:
        answers = {}  # a key of the operational stage has no place in the security stage
    for key in offered:
        if key in NEGOTIATED:
            answers[key] = NEGOTIATED[key]
        elif key not in DECLARED:
            answers[key] = "NotUnderstood"
    return answers


def _full_feature(request: Pdu, targets: Sequence[tuple[str, str]], stat_sn: int) -> bytes | None:
    tag, command_sn = request.word(16), request.word(24) + (not request.is_immediate)
    if request.opcode == TEXT:
        payload = b""
        if wanted := request.keys.get("SendTargets"):
            for name in dict.fromkeys(name for name, _ in targets if wanted in ("All", name)):
                payload += f"TargetName={name}\0".encode()
                for address in (address for owner, address in targets if owner == name):
                    payload += f"TargetAddress={address}\0".encode()
        return _response(0x24, len(payload), tag, NO_TAG, stat_sn, command_sn) + _padded(payload)
    if request.opcode == LOGOUT:
        return _response(0x26, 0, tag, 0, stat_sn, command_sn)
    if request.opcode == NOP_OUT and tag != NO_TAG:
        return _response(0x20, 0, tag, NO_TAG, stat_sn, command_sn)
    return None


def _response(opcode: int, length: int, tag: int, transfer: int, stat_sn: int, command_sn: int) -> bytes:
    return struct.pack(
        ">BBHIQIIIII12x",
        opcode,
        FINAL,
        0,
        length,
        0,
        tag,
        transfer,
        stat_sn,
        command_sn,
        command_sn + 8,
    )
