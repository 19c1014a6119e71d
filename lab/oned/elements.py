# SPDX-License-Identifier: Apache-2.0
"""Pieces of oned's XML: elements, templates, owners, and attributes that only drivers may read."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterable
from xml.sax.saxutils import escape

from lab.oned.model import Owner, Snapshots
from lab.oned.templates import Template

__all__ = [
    "base64_text",
    "cdata",
    "element",
    "ids",
    "owner_xml",
    "permissions_xml",
    "seal",
    "snapshots_xml",
    "template_xml",
    "unseal",
    "vector_xml",
]

_SEAL = b"sealed:"


def element(name: str, text: object = "") -> str:
    """Write one element with escaped text."""
    return f"<{name}>{escape(str(text))}</{name}>"


def cdata(name: str, text: object) -> str:
    """Write one element whose text is a CDATA section."""
    safe = str(text).replace("]]>", "]]]]><![CDATA[>")
    return f"<{name}><![CDATA[{safe}]]></{name}>"


def ids(name: str, values: Iterable[int]) -> str:
    """Write a list of ids."""
    return f"<{name}>{''.join(element('ID', value) for value in values)}</{name}>"


def template_xml(template: Template, name: str = "TEMPLATE", sealed: Collection[str] = ()) -> str:
    """Write a template, the attributes in ``sealed`` unreadable."""
    parts = []
    for key, value in template:
        if isinstance(value, dict):
            parts.append(vector_xml(key, value))
        else:
            parts.append(cdata(key, seal(value) if key in sealed else value))
    return f"<{name}>{''.join(parts)}</{name}>"


def vector_xml(name: str, vector: dict[str, str]) -> str:
    """Write a vector attribute, sorted by name."""
    return f"<{name}>{''.join(cdata(key, vector[key]) for key in sorted(vector))}</{name}>"


def base64_text(text: str) -> str:
    """Give base64 without line ends."""
    return base64.b64encode(text.encode()).decode()


def seal(text: str) -> str:
    """Make an attribute unreadable, as DATASTORE_ENCRYPTED_ATTR does; what is sealed already stays."""
    if unseal(text) is not None:
        return text
    plain = text.encode()
    return base64.b64encode(
        _SEAL + bytes(a ^ b for a, b in zip(plain, _keystream(len(plain)), strict=True))
    ).decode()


def unseal(text: str) -> str | None:
    """Make a sealed attribute readable, None when it is not a sealed one."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    if not raw.startswith(_SEAL):
        return None
    body = raw[len(_SEAL) :]
    return bytes(a ^ b for a, b in zip(body, _keystream(len(body)), strict=True)).decode()


def _keystream(length: int) -> bytes:
    stream = b""
    while len(stream) < length:
        stream += hashlib.sha256(b"one_key" + len(stream).to_bytes(4, "big")).digest()
    return stream[:length]


def owner_xml(owner: Owner) -> str:
    return (
        element("UID", owner.uid)
        + element("GID", owner.gid)
        + element("UNAME", owner.uname)
        + element("GNAME", owner.gname)
    )


def permissions_xml(is_group_readable: bool = False) -> str:
    rights = {"OWNER_U": 1, "OWNER_M": 1, "OWNER_A": 0, "GROUP_U": int(is_group_readable)}
    for name in ("GROUP_M", "GROUP_A", "OTHER_U", "OTHER_M", "OTHER_A"):
        rights[name] = 0
    return f"<PERMISSIONS>{''.join(element(k, v) for k, v in rights.items())}</PERMISSIONS>"


def snapshots_xml(snapshots: Snapshots) -> str:
    """Write the SNAPSHOTS of an image or a disk."""
    parts = [cdata("ALLOW_ORPHANS", snapshots.allow_orphans), cdata("CURRENT_BASE", -1)]
    if snapshots.disk_id is not None:
        parts.append(cdata("DISK_ID", snapshots.disk_id))
    parts.append(cdata("NEXT_SNAPSHOT", snapshots.next_id))
    for snapshot in snapshots.items:
        vector = {
            "DATE": str(snapshot.date),
            "ID": str(snapshot.id),
            "NAME": snapshot.name,
            "PARENT": str(snapshot.parent),
            "SIZE": str(snapshot.size),
        }
        if snapshot.is_active:
            vector["ACTIVE"] = "YES"
        parts.append(vector_xml("SNAPSHOT", vector))
    return f"<SNAPSHOTS>{''.join(parts)}</SNAPSHOTS>"
