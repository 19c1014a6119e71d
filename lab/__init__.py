# SPDX-License-Identifier: Apache-2.0
"""Simulated storage systems and stand-ins for demos and tests; never imported by the library."""
