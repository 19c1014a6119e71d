# SPDX-License-Identifier: Apache-2.0
"""The tables there are: a new driver adds its own here."""

from __future__ import annotations

from collections.abc import Mapping

from sanstone.errors import NotSupportedError
from sanstone.settings import common, iscsi, v7000
from sanstone.settings.attribute import COMMON, Attribute, Scope, Table

__all__ = ["DRIVERS", "TABLES", "attributes", "names_in_section", "table"]

TABLES: Mapping[str, Table] = {each.driver: each for each in (common.TABLE, v7000.TABLE, iscsi.TABLE)}
DRIVERS = tuple(driver for driver in TABLES if driver != COMMON)


def table(driver: str) -> Table:
    """Find the table of a driver.

    Raises: NotSupportedError when there is no such driver.
    """
    if driver not in TABLES:
        raise NotSupportedError(
            f"There is no driver {driver[:40]!r}.", f"Drivers of this version: {', '.join(DRIVERS)}."
        )
    return TABLES[driver]


def attributes(driver: str) -> dict[str, Attribute]:
    """List all attributes of a driver by name: its own first, then the common ones."""
    own = table(driver)
    parts = (own,) if driver == COMMON else (own, TABLES[COMMON])
    return {each.name: each for part in parts for each in part.attributes}


def names_in_section(section: str, box: str) -> dict[str, Attribute] | None:
    """List what may stand in a section of sanstone.conf, None when there is no such section."""
    if section in DRIVERS:
        scope, among = Scope.BOX if box else Scope.DRIVER, attributes(section)
    elif not box and section in ("sanstone", "hosts"):
        scope, among = Scope.SANSTONE if section == "sanstone" else Scope.HOSTS, attributes(COMMON)
    else:
        return None
    return {name: each for name, each in among.items() if scope in each.scopes}
