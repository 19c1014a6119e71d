# SPDX-License-Identifier: Apache-2.0
"""What happens to disks: the transfer manager's actions.

oned repeats a whole script file after a failure, so every action brings about a state. A disk of a VM that
is not deployed is "on" the front-end: there it has a volume and no device.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sanstone.actions import leftovers, migration, volumes
from sanstone.actions.backups import end_chain
from sanstone.actions.datastore import Origin, copy_between, copy_onto
from sanstone.actions.disks import (
    DiskVolume,
    disk_of,
    disk_volume,
    existing_name,
    is_system,
    is_used_by_others,
    is_volatile_block,
)
from sanstone.actions.imports import scratch_folder
from sanstone.actions.removing import delete_with_snapshots
from sanstone.actions.site import Site
from sanstone.arrays import Array, NewVolume
from sanstone.errors import (
    ArrayError,
    BusyError,
    ConfigurationError,
    ConflictError,
    ConnectError,
    DeadlineError,
    NotFoundError,
    SanstoneError,
)
from sanstone.hosts.ops import (
    Attached,
    LinkState,
    MakeFilesystem,
    MakeImageFile,
    MovePath,
    PutFile,
    ReadLink,
    RemovePath,
)
from sanstone.model import MIB, Capacity, Connection
from sanstone.names import read_name, snapshot_volume, volatile_volume, volume_of_source
from sanstone.opennebula import answers
from sanstone.opennebula.documents import VmDocument
from sanstone.opennebula.messages import (
    Clone,
    Context,
    CopyToDatastore,
    Delete,
    DiskPath,
    Ln,
    MakeImage,
    MakeSwap,
    MonitorSystem,
    Move,
    MoveToDatastore,
)
from sanstone.settings import Settings
from sanstone.store.locks import Place
from sanstone.transport.command import Command, run

__all__ = ["clone", "context", "cpds", "delete", "ln", "mkimage", "mkswap", "monitor", "mv", "mvds"]

log = logging.getLogger(__name__)

_FILE_SECONDS = 600.0
_FILESYSTEM = re.compile(r"[a-z][a-z0-9]{1,15}")
_ISO_TOOLS = ("mkisofs", "genisoimage", "xorrisofs")


def ln(request: Ln, site: Site) -> str:
    """Attach the volume of a persistent image or a CD-ROM to the host and link the disk to it."""
    settings = site.settings(site.opennebula.datastore(request.datastore_id))
    array = site.array(settings)
    name = volume_of_source(request.source)
    with site.volume(array, name):
        _bring(site, settings, array, name, request.disk, request.vm_id)
    return ""


def clone(request: Clone, site: Site) -> str:
    """Make a volume of its own for a disk of a non-persistent image, and attach it."""
    settings = site.settings(site.opennebula.datastore(request.datastore_id))
    array = site.array(settings)
    source = volume_of_source(request.source)
    vm = site.opennebula.vm(request.vm_id)
    disk = disk_of(vm, request.disk)
    name = disk_volume(vm, disk).name
    host = request.disk.host
    with site.volume(array, name), _removed_on_failure(site, settings, array, name, request.disk):
        new = NewVolume(name, source=source, is_linked=array.abilities.links_clones)
        size = (disk.size_mib or 0) * MIB
        content = _content(vm, request.source)
        leftovers.drop_earlier(site, settings, array, name, request.disk, _earlier(vm, request.source))
        if disk.size_mib is not None and disk.original_size_mib not in (None, disk.size_mib):
            connection = _make_larger(site, settings, array, new, size, host, content)
        else:
            made = volumes.make(site, array, new, host=host, content=content)
            volumes.complete(site, array, name)
            assert made.connection is not None
            connection = made.connection
        _attach(site, settings, array, connection, request.disk)
    return ""


def _content(vm: VmDocument, what: str, deployment: int | None = None) -> str:
    """Tell one deployment of a VM (the last by default) from others, and from another VM of its number."""
    if deployment is None and vm.history:
        deployment = vm.history[-1].seq
    return "\0".join((vm.name, str(vm.user_id), "" if deployment is None else str(deployment), what))


def _earlier(vm: VmDocument, what: str) -> list[str]:
    """List what the same disk's contents were called in earlier deployments of the VM."""
    return [_content(vm, what, record.seq) for record in vm.history[:-1]]


