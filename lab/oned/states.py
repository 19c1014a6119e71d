# SPDX-License-Identifier: Apache-2.0
"""States of the objects and the steps between them, as tables.

Numbers and names are OpenNebula's. A :class:`Phase` is a state in which the transfer manager works through
a list of calls, a :class:`Boot` one in which a domain is started.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = [
    "BOOTS",
    "PHASES",
    "SHUTDOWNS",
    "Action",
    "Boot",
    "HostState",
    "ImageState",
    "LcmState",
    "Phase",
    "Shutdown",
    "VmState",
]


class ImageState(IntEnum):
    """State of an image."""

    INIT = 0
    READY = 1
    USED = 2
    DISABLED = 3
    LOCKED = 4
    ERROR = 5
    CLONE = 6
    DELETE = 7
    USED_PERS = 8
    LOCKED_USED = 9
    LOCKED_USED_PERS = 10

    @property
    def event_name(self) -> str:
        """What the bus calls the state: the persistent and cloning kinds of USED are all USED."""
        if self in (ImageState.USED_PERS, ImageState.CLONE):
            return "USED"
        if self in (ImageState.LOCKED_USED, ImageState.LOCKED_USED_PERS):
            return "LOCKED"
        return self.name


class HostState(IntEnum):
    """State of a host."""

    INIT = 0
    MONITORING_MONITORED = 1
    MONITORED = 2
    ERROR = 3
    DISABLED = 4
    MONITORING_ERROR = 5
    MONITORING_INIT = 6
    MONITORING_DISABLED = 7
    OFFLINE = 8


class VmState(IntEnum):
    """State of a VM."""

    INIT = 0
    PENDING = 1
    HOLD = 2
    ACTIVE = 3
    STOPPED = 4
    SUSPENDED = 5
    DONE = 6
    POWEROFF = 8
    UNDEPLOYED = 9
    CLONING = 10
    CLONING_FAILURE = 11


class LcmState(IntEnum):
    """What an active VM is doing."""

    LCM_INIT = 0
    PROLOG = 1
    BOOT = 2
    RUNNING = 3
    MIGRATE = 4
    SAVE_STOP = 5
    SAVE_SUSPEND = 6
    SAVE_MIGRATE = 7
    PROLOG_MIGRATE = 8
    PROLOG_RESUME = 9
    EPILOG_STOP = 10
    EPILOG = 11
    SHUTDOWN = 12
    CLEANUP_RESUBMIT = 15
    UNKNOWN = 16
    HOTPLUG = 17
    SHUTDOWN_POWEROFF = 18
    BOOT_UNKNOWN = 19
    BOOT_POWEROFF = 20
    BOOT_SUSPENDED = 21
    BOOT_STOPPED = 22
    CLEANUP_DELETE = 23
    HOTPLUG_SNAPSHOT = 24
    HOTPLUG_NIC = 25
    HOTPLUG_SAVEAS = 26
    HOTPLUG_SAVEAS_POWEROFF = 27
    HOTPLUG_SAVEAS_SUSPENDED = 28
    SHUTDOWN_UNDEPLOY = 29
    EPILOG_UNDEPLOY = 30
    PROLOG_UNDEPLOY = 31
    BOOT_UNDEPLOY = 32
    HOTPLUG_PROLOG_POWEROFF = 33
    HOTPLUG_EPILOG_POWEROFF = 34
    BOOT_MIGRATE = 35
    BOOT_FAILURE = 36
    BOOT_MIGRATE_FAILURE = 37
    PROLOG_MIGRATE_FAILURE = 38
    PROLOG_FAILURE = 39
    EPILOG_FAILURE = 40
    EPILOG_STOP_FAILURE = 41
    EPILOG_UNDEPLOY_FAILURE = 42
    PROLOG_MIGRATE_POWEROFF = 43
    PROLOG_MIGRATE_POWEROFF_FAILURE = 44
    PROLOG_MIGRATE_SUSPEND = 45
    PROLOG_MIGRATE_SUSPEND_FAILURE = 46
    BOOT_UNDEPLOY_FAILURE = 47
    BOOT_STOPPED_FAILURE = 48
    PROLOG_RESUME_FAILURE = 49
    PROLOG_UNDEPLOY_FAILURE = 50
    DISK_SNAPSHOT_POWEROFF = 51
    DISK_SNAPSHOT_REVERT_POWEROFF = 52
    DISK_SNAPSHOT_DELETE_POWEROFF = 53
    DISK_SNAPSHOT_SUSPENDED = 54
    DISK_SNAPSHOT_REVERT_SUSPENDED = 55
    DISK_SNAPSHOT_DELETE_SUSPENDED = 56
    DISK_SNAPSHOT = 57
    DISK_SNAPSHOT_DELETE = 59
    DISK_RESIZE = 62
    DISK_RESIZE_POWEROFF = 63
    DISK_RESIZE_UNDEPLOYED = 64
    BACKUP = 69
    BACKUP_POWEROFF = 70
    RESTORE = 71


class Action(IntEnum):
    """What a history record says was done last."""

    NONE = 0
    MIGRATE = 1
    LIVE_MIGRATE = 2
    UNDEPLOY = 5
    UNDEPLOY_HARD = 6
    STOP = 9
    SUSPEND = 10
    RESUME = 11
    DELETE = 13
    DELETE_RECREATE = 14
    POWEROFF = 19
    POWEROFF_HARD = 20
    DISK_ATTACH = 21
    DISK_DETACH = 22
    DISK_SNAPSHOT_CREATE = 25
    DISK_SNAPSHOT_DELETE = 26
    TERMINATE = 27
    TERMINATE_HARD = 28
    DISK_RESIZE = 29
    DISK_SNAPSHOT_REVERT = 41
    POFF_MIGRATE = 48
    POFF_HARD_MIGRATE = 49
    BACKUP = 50


@dataclass(frozen=True, slots=True)
class Phase:
    """A list of transfer manager calls: where a failure leads, and the boot or rest that follows."""

    failure: LcmState
    boot: LcmState | None = None
    rest: VmState | None = None


@dataclass(frozen=True, slots=True)
class Boot:
    """A start of the domain: the vmm action and where a failure leads."""

    action: str
    failure: LcmState | VmState


@dataclass(frozen=True, slots=True)
class Shutdown:
    """An end of the domain: state, vmm action, history code, and what follows it."""

    state: LcmState
    vmm_action: str
    history: Action
    phase: LcmState | None = None
    rest: VmState | None = None


PHASES = {
    LcmState.PROLOG: Phase(LcmState.PROLOG_FAILURE, boot=LcmState.BOOT),
    LcmState.PROLOG_RESUME: Phase(LcmState.PROLOG_RESUME_FAILURE, boot=LcmState.BOOT_STOPPED),
    LcmState.PROLOG_UNDEPLOY: Phase(LcmState.PROLOG_UNDEPLOY_FAILURE, boot=LcmState.BOOT_UNDEPLOY),
    LcmState.PROLOG_MIGRATE: Phase(LcmState.PROLOG_MIGRATE_FAILURE, boot=LcmState.BOOT_MIGRATE),
    LcmState.PROLOG_MIGRATE_POWEROFF: Phase(LcmState.PROLOG_MIGRATE_POWEROFF_FAILURE, rest=VmState.POWEROFF),
    LcmState.PROLOG_MIGRATE_SUSPEND: Phase(LcmState.PROLOG_MIGRATE_SUSPEND_FAILURE, rest=VmState.SUSPENDED),
    LcmState.EPILOG: Phase(LcmState.EPILOG_FAILURE, rest=VmState.DONE),
    LcmState.EPILOG_STOP: Phase(LcmState.EPILOG_STOP_FAILURE, rest=VmState.STOPPED),
    LcmState.EPILOG_UNDEPLOY: Phase(LcmState.EPILOG_UNDEPLOY_FAILURE, rest=VmState.UNDEPLOYED),
}

BOOTS = {
    LcmState.BOOT: Boot("deploy", LcmState.BOOT_FAILURE),
    LcmState.BOOT_POWEROFF: Boot("deploy", VmState.POWEROFF),
    LcmState.BOOT_SUSPENDED: Boot("restore", VmState.SUSPENDED),
    LcmState.BOOT_STOPPED: Boot("restore", LcmState.BOOT_STOPPED_FAILURE),
    LcmState.BOOT_UNDEPLOY: Boot("deploy", LcmState.BOOT_UNDEPLOY_FAILURE),
    LcmState.BOOT_MIGRATE: Boot("restore", LcmState.BOOT_MIGRATE_FAILURE),
}

SHUTDOWNS = {
    "poweroff": Shutdown(LcmState.SHUTDOWN_POWEROFF, "shutdown", Action.POWEROFF, rest=VmState.POWEROFF),
    "poweroff-hard": Shutdown(
        LcmState.SHUTDOWN_POWEROFF, "cancel", Action.POWEROFF_HARD, rest=VmState.POWEROFF
    ),
    "suspend": Shutdown(LcmState.SAVE_SUSPEND, "save", Action.SUSPEND, rest=VmState.SUSPENDED),
    "stop": Shutdown(LcmState.SAVE_STOP, "save", Action.STOP, phase=LcmState.EPILOG_STOP),
    "undeploy": Shutdown(
        LcmState.SHUTDOWN_UNDEPLOY, "shutdown", Action.UNDEPLOY, phase=LcmState.EPILOG_UNDEPLOY
    ),
    "undeploy-hard": Shutdown(
        LcmState.SHUTDOWN_UNDEPLOY, "cancel", Action.UNDEPLOY_HARD, phase=LcmState.EPILOG_UNDEPLOY
    ),
    "terminate": Shutdown(LcmState.SHUTDOWN, "shutdown", Action.TERMINATE, phase=LcmState.EPILOG),
    "terminate-hard": Shutdown(LcmState.SHUTDOWN, "cancel", Action.TERMINATE_HARD, phase=LcmState.EPILOG),
}
