# SPDX-License-Identifier: Apache-2.0
"""Virtual machines with a real kernel: arrays with LVM and tgtd, hosts with open-iscsi and multipath."""
