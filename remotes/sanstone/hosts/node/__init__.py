# SPDX-License-Identifier: Apache-2.0
"""The program that runs on a host. It travels there over standard input: standard library only."""

from __future__ import annotations

OPERATIONS = {
    "Attach": ("attach", "attach"),
    "Convert": ("copy", "convert"),
    "CopyVolume": ("copy", "copy_volume"),
    "Detach": ("detach", "detach"),
    "DiskUsage": ("files", "disk_usage"),
    "FileDigest": ("backup", "digest"),
    "Grow": ("grow", "grow"),
    "GrowFile": ("grow", "grow_file"),
    "HoldStill": ("backup", "hold_still"),
    "Link": ("files", "link"),
    "MakeFilesystem": ("copy", "make_filesystem"),
    "MakeImageFile": ("copy", "make_image_file"),
    "MovePath": ("files", "move_path"),
    "PutFile": ("files", "put_file"),
    "ReadInitiator": ("initiator", "read_initiator"),
    "ReadLink": ("files", "read_link"),
    "RemoveBackup": ("backup", "remove_backup"),
    "RemovePath": ("files", "remove_path"),
    "SaveDisk": ("backup", "save_disk"),
    "Thaw": ("backup", "thaw"),
    "Together": ("together", "together"),
}
"""Operation: module, function. A module is loaded when it is needed."""

PRIVILEGED = frozenset({"blockdev", "cat", "iscsiadm", "multipath", "multipathd", "sanstone-chap", "tee"})
"""What is run as root; etc/sudoers.d/sanstone has the same names."""

RIGHTS = "etc/sudoers.d/sanstone"
