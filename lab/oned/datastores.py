# SPDX-License-Identifier: Apache-2.0
"""Datastores: requests about them, and their monitoring."""

from __future__ import annotations

import re

from lab.oned import documents, elements
from lab.oned.config import SAN_TM_CONF, STOCK_TM_CONF
from lab.oned.core import Core
from lab.oned.errors import Code, RefusedError
from lab.oned.model import DATASTORE_TYPES, DISK_TYPES, Datastore, User
from lab.oned.templates import Template, TemplateError, parse
from lab.oned.users import require

__all__ = ["Datastores"]

_IMAGE_TARGETS = re.compile(r"(LN_TARGET|CLONE_TARGET|DISK_TYPE)(_[A-Z0-9]+)?$")
_SYSTEM_CONF = ("DS_LIVE_MIGRATE", "DS_MIGRATE", "DS_MIGRATE_SNAP", "SHARED")
_COMMON_CONF = {"ALLOW_ORPHANS": "NO", "PERSISTENT_SNAPSHOTS": "YES"}
_CAPACITY = re.compile(r'^\s*(USED_MB|TOTAL_MB|FREE_MB)\s*=\s*"?(\d+)"?\s*$')


class Datastores:
    """Requests about datastores."""

    def __init__(self, core: Core) -> None:
        self.core = core

    # -- requests

    def allocate(self, user: User, text: str, _cluster: int = -1) -> int:
        """Make a datastore from a template and look at its space."""
        core = self.core
        if not user.is_admin:
            raise RefusedError(
                Code.AUTHORIZATION,
                f"User [{user.id}] : Not authorized to perform CREATE DATASTORE; "
                "Not authorized to perform ADMIN CLUSTER [0].",
            )
        template = self._parsed(text, "Parse error")
        name = _text(template.remove("NAME"))
        with core.lock:
            taken = next((d for d in core.datastores.values() if d.name == name), None)
            if taken is not None:
                raise _internal(f"NAME is already taken by DATASTORE {taken.id}.")
            kind = self._type(template)
            self._check_drivers(template, kind)
            template = self._with_defaults(template, kind)
            self._check_required(template)
            disk_type = _disk_type(template)
            number = core.next_id("DATASTORE")
            core.datastores[number] = Datastore(
                id=number,
                name=name,
                owner=core.owner(user),
                type=kind,
                template=template,
                base_path=f"{core.config.datastores}/{number}",
                disk_type=disk_type,
            )
        self.monitor_soon(number)
        return number

    def info(self, user: User, datastore_id: int, decrypt: bool = False) -> str:
        """Give the XML of a datastore; attributes are readable for an administrator who asks for it."""
        with self.core.lock:
            datastore = self.core.get_datastore(datastore_id)
            return self.document(datastore, is_plain=decrypt and user.is_admin)

    def pool(self, user: User) -> str:
        """Give the XML of all datastores, the newest first."""
        with self.core.lock:
            all_of_them = sorted(self.core.datastores.values(), key=lambda d: -d.id)
            return documents.pool_xml("DATASTORE", (self.document(d) for d in all_of_them))

    def update(self, user: User, datastore_id: int, text: str, merge: int = 0) -> int:
        """Replace (0) or extend (1) the template of a datastore."""
        with self.core.lock:
            datastore = self.core.get_datastore(datastore_id)
            require(user, datastore.owner, "MANAGE", "DATASTORE", datastore_id)
            change = self._parsed(text, "Cannot update template")
            new = datastore.template.copy() if merge else Template()
            new.merge(change)
            for name in ("DS_MAD", "TM_MAD"):
                if name not in new and name in datastore.template:
                    new.set(name, datastore.template.get(name))
            if datastore.is_system:
                new.remove("DS_MAD")
            names = {"DS_MAD", "TM_MAD"}
            if names <= set(change.values) or (datastore.is_system and "TM_MAD" in change):
                new = self._with_conf(new, change, datastore.type)
                datastore.total_mb = datastore.free_mb = datastore.used_mb = 0
            new.set("TYPE", DATASTORE_TYPES[datastore.type])
            try:
                self._check_required(new)
                disk_type = _disk_type(new)
            except RefusedError as refused:
                raise _internal(f"Cannot update template. {refused.text}") from None
            if not merge:
                datastore.total_mb = datastore.free_mb = datastore.used_mb = 0
            datastore.template, datastore.disk_type = new, disk_type
            self.core.lock.notify_all()
        return datastore_id

    def delete(self, user: User, datastore_id: int) -> int:
        """Remove a datastore that has no images."""
        with self.core.lock:
            datastore = self.core.get_datastore(datastore_id)
            require(user, datastore.owner, "MANAGE", "DATASTORE", datastore_id)
            if datastore.images:
                text = f"Cannot delete datastore. Datastore {datastore_id} is not empty."
                raise RefusedError(Code.ACTION, text)
            del self.core.datastores[datastore_id]
        return datastore_id

    def enable(self, user: User, datastore_id: int, is_enabled: bool) -> int:
        """Enable or disable a system datastore."""
        with self.core.lock:
            datastore = self.core.get_datastore(datastore_id)
            require(user, datastore.owner, "MANAGE", "DATASTORE", datastore_id)
            if not datastore.is_system:
                raise _internal("Only SYSTEM_DS can be disabled or enabled")
            datastore.is_enabled = is_enabled
        return datastore_id

    def rename(self, user: User, datastore_id: int, name: str) -> int:
        """Give a datastore another name."""
        with self.core.lock:
            datastore = self.core.get_datastore(datastore_id)
            require(user, datastore.owner, "MANAGE", "DATASTORE", datastore_id)
            taken = next((d for d in self.core.datastores.values() if d.name == name), None)
            if taken is not None:
                raise _internal(f"NAME is already taken by DATASTORE {taken.id}.")
            datastore.name = name
            for image in self.core.images.values():
                if image.datastore_id == datastore_id:
                    image.datastore = name
        return datastore_id

    # -- documents

    def document(self, datastore: Datastore, is_plain: bool = False) -> str:
        """Give the XML of a datastore, encrypted attributes readable for drivers."""
        return documents.datastore_xml(datastore, () if is_plain else self.core.config.ds_encrypted_attrs)

    # -- monitoring

    def monitor_soon(self, datastore_id: int) -> None:
        """Monitor in the background, as oned does after operations."""
        if self.core.config.monitor_after_operations:
            self.core.spawn(lambda: self.monitor(datastore_id), f"monitor-{datastore_id}")

    def monitor(self, datastore_id: int) -> None:
        """Ask the driver for the space of a datastore; what is no answer changes nothing."""
        core = self.core
        with core.lock:
            datastore = core.datastores.get(datastore_id)
            if datastore is None or (datastore.is_system and datastore.template.get("SHARED") != "YES"):
                return
            parts = [self.document(datastore, is_plain=True)]
            kind, driver = "datastore", datastore.ds_mad
            if datastore.is_system:
                kind, driver = "tm", datastore.tm_mad
                parts.append(elements.element("DATASTORE_LOCATION", core.config.datastores))
                parts.append(elements.element("MONITOR_VM_DISKS", int(core.config.monitor_vm_disks)))
        with core.drivers.slot("datastore"):
            answer = core.drivers.run(
                kind, driver, "monitor", (str(datastore_id),), documents.datastore_action(*parts), "base64"
            )
        found = {
            match.group(1): int(match.group(2))
            for match in map(_CAPACITY.match, answer.stdout.splitlines())
            if match
        }
        if answer.rc or len(found) < 3:
            return
        with core.lock:
            datastore.total_mb, datastore.free_mb = found["TOTAL_MB"], found["FREE_MB"]
            datastore.used_mb = found["USED_MB"]
            core.lock.notify_all()

    # -- templates

    def _parsed(self, text: str, prefix: str) -> Template:
        """Read a template; an encrypted attribute that comes back as it was shown is made readable again."""
        try:
            template = parse(text)
        except TemplateError as error:
            raise _internal(f"{prefix}. {error}") from error
        for name in self.core.config.ds_encrypted_attrs:
            plain = elements.unseal(template.get(name))
            if plain is not None:
                template.set(name, plain)
        return template

    def _type(self, template: Template) -> int:
        name = template.get("TYPE", "IMAGE_DS")
        return DATASTORE_TYPES.index(name) if name in DATASTORE_TYPES else 0

    def _check_drivers(self, template: Template, kind: int) -> None:
        if kind != 3:
            tm_mad = template.get("TM_MAD")
            if not tm_mad:
                raise _internal("No TM_MAD in template.")
            if self._tm_conf(tm_mad) is None:
                raise _internal(f'TM_MAD named "{tm_mad}" is not defined in oned.conf')
        if kind == 1:
            return
        ds_mad = template.get("DS_MAD")
        if not ds_mad:
            raise _internal("No DS_MAD in template.")
        config = self.core.config
        is_known = ds_mad in config.ds_mads or ds_mad in config.required_attrs
        if not is_known and not (config.remotes / "datastore" / ds_mad).is_dir():
            raise _internal(f'DS_MAD named "{ds_mad}" is not defined in oned.conf')

    def _tm_conf(self, name: str) -> dict[str, str] | None:
        config = self.core.config
        conf = config.tm_mad_conf.get(name) or STOCK_TM_CONF.get(name)
        if conf is None and (config.remotes / "tm" / name).is_dir():
            conf = SAN_TM_CONF
        return None if conf is None else dict(conf)

    def _check_required(self, template: Template) -> None:
        for name in self.core.config.required_attrs.get(template.get("DS_MAD"), ()):
            if not template.get(name):
                raise _internal(f'Datastore template is missing the "{name}" attribute or it\'s empty.')

    def _with_defaults(self, given: Template, kind: int) -> Template:
        template = self._with_conf(given, given, kind)
        template.values.setdefault("RESTRICTED_DIRS", ["/"])
        template.values.setdefault("SAFE_DIRS", ["/var/tmp"])
        return template

    def _with_conf(self, template: Template, given: Template, kind: int) -> Template:
        """Fill in what TM_MAD_CONF says, except for what was given."""
        template = template.copy()
        if kind == 3:
            template.values.setdefault("TM_MAD", ["-"])
            return template
        conf = self._tm_conf(template.get("TM_MAD")) or {}
        wanted = {name: conf.get(name, default) for name, default in _COMMON_CONF.items()}
        if kind == 1:
            template.remove("DS_MAD")
            wanted |= {name: conf[name] for name in _SYSTEM_CONF if name in conf}
            template.values.setdefault("DISK_TYPE", ["FILE"])
        else:
            wanted |= {name: value for name, value in conf.items() if _IMAGE_TARGETS.match(name)}
            wanted |= {name: conf[name] for name in ("DRIVER", "TM_MAD_SYSTEM") if name in conf}
            wanted.pop("DISK_TYPE", None)
        for name, value in wanted.items():
            if name not in given:
                template.set(name, value)
        return template


def _text(values: list[object] | list[str | dict[str, str]]) -> str:
    return next((value for value in values if isinstance(value, str)), "")


def _disk_type(template: Template) -> int:
    name = template.get("DISK_TYPE", "FILE")
    if name not in DISK_TYPES:
        raise _internal("Unknown DISK_TYPE in template.")
    return DISK_TYPES[name]


def _internal(text: str) -> RefusedError:
    return RefusedError(Code.INTERNAL, text)
