# SPDX-License-Identifier: Apache-2.0
"""A secret is seen only by the one who asks for it."""

from __future__ import annotations

import copy
import pickle

import pytest

from sanstone.secret import Secret


def test_secret_hides_in_every_form_of_printing() -> None:
    secret = Secret("canary")
    assert secret.reveal() == "canary"
    assert [str(secret), f"{secret}", f"{secret:>5}", "%s" % secret] == ["***", "***", "  ***", "***"]  # noqa: UP031
    assert "canary" not in repr([secret])
    assert copy.deepcopy({"a": secret})["a"] == secret
    assert {secret: 1}[Secret("canary")] == 1
    assert secret != Secret("other")
    assert secret != "canary"
    assert not Secret("")
    with pytest.raises(TypeError, match="not written"):
        pickle.dumps(secret)
