# SPDX-License-Identifier: Apache-2.0
"""A command as a stand-in passes it to the resident part, and its answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Answer", "Call", "fail", "plain_device"]


@dataclass(frozen=True, slots=True)
class Call:
    """``argv`` without the program's name. ``gone`` tells that the caller, process ``pid``, was killed."""

    name: str
    argv: tuple[str, ...]
    is_root: bool = True
    cwd: str = "/"
    stdin: bytes = field(default=b"", repr=False)
    gone: Callable[[], bool] = lambda: False
    pid: int = 0

    def wait_while(self, condition: Callable[[], bool], halted: threading.Event) -> bool:
        """Wait as long as ``condition`` holds. Returns false when the caller or the host went first."""
        while condition():
            if self.gone() or halted.wait(0.02):
                return False
        return True


@dataclass(frozen=True, slots=True)
class Answer:
    """What the program prints and its exit code."""

    code: int = 0
    out: str = ""
    err: str = ""


def fail(code: int, text: str) -> Answer:
    return Answer(code, "", f"{text}\n")


def plain_device(word: str, root: Path) -> str:
    """Return a device argument as the host itself would name it: without the host's root directory."""
    return word.removeprefix(str(root)) if word.startswith(f"{root}/") else word
