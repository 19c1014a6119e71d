# SPDX-License-Identifier: Apache-2.0
"""Images from paths and URLs: what is taken, what is refused, and how large they are said to be."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sanstone.actions import imports
from sanstone.errors import (
    CapacityError,
    DataSafetyError,
    NotFoundError,
    NotSupportedError,
    RequestError,
    SanstoneError,
)
from sanstone.model import MIB
from sanstone.settings import ConfigFile, Settings, resolve


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "sanstone.conf"
    path.write_text(f"[v7000]\nCONNECT_TIMEOUT = 2\nSTAGING_DIR = {tmp_path}\n")
    path.chmod(0o600)
    return resolve("v7000", ConfigFile.read(path), datastore={"MGMT": "box", "SAFE_DIRS": str(tmp_path)})


class Web:
    """An HTTP server: bodies by path; it may know no ranges, tell no length, redirect, or break off."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.knows_ranges = True
        self.tells_length = True
        self.packs = False
        self.stalls = threading.Event()
        self.stalls.set()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}{path}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        if request.path in self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects[request.path])
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        body = self.bodies.get(request.path)
        if body is None:
            request.send_error(404)
            return
        if self.packs and "gzip" in request.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body)
            request.send_response(200)
            request.send_header("Content-Encoding", "gzip")
        elif self.knows_ranges and request.headers.get("Range"):
            request.send_response(206)
            request.send_header("Content-Range", f"bytes 0-511/{len(body)}")
            body = body[:512]
        else:
            request.send_response(200)
        if self.tells_length:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        self.stalls.wait(10)
        request.wfile.write(body)


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    web.thread.start()
    yield web
    web.stalls.set()
    web.server.shutdown()
    web.thread.join()
    web.server.server_close()


def qcow2(size: int, *, backing: int = 0, features: int = 0) -> bytes:
    head = b"QFI\xfb" + struct.pack(">IQIIQ", 3, backing, 0, 16, size)
    return (head + bytes(40) + struct.pack(">Q", features)).ljust(1024, b"\0")


