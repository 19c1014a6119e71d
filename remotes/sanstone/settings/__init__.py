# SPDX-License-Identifier: Apache-2.0
"""Every attribute once, as data; and what holds for a datastore or an image.

A driver's table (``v7000.py``) says what there is; ``resolve`` reads file, datastore and image by it; the
reference, the commented configuration file, the oned.conf stanzas and forms are made from it.
"""

from __future__ import annotations

from sanstone.settings.attribute import COMMON, Attribute, Scope, Table
from sanstone.settings.configfile import DEFAULT_PATH, ConfigFile
from sanstone.settings.problems import InvalidSettings, Problem
from sanstone.settings.resolving import Setting, Settings, refuse_unsupported, resolve
from sanstone.settings.tables import DRIVERS, attributes, table

__all__ = [
    "COMMON",
    "DEFAULT_PATH",
    "DRIVERS",
    "Attribute",
    "ConfigFile",
    "InvalidSettings",
    "Problem",
    "Scope",
    "Setting",
    "Settings",
    "Table",
    "attributes",
    "refuse_unsupported",
    "resolve",
    "table",
]
