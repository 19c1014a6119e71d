# SPDX-License-Identifier: Apache-2.0
"""How an attribute is described, once, for checks, documentation and forms alike."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sanstone.settings.kinds import Kind

if TYPE_CHECKING:
    from sanstone.settings.problems import Problem
    from sanstone.settings.resolving import Settings

__all__ = ["ALL", "COMMON", "FILE", "VOLUME", "Attribute", "OldOption", "Scope", "Table"]

COMMON = "common"


class Scope(enum.IntEnum):
    """Where a value may stand; a later one has the last word."""

    SANSTONE = 1
    HOSTS = 2
    DRIVER = 3
    BOX = 4
    DATASTORE = 5
    IMAGE = 6

    @property
    def is_file(self) -> bool:
        return self <= Scope.BOX


#: For the box and the front-end: who may edit sanstone.conf only.
FILE = (Scope.SANSTONE, Scope.DRIVER, Scope.BOX)
#: For a datastore: who may edit it is trusted with the storage system.
ALL = (*FILE, Scope.DATASTORE)
#: For a volume: an image belongs to a plain user, so these can do no harm but to that image.
VOLUME = (*ALL, Scope.IMAGE)


@dataclass(frozen=True, slots=True)
class OldOption:
    """What an option of an earlier add-on means today: ``values`` translates, None takes it as it is."""

    attribute: str
    values: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute. ``default`` is a text as an administrator would write it, None for none.

    ``scopes`` says where it may stand, ``option`` what it becomes on the system's own command line.
    ``shown_when`` names another attribute and the value with which this one has a meaning.
    ``default_with`` names an attribute without which there is no default; ``note`` says more about it.
    """

    name: str
    kind: Kind
    help: str
    default: str | None = None
    scopes: tuple[Scope, ...] = ALL
    group: str = field(default="", kw_only=True)
    option: str = field(default="", kw_only=True)
    note: str = field(default="", kw_only=True)
    default_with: str = field(default="", kw_only=True)
    is_mandatory: bool = field(default=False, kw_only=True)
    is_secret: bool = field(default=False, kw_only=True)
    shown_when: tuple[str, str] | None = field(default=None, kw_only=True)
    stands_for: OldOption | None = field(default=None, kw_only=True)

    @property
    def unit(self) -> str:
        return self.kind.unit


def _no_problem(_: Settings) -> list[Problem]:
    return []


@dataclass(frozen=True, slots=True)
class Table:
    """All attributes of one driver (``common``: of all), and what OpenNebula is told about it.

    ``problems`` and ``doubts`` look at attributes together; a doubt is a warning.
    ``unsupported`` maps an attribute and a value that is understood, but not done yet, to what is missing.
    ``tm_conf`` and ``ds_conf`` are what goes into oned.conf beside NAME and REQUIRED_ATTRS. ``box`` is the
    attribute that says which system is meant: a section of the file is named after its value, and
    ``box_sample`` is a line that may stand there, behind what it is about.
    """

    driver: str
    title: str
    attributes: tuple[Attribute, ...]
    problems: Callable[[Settings], list[Problem]] = _no_problem
    doubts: Callable[[Settings], list[Problem]] = _no_problem
    unsupported: Mapping[tuple[str, str], str] = field(default_factory=dict)
    tm_conf: Mapping[str, str] = field(default_factory=dict)
    ds_conf: Mapping[str, str] = field(default_factory=dict)
    box: str = "MGMT"
    box_sample: tuple[str, str] = ("user", "MGMT_USER = opennebula")
