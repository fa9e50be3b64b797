"""Cache layouts, states and rotary embeddings, against closed forms."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.errors import ContextError, FrameMalformedError
from protos.layout import KVLayout, KVState, LayeredRope, RopeSpec, rotate, unrotate

HALF = RopeSpec(1e4, 8, False, "default", 1.0, tuple(1e4 ** (-i / 4) for i in range(4)))
PAIRS = replace(HALF, interleaved=True)
PARTIAL = RopeSpec(1e6, 4, False, "yarn", 1.25, (1.0, 1e-3))
LAYOUT = KVLayout("tiny", 3, 2, 8, HALF, "float32", (2, 5), "aa", "bb")


def random_state(layout: KVLayout = LAYOUT, seed: int = 0) -> KVState:
    rng = np.random.default_rng(seed)
    shape = (layout.layers, layout.kv_heads, layout.tokens, layout.head_dim)
    attention = rng.random(layout.tokens)
    return KVState(
        rng.standard_normal(shape, dtype=np.float32),
        rng.standard_normal(shape, dtype=np.float32),
        np.arange(layout.tokens) + 7,
        layout.grid,
        attention / attention.sum(),
    )


@pytest.mark.parametrize("rope", [HALF, PAIRS, PARTIAL], ids=["half", "interleaved", "partial"])
def test_rotation_is_complex_multiplication_of_each_pair(rope: RopeSpec) -> None:
    x = np.random.default_rng(1).standard_normal((2, 5, 10))
    positions = np.array([0, 1, 5, 100, 1999])
    n = rope.rotary_dim
    pairs = [(2 * i, 2 * i + 1) if rope.interleaved else (i, i + n // 2) for i in range(n // 2)]
    expected = x.copy()
    for (a, b), frequency in zip(pairs, rope.inv_freq, strict=True):
        turn = rope.attention_factor * np.exp(1j * positions * frequency)
        turned = (x[..., a] + 1j * x[..., b]) * turn
        expected[..., a], expected[..., b] = turned.real, turned.imag
    np.testing.assert_allclose(rotate(x, rope, positions), expected, atol=2e-4)
    np.testing.assert_array_equal(rotate(x, rope, positions)[..., n:], x[..., n:].astype("f4"))


@pytest.mark.parametrize("rope", [HALF, PAIRS, PARTIAL], ids=["half", "interleaved", "partial"])
def test_unrotate_undoes_rotate(rope: RopeSpec) -> None:
    x = np.random.default_rng(2).standard_normal((3, 2, 6, 9)).astype(np.float32)
    positions = np.array([3, 0, 41, 7, 900, 4095])
    again = unrotate(rotate(x, rope, positions), rope, positions)
    assert again.dtype == np.float32
    np.testing.assert_allclose(again, x, atol=1e-5)


def test_rotation_agrees_with_the_models_own_code() -> None:
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = pytest.importorskip("transformers").LlamaConfig(
        hidden_size=32, num_attention_heads=2, head_dim=16, max_position_embeddings=4096
    )
    module = llama.LlamaRotaryEmbedding(config)
    rope = RopeSpec(1e4, 16, False, "default", 1.0, tuple(module.inv_freq.tolist()))
    keys = torch.randn(1, 2, 5, 16, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 17, 300, 2047, 4095]])
    cos, sin = module(keys, positions)
    expected = llama.apply_rotary_pos_emb(keys, keys, cos, sin)[1]
    ours = rotate(keys.numpy(), rope, positions[0].numpy())
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(rope.cos_sin(positions[0].numpy())[0], cos[0].numpy(), atol=2e-7)


def test_rotating_at_the_wrong_number_of_positions_is_refused() -> None:
    with pytest.raises(FrameMalformedError, match="3 positions"):
        rotate(np.zeros((2, 4, 8)), HALF, np.arange(3))
    with pytest.raises(FrameMalformedError):
        unrotate(np.zeros((2, 4, 6)), HALF, np.arange(4))


def test_a_flat_token_is_its_keys_then_its_values_by_layer_head_and_dimension() -> None:
    state = random_state()
    flat = state.flat()
    assert flat.shape == (LAYOUT.tokens, LAYOUT.state_dim)
    token, layer, head, dim = 6, 2, 1, 5
    at = (layer * LAYOUT.kv_heads + head) * LAYOUT.head_dim + dim
    assert flat[token, at] == state.keys[layer, head, token, dim]
    assert flat[token, LAYOUT.state_dim // 2 + at] == state.values[layer, head, token, dim]


def test_from_flat_undoes_flat() -> None:
    state = random_state()
    again = KVState.from_flat(state.flat(), LAYOUT, state.positions, state.attention)
    for name in ("keys", "values", "positions", "attention"):
        np.testing.assert_array_equal(getattr(again, name), getattr(state, name))
    assert again.grid == state.grid


def test_from_flat_refuses_another_models_state() -> None:
    with pytest.raises(FrameMalformedError, match="tiny"):
        KVState.from_flat(np.zeros((LAYOUT.tokens, 95)), LAYOUT, np.arange(LAYOUT.tokens))


@pytest.mark.parametrize(
    "change",
    [
        {"keys": np.zeros((3, 2, 9, 8))},
        {"values": np.zeros((3, 2, 10, 7))},
        {"positions": np.arange(9)},
        {"attention": np.ones(11)},
        {"grid": (3, 3)},
    ],
)
def test_a_state_whose_shapes_disagree_is_refused(change: dict[str, Any]) -> None:
    state = random_state()
    parts = {n: getattr(state, n) for n in ("keys", "values", "positions", "grid", "attention")}
    with pytest.raises(FrameMalformedError):
        KVState(**{**parts, **change})


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


LOCAL = replace(HALF, theta=1e6, inv_freq=tuple(1e6 ** (-i / 4) for i in range(4)))
LAYERED = replace(
    LAYOUT, more_ropes=(LOCAL,), layer_ropes=(0, 1, 0), windows=(512, 0, 512), qk_norm=True
)


def test_layers_that_rotate_differently_are_each_rotated_by_their_own() -> None:
    keys = random_state().keys
    positions = np.arange(10) + 3
    rotation = LAYERED.rotation
    assert isinstance(rotation, LayeredRope)
    turned = rotate(keys, rotation, positions)
    for layer, rope in enumerate((HALF, LOCAL, HALF)):
        np.testing.assert_array_equal(turned[layer], rotate(keys[layer], rope, positions))
    np.testing.assert_allclose(unrotate(turned, rotation, positions), keys, atol=1e-5)
    for wrong in (keys[:2], keys[:, None], keys[:, :, :4]):
        with pytest.raises(FrameMalformedError, match="cannot rotate"):
            rotate(wrong, rotation, positions)


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
