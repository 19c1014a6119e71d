# SPDX-License-Identifier: Apache-2.0
"""LVM's own commands: what a volume group holds, and changes to it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.lock import hold
from sanstone.transport.remote.run import ROOT, Completed, Context, run, wait_until

__all__ = [
    "Group",
    "LogicalVolume",
    "Pool",
    "Request",
    "change",
    "device",
    "local",
    "locked",
    "new_volume",
    "only_one",
    "read",
    "read_group",
    "remove_volume",
    "request_of",
]

PREFIX = "lv-"
"""Stands before the name of a volume, as the existing iSCSI add-on has it."""

ID = "sanstone.id="
HOST = "sanstone.host="
INCOMPLETE = "sanstone.incomplete"
"""Tags: who the volume is on a host; ``HOST/INITIATOR`` that may reach it; its contents are still copied."""

NEW, OLD = ".new", ".old"
REPLACEMENT = "sanstone.replacement"
"""Ends of the names, and the tag, of what takes part in an exchange of contents (``contents.py``)."""

_FIELDS = "lv_name,lv_uuid,lv_size,lv_attr,pool_lv,lv_tags,data_percent,metadata_percent"
_COMMAND_SECONDS = 120.0
_IN_USE_SECONDS = 15.0
_LOCK_SECONDS = 600.0
_FULL = re.compile(
    r"insufficient free space|insufficient suitable|free space in thin pool|free space in pool"
    r"|reached threshold|out of (?:data|metadata) space",
    re.IGNORECASE,
)


class Request(NamedTuple):
    """What all operations have in common: the volume group, and how its targets are called."""

    group: str
    pool: str
    place: str
    base_iqn: str
    host: str
    base_tid: int

    def iqn(self, lv: str) -> str:
        """Return the name of a volume's target, as the existing add-on spells it."""
        return f"{self.base_iqn}:{self.host}.{self.group}.{lv}"


class LogicalVolume(NamedTuple):
    """``uuid`` is LVM's; ``attributes`` are the ten letters of lvs."""

    lv: str
    uuid: str
    size: int
    attributes: str
    pool: str
    tags: tuple[str, ...]
    used: str = ""
    used_metadata: str = ""

    @property
    def name(self) -> str:
        return self.lv.removeprefix(PREFIX)

    @property
    def identity(self) -> str:
        """Return its SCSI id: chosen when it was made, or derived from LVM's UUID for one made elsewhere."""
        chosen = next((tag[len(ID) :] for tag in self.tags if tag.startswith(ID)), "")
        return chosen or hashlib.sha256(self.uuid.encode()).hexdigest()[:24]

    @property
    def wwid(self) -> str:
        """Return what multipath shows: NAA 6 with the id at its right end."""
        return f"36{self.identity:0>31}"

    @property
    def hosts(self) -> dict[str, str]:
        """Return the hosts that may reach it, with their initiators' names."""
        found = (tag[len(HOST) :].partition("/") for tag in self.tags if tag.startswith(HOST))
        return {host: initiator for host, _, initiator in found}

    @property
    def is_ours(self) -> bool:
        return any(tag.startswith(ID) for tag in self.tags)

    @property
    def is_active(self) -> bool:
        return self.attributes[4:5] == "a"

    @property
    def is_online(self) -> bool:
        """Tell whether LVM knows of no fault: partial, or a failed thin volume."""
        return self.attributes[8:9] not in ("p", "F", "X")

    @property
    def is_complete(self) -> bool:
        return INCOMPLETE not in self.tags

    def described(self) -> dict[str, Any]:
        """Return what goes back to the front-end."""
        return {
            "name": self.name,
            "wwid": self.wwid,
            "size": self.size,
            "pool": self.pool,
            "is_online": self.is_online,
            "hosts": sorted(self.hosts),
        }


class Pool(NamedTuple):
    """A thin pool, or the volume group itself where there is none (``name`` empty). Bytes."""

    name: str
    size: int
    free: int
    metadata_percent: float = 0.0


class Group(NamedTuple):
    """A volume group: its logical volumes by their names, and the thin pools among them."""

    name: str
    volumes: Mapping[str, LogicalVolume]
    pools: Mapping[str, Pool]

    def volume(self, lv: str) -> LogicalVolume | None:
        """Find a volume, also one whose contents are being exchanged at this moment."""
        found = self.volumes.get(lv)
        if found is None and lv + OLD in self.volumes:
            new = self.volumes.get(lv + NEW)
            if new is not None and REPLACEMENT in new.tags:
                return new._replace(lv=lv)
        return found

    def existing(self, lv: str, place: str) -> LogicalVolume:
        """Find a volume. Raises NodeError: NotFoundError."""
        found = self.volume(lv)
        if found is None:
            name = lv.removeprefix(PREFIX)
            raise NodeError(
                "NotFoundError", f"Volume {name} is not on {place}.", "Was it deleted there by hand?"
            )
        return found


def request_of(operation: Mapping[str, Any]) -> Request:
    return Request(*(operation[field] for field in Request._fields))


def read(request: Request, context: Context) -> Group:
    """Ask once for all that is in the volume group.

    Raises NodeError: ConfigurationError when it is not there, ArrayError.
    """
    words = ["--reportformat", "json", "--units", "b", "--nosuffix", "-o", _FIELDS, request.group]
    done = run(["lvs", *words], context.deadline.within(_COMMAND_SECONDS), ok=None)
    if done.code:
        if "not found" in done.stderr:
            raise _no_group(request, context, done)
        raise refused("lvs", request.group, done)
    volumes, pools = {}, {}
    for row in json.loads(done.stdout)["report"][0]["lv"]:
        found = _volume(row)
        if found.attributes.startswith("t"):
            pools[found.lv] = _pool(found)
        else:
            volumes[found.lv] = found
    return Group(request.group, volumes, pools)


