# SPDX-License-Identifier: Apache-2.0
"""Backups: files of a VM's disks for OpenNebula's backup drivers, and disks put back from them.

The state of each disk is taken on the array while the guest goes on, as a volume X-bN; a host then writes it
to ``backup/disk.ID.N``. What these files have to be was read in OpenNebula's source: docs/backups.md.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sanstone.actions import volumes
from sanstone.actions.disks import disk_volume, existing_name, is_system, is_volatile_block
from sanstone.actions.removing import delete_snapshot
from sanstone.actions.site import Site
from sanstone.arrays import Array, NewVolume
from sanstone.errors import DeadlineError, NotFoundError, NotSupportedError, SanstoneError
from sanstone.hosts.ops import (
    Copied,
    HeldStill,
    HoldStill,
    Operation,
    Part,
    PutFile,
    RemoveBackup,
    SaveDisk,
    Thaw,
)
from sanstone.model import Connection
from sanstone.names import backup_volume, read_name
from sanstone.opennebula.documents import Disk, VmDocument
from sanstone.opennebula.messages import Postbackup, Prebackup
from sanstone.opennebula.paths import check_host
from sanstone.settings import Settings

__all__ = ["end_chain", "postbackup", "prebackup", "sweep", "visiting"]

log = logging.getLogger(__name__)

_FILE_SECONDS = 600.0
_VIRSH_SECONDS = 120.0
_DONE = 6
_BACKUP = (69, 70)  # LCM states BACKUP and BACKUP_POWEROFF
_BASE_PATH = re.compile(r"(?:export\s+)?BACKUP_BASE_PATH=[\"']?([^\"'\s]+)[\"']?\s*")


@dataclass(frozen=True, slots=True)
class _Volume:
    """A disk that is a volume: ``state`` holds what it is now, ``base`` what it was at the last increment."""

    settings: Settings
    array: Array
    name: str
    state: str
    base: str | None


@dataclass(frozen=True, slots=True)
class _Saving:
    """A disk of a backup and its file; ``volume`` is None when the disk is itself a file."""

    disk: Disk
    file: str
    volume: _Volume | None


@dataclass(frozen=True, slots=True)
class _Files:
    """Where the files of a backup are: on ``host``, below ``directory``."""

    host: str
    directory: str
    is_apart: bool

    @property
    def removal(self) -> RemoveBackup:
        return RemoveBackup(self.directory, with_parent=self.is_apart)


def prebackup(request: Prebackup, site: Site) -> str:
    """Take the states of the disks, at once and while the guest goes on, and make the files of them."""
    if request.vm.backup.is_interactive:
        raise NotSupportedError(
            f"Interactive backups of VM {request.vm_id} are not supported.", "Use rsync or restic."
        )
    files = _files(request, site)
    savings = list(_savings(request, site))
    _refuse_moving_files(request, savings)
    if "<TPM>" in request.document:
        log.warning("the state of the TPM of VM %d is not in this backup", request.vm_id)
    _drop_states(site, savings, lambda volume, name, number: name != volume.base)
    document = base64.encodebytes(request.document.encode())
    put = PutFile(f"{files.directory}/vm.xml", len(document))
    site.host(files.host).run([files.removal, put], deadline=_FILE_SECONDS, upload=io.BytesIO(document))
    try:
        with ExitStack() as stack:
            held = [saving.volume for saving in savings if saving.volume is not None]
            for volume in held:
                stack.enter_context(site.volume(volume.array, volume.state))
            with _holding_still(request, site, held):
                for volume in held:
                    _take_state(request, site, volume)
            for saving in savings:
                _save(request, site, saving, files)
            if request.vm.backup.is_incremental:
                for volume in held:
                    volumes.complete(site, volume.array, volume.state)
        if not request.vm.backup.is_incremental:
            _drop_states(site, savings, lambda volume, name, number: True)
    except BaseException:
        _clean_up(request, site, savings, files)
        raise
    return ""


def postbackup(request: Postbackup, site: Site) -> str:
    """Remove the files, and what a failed or killed prebackup left.

    The last two states of a chain stay: which of them the next increment begins at is up to OpenNebula, which
    does not tell here whether the backup was stored. What cannot be removed is no reason to fail a backup
    that has been stored: it is removed by the next one, or when the datastore is monitored.
    """
    files = _files(request, site)
    with _only_said("files of the backup"):
        site.host(files.host).run([files.removal], deadline=_FILE_SECONDS)
    config = request.vm.backup
    if request.is_live and config.fs_freeze != "NONE":
        with _only_said(f"VM {request.vm_id} that may hold still"):
            thaw = Thaw(request.deploy_id, config.fs_freeze, site.common.text("LIBVIRT_URI"))
            site.host(request.disk.host).run([thaw], deadline=_VIRSH_SECONDS)
    with _only_said("states of the disks"):
        kept = (config.last_increment, _number(request.vm)) if config.is_incremental else ()
        _drop_states(
            site,
            _savings(request, site),
            lambda volume, name, number: number not in kept or not _is_complete(site, volume.array, name),
        )
    return ""


def end_chain(site: Site, settings: Settings, array: Array, name: str) -> None:
    """Delete the states of a volume that backups have taken: no increment will follow.

    The caller holds the volume.
    """
    for entry in site.ledger.snapshots(array.name, name):
        what = read_name(entry.name)
        if what is not None and what.backup is not None:
            _drop(site, settings, array, name, entry.name)


def sweep(site: Site, settings: Settings, array: Array) -> None:
    """Delete the states that no increment will begin at: of killed backups, and of those not stored.

    OpenNebula is asked only about volumes with more than one state, an unfinished one, or no VM of their own.
    """
    found: dict[str, list[str]] = {}
    for entry in site.ledger.backups(array.name):
        found.setdefault(entry.name.rpartition("-b")[0], []).append(entry.name)
    for name, states in found.items():
        what = read_name(name)
        is_done = len(states) == 1 and _is_complete(site, array, states[0])
        if what is None or (is_done and what.vm is not None):
            continue
        with _only_said(f"states of {name}"):
            wanted = _wanted_states(site, what.vm, what.image)
            for state in states:
                number = int(state.rpartition("-b")[2])
                if wanted is not None and (number != wanted or not _is_complete(site, array, state)):
                    _drop(site, settings, array, name, state, patience=0.0)


def _wanted_states(site: Site, vm_id: int | None, image: int | None) -> int | None:
    """Tell which state of a disk is wanted: -1 for none, None while nobody can say."""
    if vm_id is None and image is not None:
        try:
            users = site.opennebula.image(image).vm_ids
        except NotFoundError:
            return -1
        if len(users) != 1:
            return -1
        (vm_id,) = users
    if vm_id is None:
        return None
    try:
        vm = site.opennebula.vm(vm_id)
    except NotFoundError:
        return -1
    if vm.state == 3 and vm.lcm_state in _BACKUP:
        return None
    config = vm.backup
    if vm.state == _DONE or not config.is_incremental or config.last_increment is None:
        return -1
    return config.last_increment


# what is backed up, and where to


def _number(vm: VmDocument) -> int:
    """Tell the number of the files: that of the increment, 0 for a full backup (KVMDomain, BackupImage)."""
    last = vm.backup.last_increment
    return 0 if not vm.backup.is_incremental or last is None else last + 1


def _files(request: Prebackup | Postbackup, site: Site) -> _Files:
    """Find the place from which the backup driver takes the files.

    The host is LAST_BRIDGE where the backup datastore has bridges (rsync/backup, restic/backup of 7.4.0).
    """
    host = check_host(request.vm.backup.bridge) if request.vm.backup.bridge else request.disk.host
    base = _base_path(site)
    directory = f"{base}/{request.vm_id}" if base else request.disk.path
    return _Files(host, f"{directory}/backup", is_apart=bool(base))


def _base_path(site: Site) -> str:
    """Read BACKUP_BASE_PATH as OpenNebula's own drivers do."""
    if site.common.text("BACKUP_BASE_PATH"):
        return str(site.common.path("BACKUP_BASE_PATH"))
    try:
        lines = (site.common.path("REMOTES_DIR") / "etc/datastore/datastore.conf").read_text().splitlines()
    except OSError:
        return ""
    found = [match.group(1) for match in map(_BASE_PATH.fullmatch, lines) if match]
    return found[-1].rstrip("/") if found else ""


