# SPDX-License-Identifier: Apache-2.0
"""Let a volume's target be what its tags say: who may log in, with which secret, and what it shows them.

A target is closed before it is opened: its LUN has the volume's identity before a rule lets anybody in, and
nobody's rule is left before its connections are cut.
"""

from __future__ import annotations

import secrets
import signal
import string
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from sanstone.arrays.iscsi.node import files, tgtd
from sanstone.arrays.iscsi.node.lvm import LogicalVolume, Request, change, device
from sanstone.arrays.iscsi.node.tgtd import LUN, Target, tgtadm
from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.run import Context, wait_until

__all__ = ["Exported", "close", "export", "is_right"]

_ALPHABET = string.ascii_letters + string.digits
_SECRET_LENGTH = 16
_DRAIN_SECONDS = 20.0
_RENEW_SECONDS = 10.0
_MOST_TIDS = 1000
_ABSENT = "can't find"


class Exported(NamedTuple):
    """The target of a volume, and the secrets of its accounts."""

    iqn: str
    secrets: dict[str, str]


def account_of(volume: LogicalVolume, host: str) -> str:
    return f"{volume.identity}.{host}"


def export(
    request: Request, volume: LogicalVolume, context: Context, *, is_secret: bool, found: Target | None
) -> Exported:
    """Let the volume's hosts, and nobody else, reach it; at least one host has it.

    ``is_secret``: hosts prove by CHAP who they are. Others that have the volume already stay as they are.

    Raises NodeError: ConflictError when somebody is logged in to a target of that name that is not ours.
    """
    iqn = request.iqn(volume.lv)
    _check_adoption(volume, found, iqn)
    path = files.path_of(volume)
    before = files.read(path, context)
    known = files.secrets_in(before)
    if any(f" {initiator}\n" in before for initiator in volume.hosts.values()):
        is_secret = bool(known)
    users = [account_of(volume, host) for host in volume.hosts] if is_secret else []
    # In the order in which they came, for that is how the daemon has them
    wanted = {user: secret for user, secret in known.items() if user in users}
    fresh = {user: _new_secret() for user in users if user not in wanted}
    wanted |= fresh
    content = files.content_of(request, volume, wanted, _identity(volume))
    if content != before:
        files.write(path, content, context)
    if not volume.is_active:
        activate(request, volume, context)
    tid = found.tid if found else _new_target(request, iqn, context)
    is_ready = _provide_lun(request, volume, found, tid, context)
    _set_accounts(context, tid, found, wanted, fresh.keys(), volume)
    _set_rules(context, tid, found, volume)
    if not is_ready:
        _set_state(context, tid, "ready", volume)
    return Exported(iqn, wanted)


def _check_adoption(volume: LogicalVolume, found: Target | None, iqn: str) -> None:
    """A target that shows another identity was not made by us: nobody may be using it when it changes."""
    if found and found.has_lun and found.scsi_id != volume.identity and found.sessions:
        who = ", ".join(sorted({session.initiator for session in found.sessions}))
        raise NodeError(
            "ConflictError",
            f"Target {iqn} was not made by this driver, and {who} is logged in to it.",
            "Shut down the VM that uses it and log that host out (iscsiadm -m node -T TARGET -u), then run "
            "the action again.",
        )


def _new_secret() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LENGTH))


def _identity(volume: LogicalVolume) -> str:
    """Return the parameters by which hosts tell the volume from all others, and may discard on a thin one."""
    return (
        f"scsi_id={volume.identity},scsi_sn={volume.identity},vendor_id=SANSTONE,product_id=LV,"
        f"thin_provisioning={int(bool(volume.pool))}"
    )


def activate(request: Request, volume: LogicalVolume, context: Context) -> None:
    change(request, context, "lvchange", "-y", "-ay", "-K", f"{request.group}/{volume.lv}", what=volume.name)


def _new_target(request: Request, iqn: str, context: Context) -> int:
    """Make a target with a number that is free. Somebody may take that in the same moment: then the next."""
    tid = request.base_tid
    for _ in range(_MOST_TIDS):
        known = tgtd.targets(context)
        if iqn in known:
            return known[iqn].tid
        taken = {target.tid for target in known.values()}
        while tid in taken:
            tid += 1
        done = tgtadm(context, "new", "target", "-T", iqn, tid=tid, what=iqn, accepts="already exists")
        if not done.code:
            return tid
        tid += 1
    raise NodeError("ArrayError", f"No target number from {request.base_tid} on is free for {iqn}.")


