# SPDX-License-Identifier: Apache-2.0
"""IBM Storwize V7000, SVC and FlashSystem: the CLI over SSH."""

from __future__ import annotations

from sanstone.arrays.v7000.array import V7000

__all__ = ["V7000"]
