# SPDX-License-Identifier: Apache-2.0
"""``sanstone settings``: the reference in the form that was asked for."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable

from sanstone.errors import RequestError
from sanstone.settings import COMMON, DRIVERS, table

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Print the reference for a terminal, as a page, for programs, or as a file to install."""
    driver = arguments.driver
    if driver:
        table(driver)
    print(_FORMS[arguments.form](driver), end="")
    return 0


def _terminal(driver: str | None) -> str:
    from sanstone.cli.reference import terminal

    return terminal(driver, shutil.get_terminal_size((100, 24)).columns)


def _json(driver: str | None) -> str:
    from sanstone.cli.reference import as_json

    return as_json(driver)


def _markdown(driver: str | None) -> str:
    from sanstone.cli.markdown import markdown

    return markdown(driver)


def _sanstone_conf(driver: str | None) -> str:
    from sanstone.cli.installed import sanstone_conf

    return sanstone_conf(driver)


def _oned_conf(driver: str | None) -> str:
    from sanstone.cli.installed import oned_conf

    if driver is None or driver == COMMON:
        raise RequestError("--oned-conf needs a driver.", f"Say: sanstone settings {DRIVERS[0]} --oned-conf")
    return oned_conf(driver)


_FORMS: dict[str | None, Callable[[str | None], str]] = {
    None: _terminal,
    "--json": _json,
    "--markdown": _markdown,
    "--sanstone-conf": _sanstone_conf,
    "--oned-conf": _oned_conf,
}
