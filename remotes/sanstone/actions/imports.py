# SPDX-License-Identifier: Apache-2.0
"""Where an image comes from: a path on the front-end or a URL; allowed or not, how large, undamaged."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sanstone.errors import (
    ConfigurationError,
    DataSafetyError,
    DeadlineError,
    NotFoundError,
    NotSupportedError,
    RequestError,
)
from sanstone.settings import Settings
from sanstone.transport.command import Command, run
from sanstone.transport.waiting import Deadline

__all__ = ["ImageFile", "fetch", "size_of"]

log = logging.getLogger(__name__)

_ALWAYS_RESTRICTED = ("/etc/one", "/var/lib/one")
_CHUNK = 1 << 20
_QCOW2 = b"QFI\xfb"
_DIGEST = re.compile(r"[0-9a-fA-F]+")
_INSPECT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A disk image on the front-end: ``size`` bytes as a disk, ``data`` bytes allocated."""

    path: Path
    format: str
    size: int
    data: int


def size_of(path: str, settings: Settings) -> int:
    """Tell how many bytes the disk at ``path`` (a file or a URL) has, without fetching it.

    Raises: NotFoundError, DataSafetyError for a restricted directory, RequestError for what is no image.
    """
    if not _is_url(path):
        return inspect(allowed(path, settings)).size
    import requests

    deadline = settings.seconds("CONNECT_TIMEOUT")
    try:
        with requests.get(path, headers={"Range": "bytes=0-511"}, stream=True, timeout=deadline) as answer:
            answer.raise_for_status()
            head = answer.raw.read(512)
            whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
            length = whole if answer.status_code == 206 else answer.headers.get("Content-Length", "")
    except requests.RequestException as err:
        raise _unreachable(path, err) from err
    if head[:4] == _QCOW2 and len(head) >= 32:
        return int(struct.unpack(">Q", head[24:32])[0])
    if not length.isdigit():
        raise RequestError(
            f"The server does not tell how large {_shown(path)} is.", "Give SIZE, or download it first."
        )
    return int(length)


@contextmanager
def fetch(path: str, template: Mapping[str, str], settings: Settings) -> Iterator[ImageFile]:
    """Have the image at ``path`` (a file or a URL) as a file on the front-end, its checksum verified.

    A download is removed at the end.

    Raises: as ``size_of``; DataSafetyError when MD5 or SHA1 of the image's template do not match.
    """
    if _is_url(path):
        with tempfile.TemporaryDirectory(prefix="sanstone-", dir=_staging(settings)) as folder:
            target = Path(folder) / "image"
            _download(path, target, template, settings)
            yield inspect(target)
        return
    source = allowed(path, settings)
    _verify(source, template)
    yield inspect(source)


def allowed(path: str, settings: Settings) -> Path:
    """Resolve ``path`` and refuse directories that users must not read.

    As OpenNebula's own file system driver has it: SAFE_DIRS are let in, RESTRICTED_DIRS are not, and the
    directories with OpenNebula's configuration never are unless they are safe.
    """
    if not path.startswith("/"):
        raise RequestError(f"PATH {path!r} is neither an absolute path nor an http(s) URL.")
    try:
        source = Path(path).resolve(strict=True)
    except (OSError, RuntimeError) as err:
        raise NotFoundError(f"There is no image file {path!r} on the front-end.") from err
    restricted = (*settings.words("RESTRICTED_DIRS"), *_ALWAYS_RESTRICTED, str(Path.home()))
    if _is_under(source, restricted) and not _is_under(source, settings.words("SAFE_DIRS")):
        raise DataSafetyError(
            "Not allowed to copy image file.",
            f"{source.parent} is restricted: use a directory of SAFE_DIRS, or change RESTRICTED_DIRS.",
        )
    if not source.is_file():
        raise NotFoundError(f"{path!r} on the front-end is not a file.")
    return source


