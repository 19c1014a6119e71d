# SPDX-License-Identifier: Apache-2.0
"""``sanstone check``: hold a datastore's template against the tables, without OpenNebula or an array."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from sanstone.cli.template import TemplateAttribute, read_template
from sanstone.errors import NotFoundError, RequestError
from sanstone.settings import (
    DRIVERS,
    ConfigFile,
    InvalidSettings,
    Problem,
    Settings,
    refuse_unsupported,
    resolve,
    table,
)

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Print what holds, or raise InvalidSettings with every problem of the template."""
    name = arguments.template
    attributes = _read(name)
    single = {each.name: each.value for each in attributes if isinstance(each.value, str)}
    driver = arguments.driver or _driver(single)
    table(driver)
    problems = _opennebula_problems(single, driver)
    warnings = _repeated(attributes)
    if single.get("TYPE", "").upper() == "SYSTEM_DS" and single.get("DISK_TYPE", "").upper() != "BLOCK":
        if problems:
            raise InvalidSettings(problems)
        print(f"{name}: no problem found. This system datastore holds files and links, no volumes.")
        return 0
    config = ConfigFile.read(Path(arguments.config) if arguments.config else None)
    values = {each.name: each.value for each in attributes}
    try:
        settings = resolve(driver, config, datastore=values)  # type: ignore[arg-type]
    except InvalidSettings as err:
        problems += [Problem(each.message, each.advice) for each in err.problems]
    if problems:
        raise InvalidSettings(problems)
    refuse_unsupported(settings)
    for warning in (*warnings, *settings.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    _print_settings(name, settings)
    return 0


def _read(name: str) -> list[TemplateAttribute]:
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return read_template(content.decode("utf-8-sig"))
    except FileNotFoundError as err:
        raise NotFoundError(f"There is no file {name}.") from err
    except (OSError, ValueError) as err:
        reason = err.strerror if isinstance(err, OSError) else "it is not a text in UTF-8"
        raise RequestError(f"{name} cannot be read: {reason}.") from err


def _driver(template: Mapping[str, str]) -> str:
    named = template.get("DS_MAD") or template.get("TM_MAD")
    if not named:
        raise RequestError("The template names no DS_MAD.", f"Add DS_MAD = {DRIVERS[0]} or give --driver.")
    return named


def _opennebula_problems(template: Mapping[str, str], driver: str) -> list[Problem]:
    """Find what oned would refuse, or accept and then not use the driver."""
    is_system = template.get("TYPE", "").upper() == "SYSTEM_DS"
    problems = []
    if not template.get("NAME"):
        problems.append(Problem("NAME is missing.", 'Add NAME = "what the datastore shall be called".'))
    for mad in ("DS_MAD", "TM_MAD"):
        value = template.get(mad, "")
        if mad == "DS_MAD" and is_system:
            if value:
                problems.append(Problem(f"DS_MAD={value}: a system datastore has none.", "Remove DS_MAD."))
        elif value != driver:
            what = f"{mad}={value} is not {driver}." if value else f"{mad} is missing."
            problems.append(Problem(what, f"Set {mad} = {driver}."))
    if not is_system and template.get("DISK_TYPE", "").upper() != "BLOCK":
        disk_type = template.get("DISK_TYPE")
        problems.append(
            Problem(
                f"DISK_TYPE={disk_type} is not BLOCK." if disk_type else "DISK_TYPE is missing.",
                "Set DISK_TYPE = BLOCK: disks are block devices.",
            )
        )
    return problems


def _repeated(attributes: list[TemplateAttribute]) -> list[str]:
    lines: dict[str, list[str]] = {}
    for each in attributes:
        lines.setdefault(each.name, []).append(str(each.line))
    return [
        f"{name} is set on lines {' and '.join(where)}: which one OpenNebula takes is not certain."
        for name, where in lines.items()
        if len(where) > 1
    ]


def _print_settings(name: str, settings: Settings) -> None:
    print(f"{name}: no problem found for driver {settings.driver}.")
    chosen = [each for each in settings if each.origin != "default" and each.text]
    width = max((len(each.attribute.name) for each in chosen), default=0)
    for each in chosen:
        origin = "  (sanstone.conf)" if each.origin == "file" else ""
        print(f"  {each.attribute.name:{width}}  {each.shown}{origin}")
    print(f"All other attributes have their default: see sanstone settings {settings.driver}.")
