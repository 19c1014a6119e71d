# SPDX-License-Identifier: Apache-2.0
"""Starts driver actions in oned's place and measures each of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cost import Cost, Counter, Counts
from lab.oned import Answer
from lab.oned.drivers import Drivers
from lab.scene import Scene

__all__ = ["BenchError", "Call", "Starter"]

_SECONDS = 300.0


class BenchError(Exception):
    """An action failed, so that there is nothing to measure; the text is for a person."""


@dataclass(frozen=True, slots=True)
class Call:
    """What oned starts: a program with arguments, and its standard input."""

    command: tuple[str, ...]
    stdin: bytes

    @property
    def name(self) -> str:
        """``tm/ln disk.1``: kind and action, and which disk it is about (``directory`` when none)."""
        kind, _, action = Path(self.command[0]).parts[-3:]
        if kind != "tm":
            return f"{kind}/{action}"
        places = [re.search(r"/(disk\.\d+)$", word) for word in self.command[1:] if ":" in word]
        disks = [place[1] for place in places if place]
        return f"{kind}/{action.split('.')[0]} {disks[-1] if disks else 'directory'}"


class Starter(Drivers):
    """Runs one action after the other for oned's stand-in, or keeps what would be run.

    ``measured`` holds what was run, oldest first, ``kept`` what was not while ``keeps``: oned is told that it
    went well. What is in ``skipped`` is not even kept. ``failure`` is why there is nothing to measure.
    """

    def __init__(self, scene: Scene) -> None:
        drivers = scene.oned.core.drivers
        super().__init__(drivers.remotes, drivers.environment, 1, _SECONDS, lambda driver, action: None)
        self._scene = scene
        self._one_at_a_time = threading.Lock()
        self.keeps = False
        self.skipped: set[str] = set()
        self.failure: BenchError | None = None
        self.measured: list[tuple[str, Cost]] = []
        self.kept: list[Call] = []
        scene.oned.core.drivers = self

    def execute(self, command: tuple[str, ...], stdin: bytes) -> Answer:
        call = Call(command, stdin)
        if call.name in self.skipped:
            return Answer()
        if self.keeps:
            self.kept.append(call)
            return Answer()
        with self._one_at_a_time:
            counter = Counter(self._scene)
            answer, cpu, wall = self._start(call)
            self.measured.append((call.name, Cost(counter.spent(), cpu, wall)))
        if answer.rc:
            self.failure = BenchError(f"{call.name} failed: {answer.stderr.strip()}")
        return answer

    def at_once(self, calls: Sequence[Call]) -> tuple[Counts, float, float]:
        """Start all ``calls`` together; return counts, CPU seconds of all, seconds to the end of the last."""
        answers: list[tuple[Answer, float, float]] = []
        threads = [
            threading.Thread(target=lambda call=call: answers.append(self._start(call)), name="bench-call")
            for call in calls
        ]
        counter = Counter(self._scene)
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall = time.monotonic() - started
        for answer, _, _ in answers:
            if answer.rc:
                raise BenchError(f"{calls[0].name} failed: {answer.stderr.strip()}")
        return counter.spent(), sum(cpu for _, cpu, _ in answers), wall

    def _start(self, call: Call) -> tuple[Answer, float, float]:
        with (
            tempfile.TemporaryFile() as stdin,
            tempfile.TemporaryFile() as stdout,
            tempfile.TemporaryFile() as stderr,
        ):
            stdin.write(call.stdin)
            stdin.seek(0)
            started = time.monotonic()
            process = subprocess.Popen(
                call.command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=self.remotes.parent,
                env=self.environment,
                start_new_session=True,
            )
            watch = threading.Timer(_SECONDS, os.killpg, (process.pid, signal.SIGKILL))
            watch.start()
            _, status, used = os.wait4(process.pid, 0)
            wall = time.monotonic() - started
            watch.cancel()
            watch.join()
            process.returncode = os.waitstatus_to_exitcode(status)
            words = []
            for file in (stdout, stderr):
                file.seek(0)
                words.append(file.read().decode(errors="replace"))
        return Answer(process.returncode, words[0], words[1]), used.ru_utime + used.ru_stime, wall
