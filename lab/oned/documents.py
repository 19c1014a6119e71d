# SPDX-License-Identifier: Apache-2.0
"""The XML of datastores, images, hosts and users, and what datastore drivers get."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

from lab.oned.elements import (
    cdata,
    element,
    ids,
    owner_xml,
    permissions_xml,
    snapshots_xml,
    template_xml,
    vector_xml,
)
from lab.oned.model import Datastore, Host, Image, User
from lab.oned.states import HostState
from lab.oned.templates import Template

__all__ = ["datastore_action", "datastore_xml", "host_xml", "image_xml", "pool_xml", "user_xml"]


def datastore_xml(datastore: Datastore, sealed: Collection[str] = ()) -> str:
    """Write a DATASTORE."""
    return "".join(
        (
            "<DATASTORE>",
            element("ID", datastore.id),
            owner_xml(datastore.owner),
            element("NAME", datastore.name),
            permissions_xml(is_group_readable=True),
            cdata("DS_MAD", datastore.ds_mad),
            cdata("TM_MAD", datastore.tm_mad),
            cdata("BASE_PATH", datastore.base_path),
            element("TYPE", datastore.type),
            element("DISK_TYPE", datastore.disk_type),
            element("STATE", 0 if datastore.is_enabled else 1),
            ids("CLUSTERS", (0,)),
            element("TOTAL_MB", datastore.total_mb),
            element("FREE_MB", datastore.free_mb),
            element("USED_MB", datastore.used_mb),
            ids("IMAGES", datastore.images),
            template_xml(datastore.template, sealed=sealed),
            "</DATASTORE>",
        )
    )


def image_xml(image: Image) -> str:
    """Write an IMAGE."""
    increments = "".join(
        vector_xml(
            "INCREMENT",
            {
                "DATE": str(one.date),
                "ID": str(one.id),
                "PARENT_ID": str(one.parent),
                "SIZE": str(one.size),
                "SOURCE": one.source,
                "TYPE": one.kind,
            },
        )
        for one in image.increments
    )
    return "".join(
        (
            "<IMAGE>",
            element("ID", image.id),
            owner_xml(image.owner),
            element("NAME", image.name),
            permissions_xml(),
            element("TYPE", image.type),
            element("DISK_TYPE", image.disk_type),
            element("PERSISTENT", int(image.is_persistent)),
            element("REGTIME", image.regtime),
            element("MODTIME", image.regtime),
            cdata("SOURCE", image.source),
            cdata("PATH", image.path),
            cdata("FORMAT", image.format),
            cdata("FS", image.fs),
            element("SIZE", image.size),
            element("STATE", int(image.state)),
            element("PREV_STATE", int(image.prev_state)),
            element("RUNNING_VMS", len(image.vms)),
            element("CLONING_OPS", len(image.clones)),
            element("CLONING_ID", image.cloning_id),
            element("TARGET_SNAPSHOT", image.target_snapshot),
            element("DATASTORE_ID", image.datastore_id),
            element("DATASTORE", image.datastore),
            ids("VMS", image.vms),
            ids("CLONES", image.clones),
            "<APP_CLONES></APP_CLONES>",
            template_xml(image.template),
            snapshots_xml(image.snapshots),
            f"<BACKUP_INCREMENTS>{increments}</BACKUP_INCREMENTS>",
            ids("BACKUP_DISK_IDS", image.backup_disks),
            "</IMAGE>",
        )
    )


def host_xml(host: Host, vms: Iterable[int] = ()) -> str:
    """Write a HOST."""
    running = list(vms)
    share = "".join(
        element(name, value)
        for name, value in (
            ("MEM_USAGE", 0),
            ("CPU_USAGE", 0),
            ("TOTAL_MEM", 16777216),
            ("TOTAL_CPU", 800),
            ("MAX_MEM", 16777216),
            ("MAX_CPU", 800),
            ("RUNNING_VMS", len(running)),
            ("VMS_THREAD", 1),
        )
    )
    places = {"DISK_USAGE": 0, "FREE_DISK": 20480, "MAX_DISK": 20480, "USED_DISK": 9720}
    share += f"<DATASTORES>{''.join(cdata(k, v) for k, v in places.items())}</DATASTORES>"
    share += "<PCI_DEVICES></PCI_DEVICES><NUMA_NODES></NUMA_NODES>"
    template = Template({"HOSTNAME": [host.name], "IM_MAD": [host.im_mad], "VM_MAD": [host.vm_mad]})
    shown = HostState.INIT if host.state is HostState.MONITORING_INIT else host.state
    return "".join(
        (
            "<HOST>",
            element("ID", host.id),
            element("NAME", host.name),
            element("STATE", int(shown)),
            element("PREV_STATE", int(shown)),
            cdata("IM_MAD", host.im_mad),
            cdata("VM_MAD", host.vm_mad),
            element("CLUSTER_ID", 0),
            element("CLUSTER", "default"),
            f"<HOST_SHARE>{share}</HOST_SHARE>",
            ids("VMS", running),
            template_xml(template),
            "<MONITORING></MONITORING>",
            "</HOST>",
        )
    )


def user_xml(user: User) -> str:
    """Write a USER; passwords are hashes."""
    digest = hashlib.sha256(user.password.encode()).hexdigest()
    tokens = "".join(
        f"<LOGIN_TOKEN>{element('TOKEN', token)}{element('EXPIRATION_TIME', expiry)}"
        f"{element('EGID', -1)}</LOGIN_TOKEN>"
        for token, expiry in user.tokens.items()
    )
    quotas = "".join(f"<{k}_QUOTA></{k}_QUOTA>" for k in ("DATASTORE", "NETWORK", "VM", "IMAGE"))
    return "".join(
        (
            "<USER>",
            element("ID", user.id),
            element("GID", user.gid),
            ids("GROUPS", (user.gid,)),
            element("GNAME", user.gname),
            element("NAME", user.name),
            cdata("PASSWORD", digest),
            cdata("AUTH_DRIVER", "core"),
            element("ENABLED", 1),
            tokens,
            template_xml(Template({"TOKEN_PASSWORD": [hashlib.sha256(digest.encode()).hexdigest()]})),
            quotas,
            f"<DEFAULT_USER_QUOTAS>{quotas}</DEFAULT_USER_QUOTAS>",
            "</USER>",
        )
    )


def pool_xml(name: str, documents: Iterable[str]) -> str:
    """Write a pool of objects."""
    return f"<{name}_POOL>{''.join(documents)}</{name}_POOL>"


def datastore_action(*parts: str) -> str:
    """Write the document that datastore actions get."""
    return f"<DS_DRIVER_ACTION_DATA>{''.join(parts)}</DS_DRIVER_ACTION_DATA>"