def _make_larger(
    site: Site,
    settings: Settings,
    array: Array,
    new: NewVolume,
    size: int,
    host: str,
    content: str,
) -> Connection:
    """Make a disk that is larger than its image: expand the copy, or, if the box cannot, copy by the host."""
    assert new.source is not None
    leftovers.take_off_incomplete(site, settings, array, new.name, host)
    made = volumes.make(site, array, new, content=content)
    try:
        array.resize(new.name, size)
    except ConflictError as err:
        log.info("%s; the host copies instead", err.message)
        array.delete(new.name, wait=settings.seconds("DELETE_WAIT"))
        site.ledger.forget(array.name, new.name)
        origin = Origin(array, settings, new.source)
        copy_between(origin, site, settings, array, NewVolume(new.name, size), host, content)
    except SanstoneError:
        if not made.is_complete:
            volumes.delete(site, settings, array, new.name)
        raise
    volumes.complete(site, array, new.name)
    return array.map(new.name, host)


def mv(request: Move, site: Site) -> str:
    """Move a disk, or the VM's directory, between hosts or to and from the front-end."""
    source, target = request.source, request.target
    if request.is_directory or source.disk_id is None:
        return _move_file(site, source, target)
    datastore = site.opennebula.datastore(request.datastore_id)
    if is_system(datastore) and not is_volatile_block(datastore):
        return _move_file(site, source, target)
    settings = site.settings(datastore)
    array = site.array(settings)
    vm = site.opennebula.vm(request.vm_id)
    name = existing_name(site, array, disk_volume(vm, disk_of(vm, target)))
    with site.volume(array, name):
        if source.host == target.host and not site.is_frontend(source.host):
            _bring(site, settings, array, name, target, request.vm_id)
            if source.path != target.path:
                site.host(source.host).run([RemovePath(source.path)], deadline=_FILE_SECONDS)
            return ""
        if not site.is_frontend(source.host):
            _take(site, settings, array, name, source)
        if not site.is_frontend(target.host):
            _bring(site, settings, array, name, target, request.vm_id)
    return ""


def mvds(request: MoveToDatastore, site: Site) -> str:
    """Detach a persistent disk: its volume goes back to being an image."""
    settings = site.settings(site.opennebula.datastore(request.datastore_id))
    array = site.array(settings)
    name = volume_of_source(request.source)
    with site.volume(array, name):
        _take(site, settings, array, name, request.disk)
        end_chain(site, settings, array, name)
    return ""


def cpds(request: CopyToDatastore, site: Site) -> str:
    """Save a disk as an image, whose empty volume mkfs has made."""
    vm = site.opennebula.vm(request.vm_id)
    disk = disk_of(vm, request.disk)
    settings = site.settings(site.opennebula.datastore(request.datastore_id))
    array = site.array(settings)
    source = existing_name(site, array, disk_volume(vm, disk))
    if request.snapshot_id is not None:
        source = snapshot_volume(source, request.snapshot_id)
    target = volume_of_source(request.source)
    with site.volume(array, target):
        try:
            array.copy(source, target)
        except ConflictError as err:
            log.info("%s; the host copies instead", err.message)
            is_attached = request.snapshot_id is None and not site.is_frontend(request.disk.host)
            _copy_by_host(site, settings, array, source, target, request.disk.host, is_attached=is_attached)
    return ""


def _copy_by_host(
    site: Site,
    settings: Settings,
    array: Array,
    source: str,
    target: str,
    host: str,
    *,
    is_attached: bool,
) -> None:
    volume, there = array.find(source, target)
    if volume is None or there is None:
        raise NotFoundError(f"Volume {source if volume is None else target} is not on {array.name}.")
    place = site.bridges(settings, 0)[0] if site.is_frontend(host) else host
    origin = Origin(array, settings, source, volume.wwid if is_attached else None)
    # The image may have held something before, so that zeros are written as well.
    copy_onto(origin, site, settings, array, array.map(target, place), place, is_zero=False)