def _savings(request: Prebackup | Postbackup, site: Site) -> Iterator[_Saving]:
    arrays: dict[int, tuple[Settings, Array]] = {}
    number = _number(request.vm)
    config = request.vm.backup
    for disk_id in request.disk_ids:
        disk = request.vm.disk(disk_id)
        if disk is None or disk.datastore_id is None:
            raise NotFoundError(f"VM {request.vm_id} has no disk {disk_id}.", "Run the backup again.")
        file = f"disk.{disk_id}.{number}"
        if disk.datastore_id not in arrays:
            datastore = site.opennebula.datastore(disk.datastore_id)
            if is_system(datastore) and not is_volatile_block(datastore):
                yield _Saving(disk, file, None)
                continue
            settings = site.settings(datastore)
            arrays[disk.datastore_id] = settings, site.array(settings)
        settings, array = arrays[disk.datastore_id]
        name = existing_name(site, array, disk_volume(request.vm, disk))
        last = config.last_increment if config.is_incremental else None
        base = backup_volume(name, last) if last is not None else None
        if base is not None and not _is_base(request.vm, site, array, base):
            log.warning("%s is not what increment %s began at: the next one holds everything", base, last)
            base = None
        yield _Saving(disk, file, _Volume(settings, array, name, backup_volume(name, number), base))


