# SPDX-License-Identifier: Apache-2.0
"""``python -m sanstone.cli``."""

from __future__ import annotations

import sys

from sanstone.cli.entry import main

sys.exit(main())
