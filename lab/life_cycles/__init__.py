# SPDX-License-Identifier: Apache-2.0
"""The recorded life cycles of a real oned, run with the real drivers on simulated arrays.

``python -m lab.life_cycles --help``
"""