def _content(vm: VmDocument, number: int) -> str:
    """Tell the states of one chain from those of another, and from that of a full backup."""
    kind = "increment" if vm.backup.is_incremental else "full"
    chain = vm.backup.chain if number else None
    return "\0".join(("backup", kind, str(vm.id), str(chain), str(number)))


def _is_base(vm: VmDocument, site: Site, array: Array, base: str) -> bool:
    """Tell whether a state is what the chain's last increment has, so that changes since then will do."""
    assert vm.backup.last_increment is not None
    entry = site.ledger.find(array.name, base)
    if entry is None or not entry.is_ready or entry.is_doomed or entry.wwid is None:
        return False
    # The increments of a chain are counted from its first one, whose image was not there yet.
    return entry.content == volumes.content_mark(_content(vm, vm.backup.last_increment))


def _is_complete(site: Site, array: Array, state: str) -> bool:
    entry = site.ledger.find(array.name, state)
    return entry is not None and entry.is_ready and not entry.is_doomed


def _refuse_moving_files(request: Prebackup, savings: Iterable[_Saving]) -> None:
    for saving in savings:
        if saving.volume is None and request.is_live:
            raise NotSupportedError(
                f"Disk {saving.disk.id} is a file in use, of which no state can be taken.",
                "Set BACKUP_VOLATILE=NO, power the VM off, or give its system datastore DISK_TYPE=BLOCK.",
            )


# states


@contextmanager
def _holding_still(request: Prebackup, site: Site, held: list[_Volume]) -> Iterator[None]:
    """Let the guest hold still as FS_FREEZE has it, until the states of all disks are taken.

    The host lets it go on when this process ends, however it ends.

    Raises: DeadlineError when that took longer than the guest may hold still.
    """
    how = request.vm.backup.fs_freeze
    if not request.is_live or how == "NONE" or not held:
        yield
        return
    from concurrent.futures import ThreadPoolExecutor  # it takes its time to load, for those who freeze

    seconds = min(volume.settings.seconds("FREEZE_TIMEOUT") for volume in held)
    hold = HoldStill(request.deploy_id, how, site.common.text("LIBVIRT_URI"), seconds)
    is_told = threading.Event()
    reading, writing = os.pipe()

    def keep() -> HeldStill:
        try:
            with os.fdopen(reading, "rb", 0) as upload:
                (found,) = site.host(request.disk.host).run(
                    [hold],
                    deadline=seconds + _VIRSH_SECONDS,
                    upload=upload,
                    progress=lambda said: is_told.set(),
                )
            assert isinstance(found, HeldStill)
            return found
        finally:
            is_told.set()

    with ThreadPoolExecutor(1) as pool:
        keeping = pool.submit(keep)
        with os.fdopen(writing, "wb", 0):  # closing it lets the guest go on
            is_told.wait()
            if not keeping.done() or keeping.exception() is None:
                yield
        still = keeping.result()
    log.info("VM %d held still for %.1f s", request.vm_id, still.seconds)
    if not still.was_in_time:
        raise DeadlineError(
            f"Taking the states of VM {request.vm_id} took more than {seconds:.0f} s; it goes on.",
            "See why the array is slow, or raise FREEZE_TIMEOUT.",
        )


