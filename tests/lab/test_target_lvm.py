# SPDX-License-Identifier: Apache-2.0
"""The target host's LVM answers as LVM 2.03 in a virtual machine did: ``lvm_cases.py`` records that."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.host.calls import Answer
from lab.target import PROGRAMS, TargetHost
from tests.lab.lvm_cases import LINES, RECORDED

pytestmark = pytest.mark.real(*PROGRAMS)

MISUSED = 3


class Recorded(NamedTuple):
    line: str
    code: int
    out: str
    err: str


ANSWERS = [Recorded(**each) for each in json.loads(RECORDED.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Answer]]:
    """Answers of the stand-in by the line's place: each builds on what those before it left."""
    size, pool = (int(answer.out.split()[1]) for answer in ANSWERS[:2])
    root: Path = tmp_path_factory.mktemp("target") / "tgt1"
    with TargetHost("tgt1", root, "", size=size, pool_size=pool) as host:
        answers = {}
        for at, line in enumerate(LINES):
            program, *argv = shlex.split(line)
            answer = host.run(program, *[host.rooted(word) for word in argv])
            answers[at] = Answer(answer.code, host.plain(answer.out), host.plain(answer.err))
        yield answers


def test_the_recorded_lines_are_those_of_the_list() -> None:
    assert [answer.line for answer in ANSWERS] == LINES, "record them anew: python -m tests.lab.lvm_cases"


@pytest.mark.parametrize("at", range(len(ANSWERS)), ids=[answer.line[:60] for answer in ANSWERS])
def test_a_line_is_answered_as_by_the_real_lvm(said: dict[int, Answer], at: int) -> None:
    real, ours = ANSWERS[at], said[at]
    assert ours.code == real.code, ours
    if real.code == MISUSED:  # how LVM says that it does not understand has many lines; the first is enough
        assert ours.err.splitlines()[:1] == real.err.splitlines()[:1]
        return
    assert stripped(ours.out) == stripped(real.out)
    assert stripped(ours.err) == stripped(real.err)


def stripped(text: str) -> list[str]:
    """Lines without the blanks at their ends, which follow from the widths of columns."""
    return [line.rstrip() for line in text.splitlines()]
