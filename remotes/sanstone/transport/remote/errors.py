# SPDX-License-Identifier: Apache-2.0
"""The one exception of a node program. It travels back and becomes an error of ``sanstone.errors``."""

from __future__ import annotations

__all__ = ["NodeError"]


class NodeError(Exception):
    """``family`` is the name of a class in ``sanstone.errors``; the rest is as there."""

    def __init__(self, family: str, message: str, hint: str = "", details: str = "") -> None:
        super().__init__(message)
        self.family = family
        self.message = message
        self.hint = hint
        self.details = details
