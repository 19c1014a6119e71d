# SPDX-License-Identifier: Apache-2.0
"""Every recorded life cycle that touches storage runs with the real drivers as it ran in the record.

Compared are the driver calls, events, states and errors, and after each operation everything on arrays and
hosts, and every byte, with a model of them.
"""

from __future__ import annotations

import pytest

from lab.life_cycles.play import Result, Story
from lab.life_cycles.record import OPERATIONS
from lab.life_cycles.running import PROGRAMS, run
from lab.life_cycles.stories import NOT_PLAYED, STORIES
from lab.systems import ALL_ARRAYS

PLAYED = [name for story in STORIES for name in story.operations]


class Plays:
    """Plays a story when the first of its operations is asked for, and the next one beside it."""

    def __init__(self, stories: list[Story]) -> None:
        self._waiting = stories
        self._results: dict[tuple[str, str], Result] = {}

    def result(self, operation: str, system: str) -> Result:
        if (operation, system) not in self._results:
            story = next(story for story in self._waiting if operation in story.operations)
            at = self._waiting.index(story)
            for result in run([(each, system) for each in self._waiting[at : at + 2]], "own", jobs=2):
                self._results[result.operation, system] = result
        return self._results[operation, system]


@pytest.fixture(scope="module")
def plays(request: pytest.FixtureRequest) -> Plays:
    """Only stories of which an operation was selected are played."""
    wanted = {
        item.callspec.params.get("operation")
        for item in request.session.items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
    }
    return Plays([story for story in STORIES if wanted.intersection(story.operations)])


@pytest.mark.long
@pytest.mark.real(*PROGRAMS)
@pytest.mark.parametrize("operation", PLAYED)
@pytest.mark.parametrize("system", ALL_ARRAYS)
def test_an_operation_goes_as_recorded_and_the_storage_is_as_it_should_be(
    plays: Plays, operation: str, system: str
) -> None:
    result = plays.result(operation, system)
    assert result.is_green, "\n".join(result.problems)


def test_every_recorded_operation_is_played_or_said_not_to_touch_storage() -> None:
    assert set(PLAYED) | set(NOT_PLAYED) == set(OPERATIONS)
    assert not set(PLAYED) & set(NOT_PLAYED)
    assert len(PLAYED) == len(set(PLAYED))
