# SPDX-License-Identifier: Apache-2.0
"""Every error that a person may meet, with what to do about it.

Raise the class that names the family, where the fact is known; translate at the border only
(``opennebula.answers`` for oned, ``cli`` for a terminal).
"""

from __future__ import annotations

__all__ = [
    "ArrayError",
    "BusyError",
    "CapacityError",
    "ConfigurationError",
    "ConflictError",
    "ConnectError",
    "DataSafetyError",
    "DeadlineError",
    "HostError",
    "NotFoundError",
    "NotSupportedError",
    "RequestError",
    "SanstoneError",
    "UnreachableError",
]


class SanstoneError(Exception):
    """What happened and where (``message``), and what to do next (``hint``).

    ``details`` holds what only a log should carry: an array's own words, a command's output.
    ``exit_code`` is what a driver script and the CLI end with; ``code`` is stable, for runbooks.
    """

    code = "SAN000"
    exit_code = 1

    def __init__(self, message: str, hint: str = "", details: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class RequestError(SanstoneError):
    """oned, a hook or a person asked in a form that cannot be understood."""

    code = "SAN010"
    exit_code = 2


class ConfigurationError(SanstoneError):
    """An attribute is missing or has a value that is not allowed."""

    code = "SAN020"
    exit_code = 3


class NotSupportedError(SanstoneError):
    """The action is not there for this system, or not yet."""

    code = "SAN030"
    exit_code = 4


class NotFoundError(SanstoneError):
    """A volume, image, host or file that should exist does not."""

    code = "SAN040"
    exit_code = 5


class ConflictError(SanstoneError):
    """Something is there already and belongs to somebody else, or is in another state."""

    code = "SAN050"
    exit_code = 6


class BusyError(SanstoneError):
    """Try again later: the box, the host or the object is occupied."""

    code = "SAN060"
    exit_code = 7


class CapacityError(SanstoneError):
    """No room left."""

    code = "SAN070"
    exit_code = 8


class ConnectError(SanstoneError):
    """A box or host cannot be reached, or does not let us in."""

    code = "SAN080"
    exit_code = 9


class UnreachableError(ConnectError):
    """No connection came about, so nothing was done."""


class DeadlineError(SanstoneError):
    """Something did not come about in the time that it had."""

    code = "SAN090"
    exit_code = 10


class ArrayError(SanstoneError):
    """The storage system refused or answered what we do not understand."""

    code = "SAN100"
    exit_code = 11


class HostError(SanstoneError):
    """A host could not do what was asked."""

    code = "SAN110"
    exit_code = 12


class DataSafetyError(SanstoneError):
    """Going on could lose data or use the wrong disk, so nothing was done."""

    code = "SAN120"
    exit_code = 13
