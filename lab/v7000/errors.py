# SPDX-License-Identifier: Apache-2.0
"""What the box answers when it refuses: codes with the words that follow them."""

from __future__ import annotations

__all__ = ["TEXTS", "CommandError", "ShellError", "text_of"]

TEXTS = {
    "CMMVC5701E": "No object ID was specified.",
    "CMMVC5703E": "The value is too long for the parameter [{0}].",
    "CMMVC5707E": "Required parameters are missing.",
    "CMMVC5708E": "The [{0}] parameter is missing its associated arguments.",
    "CMMVC5709E": "[{0}] is not a supported parameter.",
    "CMMVC5713E": "Some parameters are mutually exclusive.",
    "CMMVC5716E": "Non-numeric data was entered for the numeric field [{0}].",
    "CMMVC5717E": "No match was found for the specified unit.",
    "CMMVC5731E": "Parameter {0} is invalid without {1}.",
    "CMMVC5734E": "A combination of values was entered that is not valid.",
    "CMMVC5737E": "The parameter {0} has been entered multiple times. Enter the parameter only one time.",
    "CMMVC5738E": "The argument {0} contains too many characters.",
    "CMMVC5741E": "The filter value {0} is not valid.",
    "CMMVC5742E": "A specified parameter is out of its valid range [{0}].",
    "CMMVC5753E": "The specified object does not exist or is not a suitable candidate.",
    "CMMVC5754E": "The specified object does not exist, or the name supplied does not meet the naming rules.",
    "CMMVC5804E": "The action failed because an object that was specified in the command does not exist.",
    "CMMVC5837E": "The action failed because the virtual disk (VDisk) is part of a FlashCopy mapping.",
    "CMMVC5840E": (
        "The virtual disk (VDisk) was not deleted because it is mapped to a host or because it is part of a "
        "FlashCopy or Remote Copy mapping, or is involved in an image mode migrate."
    ),
    "CMMVC5842E": "The action failed because an object that was specified in the command does not exist.",
    "CMMVC5860E": "The action failed because there were not enough extents in the managed disk group.",
    "CMMVC5871E": "The action failed because one or more of the configured port names is in a mapping.",
    "CMMVC5878E": (
        "The VDisk-to-host mapping was not created because this VDisk is already mapped to this host."
    ),
    "CMMVC5879E": (
        "The VDisk-to-host mapping was not created because a VDisk is already mapped to this host with this "
        "SCSI LUN."
    ),
    "CMMVC5903E": (
        "The FlashCopy mapping was not changed because the mapping or consistency group is another state."
    ),
    "CMMVC5907E": (
        "The FlashCopy mapping or consistency group was not started because it is already copying."
    ),
    "CMMVC5912E": (
        "The FlashCopy mapping or consistency group was not stopped because it is already stopped."
    ),
    "CMMVC5924E": (
        "The FlashCopy mapping was not created because the source and target virtual disks (VDisks) are "
        "different sizes."
    ),
    "CMMVC5987E": "[{0}] is not a valid command line option.",
    "CMMVC6017E": (
        "A parameter or argument contains invalid characters. Ensure that all characters are ASCII."
    ),
    "CMMVC6035E": "The action failed as the object already exists.",
    "CMMVC6045E": "The action failed, as the -force flag was not entered.",
    "CMMVC6065E": "The action failed as the object is not in a group.",
    "CMMVC6071E": (
        "The VDisk-to-host mapping was not created because the VDisk is already mapped to a host."
    ),
    "CMMVC6303E": "The create failed because the source and target VDisks are the same.",
    "CMMVC6353E": "The command failed because the copy specified does not exist.",
    "CMMVC6372W": (
        "The virtualized storage capacity that the cluster is using is approaching the virtualized storage "
        "capacity that is licensed."
    ),
    "CMMVC6466E": "The action failed because a FlashCopy mapping between these VDisks already exists.",
    "CMMVC6527E": (
        "The name that you have entered is not valid. The name can contain letters, numbers, spaces, "
        "periods, dashes, and underscores. The name must begin with a letter or an underscore. The name must "
        "not begin or end with a space."
    ),
    "CMMVC6578E": "The command has failed because the iSCSI name is already assigned or is not valid.",
    "CMMVC6581E": (
        "The command has failed because the maximum number of allowed iSCSI qualified names (IQNs) has been "
        "reached, or the IQN is already assigned or is not valid."
    ),
    "CMMVC7017E": (
        "Login has failed because the maximum number of concurrent CLI sessions has been reached."
    ),
    "CMMVC7205E": "The command failed because it is not supported.",
    "CMMVC8587E": "The command failed because the volume is fast formatting.",
    "CMMVC8710E": "The command failed because there are not enough extents in the storage pool.",
    "CMMVC8957E": "The command failed because the volume was not found.",
    "CMMVC9292E": "The command failed because the storage pool does not support this kind of volume.",
    "CMMVC9301E": "The command failed because the pool is not a data reduction pool.",
}


def text_of(code: str, *values: str) -> str:
    """Return the line that the box prints: the code and its words."""
    words = TEXTS.get(code, "The command failed.")
    for place, value in enumerate(values):
        words = words.replace(f"{{{place}}}", value)
    return f"{code} {words}"


class CommandError(Exception):
    """A command that the box refuses: ``code`` and the line for standard error, exit status 1."""

    def __init__(self, code: str, *values: str) -> None:
        super().__init__(text_of(code, *values))
        self.code = code


class ShellError(Exception):
    """What the restricted shell itself does not take, with its own exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(f"rbash: {message}")
        self.status = status
