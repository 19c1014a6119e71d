# SPDX-License-Identifier: Apache-2.0
"""A target host in user space: tgt on LVM, where LVM's volumes are sparse files."""

from lab.target.machine import PROGRAMS, ShownTarget, TargetHost
from lab.target.sudoers import Sudoers
from lab.target.volumes import LVMError

__all__ = ["PROGRAMS", "LVMError", "ShownTarget", "Sudoers", "TargetHost"]
