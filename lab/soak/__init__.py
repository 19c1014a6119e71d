# SPDX-License-Identifier: Apache-2.0
"""Random operations by several users at once, with random faults; then everything is compared.

``python -m lab.soak --help``
"""
