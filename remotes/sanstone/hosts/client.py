# SPDX-License-Identifier: Apache-2.0
"""Have operations done on a host: one ssh, over which the program travels that does them (``hosts.node``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, BinaryIO

from sanstone.errors import RequestError
from sanstone.hosts.ops import (
    Attach,
    Attached,
    Convert,
    Copied,
    CopyVolume,
    Detach,
    Detached,
    Digest,
    DiskUsage,
    FileDigest,
    Filesystem,
    Grow,
    Grown,
    HeldStill,
    HoldStill,
    LinkState,
    Operation,
    Outcomes,
    PutFile,
    ReadInitiator,
    ReadLink,
    Result,
    SaveDisk,
    Together,
)
from sanstone.model import Device, Initiator, Path
from sanstone.transport.program import RemoteProgram

__all__ = ["Host"]


class Host:
    """One host, reached by ssh, or this machine itself. May be used by several threads at once.

    ``ssh_options`` stand before the host's name, as for ssh(1); ``connect_timeout`` is in seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        ssh_options: Sequence[str] = (),
        is_local: bool = False,
        connect_timeout: float = 15,
    ) -> None:
        self.name = name
        self._program = RemoteProgram(
            "sanstone.hosts.node",
            name,
            ssh_options=ssh_options,
            is_local=is_local,
            connect_timeout=connect_timeout,
        )

    @property
    def round_trips(self) -> int:
        """Tell how many connections were made."""
        return self._program.round_trips

    def run(
        self,
        operations: Sequence[Operation],
        *,
        deadline: float,
        upload: BinaryIO | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> list[Result]:
        """Do ``operations`` in order until one fails, in one round trip and ``deadline`` seconds.

        ``upload`` holds the bytes of all PutFile operations, one behind the other. ``progress`` gets what a
        long operation has to say of itself.

        Raises: what the host answers (DataSafetyError, BusyError, ...), ConnectError, HostError,
        DeadlineError.
        """
        if not operations:
            return []
        if upload is None and any(isinstance(op, PutFile) and op.size for op in operations):
            raise RequestError(f"There is nothing to put into a file on {self.name}.")
        requests = [_request(op) for op in operations]
        results = self._program.run(requests, deadline=deadline, upload=upload, progress=progress)
        return [self._parse(op, result) for op, result in zip(operations, results, strict=True)]

    def _parse(self, operation: Operation, result: Any) -> Result:
        if not isinstance(operation, Together):
            return _parse(operation, result)
        return Outcomes(
            tuple(
                self._program.error(outcome["error"])
                if "error" in outcome
                else self._parse(each, outcome["result"])
                for each, outcome in zip(operation.operations, result["outcomes"], strict=True)
            )
        )


def _request(operation: Operation) -> dict[str, Any]:
    """Spell an operation as its program reads it."""
    fields = (
        {"operations": [_request(each) for each in operation.operations]}
        if isinstance(operation, Together)
        else asdict(operation)
    )
    return {"op": type(operation).__name__, **fields}


def _parse(operation: Operation, result: Any) -> Result:
    """Make the operation's result out of JSON."""
    if isinstance(operation, Attach):
        warnings = tuple(result.pop("warnings"))
        return Attached(_device(result), warnings)
    if isinstance(operation, Grow):
        return Grown(_device(result["device"]), tuple(result["warnings"]))
    if isinstance(operation, Detach):
        return Detached(result["was_attached"], tuple(result["warnings"]))
    if isinstance(operation, (Convert, CopyVolume, SaveDisk)):
        return Copied(**result)
    if isinstance(operation, ReadInitiator):
        return Initiator(**result)
    if isinstance(operation, ReadLink):
        return LinkState(**result)
    if isinstance(operation, DiskUsage):
        return Filesystem(**result)
    if isinstance(operation, HoldStill):
        return HeldStill(**result)
    if isinstance(operation, FileDigest):
        return Digest(**result)
    return None


def _device(fields: dict[str, Any]) -> Device:
    return Device(**{**fields, "paths": tuple(Path(**path) for path in fields["paths"])})
