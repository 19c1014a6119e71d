# SPDX-License-Identifier: Apache-2.0
"""A stand-in for OpenNebula's oned: the same requests, driver calls, states and error texts."""

from lab.oned.config import SAN_TM_CONF, OnedConfig
from lab.oned.core import ApiEvent, Event, StateEvent
from lab.oned.drivers import Answer, DriverCall
from lab.oned.hypervisor import (
    FaultyHypervisor,
    HostCall,
    HostRunner,
    Hypervisor,
    HypervisorError,
    LocalRunner,
    QuietHypervisor,
    ScriptHypervisor,
)
from lab.oned.server import Oned

__all__ = [
    "SAN_TM_CONF",
    "Answer",
    "ApiEvent",
    "DriverCall",
    "Event",
    "FaultyHypervisor",
    "HostCall",
    "HostRunner",
    "Hypervisor",
    "HypervisorError",
    "LocalRunner",
    "Oned",
    "OnedConfig",
    "QuietHypervisor",
    "ScriptHypervisor",
    "StateEvent",
]
