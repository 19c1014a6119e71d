# SPDX-License-Identifier: Apache-2.0
"""A cloud for each test: it starts in a tenth of a second and has to be empty in the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.systems import ALL_ARRAYS
from tests.life_cycles.cloud import Cloud


@pytest.fixture(
    params=[name if name == "v7000" else pytest.param(name, marks=pytest.mark.long) for name in ALL_ARRAYS]
)
def system(request: pytest.FixtureRequest) -> str:
    """The driver's name. The recorded operations are played with every one, see ``test_recorded``."""
    name: str = request.param
    return name


@pytest.fixture
def cloud(tmp_path: Path, request: pytest.FixtureRequest, system: str) -> Iterator[Cloud]:
    """The parameter, if there is one, is a dictionary of Scene's keyword arguments."""
    scene: dict[str, Any] = getattr(request, "param", {})
    with Cloud(tmp_path, system, **scene) as cloud:
        yield cloud
        cloud.oned.wait_idle(60)
        if not request.node.stash.get(FAILED, False):
            cloud.assert_nothing_left()


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Let a fixture know that its test failed: what that one left behind is no second failure."""
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report
