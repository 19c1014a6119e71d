# SPDX-License-Identifier: Apache-2.0
"""``make life-cycles``: every recorded life cycle that touches storage, with the real drivers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from lab.life_cycles.play import Result
from lab.life_cycles.running import run
from lab.life_cycles.stories import NOT_PLAYED, STORIES
from lab.systems import ALL_ARRAYS

DATASTORES = ("own", "shared", "ssh", "block")


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    systems = ALL_ARRAYS if options.system == "all" else (options.system,)
    stories = [story for story in STORIES if options.only is None or options.only in story.operations]
    if not stories:
        print(
            NOT_PLAYED.get(options.only, f"no recorded operation is called {options.only}"), file=sys.stderr
        )
        return 2
    wanted = [(story, system) for system in systems for story in stories]
    green = total = 0
    for result in run(wanted, options.system_datastore, options.jobs, options.only):
        is_meant = options.only in (None, result.operation)
        if is_meant or not result.is_green:  # what went wrong before explains much
            print("\n".join(_lines(result)), flush=True)
        if is_meant:
            total += 1
            green += result.is_green
    if options.only is None:
        for name, reason in NOT_PLAYED.items():
            print(f"{name:56} not played: {reason}")
    print(f"{green} of {total} green")
    return 0 if green == total else 1


def _lines(result: Result) -> list[str]:
    verdict = "ok" if result.is_green else "FAILED"
    line = f"{result.operation:56} {result.system:6} {verdict:6} {result.seconds:5.1f} s"
    return [line, *(f"    {text}" for text in result.problems)]


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lab.life_cycles", description=__doc__)
    parser.add_argument("--system", choices=(*ALL_ARRAYS, "all"), default="all", help="driver (default: all)")
    parser.add_argument("--only", metavar="NAME", help="one operation, with what has to come before it")
    parser.add_argument(
        "--system-datastore", choices=DATASTORES, default="own", help="what 103 and 104 are (default: own)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="stories at once")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
