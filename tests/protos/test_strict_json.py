"""JSON from a peer: bounded, unambiguous, finite."""

from __future__ import annotations

import pytest

from protos.errors import FrameMalformedError
from protos.strict_json import read_json


@pytest.mark.parametrize("text", ['{"a": [1, null, "x"]}', b'{"a": [1, null, "x"]}'])
def test_json_is_read_as_it_stands(text: str | bytes) -> None:
    assert read_json(text, 100, "note") == {"a": [1, None, "x"]}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not usable JSON"),
        ("{", "not usable JSON"),
        (b"\xff", "not usable JSON"),
        ("NaN", "NaN is not a number"),
        ("[Infinity]", "Infinity is not a number"),
        ('{"a": 1, "a": 2}', "a key occurs twice"),
        ("[" * 90, "not usable JSON"),
        (" " * 101, "101 bytes of JSON, at most 100 are read"),
    ],
)
def test_anything_else_is_refused_by_name(text: str | bytes, why: str) -> None:
    with pytest.raises(FrameMalformedError, match=f"note: .*{why}"):
        read_json(text, 100, "note")


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(FrameMalformedError, match="note: not usable JSON"):
        read_json("[" * 100_000, 1 << 20, "note")
