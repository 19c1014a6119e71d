# SPDX-License-Identifier: Apache-2.0
"""The requests of which the stories are made, and what is made to fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lab.life_cycles.cloud import Cloud
from lab.life_cycles.play import Step

__all__ = [
    "FULL",
    "IMAGE_2",
    "IMAGE_3",
    "VD",
    "act",
    "attach",
    "base",
    "both",
    "cannot_grow",
    "cannot_save",
    "configure",
    "deploy",
    "fails",
    "hidden",
    "image",
    "migrate",
    "op",
    "recover",
    "refuses",
    "vm",
]

Request = tuple[Any, ...]
Trouble = Callable[[Cloud], object]

IMAGE_2, IMAGE_3 = 'IMAGE_ID="2"', 'IMAGE_ID="3"'
FULL = """
DISK=[IMAGE_ID="1"]
DISK=[IMAGE_ID="2"]
DISK=[TYPE="fs",SIZE="16",FORMAT="raw",FS="ext4",TARGET="vdk"]
DISK=[TYPE="swap",SIZE="16",TARGET="vdl"]
DISK=[IMAGE_ID="4"]
CONTEXT=[NETWORK="NO",ROLE="db"]
"""
VD = 'DEV_PREFIX="vd"\n'


def op(
    name: str,
    *requests: Request,
    trouble: Trouble | None = None,
    own_words: bool = False,
    misses_disks: bool = False,
    **next_ids: int,
) -> Step:
    """Make a recorded operation."""
    return Step(requests, name, next_ids, trouble, own_words, misses_disks)


def hidden(*requests: Request, trouble: Trouble | None = None, **next_ids: int) -> Step:
    """Make requests that were not recorded but have to happen."""
    return Step(requests, "", next_ids, trouble)


def refuses(what: str, volume: str) -> Trouble:
    """Let the array refuse (see System.refuse)."""
    return lambda cloud: cloud.refuse(what, volume)


def fails(action: str, text: str) -> Trouble:
    """Let the hypervisor fail."""
    return lambda cloud: cloud.guests.failing.update({action: text})


def both(*troubles: Trouble) -> Trouble:
    """Let several things go wrong."""

    def begin(cloud: Cloud) -> None:
        for trouble in troubles:
            trouble(cloud)

    return begin


def cannot_grow(volume: str, file: str) -> Trouble:
    """Let a volatile disk not grow, be it a volume or a file below the datastores."""

    def begin(cloud: Cloud) -> None:
        if cloud.system_datastore == "block":
            cloud.refuse("grow", volume)
        else:
            cloud.hide(file)

    return begin


def cannot_save(volume: str) -> Trouble:
    """Let the array not copy to a volume that it has just made."""

    def begin(cloud: Cloud) -> None:
        if cloud.system == "iscsi":
            cloud.refuse("create", f"{volume}.new")  # the new contents, before they are exchanged
        else:
            cloud.refuse("copy", volume)

    return begin


def image(name: str, kind: str = "OS", datastore: int = 100, extra: str = "", file: str = "os") -> Request:
    origin = 'SIZE="4"' if kind == "DATABLOCK" else f'PATH="{{files}}/{file}.raw"'
    return ("one.image.allocate", f'NAME="{name}"\nTYPE="{kind}"\n{origin}\n{extra}', datastore, True)


def vm(name: str, disks: str = FULL) -> Request:
    return ("one.vm.allocate", f'NAME="{name}"\nCPU="0.1"\nMEMORY="64"\n{disks}', True)


def act(name: str, number: int) -> Request:
    return ("one.vm.action", name, number)


def deploy(number: int, host: int = 0, datastore: int = 103) -> Request:
    return ("one.vm.deploy", number, host, False, datastore, "")


def migrate(number: int, host: int, live: bool = False, datastore: int = -1, kind: int = 0) -> Request:
    return ("one.vm.migrate", number, host, live, False, datastore, kind)


def attach(number: int, disk: str) -> Request:
    return ("one.vm.attach", number, f"DISK=[{disk}]")


def recover(number: int, operation: int) -> Request:
    return ("one.vm.recover", number, operation)


def configure(number: int, config: str) -> Request:
    return ("one.vm.updateconf", number, f"BACKUP_CONFIG=[{config}]")


def base(*, with_spare: bool = False) -> tuple[Step, ...]:
    """Make the record's images 1 (system), 2 (persistent) and 4 (CD-ROM), and 3 (spare) if wanted."""
    steps = [
        hidden(image("os", extra=VD + 'DRIVER="raw"'), IMAGE=1),
        hidden(image("dbp", "DATABLOCK", extra=VD + 'PERSISTENT="YES"'), IMAGE=2),
    ]
    if with_spare:
        steps.append(hidden(image("dbn", "DATABLOCK"), IMAGE=3))
    return (*steps, hidden(image("cd", "CDROM", file="cd"), IMAGE=4))
