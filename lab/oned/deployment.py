# SPDX-License-Identifier: Apache-2.0
"""The files that oned writes for a VM: the libvirt domain and the context script."""

from __future__ import annotations

import shlex
from xml.sax.saxutils import quoteattr

from lab.oned.elements import cdata, element
from lab.oned.model import Vm

__all__ = ["context_script", "domain_xml"]


def _disk(directory: str, disk: dict[str, str]) -> str:
    path = quoteattr(f"{directory}/disk.{disk['DISK_ID']}").replace('"', "'")
    is_block = disk.get("DISK_TYPE") == "BLOCK"
    is_cdrom = disk.get("TYPE") == "CDROM"
    kind, attribute = ("block", "dev") if is_block else ("file", "file")
    target = disk.get("TARGET", "")
    is_scsi = target.startswith("s") and not is_cdrom
    bus = {"s": "sata", "v": "virtio"}.get(target[:1], "ide")
    lines = [
        f"\t\t<disk type='{kind}' device='{'cdrom' if is_cdrom else 'disk'}'>",
        f"\t\t\t<source {attribute}={path}/>",
        f"\t\t\t<target dev='{target}'/>" if is_scsi else f"\t\t\t<target dev='{target}' bus='{bus}'/>",
    ]
    if is_cdrom:
        lines.append("\t\t\t<readonly/>")
    driver = disk.get("DRIVER", "raw")
    lines.append(f"\t\t\t<driver name='qemu' type='{driver}' cache='none' discard='unmap'/>")
    number = ord(target[-1:] or "a") - ord("a")
    controller = ""
    if is_scsi:
        lines.append(f"\t\t\t{_address(0, number)}")
    elif bus == "sata":  # each CDROM has a controller of its own
        lines.append(f"\t\t\t{_address(number + 1, 0)}")
        controller = f"\n\t\t<controller type='sata' index='{number + 1}'/>"
    return "\n".join((*lines, "\t\t</disk>")) + controller


def _address(controller: int, target: int) -> str:
    return f"<address type='drive' controller='{controller}' bus='0' target='{target}' unit='0'/>"


def _context(directory: str, context: dict[str, str]) -> str:
    return "\n".join(
        (
            "\t\t<disk type='file' device='cdrom'>",
            f"\t\t\t<source file='{directory}/disk.{context['DISK_ID']}'/>",
            f"\t\t\t<target dev='{context['TARGET']}' bus='sata'/>",
            "\t\t\t<readonly/>",
            "\t\t\t<driver name='qemu' type='raw' cache='none'/>",
            "\t\t</disk>",
        )
    )


def domain_xml(vm: Vm, directory: str, version: str) -> str:
    """Write the libvirt domain of a VM whose disks are in ``directory``."""
    machine = (vm.template.vector("OS") or {}).get("MACHINE", "q35")
    uuid = (vm.template.vector("OS") or {}).get("UUID", "")
    disks = [_disk(directory, disk) for disk in vm.disks]
    context = vm.template.vector("CONTEXT")
    if context is not None:
        disks.append(_context(directory, context))
    facts = (
        cdata("one:system_datastore", directory),
        cdata("one:name", vm.name),
        cdata("one:uname", vm.owner.uname),
        element("one:uid", vm.owner.uid),
        cdata("one:gname", vm.owner.gname),
        element("one:gid", vm.owner.gid),
        element("one:opennebula_version", version),
        element("one:stime", vm.stime),
        element("one:deployment_time", vm.here.stime),
    )
    memory = int(vm.template.get("MEMORY", "0") or 0) * 1024
    shares = int(float(vm.template.get("CPU", "1") or 1) * 1024) + 1
    return "\n".join(
        (
            "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>",
            f"\t<name>one-{vm.id}</name>",
            f"\t{element('title', vm.name)}",
            f"\t{element('uuid', uuid)}",
            f"\t<cputune>\n\t\t<shares>{shares}</shares>\n\t</cputune>",
            f"\t<memory>{memory}</memory>",
            f"\t<os>\n\t\t<type arch='x86_64' machine='{machine}'>hvm</type>\n\t</os>",
            "\t<devices>",
            "\t\t<emulator><![CDATA[/usr/bin/qemu-kvm-one]]></emulator>",
            *disks,
            "\t\t<controller type='scsi' index='0' model='virtio-scsi'>",
            "\t\t\t<driver queues='1'/>",
            "\t\t</controller>",
            "\t</devices>",
            "\t<features>\n\t\t<acpi/>\n\t</features>",
            "\t<metadata>",
            '\t\t<one:vm xmlns:one="http://opennebula.org/xmlns/libvirt/1.0">',
            *(f"\t\t\t{fact}" for fact in facts),
            "\t\t</one:vm>",
            "\t</metadata>",
            "</domain>",
            "",
        )
    )


def context_script(context: dict[str, str]) -> str:
    """Write context.sh, the variables of the CONTEXT vector for a shell."""
    lines = ["# Context variables"]
    lines += [f"{name}={shlex.quote(context[name])}" for name in sorted(context)]
    return "\n".join(lines) + "\n"
