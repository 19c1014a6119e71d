# SPDX-License-Identifier: Apache-2.0
"""What each driver action costs: round trips, connections, commands, CPU and seconds."""
