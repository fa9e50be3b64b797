"""Select: budget, threshold and selector."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from edge_agent.encode import encode_state
from edge_agent.plan import Plan
from tests.fakes.fake_edge import make_encoder, state_of


def test_budget_threshold_and_selector_decide_which_tokens_travel() -> None:
    encoder = replace(make_encoder(), selector="symmetric_focus")
    state = state_of(Image.new("RGB", (8, 8)))
    point = encoder.points[1]  # a budget of 4
    best = set(np.argsort(-state.attention)[:4])
    coded = encode_state(state, encoder, point, Plan())
    assert set(np.flatnonzero(coded.kept)) == best
    assert encode_state(state, encoder, point, Plan(token_budget=2)).kept.sum() == 2
    spread = encode_state(state, encoder, point, Plan(selector="uniform")).kept
    assert spread.sum() == 4
    everything = encode_state(state, encoder, encoder.points[0], Plan())
    assert everything.kept.all()
    half = encode_state(state, encoder, encoder.points[0], Plan(token_threshold=0.5)).kept
    assert (
        state.attention[half].sum()
        >= 0.5
        > state.attention[half].sum() - min(state.attention[half])
    )
    assert coded.distortion is not None
    assert coded.distortion.dropped_attention == pytest.approx(
        1 - state.attention[list(best)].sum(), abs=1e-5
    )
