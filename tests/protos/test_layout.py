"""Cache layouts: one description, one fingerprint, lying ones refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.errors import ContextError, FrameMalformedError
from protos.layout import KVLayout
from tests.protos.layouts import HALF, LAYERED, LAYOUT, LOCAL, PAIRS, PARTIAL


def test_layout_sizes() -> None:
    assert LAYOUT.tokens == 10
    assert LAYOUT.state_dim == 2 * 3 * 2 * 8


def test_layout_survives_json_with_the_same_fingerprint() -> None:
    again = KVLayout.from_json(LAYOUT.to_json())
    assert again == LAYOUT
    assert again.fingerprint == LAYOUT.fingerprint
    assert KVLayout.from_json(LAYOUT.to_json().encode()) == LAYOUT


def test_fingerprint_ignores_how_a_number_was_typed() -> None:
    other = replace(LAYOUT, rope=replace(HALF, theta=10000, attention_factor=1))
    assert other.fingerprint == LAYOUT.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"model_id": "other"},
        {"layers": 4},
        {"kv_heads": 1},
        {"head_dim": 16},
        {"rope": PAIRS},
        {"rope": replace(HALF, inv_freq=(1.0, 0.1, 0.01, 0.0011))},
        {"cache_dtype": "bfloat16"},
        {"grid": (5, 2)},
        {"tokenizer_digest": "ab"},
        {"weights_digest": "ba"},
    ],
)
def test_any_change_of_a_layout_changes_its_fingerprint(change: dict[str, Any]) -> None:
    assert replace(LAYOUT, **change).fingerprint != LAYOUT.fingerprint


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("layers", 0),
        ("layers", True),
        ("layers", 10**400),
        ("kv_heads", "2"),
        ("head_dim", 4),
        ("head_dim", None),
        ("grid", [2]),
        ("grid", [0, 3]),
        ("grid", {"rows": 2}),
        ("grid", [[1], [2]]),
        ("cache_dtype", "int3"),
        ("model_id", 7),
        ("model_id", "m" * 300),
        ("rope", None),
        ("rope.rotary_dim", 7),
        ("rope.inv_freq", [1.0]),
        ("rope.inv_freq", [1.0, 1.0, 1.0, "x"]),
        ("rope.inv_freq", [1.0, 1.0, 1.0, -1.0]),
        ("rope.theta", 10**400),
        ("rope.theta", None),
        ("rope.attention_factor", 0.0),
        ("rope.interleaved", 1),
        ("rope.extra", 1),
        ("extra", 1),
    ],
)
def test_a_lying_layout_is_refused(path: str, value: object) -> None:
    plain = json.loads(LAYOUT.to_json())
    *parents, leaf = path.split(".")
    target = plain
    for parent in parents:
        target = target[parent]
    target[leaf] = value
    with pytest.raises(FrameMalformedError):
        KVLayout.from_json(json.dumps(plain))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        "[" * 20000,
        '{"layers":1,"layers":2}',
        LAYOUT.to_json().replace("10000.0", "NaN"),
        LAYOUT.to_json().replace("10000.0", "1e999"),
        LAYOUT.to_json().replace("10000.0", "9" * 5000),
        " " * 70000 + LAYOUT.to_json(),
        b"\xff\xfe\x00",
    ],
)
def test_json_that_is_no_layout_is_refused(text: str | bytes) -> None:
    with pytest.raises(FrameMalformedError):
        KVLayout.from_json(text)


def test_a_missing_field_is_named() -> None:
    plain = json.loads(LAYOUT.to_json())
    del plain["weights_digest"]
    with pytest.raises(FrameMalformedError, match="weights_digest"):
        KVLayout.from_json(json.dumps(plain))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5)
    ),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, database=None)
@given(st.data())
def test_any_value_in_any_field_gives_a_layout_or_a_typed_error(data: st.DataObject) -> None:
    plain = json.loads(LAYOUT.to_json())
    target = plain["rope"] if data.draw(st.booleans()) else plain
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(json_values)
    try:
        layout = KVLayout.from_json(json.dumps(plain))
    except FrameMalformedError:
        return
    assert KVLayout.from_json(layout.to_json()).fingerprint == layout.fingerprint


def test_what_differs_by_layer_is_in_the_json_only_where_there_is_such_a_thing() -> None:
    plain = json.loads(LAYOUT.to_json())
    assert not {"more_ropes", "layer_ropes", "windows", "qk_norm"} & set(plain)
    assert KVLayout.from_json(LAYERED.to_json()) == LAYERED
    assert LAYERED.fingerprint != LAYOUT.fingerprint
    spelled_out = json.dumps(plain | {"windows": []})
    with pytest.raises(FrameMalformedError, match="left out"):  # one layout, one fingerprint
        KVLayout.from_json(spelled_out)


@pytest.mark.parametrize(
    "over",
    [
        {"layer_ropes": (0, 1)},
        {"layer_ropes": (0, 2, 0)},
        {"layer_ropes": ()},
        {"more_ropes": ()},
        {"more_ropes": (PARTIAL,)},
        {"more_ropes": (LOCAL,) * 9},
        {"windows": (1, -1, 0)},
        {"windows": (0, 0, 0)},
        {"qk_norm": 1},
    ],
)
def test_contradictions_between_layers_are_refused(over: dict[str, Any]) -> None:
    with pytest.raises(FrameMalformedError):
        replace(LAYERED, **over)


def test_a_sequence_past_a_window_is_refused_by_name() -> None:
    LAYERED.require_window(512, "a text")
    LAYOUT.require_window(1 << 20, "a text")
    with pytest.raises(ContextError, match="a text takes 513 tokens; the sliding windows of tiny"):
        LAYERED.require_window(513, "a text")
