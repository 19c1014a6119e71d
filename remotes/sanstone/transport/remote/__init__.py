# SPDX-License-Identifier: Apache-2.0
"""The part of every node program that is the same: its main loop, commands, locks. Standard library only.

A node program travels over standard input to the machine where it runs (``transport.program``).
"""
