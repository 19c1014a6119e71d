# SPDX-License-Identifier: Apache-2.0
"""The lab's machines for a person: ``python -m lab.vm --help``, or ``make lab ARGS=...``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lab.prepare import cache, path_with_sbin
from lab.vm.errors import VMError
from lab.vm.image import build_image
from lab.vm.lab import STATE, Lab

COMMAND = "make lab ARGS="


def running() -> Path:
    """Return where the lab that a person brought up keeps its disks and its state."""
    return cache() / "vm" / "running"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lab.vm",
        description="Virtual machines with a real kernel: arrays (LVM, tgtd) and hosts (open-iscsi) "
        "that share two storage networks. They go on in the background until 'down'.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, function: Callable[[argparse.Namespace], int], words: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=words, description=words)
        command.set_defaults(function=function)
        return command

    up_parser = add("up", up, "build the image if need be, boot all machines, say how to get in")
    up_parser.add_argument("--arrays", type=int, choices=(1, 2), default=1)
    up_parser.add_argument("--hosts", type=int, choices=range(1, 5), default=2)
    add("status", status, "say which machines run, and where they are")
    ssh_parser = add("ssh", ssh, "log in to a machine, or run a command there")
    ssh_parser.add_argument("--user", default="root", choices=("root", "oneadmin"))
    ssh_parser.add_argument("name")
    ssh_parser.add_argument("words", nargs=argparse.REMAINDER, metavar="command")
    for name, function, words in (
        ("cut", cut, "take a machine's power away"),
        ("boot", boot, "give it power again"),
    ):
        add(name, function, words).add_argument("name")
    for name, function, words in (
        ("lose", lose, "cut the cable of a host in storage network 1 or 2"),
        ("restore", restore, "mend it"),
    ):
        path_parser = add(name, function, words)
        path_parser.add_argument("host")
        path_parser.add_argument("network", type=int, choices=(1, 2))
        path_parser.add_argument("--array", default="array1")
    add("down", down, "end all machines and remove their disks")
    add("build", build, "build the image and end")
    return parser


def up(options: argparse.Namespace) -> int:
    build_image(say)
    if (running() / STATE).exists():
        lab = Lab.open(running())
        if any(machine.is_running for machine in lab.machines.values()):
            print("The lab is up already.\n")
            show(lab)
            return 0
        lab.stop()
    shutil.rmtree(running(), ignore_errors=True)
    started = time.monotonic()
    count = options.arrays + options.hosts
    say(f"Booting {count} machines in software emulation, about {10 * count} seconds ...")
    lab = Lab(running(), options.arrays, options.hosts, stays=True)
    lab.start()
    lab.close()
    print(f"Up after {time.monotonic() - started:.0f} s.\n")
    show(lab)
    return 0


def show(lab: Lab) -> None:
    print(f"{'machine':<10}{'state':<12}{'initiator or portals':<44}console")
    for name, machine in lab.machines.items():
        state = "running" if machine.is_running else "no power"
        portals = " ".join(lab.arrays[name].portals) if name in lab.arrays else machine.initiator
        print(f"{name:<10}{state:<12}{portals:<44}{machine.qemu.console}")
    host = next(iter(lab.hosts))
    portal = lab.array.portals[0]
    print(
        f"\nType next:\n"
        f"  {COMMAND}'ssh array1'                      a shell as root; targets: tgtadm, volumes: lvs\n"
        f"  {COMMAND}'ssh {host} iscsiadm -m discovery -t sendtargets -p {portal}'\n"
        f"  {COMMAND}'lose {host} 1'                    cut a path; restore mends it\n"
        f"  {COMMAND}'cut array1'                      its power fails; boot brings it back\n"
        f"  {COMMAND}down                              end all machines\n"
        f"As the drivers do, as oneadmin:  ssh -F {lab.ssh_config} {host}"
    )


def status(options: argparse.Namespace) -> int:
    show(Lab.open(running()))
    return 0


def ssh(options: argparse.Namespace) -> int:
    lab = Lab.open(running())
    machine(lab, options.name)
    config = lab.root_ssh_config if options.user == "root" else lab.ssh_config
    argv = ["ssh", "-F", str(config), options.name, *options.words]
    os.execvp(argv[0], argv)


def machine(lab: Lab, name: str) -> str:
    if name not in lab.machines:
        raise VMError(f"There is no machine {name}; there are {', '.join(lab.machines)}.")
    return name


def cut(options: argparse.Namespace) -> int:
    lab = Lab.open(running())
    lab.machines[machine(lab, options.name)].power_cut()
    lab.close()
    return 0


def boot(options: argparse.Namespace) -> int:
    lab = Lab.open(running())
    lab.machines[machine(lab, options.name)].boot()
    lab.close()
    return 0


def lose(options: argparse.Namespace) -> int:
    lab = Lab.open(running())
    lab.lose_path(options.host, options.network, options.array)
    lab.close()
    return 0


def restore(options: argparse.Namespace) -> int:
    lab = Lab.open(running())
    lab.restore_path(options.host, options.network, options.array)
    lab.close()
    return 0


def down(options: argparse.Namespace) -> int:
    if (running() / STATE).exists():
        Lab.open(running()).stop()
        print("The lab is down.")
    else:
        print("The lab is not up.")
    shutil.rmtree(running(), ignore_errors=True)
    return 0


def build(options: argparse.Namespace) -> int:
    image = build_image(say)
    print(image.disk)
    return 0


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> int:
    os.environ["PATH"] = path_with_sbin()
    parser = arguments()
    options = parser.parse_args(sys.argv[1:] or ["up"])
    try:
        return int(options.function(options))
    except VMError as err:
        print(err, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
