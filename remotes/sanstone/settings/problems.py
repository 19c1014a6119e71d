# SPDX-License-Identifier: Apache-2.0
"""What is wrong with settings, and the error that carries all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sanstone.errors import ConfigurationError

__all__ = ["InvalidSettings", "Problem", "printable"]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong (``message``), what would be right (``advice``), how to change it (``remedy``)."""

    message: str
    advice: str = ""
    remedy: str = ""

    @property
    def hint(self) -> str:
        return f"{self.advice} {self.remedy}".strip()


class InvalidSettings(ConfigurationError):  # noqa: N818 - its base bears the name
    """One or more problems: the first one speaks, all are in ``problems`` and in the details."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        first, *others = problems
        hint = first.hint
        if others:
            more = "1 more problem is" if len(others) == 1 else f"{len(others)} more problems are"
            hint = f"{hint} {more} in the log.".strip()
        details = "\n".join(f"{each.message} {each.hint}".strip() for each in problems)
        super().__init__(first.message, hint, details)
        self.problems = tuple(problems)


def printable(text: str) -> str:
    """Spell a text for a message: on one line, without control characters, not too long."""
    shown = "".join(char if char.isprintable() else "?" for char in text.strip())
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
