# SPDX-License-Identifier: Apache-2.0
"""``make kill-table``: each driver action killed (SIGKILL) before and after each of its remote steps."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence

from lab.killing.table import Report, cases, run_table
from lab.killing.world import SYSTEMS


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    systems = SYSTEMS if options.system == "all" else (options.system,)
    wanted = [case for system in systems for case in cases(system, options.actions, is_quick=options.quick)]
    if not wanted:
        print(f"no action has {' or '.join(options.actions)} in its name", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    started = time.monotonic()
    reports = []
    for report in run_table(wanted, options.jobs):
        reports.append(report)
        print("\n".join(_lines(report, options.verbose)), flush=True)
    return _sum(reports, time.monotonic() - started)


def _lines(report: Report, is_verbose: bool) -> list[str]:
    case = report.case
    title = f"{case.system:7} {case.what.action:22} {case.what.title:28} then {case.follow:10}"
    if report.missing:
        return [f"{title} MISSING: {report.missing}"]
    good = sum(outcome.is_good for outcome in report.outcomes)
    found = [f"{title} {good} of {len(report.outcomes)} ok ({report.seconds:.0f} s)"]
    for each in report.outcomes:
        if is_verbose or not each.is_good:
            found.append(f"    {each.when:6} step {each.number}, {each.step}: {'ok' if each.is_good else ''}")
        found += [f"        {finding}" for finding in each.findings]
        found += [f"        stuck: {each.stuck}"] if each.stuck else []
    return found


def _sum(reports: Sequence[Report], seconds: float) -> int:
    outcomes = [outcome for report in reports for outcome in report.outcomes]
    kinds = {"leak": 0, "lost": 0, "wrong": 0}
    for outcome in outcomes:
        for finding in outcome.findings:
            kinds[finding.kind] += 1
    stuck = sum(bool(outcome.stuck) for outcome in outcomes)
    missing = sorted({report.case.what.action for report in reports if report.missing})
    if missing:
        print(f"missing: {', '.join(missing)}")
    if stuck:
        print(f"{stuck} did not end as they should")
    print(f"{seconds:.0f} s")
    found = f"{kinds['leak']} leaks, {kinds['lost']} lost bytes, {kinds['wrong']} wrong disks"
    print(f"{len(outcomes)} steps, {found}")
    return 1 if stuck or any(kinds.values()) else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lab.killing", description=__doc__)
    parser.add_argument(
        "actions", nargs="*", metavar="ACTION", help="only actions with this in name or title"
    )
    parser.add_argument("--system", choices=(*SYSTEMS, "all"), default="all", help="default: all")
    parser.add_argument("--jobs", type=int, default=min(3, (os.cpu_count() or 1) + 1), help="clouds at once")
    parser.add_argument(
        "--quick", action="store_true", help="after each step only, with one of the ways to go on"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="each step, not only what went wrong")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