def delete(request: Delete, site: Site) -> str:
    """Remove a disk: detach it, and delete its volume when it was made for this VM.

    ``recover --delete`` calls this for persistent disks too: an image's volume is only detached.
    """
    path = request.disk
    if request.is_directory or path.disk_id is None:
        return _remove_file(site, path)
    datastore = site.opennebula.datastore(request.datastore_id)
    if is_system(datastore) and not is_volatile_block(datastore):
        return _remove_file(site, path)
    settings = site.settings(datastore)
    array = site.array(settings)
    vm = site.opennebula.vm(request.vm_id)
    disk = vm.disk(path.disk_id)
    wanted = disk_volume(vm, disk) if disk else _linked_volume(site, array, path)
    if wanted.is_own and _delete_known(site, settings, array, wanted.name, path):
        return ""
    if not wanted.names:
        return _remove_file(site, path)
    with ExitStack() as held:
        held.enter_context(site.volume(array, wanted.name))
        # nobody repeats this call: from here on the monitoring knows that something may be left
        site.ledger.locks.note(array.name, wanted.name, Place(path.host, path.path))
        found = wanted.find(array)
        if found is None:
            log.info("no volume of disk %d of VM %d is on %s", path.disk_id, vm.id, array.name)
            return _remove_file(site, path)
        name = found.name
        if name != wanted.name:
            held.enter_context(site.volume(array, name))
        is_ours = wanted.is_own and _was_made_for(site, array, name, found.wwid, path)
        _take(site, settings, array, name, path, wwid=found.wwid)
        if is_ours:
            delete_with_snapshots(site, settings, array, name)
        elif wanted.is_own:
            log.warning("%s on %s is left alone: it is not known to be ours", name, array.name)
    return ""


def _delete_known(site: Site, settings: Settings, array: Array, name: str, disk: DiskPath) -> bool:
    """Delete a volume whose WWID the ledger has, without a question before; tell whether it has."""
    with site.volume(array, name):
        entry = site.ledger.find(array.name, name)
        if entry is None or entry.wwid is None:
            return False
        migration.settle(site, settings, array, name, disk)
        if site.is_frontend(disk.host):
            _remove_file(site, disk)
            delete_with_snapshots(site, settings, array, name, wwid=entry.wwid)
        else:
            volumes.let_go(site, settings, array, name, entry.wwid, disk.host, link=disk.path)
            delete_with_snapshots(site, settings, array, name, host=disk.host, wwid=entry.wwid)
    return True


def mkimage(request: MakeImage, site: Site) -> str:
    """Make a volatile disk: a file, or a volume where the system datastore says DISK_TYPE=BLOCK."""
    return _make_volatile(
        site, request.disk, request.vm_id, request.datastore_id, request.size_mib, request.format
    )


def mkswap(request: MakeSwap, site: Site) -> str:
    """Make a volatile swap disk."""
    return _make_volatile(site, request.disk, request.vm_id, request.datastore_id, request.size_mib, "swap")


def _make_volatile(
    site: Site, disk: DiskPath, vm_id: int, datastore_id: int, size_mib: int, kind: str
) -> str:
    datastore = site.opennebula.datastore(datastore_id)
    if not is_volatile_block(datastore):
        form = "raw" if kind in ("swap", "") else kind
        what = _filesystem(site.opennebula.vm(vm_id), disk, kind)
        make = MakeImageFile(disk.path, size_mib * MIB, form, what)
        site.host(disk.host).run([make], deadline=_FILE_SECONDS)
        return ""
    settings = site.settings(datastore)
    array = site.array(settings)
    name = volatile_volume(vm_id, disk.disk_id or 0)
    with site.volume(array, name), _removed_on_failure(site, settings, array, name, disk):
        vm = site.opennebula.vm(vm_id)
        content = _content(vm, f"{kind} {size_mib}")
        leftovers.drop_earlier(site, settings, array, name, disk, _earlier(vm, f"{kind} {size_mib}"))
        made = volumes.make(site, array, NewVolume(name, size_mib * MIB), host=disk.host, content=content)
        assert made.connection is not None
        what = "" if made.is_complete else _filesystem(vm, disk, kind)
        _attach(site, settings, array, made.connection, disk, filesystem=what)
        volumes.complete(site, array, name)
    return ""


