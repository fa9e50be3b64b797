"""Tokens of one grid sent on another: the state, the encoder, and its file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from projector.codec.encoder import Encoder
from projector.codec.regrid import Regrid
from projector.maps.base import grid_weights
from protos.errors import BundleFormatError
from protos.layout import KVLayout
from protos.state import KVState
from tests.projector.conftest import make_encoder


def weights_to(source: KVLayout, grid: tuple[int, int]) -> np.ndarray:
    made = grid_weights(source.grid, grid)
    assert made is not None
    return made.numpy()


@pytest.fixture
def smaller(source: KVLayout) -> Encoder:
    """The encoder, sending a grid of 3 by 2 tokens."""
    whole = make_encoder(source)
    regrid = Regrid(weights_to(source, (3, 2)), (3, 2))
    return replace(whole, centre=whole.centre[:6], regrid=regrid)


def state_of(source: KVLayout) -> KVState:
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((source.tokens, source.state_dim))
    attention = rng.dirichlet(np.ones(source.tokens))
    return KVState.from_flat(flat, source, np.arange(source.tokens) + 5, attention)


def test_each_token_is_the_weighted_sum_of_the_models_own(
    smaller: Encoder, source: KVLayout
) -> None:
    state = state_of(source)
    sent = smaller.on_grid(state)
    np.testing.assert_allclose(sent.flat(), weights_to(source, (3, 2)) @ state.flat(), atol=1e-5)
    assert sent.grid == (3, 2)
    assert sent.attention.sum() == pytest.approx(1, abs=1e-5)
    assert smaller.on_grid(sent) is sent


def test_a_frame_holds_the_tokens_of_the_grid_that_travels(
    smaller: Encoder, source: KVLayout
) -> None:
    state, point = state_of(source), smaller.point(3)
    made = smaller.encode(state, point)
    assert made.kept.shape == (6,)
    read = smaller.decode(made.payload, made.kept, point)
    np.testing.assert_allclose(read, smaller.project(smaller.on_grid(state).flat()), atol=1e-4)


def test_the_grid_is_kept_in_the_file(smaller: Encoder) -> None:
    again = Encoder.from_bytes(smaller.to_bytes())
    assert again.to_bytes() == smaller.to_bytes()
    assert again.regrid is not None
    assert (again.grid, again.source_tokens) == ((3, 2), smaller.source_tokens)


def test_weights_without_their_grid_are_refused(smaller: Encoder) -> None:
    blob = smaller.to_bytes().replace(b'\\"grid\\":[3,2]', b'\\"grit\\":[3,2]')
    with pytest.raises(BundleFormatError):
        Encoder.from_bytes(blob)


@pytest.mark.parametrize("grid", [(2, 2), (0, 0), (3, True)])
def test_a_grid_that_the_weights_do_not_lead_to_is_refused(
    source: KVLayout, grid: tuple[int, int]
) -> None:
    with pytest.raises(BundleFormatError):
        Regrid(weights_to(source, (3, 2)), grid)


def test_an_encoder_of_another_number_of_tokens_is_refused(source: KVLayout) -> None:
    regrid = Regrid(weights_to(source, (3, 2)), (3, 2))
    with pytest.raises(BundleFormatError, match="grid weights"):
        replace(make_encoder(source), regrid=regrid)
