# SPDX-License-Identifier: Apache-2.0
"""A backup driver for the lab."""

from lab.backup.driver import ACTIONS, DOWNLOADER, install

__all__ = ["ACTIONS", "DOWNLOADER", "install"]