HEADS = {
    "qcow2": qcow2(7 * MIB),
    "vmdk": b"KDMV" + struct.pack("<IIQ", 1, 3, 7 * MIB // 512),
    "vdi": bytes(64) + b"\x7f\x10\xda\xbe" + bytes(300) + struct.pack("<Q", 7 * MIB),
    "vhd": b"conectix" + bytes(40) + struct.pack(">Q", 7 * MIB),
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_url_is_as_large_as_the_disk_in_it(
    web: Web, settings: Settings, kind: str, knows_ranges: bool
) -> None:
    web.knows_ranges = knows_ranges
    web.bodies["/image"] = HEADS[kind].ljust(2048, b"\0")
    assert imports.size_of(web.url("/image"), settings) == 7 * MIB


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_raw_image_is_as_large_as_its_file_also_behind_a_redirect(
    web: Web, settings: Settings, knows_ranges: bool
) -> None:
    web.knows_ranges = knows_ranges
    web.bodies["/there"] = bytes(3 * MIB + 5)
    web.redirects["/here"] = web.url("/there")
    assert imports.size_of(web.url("/here"), settings) == 3 * MIB + 5


def test_the_size_is_not_that_of_what_a_server_packs_for_the_way(web: Web, settings: Settings) -> None:
    web.packs = True
    web.bodies["/image"] = bytes(3 * MIB)
    assert imports.size_of(web.url("/image"), settings) == 3 * MIB


def test_a_small_file_is_read_whole(web: Web, settings: Settings) -> None:
    web.knows_ranges = False
    web.bodies["/image"] = b"x" * 100
    assert imports.size_of(web.url("/image"), settings) == 100


def test_a_vhdx_by_url_is_refused_with_what_to_do(web: Web, settings: Settings) -> None:
    web.bodies["/image"] = b"vhdxfile".ljust(2048, b"\0")
    with pytest.raises(RequestError) as caught:
        imports.size_of(web.url("/image"), settings)
    assert "qemu-img convert" in caught.value.hint


def test_a_server_that_tells_no_length_is_named(web: Web, settings: Settings) -> None:
    web.knows_ranges = web.tells_length = False
    web.bodies["/image"] = bytes(1024)
    with pytest.raises(RequestError, match="does not tell how large"):
        imports.size_of(web.url("/image"), settings)


def test_an_error_says_what_the_server_answered_and_no_credentials(web: Web, settings: Settings) -> None:
    url = web.url("/none?token=abc").replace("http://", "http://user:pass-word@")
    with pytest.raises(NotFoundError, match="the server answers 404") as caught:
        imports.size_of(url, settings)
    assert "pass-word" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_a_server_that_stops_talking_is_given_up(web: Web, settings: Settings) -> None:
    web.bodies["/image"] = bytes(4096)
    web.stalls.clear()
    with pytest.raises(NotFoundError, match="cannot be read"):
        imports.size_of(web.url("/image"), settings)


@pytest.mark.parametrize(
    ("pack", "kind"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")]
)
def test_a_packed_image_is_refused_and_not_taken_for_a_raw_disk(
    web: Web, settings: Settings, tmp_path: Path, pack: Callable[[bytes], bytes], kind: str
) -> None:
    packed = pack(os.urandom(2048))
    web.bodies["/image"] = packed
    (tmp_path / "image").write_bytes(packed)
    for path in (web.url("/image"), str(tmp_path / "image")):
        with pytest.raises(NotSupportedError, match=rf"packed \({kind}\)"):
            imports.size_of(path, settings)


@pytest.mark.parametrize("path", ["ftp://host/a", "file:///etc/passwd", "ssh://host:/a", "rbd://pool/a"])
def test_other_schemes_are_refused_by_name(settings: Settings, path: str) -> None:
    with pytest.raises(NotSupportedError, match=f"not from {path.partition(':')[0]}"):
        imports.size_of(path, settings)


@pytest.mark.parametrize("path", ["http://[bad", "http://", "http:///x", "http://a b/", "image.raw", ""])
def test_what_is_no_path_and_no_url_is_refused_without_a_trace(settings: Settings, path: str) -> None:
    with pytest.raises(SanstoneError):
        imports.size_of(path, settings)


def test_a_qcow2_that_names_another_file_is_refused_before_anything_opens_it(
    settings: Settings, tmp_path: Path
) -> None:
    for name, image in (("a", qcow2(MIB, backing=512)), ("b", qcow2(MIB, features=4))):
        (tmp_path / name).write_bytes(image)
        with pytest.raises(DataSafetyError, match="refers to another file"):
            imports.size_of(str(tmp_path / name), settings)


@pytest.mark.real("qemu-img")
def test_a_vmdk_whose_extents_are_other_files_is_refused(settings: Settings, tmp_path: Path) -> None:
    image = tmp_path / "image.vmdk"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", str(image), "1M"],
        check=True,
        timeout=30,
    )
    with pytest.raises(DataSafetyError, match="refers to another file"):
        imports.size_of(str(image), settings)


@pytest.mark.real("qemu-img")
def test_a_download_is_removed_and_one_that_was_killed_is_removed_by_the_next(
    web: Web, settings: Settings, tmp_path: Path
) -> None:
    left = tmp_path / "sanstone-scratch-left"
    left.mkdir()
    (left / "image").write_bytes(bytes(100))
    os.utime(left, (0, 0))
    fresh = tmp_path / "sanstone-scratch-fresh"
    fresh.mkdir()
    web.bodies["/image"] = bytes(4096)
    with imports.fetch(web.url("/image"), {}, settings) as file:
        assert file.size == 4096
        folder = file.path.parent
        os.utime(folder, (0, 0))
        imports._remove_left_folders(tmp_path)
        assert file.path.exists()
    assert not folder.exists()
    assert not left.exists()
    assert fresh.exists()


def test_a_download_that_does_not_fit_is_a_matter_of_room(
    web: Web, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.bodies["/image"] = bytes(2 * MIB)
    folder = Path(settings.text("STAGING_DIR"))
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=MIB))
    with (
        pytest.raises(CapacityError, match="has 1 MiB free, the download needs 2 MiB"),
        imports.fetch(web.url("/image"), {}, settings),
    ):
        pass
    assert list(folder.glob("sanstone-*")) == []
