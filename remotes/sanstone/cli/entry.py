# SPDX-License-Identifier: Apache-2.0
"""From the command line to a function, and from an error to a sentence and an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import cast

from sanstone import __version__
from sanstone.cli.commands import COMMANDS, Command
from sanstone.errors import RequestError, SanstoneError

__all__ = ["main"]

_INTERRUPTED = 130  # 128 + SIGINT and 128 + SIGPIPE, as shells report them
_NOBODY_READS = 141
_DEFECT = 70


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, that of the error's class, or argparse's 2."""
    try:
        try:
            arguments = _parser().parse_args(argv)
            code = _function(arguments.command)(arguments)
        finally:
            sys.stdout.flush()
    except SanstoneError as err:
        return _explain(err)
    except BrokenPipeError:
        _close_stdout()
        return _NOBODY_READS
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception:
        traceback.print_exc()
        print(
            "sanstone: this is a defect of Sanstone. Please report it with the lines above.", file=sys.stderr
        )
        return _DEFECT
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sanstone", description="SAN storage for OpenNebula.")
    parser.add_argument("--version", action="version", version=f"sanstone {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        _add(commands.add_parser(command.name, help=command.summary, description=_sentence(command)), command)
    return parser


def _sentence(command: Command) -> str:
    return f"{command.summary[0].upper()}{command.summary[1:]}."


def _add(parser: argparse.ArgumentParser, command: Command) -> None:
    choices: dict[str, argparse._MutuallyExclusiveGroup] = {}
    for argument in command.arguments:
        target: argparse._ActionsContainer = parser
        if argument.choice_of:
            if argument.choice_of not in choices:
                choices[argument.choice_of] = parser.add_mutually_exclusive_group()
            target = choices[argument.choice_of]
        target.add_argument(*argument.names, **argument.options)  # type: ignore[arg-type]
    parser.set_defaults(command=command)


def _function(command: Command) -> Callable[[argparse.Namespace], int]:
    module, name = command.run.split(":")
    return cast(Callable[[argparse.Namespace], int], getattr(importlib.import_module(module), name))


def _explain(err: SanstoneError) -> int:
    """Print what happened and what to do; each problem of a configuration on lines of its own."""
    from sanstone.settings.problems import InvalidSettings

    if isinstance(err, InvalidSettings):
        told = [(problem.message, problem.hint) for problem in err.problems]
    else:
        told = [(err.message, err.hint)]
    for message, hint in told:
        print(f"sanstone: {message}", file=sys.stderr)
        if hint:
            print(f"  {hint}", file=sys.stderr)
    if isinstance(err, RequestError) and err.details:
        print(err.details, file=sys.stderr)
    return err.exit_code


def _close_stdout() -> None:
    """Let nothing be written to the broken pipe again when Python ends."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