def _volume(row: Mapping[str, str]) -> LogicalVolume:
    return LogicalVolume(
        row["lv_name"].strip("[]"),
        row["lv_uuid"],
        int(row["lv_size"]),
        row["lv_attr"],
        row["pool_lv"],
        tuple(tag for tag in row["lv_tags"].split(",") if tag),
        row["data_percent"],
        row["metadata_percent"],
    )


def _pool(found: LogicalVolume) -> Pool:
    used = found.size * float(found.used or 0) / 100
    return Pool(found.lv, found.size, found.size - int(used), float(found.used_metadata or 0))


def read_group(request: Request, context: Context) -> Pool:
    """Ask what the volume group itself has: room for thick volumes."""
    words = ["--reportformat", "json", "--units", "b", "--nosuffix", "-o", "vg_name,vg_size,vg_free"]
    done = run(["vgs", *words, request.group], context.deadline.within(_COMMAND_SECONDS), ok=None)
    if done.code:
        raise refused("vgs", request.group, done)
    (row,) = json.loads(done.stdout)["report"][0]["vg"]
    return Pool("", int(row["vg_size"]), int(row["vg_free"]))


def _no_group(request: Request, context: Context, done: Completed) -> NodeError:
    listed = run(["vgs", "--noheadings", "-o", "vg_name"], context.deadline.within(_COMMAND_SECONDS), ok=None)
    there = ", ".join(listed.stdout.split()) or "none"
    return NodeError(
        "ConfigurationError",
        f"Volume group {request.group} is not there; there are: {there}.",
        "Correct VG_NAME of the datastore, or make the group: vgcreate.",
        done.words,
    )


def only_one(group: Group, pool: str) -> Pool | None:
    """Return the thin pool that is meant: the one called ``pool``, or the only one; None where there is none.

    Raises NodeError: ConfigurationError.
    """
    there = ", ".join(sorted(group.pools)) or "none"
    if pool:
        if pool not in group.pools:
            raise NodeError(
                "ConfigurationError",
                f"Thin pool {pool} is not in volume group {group.name}; there are: {there}.",
                "Correct POOL of the datastore, or make the pool: lvcreate --type thin-pool.",
            )
        return group.pools[pool]
    if len(group.pools) > 1:
        raise NodeError(
            "ConfigurationError",
            f"Volume group {group.name} has several thin pools: {there}.",
            "Say in POOL of the datastore which one is meant.",
        )
    return next(iter(group.pools.values()), None)


def locked(request: Request, lv: str, context: Context) -> contextlib.AbstractContextManager[None]:
    """Hold a volume, so that changes of it follow one another."""
    return hold("volume", f"{request.group}/{lv}", context.deadline.within(_LOCK_SECONDS))


def device(group: str, lv: str) -> str:
    """Return the path of a volume's device, as tgtd and LVM spell it on the target host itself."""
    return f"/dev/{group}/{lv}"


def local(path: str) -> str:
    """Return where a path of the target host is for this program."""
    return str(ROOT / path.lstrip("/"))


def change(
    request: Request,
    context: Context,
    *argv: str,
    what: str,
    is_done: Callable[[Completed], bool] | None = None,
) -> Completed:
    """Run one of LVM's commands that change something; ``what`` names the volume in a message.

    ``is_done`` tells of a refusal that the wanted state is there already.

    Raises NodeError: CapacityError, BusyError for a volume in use, ArrayError.
    """
    done = run(argv, context.deadline.within(_COMMAND_SECONDS), ok=None)
    if done.code and not (is_done and is_done(done)):
        raise refused(argv[0], what, done)
    return done


def new_volume(
    request: Request, lv: str, words: Sequence[str], tags: Sequence[str], context: Context
) -> None:
    """Make a logical volume that bears its tags from the first moment on."""
    marks = [word for tag in tags for word in ("--addtag", tag)]
    change(request, context, "lvcreate", "-y", *words, "-n", lv, *marks, what=lv.removeprefix(PREFIX))


def remove_volume(request: Request, lv: str, context: Context) -> None:
    """Remove a logical volume, after a wait for those who only look at it for a moment, such as udev."""
    label, what = f"{request.group}/{lv}", lv.removeprefix(PREFIX)
    deadline = context.deadline.within(_IN_USE_SECONDS)
    fault: NodeError | None = None

    def is_removed() -> bool:
        nonlocal fault
        try:
            change(request, context, "lvremove", "-f", "-y", label, what=what, is_done=_is_absent)
        except NodeError as err:
            if err.family != "BusyError":
                raise
            fault = err
            return False
        return True

    if not wait_until(is_removed, deadline) and fault is not None:
        raise fault


def _is_absent(done: Completed) -> bool:
    return "Failed to find logical volume" in done.stderr


def refused(program: str, what: str, done: Completed) -> NodeError:
    """Say in our words what LVM meant."""
    lines = [line.strip() for line in done.stderr.splitlines() if "WARNING" not in line]
    last = next((line for line in reversed(lines) if line), f"exit code {done.code}")
    if _FULL.search(done.stderr):
        return NodeError(
            "CapacityError",
            f"{what}: {program} finds no room: {last}",
            "Extend the pool or the volume group, or delete what nobody needs.",
            done.words,
        )
    if " in use" in done.stderr or "is used by another device" in done.stderr:
        return NodeError(
            "BusyError",
            f"{what} is in use on the target host: {last}",
            "See there what has it open (lsof, dmsetup ls --tree), then run the action again.",
            done.words,
        )
    return NodeError("ArrayError", f"{what}: {program} failed: {last}", "", done.words)
