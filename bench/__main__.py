# SPDX-License-Identifier: Apache-2.0
"""``make bench``: every driver action against a quick and a slow simulated box, counted and timed."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.cost import Cost
from bench.lives import CROWDS, ROWS, Cloud, Fleet
from bench.starter import BenchError
from bench.table import Measured, as_json, render, verdict

LATENCY, HANDSHAKE = 0.08, 0.3


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    with tempfile.TemporaryDirectory(prefix="sanstone-bench-") as folder, Cloud(Path(folder)) as cloud:
        try:
            measured = measure(cloud, options.runs, options.at_once)
        except BenchError as err:
            print(err, file=sys.stderr)
            return 1
    print(
        f"{os.cpu_count()} CPUs, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}; medians "
        f"of {options.runs} runs.\nquick box: no latency; slow box: {LATENCY * 1000:.0f} ms a command, "
        f"{HANDSHAKE * 1000:.0f} ms a handshake, changing commands one after the other.\n"
    )
    print("\n".join(render(measured)))
    print(verdict(measured))
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(measured), indent=1) + "\n")
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("-n", "--runs", type=int, default=3, help="runs of every action (default: 3)")
    parser.add_argument("--at-once", type=int, default=16, help="how many at once (default: 16, 0: none)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run's figures to FILE")
    return parser.parse_args(argv)


def measure(cloud: Cloud, runs: int, crowd: int) -> Measured:
    """Go through everything ``runs`` times at either speed; one life before that is not counted.

    Raises: BenchError when an action fails.
    """
    _say("warming up")
    cloud.life()
    rows = []
    for name, latency, handshake in (("quick", 0.0, 0.0), ("slow", LATENCY, HANDSHAKE)):
        cloud.costs.clear()
        cloud.slow_down(latency, handshake)
        for run in range(runs):
            _say(f"{name} box, run {run + 1} of {runs}")
            cloud.life()
        rows.append({row: list(costs) for row, costs in cloud.costs.items()})
    quick, slow = rows
    cloud.slow_down(0.0, 0.0)
    crowds = _at_once(cloud, runs, crowd) if crowd else {}
    _say("")
    return Measured(runs, LATENCY, HANDSHAKE, {row: (quick[row], slow[row]) for row in ROWS.values()}, crowds)


def _at_once(cloud: Cloud, runs: int, count: int) -> dict[str, tuple[list[Cost], list[Cost]]]:
    """Attach and delete ``count`` disks together, ``runs`` times at either speed."""
    _say(f"{count} at once")
    fleet = Fleet(cloud, count)
    fleet.make()
    found: dict[str, tuple[list[Cost], list[Cost]]] = {
        f"{count} x {name} at once": ([], []) for name in CROWDS.values()
    }
    for at, (latency, handshake) in enumerate(((0.0, 0.0), (LATENCY, HANDSHAKE))):
        cloud.slow_down(latency, handshake)
        for run in range(runs):
            for call, name in CROWDS.items():
                _say(f"{count} x {name} at once, run {run + 1} of {runs}")
                found[f"{count} x {name} at once"][at].append(fleet.at_once(call))
    cloud.slow_down(0.0, 0.0)
    fleet.remove()
    return found


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
