# SPDX-License-Identifier: Apache-2.0
"""The demonstration: the main job, for real, on one machine without hardware."""