def _take_state(request: Prebackup, site: Site, volume: _Volume) -> None:
    content = _content(request.vm, _number(request.vm))
    new = NewVolume(volume.state, source=volume.name, is_linked=True)
    with site.volume(volume.array, volume.name):
        volumes.make(site, volume.array, new, content=content, is_of_now=True)


def _drop_states(
    site: Site, savings: Iterable[_Saving], is_dropped: Callable[[_Volume, str, int], bool]
) -> None:
    """Delete the states of the disks that ``is_dropped`` names."""
    for saving in savings:
        volume = saving.volume
        for entry in site.ledger.snapshots(volume.array.name, volume.name) if volume is not None else ():
            what = read_name(entry.name)
            if volume is None or what is None or what.backup is None:
                continue
            if is_dropped(volume, entry.name, what.backup):
                _drop(site, volume.settings, volume.array, volume.name, entry.name)


def _drop(
    site: Site, settings: Settings, array: Array, name: str, state: str, *, patience: float | None = None
) -> None:
    """Delete a state, off the host first where a killed action left it."""
    with site.volume(array, state, **({} if patience is None else {"seconds": patience})):
        volumes.end_visit(site, settings, array, state)
    delete_snapshot(site, array, name, state)


def _clean_up(request: Prebackup, site: Site, savings: list[_Saving], files: _Files) -> None:
    """Remove what a failed prebackup has made; what cannot be undone now is left to postbackup."""
    with _only_said("states of the disks"):
        _drop_states(site, savings, lambda volume, name, number: name == volume.state)
    with _only_said("files of the backup"):
        site.host(files.host).run([files.removal], deadline=_FILE_SECONDS)


@contextmanager
def _only_said(what: str) -> Iterator[None]:
    try:
        yield
    except SanstoneError as err:
        log.warning("%s: %s", what, err)


# files


def _save(request: Prebackup, site: Site, saving: _Saving, files: _Files) -> None:
    """Write the file of one disk."""
    path = f"{files.directory}/{saving.file}"
    is_increment = _number(request.vm) > 0
    volume = saving.volume
    if volume is None:
        source = f"{request.disk.path}/disk.{saving.disk.id}"
        work: Operation = SaveDisk(path, None, source, saving.disk.format or None, is_increment)
        site.host(files.host).run([work], deadline=_FILE_SECONDS * 24)
        return
    settings, array = volume.settings, volume.array
    with ExitStack() as stack:
        base_wwid, extents = None, None
        if volume.base is not None:
            if array.abilities.tells_changes:
                changes = array.changes(volume.base, volume.state)
                extents = tuple(Part(each.offset, each.length) for each in changes)
            elif settings.flag("BACKUP_COMPARE"):
                stack.enter_context(site.volume(array, volume.base))
                base, base_wwid = stack.enter_context(
                    visiting(site, settings, array, volume.base, files.host)
                )
                base.bring()
        on_host, wwid = stack.enter_context(visiting(site, settings, array, volume.state, files.host))
        array.close()  # a copy takes its time, and a box has few sessions
        saved = on_host.run([], SaveDisk(path, wwid, None, None, is_increment, base_wwid, extents))
        assert isinstance(saved, Copied)
        log.info("%s: %d of %d bytes in %.0f s", saving.file, saved.data, saved.size, saved.seconds)


@contextmanager
def visiting(
    site: Site, settings: Settings, array: Array, name: str, host: str
) -> Iterator[tuple[volumes.OnHost, str]]:
    """Have a volume on a host only to be read, written down, so that it is not left there for ever.

    The caller holds the volume.
    """
    site.ledger.visit(array.name, name, host)
    connection: Connection = array.map(name, host)
    with volumes.attached(site, settings, array, connection, host) as on_host:
        yield on_host, connection.wwid
    site.ledger.left(array.name, name)
