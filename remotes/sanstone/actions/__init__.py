# SPDX-License-Identifier: Apache-2.0
"""The driver actions, written once for all systems."""

from __future__ import annotations

from sanstone.actions.dispatch import perform
from sanstone.actions.site import Site

__all__ = ["Site", "perform"]
