# SPDX-License-Identifier: Apache-2.0
"""What happens to images: the datastore driver's actions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sanstone.actions import imports, volumes
from sanstone.actions.site import Site
from sanstone.arrays import Array, NewVolume
from sanstone.errors import (
    CapacityError,
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

__all__ = ["Origin", "clone", "copy_between", "cp", "mkfs", "monitor", "rm", "stat"]

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
        _check_room(array, settings, size=size, data=file.data)
        with site.volume(array, name), _removed_on_failure(site, settings, array, name):
            _fill(site, settings, array, NewVolume(name, size), file, turn=_id(request.image))
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
    if not settings.flag("THIN_PROVISION"):
        _check_room(array, settings, size=size, data=0)
    new = NewVolume(name, size)
    with site.volume(array, name), _removed_on_failure(site, settings, array, name):
        if image.fs in ("", "raw"):
            volumes.make(site, array, new)
        else:
            _format(site, settings, array, new, image.fs, turn=_id(image))
        volumes.complete(site, array, name)
    return answers.datablock_source(array.source(name))


def clone(request: CloneImage, site: Site) -> str:
    """Clone an image: inside the array where it can, else through a bridge host."""
    settings = site.settings(request.datastore, request.image)
    name = image_volume(_id(request.image))
    source = volume_of_source(request.image.path)
    array = site.array(settings)
    origin_settings = _origin_settings(request, site) or settings
    with site.volume(array, name), _removed_on_failure(site, settings, array, name):
        if origin_settings.text("MGMT") == settings.text("MGMT") and array.abilities.clones_within:
            volumes.make(site, array, NewVolume(name, source=source))
            volumes.complete(site, array, name)
        else:
            origin = Origin(site.array(origin_settings), origin_settings, source)
            (volume,) = origin.array.find(source)
            if volume is None:
                raise NotFoundError(
                    f"Volume {source} is not on {origin.array.name}.", "Was it deleted by hand?"
                )
            new = NewVolume(name, volume.size)
            _through_a_bridge(
                site,
                settings,
                _id(request.image),
                lambda place: copy_between(origin, site, settings, array, new, place),
            )
    return answers.image_source(array.source(name), "raw")


def rm(request: Rm, site: Site) -> str:
    """Delete the volume of an image."""
    settings = site.settings(request.datastore)
    name = volume_of_source(request.image.source)
    array = site.array(settings)
    with site.volume(array, name):
        try:
            volumes.delete(site, settings, array, name)
        except ConflictError:
            if not _take_off_bridges(site, settings, array, name):
                raise
            volumes.delete(site, settings, array, name)
    return ""


def monitor(request: MonitorDatastore, site: Site) -> str:
    """Hold the settings against the array, tell its capacity, and delete what was put off."""
    settings = site.settings(request.datastore)
    array = site.array(settings)
    capacity = array.capacity()
    try:
        volumes.sweep(site, array)
    except SanstoneError as err:
        log.warning("volumes whose deletion was put off are still there: %s", err)
    return answers.monitor(capacity)


def copy_between(
    origin: Origin, site: Site, settings: Settings, array: Array, new: NewVolume, place: str
) -> None:
    """Copy a volume to a new one through a host that reaches both."""
    made = volumes.make(site, array, new, host=place)
    assert made.connection is not None
    if made.is_complete:
        array.unmap(new.name, place)
        return
    with ExitStack() as stack:
        wwid = origin.attached_wwid
        if wwid is None:
            stack.enter_context(site.volume(origin.array, origin.name))
            reading = origin.array.map(origin.name, place, is_shared=True)
            wwid = reading.wwid
            stack.enter_context(volumes.attached(site, origin.settings, origin.array, reading, place)).bring()
        target = stack.enter_context(volumes.attached(site, settings, array, made.connection, place))
        target.run([], CopyVolume(wwid, made.connection.wwid, _is_zero(settings, array), _tool(settings)))
    volumes.complete(site, array, new.name)


def _fill(
    site: Site, settings: Settings, array: Array, new: NewVolume, file: imports.ImageFile, turn: int
) -> None:
    def through(place: str) -> None:
        made = volumes.make(site, array, new, host=place)
        assert made.connection is not None
        if made.is_complete:
            array.unmap(new.name, place)
            return
        _write(site, settings, array, made.connection, file, place)
        volumes.complete(site, array, new.name)

    _through_a_bridge(site, settings, turn, through)


def _write(
    site: Site,
    settings: Settings,
    array: Array,
    connection: Connection,
    file: imports.ImageFile,
    place: str,
) -> None:
    """Write an image file onto a mapped volume; to another host it travels first."""
    with volumes.attached(site, settings, array, connection, place) as on_host, ExitStack() as stack:
        before: list[Operation] = []
        path, upload = str(file.path), None
        if not site.is_frontend(place):
            path = str(settings.path("STAGING_DIR") / f"sanstone-{connection.volume}.image")
            length = file.path.stat().st_size
            upload = stack.enter_context(file.path.open("rb"))
            before = [PutFile(path, length)]
            on_host.at_the_end(RemovePath(path))
        tool = _tool(settings) if file.format == "raw" else "qemu-img"
        work = Convert(path, connection.wwid, _is_zero(settings, array), file.format, tool)
        on_host.run(before, work, upload=upload)


def _format(site: Site, settings: Settings, array: Array, new: NewVolume, kind: str, turn: int) -> None:
    def through(place: str) -> None:
        made = volumes.make(site, array, new, host=place)
        assert made.connection is not None
        if made.is_complete:
            array.unmap(new.name, place)
            return
        with volumes.attached(site, settings, array, made.connection, place) as on_host:
            on_host.run([], MakeFilesystem(made.connection.wwid, kind))

    _through_a_bridge(site, settings, turn, through)


def _through_a_bridge(site: Site, settings: Settings, turn: int, through: Callable[[str], None]) -> None:
    """Use the bridge host whose turn it is, and the next one when that cannot be reached."""
    places = site.bridges(settings, turn)
    for place, is_last in zip(places, [*[False] * (len(places) - 1), True], strict=True):
        try:
            through(place)
            return
        except ConnectError as err:
            if is_last:
                raise
            log.warning("%s; the next bridge host takes over", err)


@contextmanager
def _removed_on_failure(site: Site, settings: Settings, array: Array, name: str) -> Iterator[None]:
    """Remove the volume of an image whose making failed: oned calls no rm for an image without SOURCE."""
    before = site.ledger.find(array.name, name)
    try:
        yield
    except SanstoneError:
        entry = site.ledger.find(array.name, name)
        if entry is not None and not entry.is_ready and (before is None or not before.is_ready):
            try:
                volumes.delete(site, settings, array, name)
            except SanstoneError as left:
                log.error("what was made of it is still on the array: %s", left)
        raise


def _take_off_bridges(site: Site, settings: Settings, array: Array, name: str) -> bool:
    """Detach a volume from bridge hosts where a cut-off import left it; tell whether it was only there."""
    (volume,) = array.find(name)
    bridges = site.bridges(settings, 0)
    known = {spelling: bridge for bridge in bridges for spelling in (bridge, bridge.split(".", 1)[0])}
    hosts = array.mapped_hosts(name)
    if volume is None or not hosts or not all(host in known for host in hosts):
        return False
    for host in hosts:
        volumes.detach(site, settings, array, name, volume.wwid, known[host])
    return True


def _check_room(array: Array, settings: Settings, *, size: int, data: int) -> None:
    """oned does not check oneadmin's images (seen in image-create-oversize-as-oneadmin)."""
    free = array.capacity().free
    needed = data if settings.flag("THIN_PROVISION") else size
    needed *= settings.integer("COPIES")
    if needed > free:
        raise CapacityError(
            f"The pool on {array.name} has {free // MIB} MiB free, the image needs {-(-needed // MIB)} MiB.",
            "Free space in the pool or choose another datastore.",
        )


def _origin_settings(request: CloneImage, site: Site) -> Settings | None:
    """The settings of the datastore that holds the origin, None when it is the same one."""
    if request.image.cloning_id is None:
        return None
    origin = site.opennebula.image(request.image.cloning_id)
    if origin.datastore_id is None or origin.datastore_id == request.datastore.id:
        return None
    return site.settings(site.opennebula.datastore(origin.datastore_id))


def _id(image: ImageDocument) -> int:
    if image.id is None:
        raise RequestError("The request names no image ID.")
    return image.id


def _whole_mib(size: int) -> int:
    return -(-size // MIB) * MIB


def _tool(settings: Settings) -> str:
    return settings.text("COPY_TOOL")


def _is_zero(settings: Settings, array: Array) -> bool:
    """Tell whether blocks that were never written read as zeros."""
    return settings.flag("THIN_PROVISION") and array.abilities.zeroes_new_volumes
