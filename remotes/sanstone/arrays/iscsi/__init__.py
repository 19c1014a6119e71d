# SPDX-License-Identifier: Apache-2.0
"""Linux tgt on LVM: a target host that exports logical volumes."""

from __future__ import annotations

from sanstone.arrays.iscsi.array import ISCSI

__all__ = ["ISCSI"]
