# SPDX-License-Identifier: Apache-2.0
"""A backup datastore driver that keeps files: ``backup_store.py STORE ACTION [ARGUMENT...]``.

It is what OpenNebula's own rsync driver is, without another machine: it takes what prebackup has made, tells
where it is (``ls``), brings it (``downloader.sh``), and joins increments.
"""

from __future__ import annotations

import base64
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

__all__ = ["install", "join", "main"]

_ACTIONS = ("monitor", "backup", "restore", "rm", "increment_flatten", "ls")
_SECONDS = 60.0


def install(remotes: Path, driver: str, store: Path) -> None:
    """Write the driver's actions, and the downloader, below ``remotes``; backups are kept in ``store``."""
    folder = remotes / "datastore" / driver
    folder.mkdir(parents=True)
    store.mkdir()
    for action, place in (*((each, folder) for each in _ACTIONS), ("downloader.sh", remotes / "datastore")):
        words = (sys.executable, str(Path(__file__).resolve()), str(store), action)
        script = place / action
        script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        script.chmod(0o755)


def main(argv: Sequence[str]) -> int:
    """Carry out an action."""
    store, action = Path(argv[1]), argv[2]
    if action == "downloader.sh":
        return _download(store, argv[-2], Path(argv[-1]))
    text = sys.stdin.read()
    if action == "monitor":
        print("USED_MB=100\nTOTAL_MB=100000\nFREE_MB=99900")
        return 0
    if action == "restore":
        print("1")  # the template that a person would get
        return 0
    if action == "backup":
        return _backup(store, *argv[3:5])
    if action != "ls":
        text = _decoded(text)
    document = ElementTree.fromstring(text)
    if action == "ls":
        return _list(store, document, int(argv[argv.index("-i") + 1]))
    if action == "increment_flatten":
        return _flatten(store, document)
    for source, _ in _increments(document):
        shutil.rmtree(store / source)
    return 0


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()


def _backup(store: Path, place: str, disks: str) -> int:
    failing = store / "failing"
    if failing.exists():
        print(failing.read_text(), file=sys.stderr)
        return 1
    made = Path(place.partition(":")[2]) / "backup"
    if not (made / "vm.xml").exists():
        print(f"there is no {made}/vm.xml", file=sys.stderr)
        return 1
    source = Path(tempfile.mkdtemp(prefix="bak-", dir=store)).name
    shutil.copytree(made, store / source, dirs_exist_ok=True)
    missing = [disk for disk in disks.split(":") if not list((store / source).glob(f"disk.{disk}.*"))]
    if missing:
        print(f"no file of disk {', '.join(missing)} in {made}", file=sys.stderr)
        return 1
    print(source, 16, "raw")
    return 0


def _increments(document: ElementTree.Element) -> list[tuple[str, int]]:
    """List sources and ids of a backup image's increments, of a full backup its only one."""
    image = document.find("IMAGE")
    assert image is not None
    found = [
        (each.findtext("SOURCE", ""), int(each.findtext("ID", "0")))
        for each in image.iterfind("BACKUP_INCREMENTS/INCREMENT")
    ]
    return found or [(image.findtext("SOURCE", ""), 0)]


def _list(store: Path, document: ElementTree.Element, increment: int) -> int:
    chain = _increments(document)
    if increment >= 0:
        chain = [each for each in chain if each[1] <= increment]
    disks = {path.name.split(".")[1] for path in (store / chain[-1][0]).glob("disk.*")}
    sources = ",".join(source for source, _ in chain)
    print(json.dumps({disk: f"lab://{sources}/{disk}" for disk in sorted(disks)}))
    return 0


def _download(store: Path, url: str, target: Path) -> int:
    sources, _, disk = url.removeprefix("lab://").partition("/")
    join(store, sources.split(","), disk, target)
    return 0


def join(store: Path, sources: Sequence[str], disk: str, target: Path, form: str = "qcow2") -> None:
    """Make one file of a disk's chain."""
    with tempfile.TemporaryDirectory(dir=store) as folder:
        top: Path | None = None
        for number, source in enumerate(sources):
            (file,) = (store / source).glob(f"disk.{disk}.*")
            copy = Path(folder, str(number))
            shutil.copyfile(file, copy)
            if top is not None:
                _run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", str(top), str(copy))
            top = copy
        _run("qemu-img", "convert", "-f", "qcow2", "-O", form, str(top), str(target))


def _flatten(store: Path, document: ElementTree.Element) -> int:
    """Join the first increments, so that KEEP_LAST are left; tell the new chain."""
    chain = _increments(document)
    keep = int(document.findtext("EXTRA_DATA/KEEP_LAST", "1"))
    joined, kept = chain[: len(chain) - keep + 1], chain[len(chain) - keep + 1 :]
    source, number = joined[-1][0], joined[-1][1]
    for file in list((store / source).glob("disk.*")):
        disk = file.name.split(".")[1]
        target = file.with_name("joined")
        join(store, [each for each, _ in joined], disk, target)
        target.replace(file)
    print(16, ",".join(f"{each}:{name}" for name, each in [(source, number), *kept]))
    return 0


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=_SECONDS, stdin=subprocess.DEVNULL, capture_output=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
