# SPDX-License-Identifier: Apache-2.0
"""A simulated IBM Storwize V7000, as strict as the box where the facts are known."""

from lab.sshd import User
from lab.v7000.box import Box, BoxConfig
from lab.v7000.clock import ManualClock

__all__ = ["Box", "BoxConfig", "ManualClock", "User"]