def _filesystem(vm: VmDocument, disk: DiskPath, kind: str) -> str:
    """Tell what a volatile disk is to be formatted with; empty for nothing."""
    if kind == "swap":
        return "swap"
    found = vm.disk(disk.disk_id) if disk.disk_id is not None else None
    wanted = found.fs if found else ""
    if wanted and not _FILESYSTEM.fullmatch(wanted):
        log.warning("disk %s is not formatted: %r is not a kind of file system", disk.disk_id, wanted)
        return ""
    return wanted


def context(request: Context, site: Site) -> str:
    """Make the context CD-ROM from its files and put it beside the VM's disks."""
    tool = next((name for name in _ISO_TOOLS if shutil.which(name)), None)
    if tool is None:
        raise ConfigurationError(
            f"The front-end has none of {', '.join(_ISO_TOOLS)}.", "Install genisoimage or xorriso."
        )
    with scratch_folder(Path(tempfile.gettempdir())) as folder:
        contents = Path(folder, "contents")
        contents.mkdir()
        for file in request.files:
            source = Path(file)
            try:
                if source.is_dir():
                    shutil.copytree(source, contents / source.name)
                else:
                    shutil.copyfile(source, contents / source.name)
            except OSError as err:
                raise NotFoundError(f"The context file {file!r} cannot be read: {err.strerror}.") from err
        image = Path(folder, "context.iso")
        run(
            Command.of(
                [tool, "-quiet", "-o", str(image), "-V", "CONTEXT", "-J", "-R", str(contents)],
                deadline=_FILE_SECONDS,
            )
        )
        with image.open("rb") as upload:
            put = PutFile(request.disk.path, image.stat().st_size)
            site.host(request.disk.host).run([put], deadline=_FILE_SECONDS, upload=upload)
    return ""


def monitor(request: MonitorSystem, site: Site) -> str:
    """Tell the room in the shared directory of a system datastore, as the front-end sees it."""
    folder = Path(request.location, str(request.datastore.id))
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    found = os.statvfs(folder)
    total = found.f_blocks * found.f_frsize
    free = found.f_bavail * found.f_frsize
    return answers.monitor(Capacity(total, total - found.f_bfree * found.f_frsize, free))


def _bring(site: Site, settings: Settings, array: Array, name: str, disk: DiskPath, vm_id: int) -> None:
    """Map a volume to the disk's host and attach it; only a CD-ROM may be on several hosts."""
    migration.settle(site, settings, array, name, disk)
    site.ledger.locks.note(array.name, name, Place(disk.host, disk.path))
    try:
        connection = _map(site, settings, array, name, disk, vm_id)
    except (ArrayError, BusyError, ConnectError, DeadlineError):
        _withdraw(site, settings, array, name, disk)  # it may have been mapped all the same
        raise
    _attach(site, settings, array, connection, disk)


def _map(site: Site, settings: Settings, array: Array, name: str, disk: DiskPath, vm_id: int) -> Connection:
    try:
        return array.map(name, disk.host)
    except ConflictError:
        if disk_of(site.opennebula.vm(vm_id), disk).is_cdrom:
            return array.map(name, disk.host, is_shared=True)
        if volumes.end_visit(site, settings, array, name) or leftovers.take_off_forgotten(
            site, settings, array, name, disk.host
        ):
            return array.map(name, disk.host)
        raise


def _attach(
    site: Site,
    settings: Settings,
    array: Array,
    connection: Connection,
    disk: DiskPath,
    *,
    filesystem: str = "",
) -> None:
    """Attach and link; when the host cannot, it lets go of what it has, and then the array."""
    site.ledger.locks.note(array.name, connection.volume, Place(disk.host, disk.path))
    host = site.host(disk.host)
    bring = volumes.attach_operation(site, settings, connection, disk.host, disk.path)
    work = [MakeFilesystem(connection.wwid, filesystem)] if filesystem else []
    array.close()  # a box has few sessions, and this was its part
    try:
        results = host.run([bring, *work], deadline=settings.seconds("ATTACH_TIMEOUT"))
    except BaseException:
        array.refresh()
        site.forget_initiator(disk.host)
        _withdraw(site, settings, array, connection.volume, disk, wwid=connection.wwid)
        raise
    assert isinstance(results[0], Attached)
    volumes.certify(connection, disk.host, results[0])


