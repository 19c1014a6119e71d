# SPDX-License-Identifier: Apache-2.0
"""Run one box by itself: ``python -m lab.v7000 --help``."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from lab.sshd import User
from lab.v7000.box import FIRMWARE, Box, BoxConfig

UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def size(text: str) -> int:
    """Read bytes with an optional unit letter: ``100G``."""
    unit = UNITS.get(text[-1:].upper(), 1)
    number = text if unit == 1 else text[:-1]
    if not number.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 100G")
    return int(number) * unit


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return name, value


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form ADDRESS:PORT")
    return host, int(port)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lab.v7000", description="A simulated IBM Storwize V7000."
    )
    parser.add_argument("--name", default="v7000-a")
    parser.add_argument("--listen", type=address, default=("127.0.0.1", 0), metavar="ADDRESS:PORT")
    parser.add_argument(
        "--directory", type=Path, help="where volumes live; without it there is no data plane"
    )
    parser.add_argument(
        "--portal", action="append", metavar="ADDRESS", help="where a node listens for iSCSI; give two"
    )
    parser.add_argument("--pool", type=pair, action="append", default=[], metavar="NAME=SIZE")
    parser.add_argument("--data-reduction", action="append", default=[], metavar="POOL")
    parser.add_argument("--host", type=pair, action="append", default=[], metavar="NAME=IQN")
    parser.add_argument("--user", default="superuser")
    parser.add_argument("--password-file", type=Path)
    parser.add_argument("--authorized-key", type=Path, action="append", default=[])
    parser.add_argument("--firmware", default=FIRMWARE)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds per command")
    parser.add_argument("--handshake-latency", type=float, default=0.0, help="seconds per connection")
    parser.add_argument("--session-limit", type=int)
    parser.add_argument("--copy-speed", type=float, default=1.0, help="factor on FlashCopy copy rates")
    parser.add_argument("--journal", type=Path, help="file for one JSON object per connection and command")
    return parser


def config(options: argparse.Namespace) -> BoxConfig:
    keys = tuple(line for file in options.authorized_key for line in file.read_text().splitlines() if line)
    password = options.password_file.read_text().rstrip("\n") if options.password_file else None
    pools = {name: size(value) for name, value in options.pool} or {"mdiskgrp0": size("100G")}
    return BoxConfig(
        name=options.name,
        pools=pools,
        data_reduction=frozenset(options.data_reduction),
        firmware=options.firmware,
        users={options.user: User(password, keys)},
        listen=options.listen,
        latency=options.latency,
        handshake_latency=options.handshake_latency,
        session_limit=options.session_limit,
        data_plane=options.directory is not None,
        directory=options.directory,
        addresses=tuple(options.portal) if options.portal else None,
        copy_speed=options.copy_speed,
        journal=options.journal,
    )


def main() -> int:
    parser = arguments()
    options = parser.parse_args()
    if not (options.password_file or options.authorized_key):
        parser.error("give --password-file or --authorized-key: nobody could log in")
    if options.portal and len(options.portal) != 2:
        parser.error("give --portal twice, once for each node")
    signals = {signal.SIGINT, signal.SIGTERM}
    # every thread made from here on leaves these signals to sigwait below
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    with Box(config(options)) as box:
        for name, iqn in options.host:
            box.add_host(name, iqn)
        print(f"{options.name}: ssh -p {box.ssh_port} {options.user}@{box.ssh_host}")
        print(f"host key: {box.known_hosts_line(f'[{box.ssh_host}]:{box.ssh_port}')}")
        if options.directory is not None:
            for target, portal in zip(box.targets, box.portals, strict=True):
                print(f"target {target} at {portal}")
        sys.stdout.flush()
        signal.sigwait(signals)
    return 0


if __name__ == "__main__":
    sys.exit(main())
