# SPDX-License-Identifier: Apache-2.0
"""Disks that grow, whether their VM runs or not. oned tells the hypervisor itself afterwards."""

from __future__ import annotations

import logging

from sanstone.actions import migration, volumes
from sanstone.actions.disks import disk_of, is_system, is_volatile_block, locate
from sanstone.actions.site import Site
from sanstone.hosts.ops import Attached, Grow, GrowFile, Grown
from sanstone.model import MIB
from sanstone.opennebula.messages import Resize

__all__ = ["resize"]

log = logging.getLogger(__name__)

_FILE_SECONDS = 600.0


def resize(request: Resize, site: Site) -> str:
    """Let a disk have at least the size asked for: on the array, then every path of it and its map."""
    size, path = request.size_mib * MIB, request.disk
    datastore = site.opennebula.datastore(request.datastore_id)
    if is_system(datastore) and not is_volatile_block(datastore):
        disk = disk_of(site.opennebula.vm(request.vm_id), path)
        grow = GrowFile(path.path, size, disk.format or "raw")
        site.host(path.host).run([grow], deadline=_FILE_SECONDS)
        return ""
    at = locate(request.vm_id, request.datastore_id, path, site)
    with site.volume(at.array, at.name):
        migration.settle(site, at.settings, at.array, at.name, path)
        at.array.resize(at.name, size, wait=at.settings.seconds("COPY_TIMEOUT"))
        if site.is_frontend(path.host):
            return ""
        connection = at.array.map(at.name, path.host)
        at.array.close()
        (result,) = site.host(path.host).run(
            [Grow(connection, is_cut=at.array.abilities.target_per_volume)],
            deadline=at.settings.seconds("ATTACH_TIMEOUT"),
        )
    assert isinstance(result, Grown)
    for warning in result.warnings:
        log.warning("%s on %s: %s", at.name, path.host, warning)
    volumes.certify(connection, path.host, Attached(result.device))
    return ""
