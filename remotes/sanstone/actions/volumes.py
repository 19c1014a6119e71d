# SPDX-License-Identifier: Apache-2.0
"""Steps that several actions share: make a volume that is ours, bring it to a host, take it away."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO

from sanstone.actions.site import Site
from sanstone.arrays import Array, NameTakenError, NewVolume
from sanstone.errors import BusyError, ConflictError, ConnectError, SanstoneError, UnreachableError
from sanstone.hosts.ops import Attach, Attached, Detach, Detached, Operation, Result
from sanstone.model import Connection, Volume
from sanstone.names import read_name
from sanstone.settings import Settings
from sanstone.store.ledger import Entry
from sanstone.store.locks import Place

__all__ = [
    "Made",
    "NotOursError",
    "OnHost",
    "attached",
    "complete",
    "content_mark",
    "delete",
    "detach",
    "end_visit",
    "let_go",
    "make",
    "sweep",
    "take_off_bridges",
]

log = logging.getLogger(__name__)

_SURE = 3600.0
"""For how many seconds a volume is taken for ours because its name was free when we began to make it."""


class NotOursError(ConflictError):
    """A volume bears the name that is somebody else's, or holds something else: it is left alone."""


@dataclass(frozen=True, slots=True)
class Made:
    """Where a volume of ours is.

    ``is_complete`` when an earlier run had finished it, ``is_new`` when it was not there before and so holds
    nothing yet.
    """

    volume: Volume
    connection: Connection | None
    is_complete: bool
    is_new: bool = False


def make(
    site: Site,
    array: Array,
    new: NewVolume,
    *,
    host: str | None = None,
    content: str = "",
    is_of_now: bool = False,
) -> Made:
    """Make a volume (mapped to ``host`` if given), written down in the ledger as ours.

    ``content`` says what it is for: a volume that is complete is used again only for the same. ``is_of_now``:
    it shall hold what the source has at this moment, so that what an earlier run made is not used again.

    Raises: NotOursError when somebody else's volume bears the name, or one of ours with other contents.
    """
    if host is not None:
        site.ledger.locks.note(array.name, new.name, Place(host))
    content = content_mark(content)
    entry = site.ledger.find(array.name, new.name)
    is_earlier = entry is not None and is_of_now and entry.content == content
    if entry is not None and (entry.is_doomed or (is_earlier and _is_sure(entry))):
        # Nothing of it may be used again.
        if not array.delete(new.name, wait=0.0, wwid=entry.wwid):
            log.warning("%s on %s is another volume by now", new.name, array.name)
        site.ledger.forget(array.name, new.name)
        entry = None
    if entry is not None and entry.is_ready:
        (volume,) = array.find(new.name)
        if volume is not None and entry.covers(volume.wwid):
            if content and entry.content and content != entry.content:
                raise NotOursError(
                    f"{array.name} has a volume {new.name} already, made for something else of that number.",
                    "Was OpenNebula's database set back? Rename the volume there, or delete it if nobody "
                    "needs it.",
                )
            return Made(volume, array.map(new.name, host) if host else None, is_complete=True)
    is_new = False

    def claim(found: Volume | None) -> None:
        nonlocal entry, is_new
        if found is None:
            entry, is_new = site.ledger.begin(array.name, new.name, content), True
        elif entry is None or not entry.covers(found.wwid) or _is_another(array, entry, new, found):
            raise NotOursError(
                f"{array.name} has a volume {new.name} already that this front-end did not make.",
                "Rename it there, or delete it if nobody needs it, then run the action again.",
            )

    try:
        placement = array.create(new, claim=claim, host=host)
    except NameTakenError:
        site.ledger.forget(array.name, new.name)
        raise
    except SanstoneError as err:
        if is_new and not isinstance(err, UnreachableError):
            _forget_if_absent(site, array, new.name)
        raise
    assert entry is not None
    site.ledger.made(entry, placement.volume.wwid)
    return Made(placement.volume, placement.connection, is_complete=False, is_new=is_new)


def content_mark(content: str) -> str:
    """Spell contents as the ledger has them."""
    return hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()[:32] if content else ""


def _is_sure(entry: Entry) -> bool:
    """Tell whether a volume of the entry's name is surely ours, as far as the entry alone can tell."""
    return entry.wwid is not None or time.time() - entry.at <= _SURE


def _is_another(array: Array, entry: Entry, new: NewVolume, found: Volume) -> bool:
    """Tell whether what bears the name cannot be what was begun, of which no WWID is known."""
    has_size = new.size <= found.size < new.size + array.abilities.size_step
    return entry.wwid is None and new.source is None and not has_size


def _forget_if_absent(site: Site, array: Array, name: str) -> None:
    """Claim no name for which nothing was made: the next volume that bears it may be somebody else's."""
    with suppress(SanstoneError):
        (volume,) = array.find(name)
        if volume is None:
            site.ledger.forget(array.name, name)


