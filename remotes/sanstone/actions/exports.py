# SPDX-License-Identifier: Apache-2.0
"""Images for marketplaces: a file that OpenNebula's downloader can read, and what there is to say of it.

What a marketplace driver wants was read in OpenNebula's source: docs/backups.md.
"""

from __future__ import annotations

import logging

from sanstone.actions.backups import visiting
from sanstone.actions.site import Site
from sanstone.arrays import Array
from sanstone.errors import ConnectError, NotFoundError
from sanstone.hosts.ops import Digest, FileDigest, RemovePath, SaveDisk
from sanstone.names import volume_of_source
from sanstone.opennebula import answers
from sanstone.opennebula.messages import Export
from sanstone.settings import Settings
from sanstone.store.locks import Place

__all__ = ["export"]

log = logging.getLogger(__name__)

_FILE_SECONDS = 600.0


def export(request: Export, site: Site) -> str:
    """Make a QCOW2 file of an image on a bridge host, which the marketplace's driver fetches and removes.

    The volume is read once, and is off that host again before the file is fetched.
    """
    settings = site.settings(request.datastore, request.image)
    name = volume_of_source(request.image.source)
    array = site.array(settings)
    (volume,) = array.find(name)
    if volume is None:
        raise NotFoundError(f"Volume {name} is not on {array.name}.", "Was it deleted by hand?")
    path = str(settings.path("STAGING_DIR") / f"sanstone-export-{name}.qcow2")
    places = site.bridges(settings, request.image.id or 0)
    for number, place in enumerate(places, 1):
        try:
            digest = _make_file(site, settings, array, name, place, path)
        except ConnectError as err:
            if number == len(places):
                raise
            log.warning("%s; the next bridge host takes over", err)
            continue
        where = path if site.is_frontend(place) else f"ssh://{place}:{path}"
        removal = f"rm -f {path}" if site.is_frontend(place) else f"ssh {place} rm -f {path}"
        return answers.import_info(where, digest.md5, volume.size, "qcow2", removal)
    raise AssertionError("there is always a bridge")


def _make_file(site: Site, settings: Settings, array: Array, name: str, place: str, path: str) -> Digest:
    host = site.host(place)
    try:
        with site.volume(array, name, seconds=settings.seconds("COPY_TIMEOUT")):
            site.ledger.locks.note(array.name, name, Place(place, file=path))  # until its answer is known
            with visiting(site, settings, array, name, place) as (on_host, wwid):
                array.close()  # a copy takes its time, and a box has few sessions
                on_host.run([], SaveDisk(path, wwid))
            (digest,) = host.run([FileDigest(path)], deadline=settings.seconds("COPY_TIMEOUT"))
    except ConnectError:
        raise
    except BaseException:
        host.run([RemovePath(path)], deadline=_FILE_SECONDS)
        raise
    assert isinstance(digest, Digest)
    return digest
