# SPDX-License-Identifier: Apache-2.0
"""The ``sanstone`` command. What a command needs is imported when it runs."""

from __future__ import annotations

from sanstone.cli.entry import main

__all__ = ["main"]
