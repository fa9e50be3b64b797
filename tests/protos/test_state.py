"""Cache states, flat and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from protos.errors import FrameMalformedError
from protos.state import KVState
from tests.protos.layouts import LAYOUT, random_state


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
