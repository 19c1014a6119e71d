# SPDX-License-Identifier: Apache-2.0
"""All scenarios of the table, in its order."""

from __future__ import annotations

from lab.killing import files, scenarios

__all__ = ["SCENARIOS"]

SCENARIOS: tuple[scenarios.Scenario, ...] = (*scenarios.SCENARIOS, *files.SCENARIOS)
