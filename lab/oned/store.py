# SPDX-License-Identifier: Apache-2.0
"""Writing the objects down as JSON and reading them again."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from lab.oned.core import Core
from lab.oned.model import Datastore, Host, Image, User, Vm
from lab.oned.templates import Template

__all__ = ["dump", "restore"]

_POOLS: dict[str, type] = {
    "users": User,
    "datastores": Datastore,
    "images": Image,
    "vms": Vm,
    "hosts": Host,
}


def dump(core: Core) -> dict[str, Any]:
    """Give all objects and the last ids as what JSON can hold."""
    pools = {name: [_plain(each) for each in getattr(core, name).values()] for name in _POOLS}
    return {**pools, "last_ids": dict(core.last_ids)}


def restore(core: Core, data: dict[str, Any]) -> None:
    """Replace all objects by those that :func:`dump` gave."""
    for name, kind in _POOLS.items():
        made = [_typed(kind, each) for each in data[name]]
        setattr(core, name, {each.id: each for each in made})
    core.last_ids.update(data["last_ids"])


def _plain(value: Any) -> Any:
    if isinstance(value, Template):
        return value.values
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, IntEnum):
        return int(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value


def _typed(kind: Any, data: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin is list:
        return [_typed(typing.get_args(kind)[0], each) for each in data]
    if origin is dict:
        return dict(data)
    if origin in (types.UnionType, typing.Union):
        return data
    if kind is Template:
        return Template(data)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        make: Callable[..., Any] = kind
        return make(**{name: _typed(hints[name], value) for name, value in data.items()})
    return kind(data)
