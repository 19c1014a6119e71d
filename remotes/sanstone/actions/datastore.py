# SPDX-License-Identifier: Apache-2.0
"""What happens to images: the datastore driver's actions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sanstone.actions import backups, imports, leftovers, volumes
from sanstone.actions.removing import delete_with_snapshots
from sanstone.actions.site import Site
from sanstone.arrays import Array, NewVolume
from sanstone.errors import (
    ConflictError,
    ConnectError,
    NotFoundError,
    RequestError,
    SanstoneError,
)
from sanstone.hosts.ops import Convert, CopyVolume, MakeFilesystem, Operation, PutFile, RemovePath
from sanstone.model import MIB, Connection
from sanstone.names import image_volume, volume_of_source
from sanstone.opennebula import answers
from sanstone.opennebula.documents import ImageDocument
from sanstone.opennebula.messages import CloneImage, Cp, Mkfs, MonitorDatastore, Rm, Stat
from sanstone.settings import Settings
from sanstone.store.locks import Place

__all__ = ["Origin", "clone", "copy_between", "copy_onto", "cp", "mkfs", "monitor", "rm", "stat"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """A volume to copy from; ``attached_wwid`` when the host that copies has it attached already."""

    array: Array
    settings: Settings
    name: str
    attached_wwid: str | None = None


def stat(request: Stat, site: Site) -> str:
    """Tell the size of an image that shall be imported."""
    settings = site.settings(request.datastore, request.image)
    return answers.size_in_mib(imports.size_of(request.image.path, settings))


def cp(request: Cp, site: Site) -> str:
    """Import an image: a volume of its size, its bytes on it, hole for hole."""
    settings = site.settings(request.datastore, request.image)
    name = image_volume(_id(request.image))
    array = site.array(settings)
    with imports.fetch(request.image.path, request.image.template, settings) as file:
        size = max((request.image.size_mib or 0) * MIB, _whole_mib(file.size))
        new = NewVolume(name, size, needs=array.needed(size=size, data=file.data))
        with site.volume(array, name), _removed_on_failure(site, settings, array, name):
            _fill(site, settings, array, new, file, request.image)
    return answers.image_source(array.source(name), "raw")


def mkfs(request: Mkfs, site: Site) -> str:
    """Make an empty datablock, with a file system when one is asked for."""
    settings = site.settings(request.datastore, request.image)
    image = request.image
    name = image_volume(_id(image))
    if not image.size_mib:
        raise RequestError(f"Image {image.id} has no SIZE.", "Give a SIZE in MB.")
    array = site.array(settings)
    size = image.size_mib * MIB
    new = NewVolume(name, size, needs=array.needed(size=size, data=0))
    with site.volume(array, name), _removed_on_failure(site, settings, array, name):
        if image.fs in ("", "raw"):
            volumes.make(site, array, new, content=_content("mkfs", image))
        else:
            _format(site, settings, array, new, image)
        volumes.complete(site, array, name)
    return answers.datablock_source(array.source(name))


def clone(request: CloneImage, site: Site) -> str:
    """Clone an image: inside the array where it can, else through a bridge host."""
    settings = site.settings(request.datastore, request.image)
    name = image_volume(_id(request.image))
    source = volume_of_source(request.image.path)
    array = site.array(settings)
    origin_settings = _origin_settings(request, site)
    origin_array = site.array(origin_settings) if origin_settings else array
    content = _content("clone", request.image)
    with site.volume(array, name), _removed_on_failure(site, settings, array, name):
        if origin_array.name == array.name and array.abilities.clones_within:
            volumes.make(site, array, NewVolume(name, source=source), content=content)
            volumes.complete(site, array, name)
        else:
            origin = Origin(origin_array, origin_settings or settings, source)
            (volume,) = origin.array.find(source)
            if volume is None:
                raise NotFoundError(
                    f"Volume {source} is not on {origin.array.name}.", "Was it deleted by hand?"
                )
            new = NewVolume(name, volume.size)
            _through_a_bridge(
                site,
                settings,
                array,
                name,
                _id(request.image),
                lambda place: copy_between(origin, site, settings, array, new, place, content),
            )
    return answers.image_source(array.source(name), "raw")


def rm(request: Rm, site: Site) -> str:
    """Delete the volume of an image."""
    settings = site.settings(request.datastore)
    name = volume_of_source(request.image.source)
    array = site.array(settings)
    with site.volume(array, name):
        _delete(site, settings, array, name)
    return ""


def _delete(site: Site, settings: Settings, array: Array, name: str) -> None:
    """Delete the volume of an image, off the bridge hosts first if it was left there.

    One that the ledger knows by another WWID is somebody else's; one that it does not know is an earlier
    add-on's.
    """
    entry = site.ledger.find(array.name, name)
    wwid = entry.wwid if entry else None
    try:
        delete_with_snapshots(site, settings, array, name, wwid=wwid)
    except ConflictError:
        was_left = volumes.end_visit(site, settings, array, name)
        if not volumes.take_off_bridges(site, settings, array, name) and not was_left:
            raise
        delete_with_snapshots(site, settings, array, name, wwid=wwid)


def monitor(request: MonitorDatastore, site: Site) -> str:
    """Hold the settings against the array, tell its capacity, and delete what was put off."""
    settings = site.settings(request.datastore)
    array = site.array(settings)
    capacity = array.capacity()
    leftovers.settle(site, settings, array)
    try:
        volumes.sweep(site, settings, array)
        backups.sweep(site, settings, array)
    except SanstoneError as err:
        log.warning("volumes whose deletion was put off are still there: %s", err)
    imports.remove_left_folders(settings)
    return answers.monitor(capacity)


def copy_between(
    origin: Origin,
    site: Site,
    settings: Settings,
    array: Array,
    new: NewVolume,
    place: str,
    content: str = "",
) -> None:
    """Copy a volume to a new one through a host that reaches both."""
    made = volumes.make(site, array, new, host=place, content=content)
    assert made.connection is not None
    if made.is_complete:
        array.unmap(new.name, place)
        return
    copy_onto(origin, site, settings, array, made.connection, place, is_zero=_is_zero(array, made))
    volumes.complete(site, array, new.name)


def copy_onto(
    origin: Origin,
    site: Site,
    settings: Settings,
    array: Array,
    target: Connection,
    place: str,
    *,
    is_zero: bool,
) -> None:
    """Copy a volume onto one that is mapped to ``place``, and take both off that host."""
    with ExitStack() as stack:
        on_host = stack.enter_context(volumes.attached(site, settings, array, target, place))
        wwid = origin.attached_wwid
        if wwid is None:
            # Others may copy from it as well, each in its turn, and each for as long as a copy takes.
            origin.array.close()
            array.close()
            patience = settings.seconds("COPY_TIMEOUT")
            stack.enter_context(site.volume(origin.array, origin.name, seconds=patience))
            wwid = stack.enter_context(_visit(origin, site, place))
        origin.array.close()  # a copy takes its time, and a box has few sessions
        array.close()
        on_host.run([], CopyVolume(wwid, target.wwid, is_zero, _tool(settings)))


@contextmanager
def _visit(origin: Origin, site: Site, place: str) -> Iterator[str]:
    """Have the origin on a host while it is copied, written down, so that it is not left there for ever.

    Where a VM has it on that host, it stays.
    """
    array, settings = origin.array, origin.settings
    volumes.end_visit(site, settings, array, origin.name)
    hosts = array.mapped_hosts(origin.name)
    if {place, place.split(".", 1)[0]} & {name for host in hosts for name in (host, host.split(".", 1)[0])}:
        reading = array.map(origin.name, place, is_shared=True)
        volumes.OnHost(site, settings, array, reading, place).bring()
        yield reading.wwid
        return
    site.ledger.visit(array.name, origin.name, place)
    reading = array.map(origin.name, place, is_shared=True)
    with volumes.attached(site, settings, array, reading, place) as on_host:
        on_host.bring()
        yield reading.wwid
    site.ledger.left(array.name, origin.name)


def _fill(
    site: Site,
    settings: Settings,
    array: Array,
    new: NewVolume,
    file: imports.ImageFile,
    image: ImageDocument,
) -> None:
    def through(place: str) -> None:
        made = volumes.make(site, array, new, host=place, content=_content("cp", image))
        assert made.connection is not None
        if made.is_complete:
            array.unmap(new.name, place)
            return
        _write(site, settings, array, made, file, place)
        volumes.complete(site, array, new.name)

    _through_a_bridge(site, settings, array, new.name, _id(image), through)


def _write(
    site: Site,
    settings: Settings,
    array: Array,
    made: volumes.Made,
    file: imports.ImageFile,
    place: str,
) -> None:
    """Write an image file onto a mapped volume; to another host it travels first."""
    connection = made.connection
    assert connection is not None
    with volumes.attached(site, settings, array, connection, place) as on_host, ExitStack() as stack:
        before: list[Operation] = []
        path, upload = str(file.path), None
        if not site.is_frontend(place):
            path = str(settings.path("STAGING_DIR") / f"sanstone-{connection.volume}.image")
            length = file.path.stat().st_size
            upload = stack.enter_context(file.path.open("rb"))
            site.ledger.locks.note(array.name, connection.volume, Place(place, file=path))
            before = [PutFile(path, length)]
            on_host.at_the_end(RemovePath(path))
        tool = _tool(settings) if file.format == "raw" else "qemu-img"
        work = Convert(path, connection.wwid, _is_zero(array, made), file.format, tool)
        array.close()  # a copy takes its time, and a box has few sessions
        on_host.run(before, work, upload=upload)


def _format(site: Site, settings: Settings, array: Array, new: NewVolume, image: ImageDocument) -> None:
    def through(place: str) -> None:
        made = volumes.make(site, array, new, host=place, content=_content("mkfs", image))
        assert made.connection is not None
        if made.is_complete:
            array.unmap(new.name, place)
            return
        with volumes.attached(site, settings, array, made.connection, place) as on_host:
            on_host.run([], MakeFilesystem(made.connection.wwid, image.fs))

    _through_a_bridge(site, settings, array, new.name, _id(image), through)


def _through_a_bridge(
    site: Site, settings: Settings, array: Array, name: str, turn: int, through: Callable[[str], None]
) -> None:
    """Use the bridge host whose turn it is, and the next one when that cannot be reached.

    The array lets go of the volume first: it may have been the array whose connection was lost.
    """
    places = site.bridges(settings, turn)
    for place, is_last in zip(places, [*[False] * (len(places) - 1), True], strict=True):
        try:
            through(place)
            return
        except ConnectError as err:
            if is_last:
                raise
            try:
                array.unmap(name, place)
            except SanstoneError:
                raise err from None
            log.warning("%s; the next bridge host takes over", err)


@contextmanager
def _removed_on_failure(site: Site, settings: Settings, array: Array, name: str) -> Iterator[None]:
    """Remove the volume of an image whose making failed: oned calls no rm for an image without SOURCE."""
    before = site.ledger.find(array.name, name)
    try:
        yield
    except volumes.NotOursError:
        raise
    except BaseException:
        entry = site.ledger.find(array.name, name)
        if entry is not None and not entry.is_ready and (before is None or not before.is_ready):
            try:
                _delete(site, settings, array, name)
            except SanstoneError as left:
                log.error("what was made of it is still on the array: %s", left)
        raise


def _origin_settings(request: CloneImage, site: Site) -> Settings | None:
    """The settings of the datastore that holds the origin, None when it is the same one."""
    if request.image.cloning_id is None:
        return None
    origin = site.opennebula.image(request.image.cloning_id)
    if origin.datastore_id is None or origin.datastore_id == request.datastore.id:
        return None
    return site.settings(site.opennebula.datastore(origin.datastore_id))


def _content(how: str, image: ImageDocument) -> str:
    return "\0".join((how, image.name, image.path, str(image.size_mib), image.fs))


def _id(image: ImageDocument) -> int:
    if image.id is None:
        raise RequestError("The request names no image ID.")
    return image.id


def _whole_mib(size: int) -> int:
    return -(-size // MIB) * MIB


def _tool(settings: Settings) -> str:
    return settings.text("COPY_TOOL")


def _is_zero(array: Array, made: volumes.Made) -> bool:
    """Tell whether all blocks read as zeros: none was ever written, not even by a run that was cut off."""
    return made.is_new and made.volume.is_thin and array.abilities.zeroes_new_volumes