def _provide_lun(
    request: Request, volume: LogicalVolume, found: Target | None, tid: int, context: Context
) -> bool:
    """Let the LUN be there with the volume's identity and size; tell whether the target is open."""
    path = device(request.group, volume.lv)
    if found is None:
        _add_lun(request, volume, tid, context)
        return True
    if found.has_lun and _is_same(found.path, path) and found.scsi_id == volume.identity:
        if found.size != tgtd.shown_size(volume.size):
            _renew_lun(request, volume, found, context)
            return True
        return found.is_ready
    if found.has_lun and found.sessions:
        raise NodeError(
            "ConflictError",
            f"Target {found.iqn} shows {found.path}, not {path}, and somebody is logged in to it.",
            "See who made it that way: tgtadm --lld iscsi --op show --mode target",
        )
    _set_state(context, tid, "offline", volume)
    if found.has_lun:
        tgtadm(context, "delete", "logicalunit", "--lun", str(LUN), tid=tid, what=volume.name)
    _add_lun(request, volume, tid, context)
    return False


def _set_state(context: Context, tid: int, state: str, volume: LogicalVolume) -> None:
    tgtadm(context, "update", "target", "-n", "state", "-v", state, tid=tid, what=volume.name)


def _is_same(shown: str, path: str) -> bool:
    return shown == path or shown.endswith(path)


def _add_lun(request: Request, volume: LogicalVolume, tid: int, context: Context) -> None:
    """Add the LUN with its identity. Nobody may be able to log in meanwhile."""
    lun = ("--lun", str(LUN))
    path = device(request.group, volume.lv)
    tgtadm(context, "new", "logicalunit", *lun, "-b", path, "-E", "rdwr", tid=tid, what=volume.name)
    tgtadm(context, "update", "logicalunit", *lun, "--params", _identity(volume), tid=tid, what=volume.name)


def _set_accounts(
    context: Context,
    tid: int,
    found: Target | None,
    wanted: Mapping[str, str],
    fresh: Collection[str],
    volume: LogicalVolume,
) -> None:
    """Let the target have these accounts; those of ``fresh`` have another secret than any that is there.

    tgtd 1.0.85 keeps them in a row, and dies at the next show when one is taken out before the last: they are
    taken off from the end. While none is bound nobody would have to prove anything, so that the rules go
    first when all of them have to.
    """
    have = list(found.accounts) if found else []
    users = list(wanted)
    kept = 0
    while kept < min(len(have), len(users)) and have[kept] == users[kept] and have[kept] not in fresh:
        kept += 1
    if found and have and not kept and users:
        for rule in found.rules:
            _unbind(context, tid, rule)
    stay = set(users) - set(fresh)
    _take_off_accounts(context, tid, have[kept:], {user for user in have if user not in stay}, volume)
    for user in users[kept:]:
        if (user not in have or user in fresh) and not tgtd.new_account(context, user, wanted[user]):
            # Left by a run that was cut off, perhaps with another password; it is bound nowhere
            tgtadm(context, "delete", "account", "--user", user, accepts=_ABSENT)
            tgtd.new_account(context, user, wanted[user])
        tgtadm(
            context, "bind", "account", "--user", user, tid=tid, what=volume.name, accepts="already exists"
        )


def _take_off_accounts(
    context: Context, tid: int, users: Sequence[str], gone: Collection[str], volume: LogicalVolume
) -> None:
    """Take accounts off a target, from the end of its row; those of ours that are ``gone`` exist no more."""
    for user in reversed(users):
        if user in gone and _is_ours(user, volume):
            tgtadm(context, "delete", "account", "--user", user, accepts=_ABSENT)  # which unbinds it
        else:
            tgtadm(context, "unbind", "account", "--user", user, tid=tid, accepts=_ABSENT)


def _is_ours(user: str, volume: LogicalVolume) -> bool:
    return user.startswith(f"{volume.identity}.")


def _set_rules(context: Context, tid: int, found: Target | None, volume: LogicalVolume) -> None:
    """Let the initiators of the volume's hosts in and nobody else; cut off who is in and may no more."""
    wanted = set(volume.hosts.values())
    have = set(found.rules) if found else set()
    for rule in sorted(have - wanted - {files.NOBODY}):
        _unbind(context, tid, rule)
    for initiator in sorted(wanted):
        tgtadm(
            context, "bind", "target", "-Q", initiator, tid=tid, what=volume.name, accepts="already exists"
        )
    if found and any(session.initiator not in wanted for session in found.sessions):
        _cut(context, found, wanted)


