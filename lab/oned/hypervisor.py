# SPDX-License-Identifier: Apache-2.0
"""What runs domains: by default nothing does, and every action succeeds."""

from __future__ import annotations

import subprocess
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lab.oned.drivers import Answer

__all__ = [
    "FaultyHypervisor",
    "HostCall",
    "HostRunner",
    "Hypervisor",
    "HypervisorError",
    "LocalRunner",
    "QuietHypervisor",
    "ScriptHypervisor",
]


@dataclass(frozen=True, slots=True)
class HostCall:
    """One vmm action for one host.

    ``argv`` and ``stdin`` are what a vmm script gets; the other fields are what is in them: ``disk`` the
    path of disk.N, ``stdin`` of deploy the domain's XML, ``size_mb`` the new size of a disk, ``snapshot``
    the id (create) or the hypervisor's name (revert, delete) of a snapshot of the whole VM.
    """

    action: str
    host: str
    mad: str
    vm_id: int
    argv: tuple[str, ...]
    stdin: str
    deploy_id: str = ""
    destination: str = ""
    directory: str = ""
    checkpoint: str = ""
    disk: str = ""
    target: str = ""
    size_mb: int = 0
    snapshot: str = ""


class HypervisorError(Exception):
    """An action failed; the text is what a vmm script would have written to stderr."""

    def __init__(self, stderr: str, rc: int = 1) -> None:
        super().__init__(stderr)
        self.stderr = stderr
        self.rc = rc


class Hypervisor(Protocol):
    """Carries out vmm actions; stdout is the deploy id (deploy) or snapshot name (snapshot_create)."""

    def execute(self, call: HostCall) -> Answer:
        """Carry out one action and say how it ended."""


class FaultyHypervisor:
    """Hands actions on to another hypervisor, except for those that were asked to fail."""

    def __init__(self, inner: Hypervisor) -> None:
        self.inner = inner
        self.calls: list[HostCall] = []
        self._failures: dict[str, list[Answer]] = defaultdict(list)
        self._lock = threading.Lock()

    def fail(self, action: str, text: str, times: int = 1) -> None:
        """Let the next ``times`` calls of ``action`` fail with ``text`` on stderr."""
        with self._lock:
            self._failures[action] += [Answer(1, "", text)] * times

    def execute(self, call: HostCall) -> Answer:
        """Carry out one action, or fail if that was asked for."""
        with self._lock:
            self.calls.append(call)
            failures = self._failures[call.action]
            if failures:
                return failures.pop(0)
        return self.inner.execute(call)


class QuietHypervisor:
    """A hypervisor whose actions do nothing and succeed.

    Override the methods of the actions to make something happen; they raise :class:`HypervisorError`.
    """

    def execute(self, call: HostCall) -> Answer:
        """Carry out one action."""
        try:
            return self.perform(call)
        except HypervisorError as error:
            return Answer(error.rc, "", error.stderr)

    def perform(self, call: HostCall) -> Answer:
        """Call the method of the action."""
        method = {
            "deploy": self.deploy,
            "shutdown": self.shutdown,
            "cancel": self.cancel,
            "reboot": self.reboot,
            "save": self.save,
            "restore": self.restore,
            "migrate": self.migrate,
            "attach_disk": self.attach_disk,
            "detach_disk": self.detach_disk,
            "resize_disk": self.resize_disk,
            "snapshot_create": self.snapshot_create,
            "snapshot_revert": self.snapshot_revert,
            "snapshot_delete": self.snapshot_delete,
        }[call.action]
        return Answer(0, method(call) or "", "")

    def deploy(self, call: HostCall) -> str:
        """Start the domain in ``call.stdin`` and give its deploy id."""
        return f"one-{call.vm_id}"

    def shutdown(self, call: HostCall) -> str | None:
        """End the domain gracefully."""

    def cancel(self, call: HostCall) -> str | None:
        """End the domain at once."""

    def reboot(self, call: HostCall) -> str | None:
        """Reboot the domain."""

    def save(self, call: HostCall) -> str | None:
        """Save the domain's memory to ``call.checkpoint`` and end it."""

    def restore(self, call: HostCall) -> str | None:
        """Start the domain from ``call.checkpoint``."""

    def migrate(self, call: HostCall) -> str | None:
        """Move the running domain from ``call.host`` to ``call.destination``."""

    def attach_disk(self, call: HostCall) -> str | None:
        """Give the running domain ``call.disk``."""

    def detach_disk(self, call: HostCall) -> str | None:
        """Take ``call.disk`` from the running domain."""

    def resize_disk(self, call: HostCall) -> str | None:
        """Tell the running domain that ``call.disk`` has ``call.size_mb`` now."""

    def snapshot_create(self, call: HostCall) -> str:
        """Take a snapshot of the whole VM and give its name."""
        return f"snap-{call.snapshot}"

    def snapshot_revert(self, call: HostCall) -> str | None:
        """Go back to the snapshot ``call.snapshot``."""

    def snapshot_delete(self, call: HostCall) -> str | None:
        """Delete the snapshot ``call.snapshot``."""


class HostRunner(Protocol):
    """Runs programs on hosts, the front-end among them.

    ``shares_files`` tells whether all hosts see the same directories. The front-end may be called by its
    name or by the empty text.
    """

    @property
    def shares_files(self) -> bool:
        """Tell whether all hosts see the same directories."""

    def run(self, host: str, argv: tuple[str, ...], stdin: bytes = b"") -> Answer:
        """Run ``argv`` on ``host`` and say how it ended."""


@dataclass(frozen=True)
class LocalRunner:
    """Runs everything on this machine: all hosts see the same directories."""

    deadline: float = 60.0
    environment: Mapping[str, str] | None = None

    @property
    def shares_files(self) -> bool:
        """Tell that all hosts see the same directories: they are one machine."""
        return True

    def run(self, host: str, argv: tuple[str, ...], stdin: bytes = b"") -> Answer:
        """Run ``argv`` here, whatever ``host`` is."""
        try:
            done = subprocess.run(
                argv,
                input=stdin,
                capture_output=True,
                timeout=self.deadline,
                env=self.environment,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Answer(255, "", f"{argv[0]}: {error}\n")
        return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())


@dataclass(frozen=True)
class ScriptHypervisor(QuietHypervisor):
    """Runs ``<remotes>/vmm/<mad>/<action>`` on the host."""

    remotes: Path
    runner: HostRunner = field(default_factory=LocalRunner)

    def perform(self, call: HostCall) -> Answer:
        """Run the script of the action."""
        script = self.remotes / "vmm" / call.mad / call.action
        return self.runner.run(call.host, (str(script), *call.argv), call.stdin.encode())
