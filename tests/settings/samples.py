# SPDX-License-Identifier: Apache-2.0
"""What the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sanstone.errors import SanstoneError
from sanstone.settings import (
    ConfigFile,
    InvalidSettings,
    Settings,
    resolve,
)

NO_FILE = ConfigFile()
SAN = {"NAME": "san", "ID": "100", "MGMT": "v7000-a"}


def conf(tmp_path: Path, text: str, mode: int = 0o600) -> ConfigFile:
    path = tmp_path / "sanstone.conf"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return ConfigFile.read(path)


def refusal(
    datastore: Mapping[str, str], config: ConfigFile = NO_FILE, **more: Mapping[str, str]
) -> InvalidSettings:
    with pytest.raises(InvalidSettings) as caught:
        resolve("v7000", config, datastore=datastore, **more)
    return caught.value


def outcome(attempt: Callable[[], Settings]) -> Settings | SanstoneError:
    """Whatever else is raised is a defect."""
    try:
        return attempt()
    except SanstoneError as err:
        return err


def explains_itself(result: Settings | SanstoneError) -> bool:
    if isinstance(result, SanstoneError):
        return bool(result.message) and result.message.isprintable()
    return all(each.text.isprintable() for each in result)