def complete(site: Site, array: Array, name: str) -> None:
    """Write down that the contents of a volume of ours are complete."""
    entry = site.ledger.find(array.name, name)
    if entry is not None:
        site.ledger.ready(entry)


def attach_operation(
    site: Site, settings: Settings, connection: Connection, host: str, link: str | None = None
) -> Attach:
    quiet = settings.words("NO_ISCSI")
    return Attach(connection, link, log_in=host not in quiet and host.split(".", 1)[0] not in quiet)


def detach_operation(array: Array, wwid: str, link: str | None = None) -> Detach:
    """Take a volume off its host, and the session too where it serves that volume alone."""
    return Detach(wwid, link, log_out=array.abilities.target_per_volume)


def certify(connection: Connection, host: str, result: Attached) -> None:
    """Log what was checked, and loudly when a path is missing."""
    device = result.device
    found = ", ".join(f"{path.name} ({path.portal})" for path in device.paths)
    log.info(
        "%s is %s on %s: WWID %s, %d bytes, paths %s",
        connection.volume, device.path, host, device.wwid, device.size, found,
    )  # fmt: skip
    if device.is_degraded:
        log.warning(
            "%s has %d of %d paths on %s%s: see its iSCSI sessions and the array's ports",
            connection.volume, len(device.paths), device.expected_paths, host,
            "".join(f", {warning}" for warning in result.warnings),
        )  # fmt: skip


def detach(
    site: Site, settings: Settings, array: Array, name: str, wwid: str, host: str, *, link: str | None = None
) -> None:
    """Take a volume off a host: the device first, only then its mapping.

    A host that cannot be reached loses the mapping all the same: whatever still runs there can no longer
    write, so that the volume may be used elsewhere. Its dead paths are purged when it is back.
    """
    let_go(site, settings, array, name, wwid, host, link=link)
    array.unmap(name, host)


def let_go(
    site: Site, settings: Settings, array: Array, name: str, wwid: str, host: str, *, link: str | None = None
) -> None:
    """Take the device of a volume off a host, which shall lose the mapping next, reached or not."""
    site.ledger.locks.note(array.name, name, Place(host, link))
    operation = detach_operation(array, wwid, link)
    try:
        results = site.host(host).run([operation], deadline=settings.seconds("ATTACH_TIMEOUT"))
    except ConnectError as err:
        log.warning("%s is unmapped from %s without the host's consent: %s", name, host, err)
        return
    for result in results:
        for warning in result.warnings if isinstance(result, Detached) else ():
            log.warning("%s on %s: %s", name, host, warning)


@contextmanager
def attached(
    site: Site, settings: Settings, array: Array, connection: Connection, host: str
) -> Iterator[OnHost]:
    """Have a mapped volume on a host for a while.

    At the end, whatever happened, the host lets go of it first and only then the array; what cannot be
    undone then is said loudly and does not hide the failure that came before.
    """
    site.ledger.locks.note(array.name, connection.volume, Place(host))
    on_host = OnHost(site, settings, array, connection, host)
    try:
        yield on_host
    except BaseException:
        try:
            if on_host.was_reached:
                with suppress(ConnectError):  # out of reach by now: without the mapping it cannot write
                    on_host.leave()
            array.refresh()
            array.unmap(connection.volume, host)
        except SanstoneError as left:
            log.error("%s stays mapped to %s: %s", connection.volume, host, left)
        raise
    on_host.leave()
    array.unmap(connection.volume, host)


class OnHost:
    """Operations around one attached volume: one round trip where one is enough."""

    def __init__(
        self, site: Site, settings: Settings, array: Array, connection: Connection, host: str
    ) -> None:
        self._attach = attach_operation(site, settings, connection, host)
        self._detach = detach_operation(array, connection.wwid)
        self._host = site.host(host)
        self._settings = settings
        self._at_the_end: list[Operation] = []
        self._has_left = False
        self.was_reached = True

    def at_the_end(self, *operations: Operation) -> None:
        """Add operations that follow the detaching, also after a failure."""
        self._at_the_end += operations

    def bring(self) -> None:
        """Attach the volume and leave it attached."""
        (result,) = self._run([self._attach], self._settings.seconds("ATTACH_TIMEOUT"))
        assert isinstance(result, Attached)
        certify(self._attach.connection, self._host.name, result)

    def run(self, before: Sequence[Operation], work: Operation, *, upload: BinaryIO | None = None) -> Result:
        """Run ``before``, attach, do ``work``, detach and end in one round trip; return what ``work`` did."""
        results = self._run(
            [*before, self._attach, work, self._detach, *self._at_the_end],
            self._settings.seconds("COPY_TIMEOUT"),
            upload,
        )
        self._has_left = True
        first = results[len(before)]
        assert isinstance(first, Attached)
        certify(self._attach.connection, self._host.name, first)
        return results[len(before) + 1]

    def _run(
        self, operations: Sequence[Operation], deadline: float, upload: BinaryIO | None = None
    ) -> list[Result]:
        try:
            return self._host.run(operations, deadline=deadline, progress=_say, upload=upload)
        except UnreachableError:
            self.was_reached = False
            raise

    def leave(self) -> None:
        if not self._has_left:
            self._host.run(
                [self._detach, *self._at_the_end], deadline=self._settings.seconds("ATTACH_TIMEOUT")
            )
            self._has_left = True


