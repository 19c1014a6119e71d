# SPDX-License-Identifier: Apache-2.0
"""What the bench prints: a table of 100 columns, a verdict, and the same for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from bench.cost import Cost, median

__all__ = ["BOUND", "Measured", "as_json", "render", "verdict"]

#: tm ln: at most so many round trips to the array and to hosts
BOUND = (2, 1)
_HEADS = (
    ("", "array: round", "", "conn-", "host round", "CPU", "wall s", "wall s"),
    ("", "trips", "commands", "ections", "trips", "s", "quick box", "slow box"),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows by name, each with the runs at the quick and at the slow box; ``crowds``: many at once."""

    runs: int
    latency: float
    handshake: float
    rows: Mapping[str, tuple[Sequence[Cost], Sequence[Cost]]]
    crowds: Mapping[str, tuple[Sequence[Cost], Sequence[Cost]]]


def render(measured: Measured) -> list[str]:
    """Lay the table out, one line per row."""
    rows = [*map(_row, measured.rows.items())]
    crowds = [*map(_row, measured.crowds.items())]
    every = [*_HEADS, *rows, *crowds]
    widths = [max(len(row[column]) for row in every) for column in range(len(_HEADS[0]))]

    def spell(row: Sequence[str]) -> str:
        cells = (
            f"{cell:>{width}}" if at else f"{cell:<{width}}"
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return [*map(spell, _HEADS), rule, *map(spell, rows), rule, *map(spell, crowds), rule]


def _row(item: tuple[str, tuple[Sequence[Cost], Sequence[Cost]]]) -> tuple[str, ...]:
    name, (quick, slow) = item
    every = [*quick, *slow]
    total = median(every)
    return (
        name,
        _range([each.counts.lines for each in every]),
        _range([each.counts.commands for each in every]),
        _range([each.counts.connections for each in every]),
        _range([each.counts.hosts for each in every]),
        f"{total.cpu:.2f}",
        f"{median(quick).wall:.2f}" if quick else "",
        f"{median(slow).wall:.2f}" if slow else "",
    )


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def verdict(measured: Measured) -> str:
    """Say whether tm ln keeps its bound, in each of its runs."""
    quick, slow = measured.rows["tm ln"]
    array = max(each.counts.lines for each in (*quick, *slow))
    hosts = max(each.counts.hosts for each in (*quick, *slow))
    is_met = array <= BOUND[0] and hosts <= BOUND[1]
    return (
        f"tm ln takes {array} array and {hosts} host round trips; the bound is at most {BOUND[0]} and "
        f"{BOUND[1]}: {'met' if is_met else 'NOT met'}."
    )


def as_json(measured: Measured) -> dict[str, object]:
    """Give every run of every row, with what was set."""

    def runs(rows: Mapping[str, tuple[Sequence[Cost], Sequence[Cost]]]) -> dict[str, object]:
        return {
            name: {"quick": [asdict(each) for each in quick], "slow": [asdict(each) for each in slow]}
            for name, (quick, slow) in rows.items()
        }

    return {
        "runs": measured.runs,
        "latency_seconds": measured.latency,
        "handshake_seconds": measured.handshake,
        "actions": runs(measured.rows),
        "at_once": runs(measured.crowds),
        "verdict": verdict(measured),
    }
