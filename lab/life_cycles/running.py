# SPDX-License-Identifier: Apache-2.0
"""Stories played on systems, several at once."""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.host import PROGRAMS as HOST_PROGRAMS
from lab.life_cycles.play import Player, Result, Story
from lab.scene import REMOTES

__all__ = ["PROGRAMS", "run"]

PROGRAMS = (
    *HOST_PROGRAMS,
    *sorted({path.name for path in REMOTES.glob("*/*/*")}),
    *("backup", "restore", "increment_flatten"),  # the driver of the record's backup datastore
    *("tgtd", "tgtadm", "ssh-keygen", "qemu-img", "genisoimage"),
    *("mkdir", "truncate", "dd", "cat", "test", "mv", "rm", "sh"),  # oned's own transfer managers
)
"""For ``@pytest.mark.real(*PROGRAMS)``. What the drivers and hosts start themselves is not in here."""


def run(
    wanted: Sequence[tuple[Story, str]], system_datastore: str, jobs: int, until: str | None = None
) -> Iterator[Result]:
    """Play stories on systems, ``jobs`` at once, and yield results as they come.

    A story that cannot go on has all operations that it did not come to as failed.
    """
    waiting: queue.SimpleQueue[tuple[Story, str] | None] = queue.SimpleQueue()
    results: queue.SimpleQueue[Result | None] = queue.SimpleQueue()
    for each in (*wanted, *[None] * jobs):
        waiting.put(each)

    def work(folder: Path) -> None:
        while (each := waiting.get()) is not None:
            for result in _play(*each, system_datastore, folder, until):
                results.put(result)
        results.put(None)

    with tempfile.TemporaryDirectory(prefix="life-cycles-") as folder:
        threads = [threading.Thread(target=work, args=(Path(folder),), daemon=True) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        running = jobs
        while running:
            result = results.get()
            if result is None:
                running -= 1
            else:
                yield result
        for thread in threads:
            thread.join()


def _play(
    story: Story, system: str, system_datastore: str, folder: Path, until: str | None
) -> Iterator[Result]:
    directory = folder / f"{system}-{story.name}".replace(" ", "-")
    left = list(story.operations)
    try:
        for result in Player(story, system, system_datastore, directory).play(until):
            left.remove(result.operation)
            yield result
            if result.operation == until:
                return
    except Exception as err:
        for name in left:
            yield Result(name, system, 0.0, (f"not come to: {type(err).__name__}: {err}",))
