# SPDX-License-Identifier: Apache-2.0
"""Which known name a misspelt one may have been meant to be."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["OPENNEBULA", "closest"]

#: Attributes that OpenNebula itself puts into, or reads from, a datastore or an image.
OPENNEBULA = frozenset(
    {
        "ALLOW_ORPHANS",
        "BASE_PATH",
        "CLONE_TARGET",
        "CLONE_TARGET_SHARED",
        "CLONE_TARGET_SSH",
        "CLUSTERS",
        "CLUSTER_ID",
        "COMPATIBLE_SYS_DS",
        "COST",
        "DATASTORE_CAPACITY_CHECK",
        "DATASTORE_LOCATION",
        "DESCRIPTION",
        "DEV_PREFIX",
        "DISK_TYPE",
        "DISK_TYPE_SHARED",
        "DISK_TYPE_SSH",
        "DRIVER",
        "DS_LIVE_MIGRATE",
        "DS_MAD",
        "DS_MIGRATE",
        "DS_MIGRATE_SNAP",
        "ENABLED",
        "ERROR",
        "FORMAT",
        "FREE_MB",
        "FROM_APP",
        "FROM_APP_NAME",
        "FS",
        "GID",
        "GNAME",
        "ID",
        "LABELS",
        "LIMIT_MB",
        "LIMIT_TRANSFER_BW",
        "LN_TARGET",
        "LN_TARGET_SHARED",
        "LN_TARGET_SSH",
        "MD5",
        "NAME",
        "NO_DECOMPRESS",
        "OPENNEBULA_MANAGED",
        "PATH",
        "PERSISTENT",
        "PERSISTENT_SNAPSHOTS",
        "PERSISTENT_TYPE",
        "SHA1",
        "SHARED",
        "SIZE",
        "SOURCE",
        "STATE",
        "STATUS",
        "TARGET",
        "TM_MAD",
        "TM_MAD_SYSTEM",
        "TOTAL_MB",
        "TYPE",
        "UID",
        "UNAME",
        "USED_MB",
        "VMS",
    }
)


def closest(name: str, known: Iterable[str], likeness: float = 0.8) -> str | None:
    """Find the known name that ``name`` resembles: it differs in a letter or two, in _ or in case."""
    names = tuple(known)
    bare = _bare(name)
    for each in names:
        if _bare(each) == bare:
            return each
    if len(name) < 4 or len(name) > 40:
        return None
    from difflib import get_close_matches

    near = get_close_matches(name.upper(), names, n=1, cutoff=likeness)
    return near[0] if near else None


def _bare(name: str) -> str:
    return name.upper().replace("_", "").replace("-", "")