def _withdraw(
    site: Site, settings: Settings, array: Array, name: str, disk: DiskPath, *, wwid: str | None = None
) -> None:
    """Take a volume off its host after a failure; what cannot be undone then is said loudly."""
    try:
        _take(site, settings, array, name, disk, wwid=wwid)
    except SanstoneError as left:
        log.error("%s stays mapped to %s: %s", name, disk.host, left)


@contextmanager
def _removed_on_failure(
    site: Site, settings: Settings, array: Array, name: str, disk: DiskPath
) -> Iterator[None]:
    """Remove the volume that was made for a disk when the action fails: oned asks nobody to after an attach.

    A volume that an earlier run completed stays, for a VM may have written to it.
    """
    before = site.ledger.find(array.name, name)
    try:
        yield
    except volumes.NotOursError:
        raise
    except BaseException:
        entry = site.ledger.find(array.name, name)
        if entry is not None and (before is None or not before.is_ready):
            try:
                if entry.wwid is not None:
                    volumes.let_go(site, settings, array, name, entry.wwid, disk.host, link=disk.path)
                volumes.delete(site, settings, array, name, host=disk.host, wwid=entry.wwid)
            except SanstoneError as left:
                log.error("what was made of it is still on the array: %s", left)
        raise


def _take(
    site: Site, settings: Settings, array: Array, name: str, disk: DiskPath, *, wwid: str | None = None
) -> None:
    """Detach a disk from its host and unmap it; a volume that another VM uses there too stays."""
    migration.settle(site, settings, array, name, disk)
    if wwid is None:
        entry = site.ledger.find(array.name, name)
        wwid = entry.wwid if entry else None
    if wwid is None:
        (volume,) = array.find(name)
        if volume is None:
            _remove_file(site, disk)
            return
        wwid = volume.wwid
    if site.is_frontend(disk.host):
        _remove_file(site, disk)
        return
    if is_used_by_others(site, name, wwid, disk):
        log.info("%s stays on %s, where other disks are it as well", name, disk.host)
        (state,) = site.host(disk.host).run([ReadLink(disk.path)], deadline=_FILE_SECONDS)
        if isinstance(state, LinkState) and state.target is not None:
            _remove_file(site, disk)
        return
    volumes.detach(site, settings, array, name, wwid, disk.host, link=disk.path)


def _linked_volume(site: Site, array: Array, path: DiskPath) -> DiskVolume:
    """Work out which volume a disk was that OpenNebula has forgotten: its link on the host still says so."""
    (state,) = site.host(path.host).run([ReadLink(path.path)], deadline=_FILE_SECONDS)
    wwid = state.wwid if isinstance(state, LinkState) else None
    volume = array.find_wwid(wwid) if wwid else None
    what = read_name(volume.name) if volume else None
    if volume is None or what is None:
        return DiskVolume((), is_own=False)
    return DiskVolume((volume.name,), is_own=(what.vm, what.disk) == (path.vm_id, path.disk_id))


def _was_made_for(site: Site, array: Array, name: str, wwid: str, disk: DiskPath) -> bool:
    """Tell whether a clone is ours: the ledger has it, or the disk on the host links to it."""
    entry = site.ledger.find(array.name, name)
    if entry is not None:
        return entry.covers(wwid)
    (state,) = site.host(disk.host).run([ReadLink(disk.path)], deadline=_FILE_SECONDS)
    return isinstance(state, LinkState) and state.wwid == wwid


def _move_file(site: Site, source: DiskPath, target: DiskPath) -> str:
    """Move a file or directory of a shared system datastore: all hosts see the same one."""
    if source.path != target.path:
        place = source.host if site.is_frontend(target.host) else target.host
        site.host(place).run([MovePath(source.path, target.path)], deadline=_FILE_SECONDS)
    return ""


def _remove_file(site: Site, path: DiskPath) -> str:
    site.host(path.host).run([RemovePath(path.path)], deadline=_FILE_SECONDS)
    return ""
