# SPDX-License-Identifier: Apache-2.0
"""``make soak``: random operations by eight users at once with random faults, and all compared in the end."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lab.killing.compare import Finding, compare
from lab.killing.world import SYSTEMS, World
from lab.soak.faults import Faults
from lab.soak.guests import Guests
from lab.soak.users import User

_SETTINGS = {
    "v7000": {"CONNECT_TIMEOUT": "5", "COMMAND_TIMEOUT": "20", "SESSION_TIMEOUT": "60"},
    "iscsi": {"CONNECT_TIMEOUT": "5", "COMMAND_TIMEOUT": "60"},
}
"""Deadlines by driver: a connection that is lost has to be noticed soon."""
_ROUNDS = 6
"""How often users look after what is left, and datastores are monitored, when nothing goes wrong any more."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    seed = options.seed if options.seed is not None else int(time.time())
    print(
        f"SEED={seed}: {options.operations} operations, {options.users} users, {options.system}", flush=True
    )
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sanstone-soak-") as folder:
        patient = {"settings": _SETTINGS[options.system]}
        with World(Path(folder) / "world", options.system, seed=seed, **patient) as world:
            findings, done, faults = soak(world, options.operations, options.users, seed, options.pause)
            failures = Counter(
                f"{call.kind}/{call.action}" for call in world.oned.calls if call.rc and call.kind != "vmm"
            )
            calls = len(world.oned.calls)
            history = _history(world, findings)
    _say("operations", done)
    _say("faults", faults)
    _say(f"failures told to oned, of {calls} calls", failures)
    for line in (*map(str, findings), *history):
        print(line)
    kinds = Counter(finding.kind for finding in findings)
    print(f"{time.monotonic() - started:.0f} s; once more: make soak N={options.operations} SEED={seed}")
    found = f"{kinds['leak']} leaks, {kinds['lost']} lost bytes, {kinds['wrong']} wrong disks"
    print(f"{options.operations} operations, {found}")
    return 1 if findings else 0


def soak(
    world: World, operations: int, users: int, seed: int, pause: float
) -> tuple[list[Finding], Counter[str], Counter[str]]:
    """Let users act until there were enough operations; findings, operations and faults by name."""
    faults = Faults(world, seed, pause)
    guests = Guests(world)
    guests.start()
    everybody = [User(world, faults, seed * 1000 + number) for number in range(users)]
    left = [operations]
    lock = threading.Lock()
    broken: list[str] = []

    def work(user: User) -> None:
        try:
            while not broken:
                with lock:
                    if not left[0]:
                        return
                    left[0] -= 1
                user.act()
        except Exception:
            broken.append(traceback.format_exc())

    threads = [
        threading.Thread(target=work, args=(user,), name=f"user-{n}") for n, user in enumerate(everybody)
    ]
    if pause:
        faults.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if pause:
        faults.stop()
    world.oned.wait_idle(600)
    if broken:
        guests.stop()
        return [Finding("leak", f"the soak itself failed: {broken[0]}")], Counter(), faults.counts
    findings = _put_in_order(world, everybody)
    guests.stop()
    done: Counter[str] = Counter()
    for user in everybody:
        done.update(user.done)
    return findings, done, faults.counts


def _put_in_order(world: World, everybody: Sequence[User]) -> list[Finding]:
    """Let users recover and delete what failed and the datastores be monitored; then compare."""
    for host in world.scene.hosts.values():
        host.boot()
    for _ in range(_ROUNDS):
        for user in everybody:
            user.look_after(is_patient=True)
        world.oned.wait_idle(600)
        world.monitor()
        if not world.unfinished():
            break
    # a guest that starts while its host loses power or its paths finds no disk, which is not a wrong one
    passing = ("leads nowhere", "cannot be read")
    world.guests.wrong = [text for text in world.guests.wrong if not any(word in text for word in passing)]
    _drop_directories(world)
    findings = compare(world)
    if not findings:
        world.clear()
        world.monitor()
        findings = compare(world)
    return findings


def _drop_directories(world: World) -> None:
    """Remove what is left of VMs that were given up while their host was down, as an administrator does.

    Nobody could reach it there then, and OpenNebula asks only once.
    """
    there = {str(vm.id) for vm in world.vms()}
    for folder in (world.cloud / "datastores").glob("*/*"):
        if folder.name not in there:
            shutil.rmtree(folder)


def _history(world: World, findings: Sequence[Finding]) -> list[str]:
    """List what drivers were asked about the VMs of findings, and what they answered: why it is so."""
    named = re.compile(r"VM (\d+)|one-\d+-(\d+)-\d|\b\d+/(\d+)/disk")
    numbers = {next(filter(None, hit)) for each in findings for hit in named.findall(each.text)}
    monitored = [call.stderr for call in world.oned.calls if call.action == "monitor" and call.stderr.strip()]
    lines = [f"monitoring: {' '.join(said.split())}" for said in monitored[-2:]]
    for number in sorted(numbers, key=int):
        mine = re.compile(rf"/{number}(/|$)|^{number}$|^one-{number}$")
        for call in world.oned.calls:
            if any(mine.search(word) for word in call.argv):
                words = " ".join(word.rpartition("/datastores/")[2] for word in call.argv)
                said = " ".join(call.stderr.split())
                lines.append(f"VM {number}: {call.kind}/{call.action} {words}: {call.rc} {said}")
    return lines


def _say(what: str, counts: Counter[str]) -> None:
    print(f"{what}: " + (", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"))


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lab.soak", description=__doc__)
    parser.add_argument("-n", "--operations", type=int, default=500, help="how many (default: 500)")
    parser.add_argument("--seed", type=int, help="of all that is random (default: another one each time)")
    parser.add_argument("--users", type=int, default=8, help="threads (default: 8)")
    parser.add_argument("--system", choices=SYSTEMS, default=SYSTEMS[0])
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between faults, 0: no faults")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
