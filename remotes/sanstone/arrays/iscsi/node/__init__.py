# SPDX-License-Identifier: Apache-2.0
"""The program that runs on a target host. It travels there over standard input: standard library only.

LVM's metadata are the truth: a volume's identity and the hosts that may reach it are tags of its logical
volume (``lvm.py``). What tgtd has (``tgtd.py``) and what it reads at boot (``files.py``) follow from them
(``targets.py``).
"""

from __future__ import annotations

OPERATIONS = {
    "Capacity": ("pools", "capacity"),
    "Copy": ("contents", "copy"),
    "Create": ("volumes", "create"),
    "Delete": ("volumes", "delete"),
    "Find": ("volumes", "find"),
    "Map": ("mappings", "map_volume"),
    "Mend": ("mappings", "mend"),
    "Resize": ("volumes", "resize"),
    "Unmap": ("mappings", "unmap"),
}
"""Operation: module, function. A module is loaded when it is needed."""

PRIVILEGED = frozenset(
    {
        "blkdiscard", "cat", "install", "lvchange", "lvcreate", "lvextend", "lvremove", "lvrename", "lvs",
        "mv", "rm", "socat", "tee", "tgtadm", "vgs",
    }
)  # fmt: skip
"""What is run as root; etc/sudoers.d/sanstone-target has the same names."""

RIGHTS = "etc/sudoers.d/sanstone-target"