def inspect(path: Path) -> ImageFile:
    """Read what kind of image a file is.

    Raises: DataSafetyError for an image that refers to other files, which could be anybody's.
    """
    command = Command.of(["qemu-img", "info", "--output=json", "--", str(path)], deadline=_INSPECT_SECONDS)
    found = json.loads(run(command).stdout)
    specific = found.get("format-specific", {}).get("data", {})
    if found.get("backing-filename") or specific.get("data-file"):
        raise DataSafetyError(
            f"The image {path.name} refers to another file, which is not copied.",
            "Convert it to an image that stands alone: qemu-img convert -O qcow2.",
        )
    return ImageFile(path, found["format"], found["virtual-size"], found["actual-size"])


def _is_url(path: str) -> bool:
    scheme = urlsplit(path).scheme if "://" in path else ""
    if scheme and scheme not in ("http", "https"):
        raise NotSupportedError(f"Images come from a path, http or https, not from {scheme}.")
    return bool(scheme)


def _is_under(path: Path, folders: tuple[str, ...]) -> bool:
    return any(path.is_relative_to(Path(folder).resolve()) for folder in folders)


def _staging(settings: Settings) -> Path:
    folder = settings.path("STAGING_DIR")
    if not folder.is_dir():
        raise ConfigurationError(
            f"STAGING_DIR={folder} is not a directory of the front-end.",
            "Make it, writable for the user that runs oned.",
        )
    return folder


def _download(url: str, target: Path, template: Mapping[str, str], settings: Settings) -> None:
    import requests

    deadline = Deadline(settings.seconds("COPY_TIMEOUT"))
    check = _Checksums(template)
    done, shown = 0, 0
    try:
        with (
            requests.get(url, stream=True, timeout=settings.seconds("CONNECT_TIMEOUT")) as answer,
            target.open("wb") as file,
        ):
            answer.raise_for_status()
            total = int(answer.headers.get("Content-Length") or 0)
            for chunk in answer.iter_content(_CHUNK):
                if deadline.is_over:
                    raise DeadlineError(f"Downloading {_shown(url)} took more than {deadline.seconds:.0f} s.")
                check.update(chunk)
                file.write(chunk)
                done += len(chunk)
                if total and done * 10 // total > shown:
                    shown = done * 10 // total
                    log.info("downloaded %d %% of %s", shown * 10, _shown(url))
    except requests.RequestException as err:
        raise _unreachable(url, err) from err
    if total and done < total:
        raise NotFoundError(f"{_shown(url)} ended after {done} of {total} bytes.", "Try again.")
    check.verify(_shown(url))


def _shown(url: str) -> str:
    """A URL without the credentials and parameters that it may carry."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{parts.path}"


def _unreachable(url: str, err: Exception) -> NotFoundError:
    return NotFoundError(
        f"{_shown(url)} cannot be read: {type(err).__name__}.",
        "See whether the front-end reaches that server.",
    )


def _verify(source: Path, template: Mapping[str, str]) -> None:
    check = _Checksums(template)
    if not check.wanted:
        return
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK):
            check.update(chunk)
    check.verify(source.name)


class _Checksums:
    """MD5 and SHA1 of an image's template, which oned's users give along with PATH."""

    def __init__(self, template: Mapping[str, str]) -> None:
        self.wanted = {
            kind: template[kind].strip().lower() for kind in ("MD5", "SHA1", "SHA256") if template.get(kind)
        }
        for kind, value in self.wanted.items():
            if not _DIGEST.fullmatch(value):
                raise RequestError(f"{kind} of the image is not a checksum in hexadecimal.")
        self._found = {kind: hashlib.new(kind.lower(), usedforsecurity=False) for kind in self.wanted}

    def update(self, chunk: bytes) -> None:
        for digest in self._found.values():
            digest.update(chunk)

    def verify(self, name: str) -> None:
        for kind, digest in self._found.items():
            if digest.hexdigest() != self.wanted[kind]:
                raise DataSafetyError(
                    f"{kind} of {name} is {digest.hexdigest()}, not {self.wanted[kind]}.",
                    "The file is damaged or another one: fetch it again, or correct the checksum.",
                )
