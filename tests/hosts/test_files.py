# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sanstone.errors import ConflictError, DataSafetyError, NotFoundError, RequestError
from sanstone.hosts.client import Host
from sanstone.hosts.ops import Link, LinkState, MovePath, Operation, PutFile, ReadLink, RemovePath, Result

if TYPE_CHECKING:
    from tests.hosts.conftest import FakeHost

WWID = "3600507680c80000a0000000000000011"

pytestmark = pytest.mark.real("python3", "sh")

Run = Callable[[Operation], Result]


@pytest.fixture
def run() -> Run:
    host = Host("node1", is_local=True)
    return lambda operation: host.run([operation], deadline=20)[0]


@pytest.mark.parametrize(
    "path", ["/", "/var", "/var/", "/var/lib", "/var/lib/one", "//var//lib", "/var/./lib/one"]
)
def test_what_is_near_the_root_is_never_removed(run: Run, path: str) -> None:
    with pytest.raises(DataSafetyError):
        run(RemovePath(path))


@pytest.mark.parametrize("path", ["", "relative/path/to/it", "/a/b/c/../../../etc", "/a/b/c/d\0", "."])
def test_what_is_no_plain_absolute_path_is_refused(run: Run, path: str) -> None:
    for operation in (RemovePath(path), MovePath(path, "/a/b/c/d"), Link(path, "/dev/null"), ReadLink(path)):
        with pytest.raises(RequestError):
            run(operation)


def test_removing_follows_no_link(run: Run, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(kept)
    link = tmp_path / "link"
    link.symlink_to(kept)

    run(RemovePath(str(folder)))
    run(RemovePath(str(link)))
    run(RemovePath(str(link)))

    assert (kept / "file").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_moving_again_is_success(run: Run, tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "new/b"
    source.write_text("x")

    run(MovePath(str(source), str(target)))
    run(MovePath(str(source), str(target)))

    assert target.read_text() == "x"
    with pytest.raises(NotFoundError):
        run(MovePath(str(source), str(tmp_path / "c")))


def test_moving_to_another_file_system_copies(run: Run, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no file system of its own here")
    source, target = tmp_path / "a", memory / tmp_path.name / "a"
    source.mkdir()
    (source / "file").write_text("x")
    (source / "link").symlink_to("file")
    try:
        run(MovePath(str(source), str(target)))
        assert (target / "file").read_text() == "x"
        assert (target / "link").is_symlink()
        assert not source.exists()
    finally:
        for path in (target / "file", target / "link"):
            path.unlink(missing_ok=True)
        for folder in (target, target.parent):
            if folder.is_dir():
                folder.rmdir()


def test_a_file_does_not_take_the_place_of_a_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    with pytest.raises(ConflictError):
        run(PutFile(str(tmp_path / "folder"), 0))
    with pytest.raises(ConflictError):
        run(Link(str(tmp_path / "folder"), "/dev/null"))

    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("target", "wwid"),
    [
        (f"/dev/mapper/{WWID}", WWID),
        (f"/dev/disk/by-id/dm-uuid-mpath-{WWID}", WWID),
        (f"/dev/disk/by-id/scsi-{WWID}", WWID),
        (f"/dev/disk/by-id/wwn-0x{WWID[1:]}", WWID),
        ("/dev/mapper/vg-root", None),
        (f"/srv/{WWID}", None),
        ("/srv/images/a.qcow2", None),
    ],
)
def test_a_link_tells_its_volume_by_name(
    host: FakeHost, tmp_path: Path, target: str, wwid: str | None
) -> None:
    full = f"{host.root}{target}" if target.startswith("/dev") else target
    (tmp_path / "disk.0").symlink_to(full)

    assert host.run(ReadLink(f"{tmp_path}/disk.0")) == [LinkState(full, wwid, True)]


def test_a_link_to_an_attached_device_tells_its_volume(host: FakeHost, tmp_path: Path) -> None:
    host.lun(1)
    name = host.attach(host.connection(host.portal())).paths[0].name
    for target in (name, "dm-0"):
        link = tmp_path / target
        link.symlink_to(host.root / "dev" / target)
        assert host.run(ReadLink(str(link))) == [LinkState(f"{host.root}/dev/{target}", WWID, True)]


def test_what_is_no_link_says_whether_it_is_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    assert run(ReadLink(f"{tmp_path}/file")) == LinkState(None, None, True)
    assert run(ReadLink(f"{tmp_path}/none")) == LinkState(None, None, False)
    assert run(ReadLink(f"{tmp_path}/file/below")) == LinkState(None, None, False)


def test_a_directory_is_moved_into_one_that_is_there_already(run: Run, tmp_path: Path) -> None:
    old, new = tmp_path / "101" / "7", tmp_path / "102" / "7"
    for folder in (old, new):
        folder.mkdir(parents=True)
    (old / "disk.0").symlink_to("/dev/mapper/old")
    (new / "disk.0").symlink_to("/dev/mapper/new")
    (old / "disk.2").write_bytes(b"volatile")
    (old / "deployment.0").write_bytes(b"later")
    (new / "deployment.0").write_bytes(b"earlier")
    for _ in range(2):
        run(MovePath(str(old), str(new)))
        assert not old.exists()
        assert str((new / "disk.0").readlink()) == "/dev/mapper/new"
        assert (new / "disk.2").read_bytes() == b"volatile"
        assert (new / "deployment.0").read_bytes() == b"later"


def test_a_file_does_not_take_the_place_of_a_directory(run: Run, tmp_path: Path) -> None:
    file, folder = tmp_path / "a" / "file", tmp_path / "a" / "folder"
    folder.mkdir(parents=True)
    file.write_bytes(b"x")
    with pytest.raises(ConflictError, match="which is there already"):
        run(MovePath(str(file), str(folder)))
    assert file.read_bytes() == b"x"
