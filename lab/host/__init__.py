# SPDX-License-Identifier: Apache-2.0
"""Hosts in user space: they log in to targets, find disks and make multipath maps without the kernel."""

from lab.host.calls import Answer
from lab.host.devices import Timings
from lab.host.machine import PROGRAMS, AttachedDisk, OpenSession, UserSpaceHost, ssh_config
from lab.host.standins import Ran

__all__ = [
    "PROGRAMS",
    "Answer",
    "AttachedDisk",
    "OpenSession",
    "Ran",
    "Timings",
    "UserSpaceHost",
    "ssh_config",
]
