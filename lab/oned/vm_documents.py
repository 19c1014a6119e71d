# SPDX-License-Identifier: Apache-2.0
"""The XML of VMs, as requests and drivers get it."""

from __future__ import annotations

from lab.oned.documents import datastore_xml
from lab.oned.elements import cdata, element, ids, owner_xml, permissions_xml, snapshots_xml, template_xml
from lab.oned.model import Datastore, History, Vm

__all__ = ["vm_xml", "vm_xml_short", "vmm_action"]


def history_xml(vm_id: int, history: History) -> str:
    """Write one HISTORY record."""
    return "".join(
        (
            "<HISTORY>",
            element("OID", vm_id),
            element("SEQ", history.seq),
            element("HOSTNAME", history.host),
            element("HID", history.host_id),
            element("CID", 0),
            element("STIME", history.stime),
            element("ETIME", history.etime),
            cdata("VM_MAD", history.vm_mad),
            cdata("TM_MAD", history.tm_mad),
            element("DS_ID", history.datastore_id),
            element("PLAN_ID", -2),
            element("ACTION_ID", -1),
            element("PSTIME", history.pstime),
            element("PETIME", history.petime),
            element("RSTIME", history.rstime),
            element("RETIME", history.retime),
            element("ESTIME", history.estime),
            element("EETIME", history.eetime),
            element("ACTION", int(history.action)),
            element("UID", history.uid),
            element("GID", history.gid),
            element("REQUEST_ID", history.request_id),
            "</HISTORY>",
        )
    )


def vm_xml(vm: Vm, whole_history: bool = False) -> str:
    """Write a VM; drivers see only the last history record."""
    records = vm.history if whole_history else vm.history[-1:]
    config = "".join(cdata(key, vm.backups.config[key]) for key in sorted(vm.backups.config))
    return "".join(
        (
            "<VM>",
            element("ID", vm.id),
            owner_xml(vm.owner),
            element("NAME", vm.name),
            permissions_xml(),
            element("LAST_POLL", 0),
            element("STATE", int(vm.state)),
            element("LCM_STATE", int(vm.lcm_state)),
            element("PREV_STATE", int(vm.state)),
            element("PREV_LCM_STATE", int(vm.lcm_state)),
            element("RESCHED", 0),
            element("STIME", vm.stime),
            element("ETIME", vm.etime),
            element("DEPLOY_ID", vm.deploy_id),
            "<MONITORING></MONITORING>",
            "<SCHED_ACTIONS></SCHED_ACTIONS>",
            template_xml(vm.template),
            template_xml(vm.user_template, "USER_TEMPLATE"),
            f"<HISTORY_RECORDS>{''.join(history_xml(vm.id, record) for record in records)}</HISTORY_RECORDS>",
            "".join(map(snapshots_xml, sorted(vm.snapshots, key=lambda kept: kept.disk_id or 0))),
            f"<BACKUPS><BACKUP_CONFIG>{config}</BACKUP_CONFIG>{ids('BACKUP_IDS', vm.backups.ids)}</BACKUPS>",
            "</VM>",
        )
    )


_SHORT_DISK = (
    "DISK_ID",
    "DATASTORE",
    "DATASTORE_ID",
    "IMAGE",
    "IMAGE_ID",
    "SIZE",
    "TYPE",
    "CLONE",
    "CLONE_TARGET",
    "LN_TARGET",
    "DISK_SNAPSHOT_TOTAL_SIZE",
)


def vm_xml_short(vm: Vm) -> str:
    """Write a VM as a pool lists it."""
    disks = "".join(
        f"<DISK>{''.join(cdata(key, disk.get(key, '')) for key in _SHORT_DISK)}</DISK>" for disk in vm.disks
    )
    template = (
        element("CPU", vm.template.get("CPU"))
        + element("MEMORY", vm.template.get("MEMORY"))
        + element("VCPU", vm.template.get("VCPU"))
        + disks
    )
    history = ""
    if vm.history:
        here = vm.here
        history = "".join(
            (
                "<HISTORY>",
                element("OID", vm.id),
                element("SEQ", here.seq),
                cdata("HOSTNAME", here.host),
                element("HID", here.host_id),
                element("CID", 0),
                element("DS_ID", here.datastore_id),
                cdata("VM_MAD", here.vm_mad),
                cdata("TM_MAD", here.tm_mad),
                cdata("ACTION", int(here.action)),
                "</HISTORY>",
            )
        )
    return "".join(
        (
            "<VM>",
            element("ID", vm.id),
            owner_xml(vm.owner),
            element("NAME", vm.name),
            element("LAST_POLL", 0),
            element("STATE", int(vm.state)),
            element("LCM_STATE", int(vm.lcm_state)),
            element("RESCHED", 0),
            element("STIME", vm.stime),
            element("ETIME", vm.etime),
            element("DEPLOY_ID", vm.deploy_id),
            f"<TEMPLATE>{template}</TEMPLATE>",
            "<MONITORING></MONITORING>",
            template_xml(vm.user_template, "USER_TEMPLATE"),
            f"<HISTORY_RECORDS>{history}</HISTORY_RECORDS>",
            "</VM>",
        )
    )


def vmm_action(
    vm: Vm,
    datastore: Datastore,
    *,
    host: str,
    destination: str = "",
    checkpoint: str = "",
    command: str = "",
    rollback: str = "",
    target: str = "",
) -> str:
    """Write the document that vmm actions get; ``command`` and ``rollback`` are transfer script lines."""
    return "".join(
        (
            "<VMM_DRIVER_ACTION_DATA>",
            element("HOST", host),
            element("MIGR_HOST", destination),
            element("DEPLOY_ID", vm.deploy_id),
            "<LOCAL_DEPLOYMENT_FILE></LOCAL_DEPLOYMENT_FILE>",
            "<REMOTE_DEPLOYMENT_FILE></REMOTE_DEPLOYMENT_FILE>",
            element("CHECKPOINT_FILE", checkpoint),
            cdata("TM_COMMAND", command) if command else element("TM_COMMAND"),
            cdata("TM_COMMAND_ROLLBACK", rollback) if rollback else element("TM_COMMAND_ROLLBACK"),
            element("DISK_TARGET_PATH", target),
            vm_xml(vm),
            datastore_xml(datastore),
            "</VMM_DRIVER_ACTION_DATA>",
        )
    )
