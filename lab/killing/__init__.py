# SPDX-License-Identifier: Apache-2.0
"""Driver actions killed before and after each remote step, and whether all ends well.

``python -m lab.killing --help``
"""
