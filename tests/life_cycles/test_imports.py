# SPDX-License-Identifier: Apache-2.0
"""From where images may be imported, and that they arrive undamaged: directories, checksums, HTTP."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.life_cycles.cloud import MIB, PROGRAMS, Cloud, RefusedError, written_file

pytestmark = pytest.mark.real(*PROGRAMS)

CONTENT = os.urandom(4 * MIB)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def web(cloud: Cloud) -> Iterator[str]:
    """The address at which ``cloud.files`` is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(cloud.files)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_image_comes_from_a_web_server_with_its_checksum(cloud: Cloud, web: str) -> None:
    written_file(cloud.files / "disk.raw", CONTENT)
    image = cloud.image(PATH=f"{web}/disk.raw", SHA1=hashlib.sha1(CONTENT).hexdigest())
    assert cloud.stored(f"one-{image}") == CONTENT
    damaged = cloud.image(PATH=f"{web}/disk.raw", MD5="0" * 32, SIZE=4, state="ERROR")
    assert "MD5" in cloud.image_error(damaged)
    missing = cloud.image(PATH=f"{web}/missing?token=s3cret", SIZE=4, state="ERROR")
    assert "/missing cannot be read" in cloud.image_error(missing)
    assert "s3cret" not in "".join(call.stderr for call in cloud.oned.calls)
    cloud.assert_array({f"one-{image}"})
    cloud.delete(image, damaged, missing)


def test_right_checksums_are_taken_and_wrong_ones_refused(cloud: Cloud) -> None:
    path = written_file(cloud.files / "disk.raw", CONTENT)
    right = cloud.image(
        PATH=path, MD5=hashlib.md5(CONTENT).hexdigest(), SHA1=hashlib.sha1(CONTENT).hexdigest().upper()
    )
    assert cloud.stored(f"one-{right}") == CONTENT
    wrong = cloud.image(PATH=path, SHA1=hashlib.sha1(b"").hexdigest(), SIZE=4, state="ERROR")
    assert "SHA1 of disk.raw is" in cloud.image_error(wrong)
    cloud.assert_array({f"one-{right}"})
    cloud.delete(right, wrong)


def test_restricted_directories_are_not_read_not_even_by_a_link(cloud: Cloud) -> None:
    closed = cloud.files / "closed"
    (closed / "open").mkdir(parents=True)
    datastore = cloud.datastore("restricted", RESTRICTED_DIRS=str(closed), SAFE_DIRS=str(closed / "open"))
    hidden = written_file(closed / "disk.raw", CONTENT)
    link = cloud.files / "link.raw"
    link.symlink_to(hidden)
    around = closed / "open" / ".." / "disk.raw"
    home = written_file(cloud.directory / "home.raw", CONTENT)
    etc = Path("/etc/one/oned.conf")
    images = [
        cloud.image(PATH=path, SIZE=4, datastore=datastore, state="ERROR")
        for path in (hidden, link, around, home)
    ]
    for image in images:
        assert "Not allowed to copy image file" in cloud.image_error(image)
    with pytest.raises(RefusedError, match=r"Not allowed|no image file"):
        cloud.image(PATH=etc, datastore=datastore)
    with pytest.raises(RefusedError, match="Not allowed"):
        cloud.image(PATH=hidden, datastore=datastore)
    allowed = cloud.image(PATH=written_file(closed / "open" / "disk.raw", CONTENT), datastore=datastore)
    assert cloud.stored(f"one-{allowed}") == CONTENT
    cloud.delete(*images, allowed)


def test_a_file_that_is_no_image_of_the_size_it_claims_is_still_a_raw_disk(cloud: Cloud) -> None:
    text = written_file(cloud.files / "notes.txt", b"not an image at all\n")
    image = cloud.image(PATH=text)
    assert cloud.stored(f"one-{image}").rstrip(b"\0") == b"not an image at all\n"
    cloud.delete(image)
