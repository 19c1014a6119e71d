# SPDX-License-Identifier: Apache-2.0
"""The bench counts; nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cost import Cost, Counts, median
from bench.lives import CROWDS, ROWS, Cloud
from bench.table import BOUND, Measured, as_json, render, verdict
from lab.host import PROGRAMS

_ACTIONS = sorted({name.split("/")[1].split(" ")[0] for _, name in ROWS} | {"ln", "delete"})


def cost(lines: int = 1, hosts: int = 1, wall: float = 1.0) -> Cost:
    return Cost(Counts(lines, 3 * lines, 1, hosts), 0.25, wall)


def measured(*, lines: int = 1) -> Measured:
    rows = {row: ([cost(lines)], [cost(lines, wall=12.5), cost(lines)]) for row in ROWS.values()}
    crowds = {f"16 x {name} at once": ([cost(16, 16)], [cost(32, 16)]) for name in CROWDS.values()}
    return Measured(2, 0.08, 0.3, rows, crowds)


@pytest.mark.real(*PROGRAMS, *_ACTIONS, "tgtd", "tgtadm", "ssh-keygen", "qemu-img")
def test_an_attach_takes_no_more_round_trips_than_promised(tmp_path: Path) -> None:
    with Cloud(tmp_path / "cloud") as cloud:
        data = cloud.make_image("NAME = data\nTYPE = DATABLOCK\nSIZE = 8\nPERSISTENT = YES\n")
        text = f"CPU = 1\nMEMORY = 64\nDISK = [ IMAGE_ID = {data} ]\n"
        for stage in ("cold", "warm"):
            vm = cloud.vm(text, "node1", cloud.files)
            cloud.end(vm)
            counts = [each.counts for name, each in cloud.starter.measured if name == "tm/ln disk.0"][-1]
            assert 0 < counts.lines <= BOUND[0], stage
            assert counts.hosts == BOUND[1], stage
            assert counts.connections == 1, stage
        cloud.remove(data)


def test_the_table_fits_a_hundred_columns_and_has_every_row() -> None:
    lines = render(measured())
    assert max(map(len, lines)) <= 100
    for name in (*ROWS.values(), *(f"16 x {name} at once" for name in CROWDS.values())):
        assert sum(line.startswith(f"{name} ") for line in lines) >= 1
    (row,) = [line for line in lines if line.startswith("tm ln  ")]
    assert row.split()[2:] == ["1", "3", "1", "1", "0.25", "1.00", "6.75"]


def test_counts_that_differ_between_runs_are_shown_as_a_range() -> None:
    (row,) = [line for line in render(measured()) if line.startswith("16 x tm ln")]
    assert "16-32" in row.split()


@pytest.mark.parametrize(("lines", "word"), [(2, ": met."), (3, "NOT met.")])
def test_the_verdict_is_about_the_worst_run(lines: int, word: str) -> None:
    assert verdict(measured(lines=lines)).endswith(word)


def test_the_figures_of_every_run_are_there_for_machines() -> None:
    found = json.loads(json.dumps(as_json(measured())))
    assert [run["wall"] for run in found["actions"]["tm ln"]["slow"]] == [12.5, 1.0]
    assert found["at_once"]["16 x tm ln at once"]["slow"][0]["counts"]["lines"] == 32


def test_a_median_of_counts_is_a_count() -> None:
    found = median([cost(1), cost(2)])
    assert found.counts.lines == 2
    assert found.wall == 1.0
