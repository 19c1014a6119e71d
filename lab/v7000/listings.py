# SPDX-License-Identifier: Apache-2.0
"""Concise and detailed views: delimiters, headers, capacities, filters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lab.v7000.errors import CommandError
from lab.v7000.options import Arguments, Syntax

__all__ = [
    "LIST_FLAGS",
    "LIST_VALUES",
    "Cell",
    "Columns",
    "Size",
    "columns",
    "concise",
    "detailed",
    "listing",
]

LIST_FLAGS = "nohdr bytes"
LIST_VALUES = "delim filtervalue"
SIZE_NAMES = ("MB", "GB", "TB", "PB")


class Size(int):
    """Bytes, shown plain with -bytes and otherwise with two decimals and a binary unit."""

    def human(self) -> str:
        value = self / 1024**2
        for name in SIZE_NAMES[:-1]:
            if value < 1024:
                return f"{value:.2f}{name}"
            value /= 1024
        return f"{value:.2f}{SIZE_NAMES[-1]}"


Cell = str | int | Size
Columns = Sequence[tuple[tuple[int, ...], str]]


def listing(*, flags: str = "", values: str = "", target: bool = False) -> Syntax:
    """Return the syntax of a command that lists: the common options and its own."""
    return Syntax.of(f"{LIST_FLAGS} {flags}", f"{LIST_VALUES} {values}", target=target)


def show(cell: Cell, plain: bool) -> str:
    if isinstance(cell, Size):
        return str(int(cell)) if plain else cell.human()
    return str(cell)


def delimiter(args: Arguments) -> str | None:
    delim = args.values.get("delim")
    if delim is not None and len(delim) != 1:
        raise CommandError("CMMVC5738E", delim)
    return delim


def concise(
    header: str,
    rows: Iterable[Sequence[Cell]],
    args: Arguments,
    *,
    aliases: Mapping[str, str] | None = None,
    header_when_empty: bool = True,
) -> str:
    """Render a concise view. ``header`` is the columns joined by colons, ``aliases`` filter key to column."""
    columns = header.split(":")
    delim = delimiter(args)
    plain = "bytes" in args.flags
    shown = [[show(cell, plain) for cell in row[: len(columns)]] for row in rows]
    if (wanted := args.values.get("filtervalue")) is not None:
        shown = _filtered(columns, shown, wanted, aliases or {})
    elif not shown and not header_when_empty:
        return ""
    table = shown if "nohdr" in args.flags else [columns, *shown]
    if delim is not None:
        return "".join(delim.join(row) + "\n" for row in table)
    widths = [max(len(row[at]) for row in [columns, *shown]) for at in range(len(columns))]
    return "".join(
        " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + "\n" for row in table
    )


def detailed(sections: Iterable[Iterable[tuple[str, Cell]]], args: Arguments) -> str:
    """Render a detailed view: one key and value per line, a blank line between sections."""
    delim = delimiter(args) or " "
    plain = "bytes" in args.flags
    bare = "nohdr" in args.flags
    blocks = []
    for section in sections:
        lines = (
            show(value, plain) if bare else f"{key}{delim}{show(value, plain)}" for key, value in section
        )
        blocks.append("".join(line + "\n" for line in lines))
    return "\n".join(block for block in blocks if block)


def _filtered(
    columns: Sequence[str], rows: list[list[str]], wanted: str, aliases: Mapping[str, str]
) -> list[list[str]]:
    for part in wanted.split(":"):
        key, equals, value = part.partition("=")
        column = aliases.get(key, key)
        if not equals or not value or column not in columns:
            raise CommandError("CMMVC5741E", part)
        at = columns.index(column)
        rows = [row for row in rows if _matches(row[at], value)]
    return rows


def _matches(value: str, pattern: str) -> bool:
    """Compare; ``*`` at the start or the end of a pattern stands for anything."""
    inner = pattern.strip("*")
    if pattern.startswith("*") and pattern.endswith("*"):
        return inner in value
    if pattern.startswith("*"):
        return value.endswith(inner)
    if pattern.endswith("*"):
        return value.startswith(inner)
    return value == pattern


def columns(parts: Columns, level: tuple[int, ...]) -> str:
    """Join the columns that a firmware has."""
    return ":".join(names for since, names in parts if level >= since)
