# SPDX-License-Identifier: Apache-2.0
"""Where a disk or a VM's directory is: ``host:/var/lib/one/datastores/103/14/disk.0``."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from sanstone.errors import RequestError

__all__ = ["DiskPath", "check_host", "check_path"]

MAX_PATH = 4096  # the kernel's PATH_MAX
MAX_HOST = 253  # DNS

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_OF_VM = re.compile(r"/(?P<datastore>[0-9]{1,9})/(?P<vm>[0-9]{1,9})(?:/disk\.(?P<disk>[0-9]{1,9}))?/*\Z")


@dataclass(frozen=True, slots=True)
class DiskPath:
    """A place on a host. The ids are None where the path is not formed as a VM's disk or directory."""

    host: str
    path: str

    @classmethod
    def parse(cls, text: str) -> DiskPath:
        """Read ``host:path``: a host name, an IPv4 address or an IPv6 one (in brackets or not), a whole path.

        Raises: RequestError for anything else.
        """
        host, colon, rest = text.partition(":/")
        if not colon:
            raise RequestError(f"{text[:60]!r} should be HOST:PATH with a path that starts with '/'.")
        return cls(check_host(host), check_path("/" + rest))

    def __str__(self) -> str:
        return f"{self.host}:{self.path}"

    @property
    def directory(self) -> str:
        """The directory of the VM: of a disk the one it is in, of a directory itself."""
        path = self.path.rstrip("/") or "/"
        return path.rpartition("/")[0] or "/" if self.disk_id is not None else path

    @property
    def disk_id(self) -> int | None:
        return self._number("disk")

    @property
    def vm_id(self) -> int | None:
        return self._number("vm")

    @property
    def system_datastore_id(self) -> int | None:
        return self._number("datastore")

    def _number(self, name: str) -> int | None:
        match = _OF_VM.search(self.path)
        return int(match[name]) if match and match[name] else None


def check_host(host: str) -> str:
    """Let a host name or address through, an IPv6 address without its brackets.

    Raises: RequestError for anything that is neither.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if len(host) <= MAX_HOST and ":" in bare:
        try:
            ipaddress.IPv6Address(bare.replace("%", "/"))  # a scope may hold anything, so there is none
        except ValueError:
            bare = ""
    elif bare != host or len(host) > MAX_HOST or not _HOST.fullmatch(host):
        bare = ""
    if not bare:
        raise RequestError(f"{host[:60]!r} is no name or address of a host.")
    return bare


def check_path(path: str) -> str:
    """Let a whole path through that stays where it says.

    Raises: RequestError for a relative path, control characters, ``..`` or too many bytes.
    """
    if not path.startswith("/"):
        raise RequestError(f"The path {path[:60]!r} does not start with '/'.")
    if _CONTROL.search(path):
        raise RequestError(f"The path {path[:60]!r} holds a control character.")
    if len(path.encode("utf-8", "backslashreplace")) > MAX_PATH:
        raise RequestError(f"The path {path[:60]!r}... is longer than {MAX_PATH} bytes.")
    if ".." in path.split("/"):
        raise RequestError(f"The path {path[:60]!r} leads upwards ('..').")
    return path
