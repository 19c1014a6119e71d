# SPDX-License-Identifier: Apache-2.0
"""What the program on a target host may do as root: what it asks for, and what the file grants."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lab.target import Sudoers
from sanstone.arrays.iscsi import node

RULES = Path(__file__).resolve().parents[2] / node.RIGHTS
DIGITS = "0123456789abcdef01234567"
FILE = f"/etc/tgt/conf.d/sanstone-{DIGITS}"


def test_file_grants_what_the_program_asks_for_and_nothing_else() -> None:
    assert Sudoers.read(RULES).programs == node.PRIVILEGED


@pytest.mark.parametrize(
    "line",
    [
        f"cat {FILE}.conf",
        f"install -m 0600 -T /dev/null {FILE}.new",
        f"tee {FILE}.new",
        f"mv -f -T {FILE}.new {FILE}.conf",
        f"rm -f {FILE}.conf",
        "socat -t5 - UNIX-CONNECT:/run/tgtd/socket.0",
        "tgtadm --lld iscsi --op show --mode target",
        "blkdiscard -z /dev/vg-one/lv-one-1",
        "lvremove -f -y vg-one/lv-one-1",
    ],
)
def test_what_the_program_runs_is_granted(line: str) -> None:
    assert Sudoers.read(RULES).allows(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "cat /etc/shadow",
        f"cat {FILE}.conf /etc/shadow",
        f"tee {FILE}.new /etc/passwd",
        f"tee /etc/tgt/conf.d/sanstone-{DIGITS}/../../../passwd.new",
        f"tee {FILE}.conf",
        f"tee {FILE}f.new",
        f"mv -f -T {FILE}.new /etc/passwd",
        f"rm -f {FILE}.conf /etc/passwd",
        "rm -rf /",
        "install -m 4755 -T /bin/sh /tmp/sh",
        "socat - EXEC:sh",
        "socat -t5 - UNIX-CONNECT:/run/other",
        "tgt-admin -e",
        "lvremove vg-one/lv-one-1",
    ],
)
def test_what_reaches_further_is_refused(line: str) -> None:
    assert not Sudoers.read(RULES).allows(line.split())


def test_files_are_named_without_a_pattern_that_matches_a_slash() -> None:
    rules = RULES.read_text().partition("SANSTONE_CONF = ")[2].partition("\n\n")[0]
    assert rules
    assert "*" not in rules
    assert len(re.findall(re.escape("[0-9a-f]" * 24), rules)) == 12
