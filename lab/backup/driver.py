#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A backup driver of OpenNebula that keeps the files on the front-end, and its downloader.

It does with them what the drivers of 7.4.0 do: takes what is in ``backup/``, keeps increments in a directory
each, and puts a chain together by ``qemu-img rebase -u``, in the order of the increments. All hosts of the
lab see the same directories, so that no file travels. ``install`` makes a program for each action.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ACTIONS = ("backup", "increment_flatten", "ls", "monitor", "rm")
DOWNLOADER = "downloader.sh"
_SECONDS = 120.0


def install(remotes: Path, name: str) -> None:
    """Let ``remotes`` have the driver under ``name``, and the downloader."""
    place = remotes / "datastore" / name
    place.mkdir(parents=True, exist_ok=True)
    for program in (*(place / action for action in ACTIONS), place.parent / DOWNLOADER):
        program.write_text(f"#!{sys.executable}\n{Path(__file__).read_text()}")
        program.chmod(0o755)


def qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, timeout=_SECONDS, stdout=subprocess.DEVNULL)


def chain(paths: list[Path]) -> None:
    for below, above in zip(paths, paths[1:], strict=False):  # noqa: RUF007 (of Python 3.9 too)
        qemu_img("rebase", "-u", "-F", "qcow2", "-b", below, above)


def text(element: ElementTree.Element, path: str) -> str:
    found = element.findtext(path)
    if found is None:
        sys.exit(f"the document has no {path}")
    return found


def backup(argv: list[str]) -> str:
    """``host:vm_dir disks deploy_id job vm ds``: print the id, the size in MB, and the format."""
    document = ElementTree.fromstring(sys.stdin.read())
    source = Path(argv[0].partition(":")[2], "backup")
    ElementTree.fromstring(base64.b64decode((source / "vm.xml").read_text()))
    if not list(source.glob("disk.*")):
        sys.exit("there are no disks in the backup")
    target = Path(tempfile.mkdtemp(dir=_made(Path(text(document, "DATASTORE/BASE_PATH"), argv[4]))))
    for path in source.iterdir():
        shutil.copy2(path, target)
    size = sum(path.stat().st_size for path in target.iterdir())
    return f"{target.name} {-(-size // 1024**2)} raw"


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def increments(image: ElementTree.Element) -> list[tuple[int, str]]:
    found = [(int(text(one, "ID")), text(one, "SOURCE")) for one in image.iter("INCREMENT")]
    return found or [(0, text(image, "SOURCE"))]


def ls(argv: list[str]) -> str:
    """``-i increment``: print where each disk is."""
    document = ElementTree.fromstring(sys.stdin.read())
    image = document.find("IMAGE")
    assert image is not None
    wanted = int(argv[1])
    links = [each for each in increments(image) if wanted in (-1,) or each[0] <= wanted]
    place = Path(text(document, "DATASTORE/BASE_PATH"), text(image, "VMS/ID"), links[-1][1])
    spelled = ",".join(f"{number}:{source}" for number, source in links)
    url = f"rsync://{text(document, 'DATASTORE/ID')}//{spelled}"
    found = {path.name.split(".")[1]: f"{url}{path}" for path in place.glob("disk.*")}
    return json.dumps(found)


def download(argv: list[str]) -> str:
    """``--nodecomp URL TARGET``: bring one disk, a chain merged."""
    _, url, target = argv
    found = re.fullmatch(r"rsync://\d+/\d*/([^/]+)(/.*)", url)
    if found is None or target == "-":
        sys.exit(f"{url} cannot be downloaded to {target}")
    links = [link.split(":") for link in found[1].split(",")]
    last = Path(found[2])
    disk = last.name.split(".")[1]
    paths = [last.parents[1] / source / f"disk.{disk}.{number}" for number, source in links]
    chain(paths)
    if len(paths) == 1:
        shutil.copyfile(paths[0], target)
    else:
        qemu_img("convert", "-O", "qcow2", paths[-1], target)
    return ""


def increment_flatten(argv: list[str]) -> str:
    """Merge the oldest increments by ``qemu-img commit``: print the size and the chain that is left."""
    document = ElementTree.fromstring(base64.b64decode(sys.stdin.read()))
    image = document.find("IMAGE")
    assert image is not None
    links, keep = increments(image), int(text(document, "EXTRA_DATA/KEEP_LAST"))
    merged = links[: len(links) - keep + 1]
    base = Path(text(document, "DATASTORE/BASE_PATH"), text(image, "VMS/ID"))
    last = base / merged[-1][1]
    for path in last.glob("disk.*"):
        disk = path.name.split(".")[1]
        paths = [base / source / f"disk.{disk}.{number}" for number, source in merged]
        chain(paths)
        qemu_img("commit", "-q", "-f", "qcow2", "-b", paths[0], paths[-1])
        paths[0].replace(paths[-1])
    for _, source in merged[:-1]:
        shutil.rmtree(base / source)
    size = sum(path.stat().st_size for path in last.glob("disk.*"))
    kept = [(merged[-1][0], merged[-1][1]), *links[len(merged) :]]
    return f"{-(-size // 1024**2)} {','.join(f'{number}:{source}' for number, source in kept)}"


def monitor(argv: list[str]) -> str:
    return "USED_MB=1\nTOTAL_MB=100000\nFREE_MB=99999"


def rm(argv: list[str]) -> str:
    document = ElementTree.fromstring(base64.b64decode(sys.stdin.read()))
    image = document.find("IMAGE")
    assert image is not None
    for _, source in increments(image):
        shutil.rmtree(Path(text(document, "DATASTORE/BASE_PATH"), text(image, "VMS/ID"), source))
    return ""


if __name__ == "__main__":
    name = Path(sys.argv[0]).name
    actions = {each.__name__: each for each in (backup, increment_flatten, ls, monitor, rm)}
    print(actions.get(name, download)(sys.argv[1:]))