def _say(progress: str) -> None:
    log.info("%s", progress)


def delete(
    site: Site,
    settings: Settings,
    array: Array,
    name: str,
    *,
    host: str | None = None,
    wwid: str | None = None,
) -> None:
    """Delete a volume of ours, off ``host`` first if given, and only if it has ``wwid`` if given.

    While a copy still reads from it, its deletion is put off, not failed.
    """
    try:
        is_gone = array.delete(name, wait=settings.seconds("DELETE_WAIT"), host=host, wwid=wwid)
    except BusyError as busy:
        (volume,) = array.find(name)
        if volume is None:
            site.ledger.forget(array.name, name)
            return
        if wwid is not None and volume.wwid != wwid:
            raise
        site.ledger.doom(array.name, name, volume.wwid)
        log.warning("%s It will be deleted when the datastore is monitored after that.", busy.message)
        return
    if is_gone:
        site.ledger.forget(array.name, name)
    else:
        log.warning("%s on %s is left alone: it is not known to be ours", name, array.name)


def sweep(site: Site, settings: Settings, array: Array) -> None:
    """Delete what could not be deleted before, and what killed actions left of images.

    An image's SOURCE is told to OpenNebula when its volume is complete, and before that nothing can use it.
    So it is with a disk snapshot. What else was made for a VM is left to the deletion of that VM.
    """
    for entry in site.ledger.doomed(array.name):
        with _said(entry.name), site.volume(array, entry.name, seconds=0.0):
            if array.delete(entry.name, wait=0.0, wwid=entry.wwid):
                log.info("%s is deleted now", entry.name)
            site.ledger.forget(array.name, entry.name)
    for entry in site.ledger.begun(array.name):
        what = read_name(entry.name)
        if what is not None and (what.vm is None or what.snapshot is not None):
            with _said(entry.name), site.volume(array, entry.name, seconds=0.0):
                _remove_abandoned(site, settings, array, entry.name)
    for name in site.ledger.visits(array.name):
        with _said(name), site.volume(array, name, seconds=0.0):
            end_visit(site, settings, array, name)


@contextmanager
def _said(name: str) -> Iterator[None]:
    """Let what cannot be done for one volume be no reason to leave out the others."""
    try:
        yield
    except SanstoneError as err:
        log.info("%s is still there: %s", name, err.message)


def _remove_abandoned(site: Site, settings: Settings, array: Array, name: str) -> None:
    entry = site.ledger.find(array.name, name)
    if entry is None or entry.is_ready:
        return
    (volume,) = array.find(name)
    if volume is not None and not _is_sure(entry):
        log.warning("%s on %s may be ours or not: delete it if nobody needs it", name, array.name)
        return
    if volume is not None and entry.covers(volume.wwid):
        take_off_bridges(site, settings, array, name)
        array.delete(name, wait=0.0, wwid=volume.wwid)
        log.warning("%s, which a killed action left incomplete, is deleted", name)
    site.ledger.forget(array.name, name)


def take_off_bridges(site: Site, settings: Settings, array: Array, name: str) -> bool:
    """Detach a volume from bridge hosts where a cut-off import left it; tell whether it was only there."""
    (volume,) = array.find(name)
    bridges = site.bridges(settings, 0)
    known = {spelling: bridge for bridge in bridges for spelling in (bridge, bridge.split(".", 1)[0])}
    hosts = array.mapped_hosts(name)
    if volume is None or not hosts or not all(host in known for host in hosts):
        return False
    for host in hosts:
        detach(site, settings, array, name, volume.wwid, known[host])
    return True


def end_visit(site: Site, settings: Settings, array: Array, name: str) -> bool:
    """Take a volume off the host where a killed action left it after copying; tell whether there was one.

    The caller holds the volume. The host has to agree: something may use it there by now.
    """
    host = site.ledger.visited(array.name, name)
    if host is None:
        return False
    (volume,) = array.find(name)
    if volume is not None:
        operation = detach_operation(array, volume.wwid)
        site.host(host).run([operation], deadline=settings.seconds("ATTACH_TIMEOUT"))
        array.unmap(name, host)
    site.ledger.left(array.name, name)
    return True
