# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from sanstone.errors import RequestError
from sanstone.opennebula.paths import DiskPath


@pytest.mark.parametrize(
    ("text", "host", "directory", "ids"),
    [
        ("h1:/var/lib/one/datastores/103/5/disk.2", "h1", "/var/lib/one/datastores/103/5", (103, 5, 2)),
        ("node-3.example.com:/d/103/5", "node-3.example.com", "/d/103/5", (103, 5, None)),
        ("192.0.2.7:/d/103/5/", "192.0.2.7", "/d/103/5", (103, 5, None)),
        ("[2001:db8::7]:/d/0/0/disk.0", "2001:db8::7", "/d/0/0", (0, 0, 0)),
        ("2001:db8::7:/d/1/2/disk.3", "2001:db8::7", "/d/1/2", (1, 2, 3)),
        ("h1:/images/a:/b", "h1", "/images/a:/b", (None, None, None)),
        ("h1:/d/103/5/disk.0.old", "h1", "/d/103/5/disk.0.old", (None, None, None)),
    ],
)
def test_place_is_understood(text: str, host: str, directory: str, ids: tuple[int | None, ...]) -> None:
    place = DiskPath.parse(text)
    assert (place.host, place.directory) == (host, directory)
    assert (place.system_datastore_id, place.vm_id, place.disk_id) == ids


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h1",
        "h1:",
        "h1:relative",
        ":/a",
        "/a",
        "-h:/a",
        "h 1:/a",
        "h$1:/a",
        "u@h:/a",
        "h1.:/a",
        "[h1]:/a",
        "[::1:/a",
        "fe80::1%eth0;x:/a",
        "1:2:/a",
        "h" * 254 + ":/a",
        "h1:/a/../b",
        "h1:/a\0",
        "h1:/a\nb",
        "h1:/a\x1b[0m",
        "h1:/" + "a" * 4096,
    ],
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        DiskPath.parse(text)
