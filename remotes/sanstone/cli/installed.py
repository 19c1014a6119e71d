# SPDX-License-Identifier: Apache-2.0
"""Files for /etc/one that are made from the tables: sanstone.conf and what oned.conf needs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from sanstone.cli.reference import default_of, groups
from sanstone.settings import COMMON, DEFAULT_PATH, DRIVERS, Attribute, Scope, attributes, table
from sanstone.settings.kinds import Duration

__all__ = ["oned_conf", "sanstone_conf"]

_WIDTH = 100

_STOCK_TM = "dummy,lvm,shared,fs_lvm,fs_lvm_ssh,qcow2,ssh,local,ceph,dev,iscsi_libvirt,netapp,purefa"
_STOCK_DS = "dummy,fs,lvm,ceph,dev,iscsi_libvirt,restic,rsync,netapp,purefa,virtiofs,interactive"
_STOCK_SYSTEM = "dummy,lvm,shared,ssh,local,ceph,fs_lvm,fs_lvm_ssh,qcow2,netapp,purefa"


def sanstone_conf(driver: str | None = None) -> str:
    """Write a sanstone.conf in which every attribute stands as a comment with its default."""
    lines = [
        f"# {DEFAULT_PATH}: settings of Sanstone for this front-end.",
        "#",
        *_comment(
            "Everything here is optional. What stands behind # is the default; nothing, where there is "
            'none. A section for one system, [v7000 "its MGMT"] or [iscsi "its HOST"], goes before the '
            "driver's section, and that before [sanstone]; the template of a datastore goes before this file."
        ),
        *_comment(
            "If a password is in it: chown root:oneadmin, chmod 640. "
            "Made by: sanstone settings --sanstone-conf"
        ),
    ]
    common = table(COMMON).attributes
    for section, scope in (("sanstone", Scope.SANSTONE), ("hosts", Scope.HOSTS)):
        lines += ["", f"[{section}]", *_entries([each for each in common if scope in each.scopes])]
    for name in (driver,) if driver and driver != COMMON else DRIVERS:
        own = [each for each in table(name).attributes if Scope.DRIVER in each.scopes]
        lines += ["", f"[{name}]", *_entries(own), "", f'#[{name} "{name}-a.example.com"]']
        what, line = table(name).box_sample
        lines += _comment(f"What differs for one system, such as its {what}:")
        lines += [f"#{line}"]
    return "\n".join(lines) + "\n"


def _entries(among: list[Attribute]) -> Iterator[str]:
    for heading, members in groups(tuple(among)):
        yield from ("", f"# --- {heading} ---")
        for each in members:
            if each.stands_for is None:
                yield from ("", *_comment(_about(each)), f"#{each.name} = {_value(each)}".rstrip())


def _about(attribute: Attribute) -> str:
    allowed = attribute.kind.allowed
    parts = [attribute.help, f"Allowed: {allowed}."]
    if attribute.is_mandatory:
        parts.append("Mandatory, usually in the template of the datastore.")
    elif attribute.default is None or attribute.note:
        parts.append(f"Default: {attribute.note or 'none'}.")
    elif isinstance(attribute.kind, Duration):
        parts.append(f"Default: {default_of(attribute)}.")
    return " ".join(parts)


def _value(attribute: Attribute) -> str:
    """Spell the default as a value; nothing where there is none, for an empty value is none."""
    return attribute.default or ""


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH - 2, break_on_hyphens=False)]


def oned_conf(driver: str) -> str:
    """Write what oned.conf needs for a driver: two lists to extend, and stanzas to append."""
    part = table(driver)
    own = attributes(driver).values()
    required = ["DISK_TYPE", *(each.name for each in own if each.is_mandatory)]
    secrets = [each.name for each in own if each.is_secret]
    of_images = [each.name for each in own if Scope.IMAGE in each.scopes]
    lines = [
        *_comment(
            f"What /etc/one/oned.conf needs for the driver {driver}. Restart opennebula afterwards. "
            f"Made by: sanstone settings {driver} --oned-conf"
        ),
        "#",
        *_comment(
            f"1. Add {driver} to the lists of drivers that are there: to -d of TM_MAD, and to -d and -s of "
            "DATASTORE_MAD. With the lists of OpenNebula 7.4 they become:"
        ),
        "#",
        "# TM_MAD = [",
        '#     EXECUTABLE = "one_tm",',
        f'#     ARGUMENTS = "-t 15 -d {_STOCK_TM},{driver}"',
        "# ]",
        "#",
        "# DATASTORE_MAD = [",
        '#     EXECUTABLE = "one_datastore",',
        f'#     ARGUMENTS = "-t 15 -d {_STOCK_DS},{driver} -s {_STOCK_SYSTEM},{driver}"',
        "# ]",
        "#",
        *_comment(
            f"2. Add kvm-{driver} to LIVE_DISK_SNAPSHOTS in /etc/one/vmm_exec/vmm_execrc, so that snapshots "
            "can be taken of the disks of running VMs:"
        ),
        "#",
        f'# LIVE_DISK_SNAPSHOTS="kvm-qcow2 kvm-ceph kvm-{driver}"',
        "#",
        *_comment(
            "3. Append the rest as it is. 6.10 takes no notice of the attributes that it does not know."
        ),
        "",
        *_stanza("TM_MAD_CONF", {"NAME": driver, **part.tm_conf}),
        "",
        *_stanza("DS_MAD_CONF", {"NAME": driver, "REQUIRED_ATTRS": ",".join(required), **part.ds_conf}),
    ]
    if secrets:
        lines += [
            "",
            *_comment(
                "Belongs in sanstone.conf; should it land in a datastore by mistake, it is stored encrypted."
            ),
            *(f'DATASTORE_ENCRYPTED_ATTR = "{name}"' for name in secrets),
        ]
    if of_images:
        lines += [
            "",
            *_comment(
                "Users may set these on their images. To keep one for administrators, remove the # before it."
            ),
            *(f'#IMAGE_RESTRICTED_ATTR = "{name}"' for name in of_images),
        ]
    return "\n".join(lines) + "\n"


def _stanza(name: str, values: dict[str, str]) -> list[str]:
    body = [f'    {key} = "{value}"' for key, value in values.items()]
    return [f"{name} = [", *(f"{line}," for line in body[:-1]), body[-1], "]"]