def _unbind(context: Context, tid: int, rule: str) -> None:
    is_initiator = rule.startswith(("iqn.", "eui.", "naa."))
    option = "-Q" if is_initiator else "-I"
    tgtadm(context, "unbind", "target", option, rule, tid=tid, accepts="does not exist")


def _cut(context: Context, found: Target, may_stay: set[str]) -> None:
    """Cut sessions, and wait until their last commands are done: a late write must not come after this.

    Raises NodeError: BusyError.
    """
    deadline = context.deadline.within(_DRAIN_SECONDS)

    def is_gone() -> bool:
        target = tgtd.targets(context).get(found.iqn)
        left = [each for each in target.sessions if each.initiator not in may_stay] if target else []
        for session in left:
            for connection in session.connections:
                numbers = ("--sid", str(session.number), "--cid", str(connection))
                tgtadm(context, "delete", "conn", *numbers, tid=found.tid, accepts=_ABSENT)
        return not left

    if not wait_until(is_gone, deadline):
        raise NodeError(
            "BusyError",
            f"Commands of an initiator that was cut off from {found.iqn} have not ended.",
            "See whether the disks of the target host answer, then run the action again.",
        )


def close(request: Request, volume: LogicalVolume, context: Context, *, found: Target | None) -> None:
    """Let there be no target of the volume, nothing that brings it back at boot, and none of its accounts."""
    files.remove(files.path_of(volume), context)
    if found is not None:
        _take_target_away(context, volume, found)
    for user in tgtd.accounts(context):
        if _is_ours(user, volume):  # made by a run that was cut off, and bound to nothing
            tgtadm(context, "delete", "account", "--user", user, accepts=_ABSENT)


def _take_target_away(context: Context, volume: LogicalVolume, found: Target) -> None:
    for rule in found.rules:
        _unbind(context, found.tid, rule)
    if found.sessions:
        _cut(context, found, set())
    _take_off_accounts(context, found.tid, found.accounts, set(found.accounts), volume)
    deadline = context.deadline.within(_DRAIN_SECONDS)

    def is_deleted() -> bool:
        done = tgtadm(
            context, "delete", "target", "--force", tid=found.tid, what=found.iqn,
            accepts=f"still active|{_ABSENT}",
        )  # fmt: skip
        return "still active" not in done.stderr

    if not wait_until(is_deleted, deadline):
        raise NodeError(
            "BusyError",
            f"Target {found.iqn} still has commands under way.",
            "See whether the disks of the target host answer, then run the action again.",
        )


def _renew_lun(request: Request, volume: LogicalVolume, found: Target, context: Context) -> None:
    """Let initiators see the volume's present size, which tgtd reads only when a LUN is made.

    Logins are refused as by a target that is being serviced, which initiators try again; the sessions are
    cut, and their commands wait for the next login; then the LUN is made anew and the target opened. An
    initiator sees its sessions recover, and no error.

    Raises NodeError: DeadlineError when there is not time enough to begin, BusyError.
    """
    if context.deadline.left() < 2 * _RENEW_SECONDS:
        raise NodeError("DeadlineError", f"Time was up before {volume.name} could show its new size.")
    # A target that is left closed stops a VM: what has begun is not interrupted
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM, signal.SIGHUP})
    try:
        _set_state(context, found.tid, "offline", volume)
        try:
            _cut(context._replace(deadline=context.deadline.within(_RENEW_SECONDS)), found, set())
        except NodeError:
            _set_state(context, found.tid, "ready", volume)
            raise
        lun = ("--lun", str(LUN))
        tgtadm(context, "delete", "logicalunit", *lun, tid=found.tid, what=volume.name, accepts=_ABSENT)
        _add_lun(request, volume, found.tid, context)
        _set_state(context, found.tid, "ready", volume)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def is_right(request: Request, volume: LogicalVolume, found: Target | None) -> bool:
    """Tell whether the daemon has what the tags say, as far as it shows that."""
    if not volume.hosts:
        return found is None
    return (
        found is not None
        and found.is_ready
        and _is_same(found.path, device(request.group, volume.lv))
        and found.scsi_id == volume.identity
        and found.size == tgtd.shown_size(volume.size)
        and set(found.rules) - {files.NOBODY} == set(volume.hosts.values())
        and set(found.accounts) in (set(), {account_of(volume, host) for host in volume.hosts})
    )
