"""Reads JSON from a peer: bounded, no NaN, no key twice."""

from __future__ import annotations

import json
from typing import Any

from protos.errors import FrameMalformedError


def read_json(text: str | bytes, max_bytes: int, what: str) -> Any:
    """Parse JSON from a peer: bounded, no NaN or infinity, no key twice.

    Args:
        text: The JSON.
        max_bytes: Longest text that is read.
        what: What it should be, for the message.

    Raises:
        FrameMalformedError: It is not such JSON.
    """
    if len(text) > max_bytes:
        raise FrameMalformedError(
            f"{what}: {len(text)} bytes of JSON, at most {max_bytes} are read"
        )

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in items}) != len(items):
            raise ValueError("a key occurs twice")
        return dict(items)

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not a number")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise FrameMalformedError(f"{what}: not usable JSON ({error})") from error
