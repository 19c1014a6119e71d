# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with the lab's machines."""

from __future__ import annotations

__all__ = ["VMError"]


class VMError(Exception):
    """A sentence that says what did not come about, and what to do if anything can be done."""
