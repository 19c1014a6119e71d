# SPDX-License-Identifier: Apache-2.0
"""The commands there are, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["COMMANDS", "Argument", "Command"]


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument as argparse takes it. Of those with the same ``choice_of`` only one may be given."""

    names: tuple[str, ...]
    options: Mapping[str, object] = field(default_factory=dict)
    choice_of: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """``run`` names a function, ``module:name``, that gets the parsed arguments and returns the exit code."""

    name: str
    summary: str
    run: str
    arguments: tuple[Argument, ...] = ()


def _output(name: str, meaning: str) -> Argument:
    return Argument(
        (name,), {"dest": "form", "action": "store_const", "const": name, "help": meaning}, "form"
    )


_CONFIG = Argument(
    ("--config",),
    {"metavar": "FILE", "help": "read FILE instead of /etc/one/sanstone.conf (or $SANSTONE_CONF)"},
)

COMMANDS = (
    Command(
        "settings",
        "explain the attributes of datastores, images and sanstone.conf",
        "sanstone.cli.settings:run",
        (
            Argument(
                ("driver",), {"metavar": "DRIVER", "nargs": "?", "help": "one driver only, such as v7000"}
            ),
            _output("--markdown", "print docs/settings.md"),
            _output("--json", "print everything for programs"),
            _output("--sanstone-conf", "print a commented sanstone.conf with all defaults"),
            _output("--oned-conf", "print what /etc/one/oned.conf needs for DRIVER"),
        ),
    ),
    Command(
        "check",
        "check the template of a datastore before it is created",
        "sanstone.cli.check:run",
        (
            Argument(
                ("template",),
                {"metavar": "TEMPLATE_FILE", "help": "as for onedatastore create; - reads stdin"},
            ),
            Argument(
                ("--driver",), {"metavar": "DRIVER", "help": "check for this driver, whatever DS_MAD says"}
            ),
            _CONFIG,
        ),
    ),
)
