# SPDX-License-Identifier: Apache-2.0
"""Operations that do not wait for one another."""

from __future__ import annotations

import importlib

from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.run import Context, Json, in_parallel

__all__ = ["together"]

_NEEDS_THE_UPLOAD = "PutFile"


def together(request: Json, context: Context) -> Json:
    """Do ``operations`` at once; each has a result or an error of its own, and none stops the others."""
    package = importlib.import_module(__package__ or "")
    operations: list[Json] = request["operations"]
    results: list[Json | None] = [None] * len(operations)

    def do(index: int) -> None:
        operation = operations[index]
        if operation["op"] == _NEEDS_THE_UPLOAD:
            raise NodeError("RequestError", f"{_NEEDS_THE_UPLOAD} cannot be done beside others.")
        module, function = package.OPERATIONS[operation["op"]]
        results[index] = getattr(importlib.import_module(f"{__package__}.{module}"), function)(
            operation, context
        )

    faults = in_parallel([lambda index=index: do(index) for index in range(len(operations))])  # type: ignore[misc]
    return {
        "outcomes": [
            {"result": result}
            if fault is None
            else {
                "error": {
                    "family": fault.family,
                    "message": fault.message,
                    "hint": fault.hint,
                    "details": fault.details,
                }
            }
            for result, fault in zip(results, faults, strict=True)
        ]
    }
