# SPDX-License-Identifier: Apache-2.0
"""SAN storage for OpenNebula: drivers, state hooks and a Sunstone panel."""

__version__ = "0.1.0"
