"""The way back: its two halves make what the map's own `back` makes, and nothing else passes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from projector.bundle.feedback import Feedback
from projector.calibration.calibrate import feedback_of
from projector.codec.feedback import FeedbackDecoder
from projector.maps.base import grid_weights
from projector.maps.bidirectional import Bidirectional, BidirectionalMap
from projector.maps.moments import Moments
from projector.maps.ridge import Ridge
from protos.errors import (
    BridgeError,
    BundleFormatError,
    FitError,
    FrameMalformedError,
    IncompatibleLayoutError,
    NonFiniteError,
    UnknownQuantizerError,
)
from protos.layout import KVLayout, RopeSpec
from protos.state import KVState

ROPE = RopeSpec(10000.0, 4, False, "default", 1.0, (1.0, 0.01))
EDGE = KVLayout("edge", 1, 2, 4, ROPE, "float32", (2, 3), "t" * 8, "a" * 8)
SAME = dataclasses.replace(EDGE, model_id="cloud", layers=3, weights_digest="b" * 8)
FINER = dataclasses.replace(SAME, grid=(4, 4), weights_digest="c" * 8)
PICTURES = 60


def pairs(cloud: KVLayout) -> tuple[Any, Any]:
    """States of the cloud, and of an edge that holds a noisy part of them."""
    rng = np.random.default_rng(0)
    size = (PICTURES, cloud.tokens, cloud.state_dim)
    y = rng.standard_normal(size).astype(np.float32) * 3 + 1
    part = rng.standard_normal((cloud.state_dim, EDGE.state_dim)).astype(np.float32)
    x = y @ (part * np.linspace(0.01, 1, EDGE.state_dim, dtype=np.float32))
    between = grid_weights(cloud.grid, EDGE.grid)
    x = x if between is None else between.numpy() @ x
    return x + rng.standard_normal(x.shape).astype(np.float32) * 0.1, y


def fitted(cloud: KVLayout, weighed: bool = True) -> tuple[BidirectionalMap, Any, Any]:
    x, y = pairs(cloud)
    there = grid_weights(EDGE.grid, cloud.grid)
    placed = x if there is None else there.numpy() @ x
    moments = Moments.of([(placed, y)], target_gram=True)
    made = Bidirectional().build(EDGE, cloud, moments).eval()
    assert isinstance(made, BidirectionalMap)
    if weighed:
        with torch.no_grad():
            made.attend.copy_(torch.randn(made.attend.shape).mul_(0.2))
    return made, x, y


def way_back(made: BidirectionalMap, y: Any, rank: int = 0) -> Feedback:
    feedback = feedback_of(made, y, rank)
    assert feedback is not None
    return feedback


def sent(feedback: Feedback, cloud: KVLayout, y: Any, name: str) -> tuple[bytes, Any]:
    """A frame's body, and what it decodes to."""
    state = KVState.from_flat(y, cloud, np.arange(cloud.tokens))
    point = feedback.decoder.point(name)
    every = np.ones(cloud.tokens, dtype=np.bool_)
    body = feedback.encoder.encode(state, point, every).payload
    return body, feedback.decoder.decode(body, every, point.index)


@pytest.mark.parametrize("cloud", [SAME, FINER], ids=["same grid", "finer grid"])
def test_both_halves_together_are_the_maps_own_way_back(cloud: KVLayout) -> None:
    torch.manual_seed(1)
    made, _, y = fitted(cloud)
    feedback = way_back(made, y)
    with torch.no_grad():
        wanted = made.back(torch.from_numpy(y[:4])).numpy()
    for picture, expected in enumerate(wanted):
        _, latents = sent(feedback, cloud, y[picture], "float")
        positions = np.arange(7, 7 + EDGE.tokens)
        state = feedback.decoder.state(latents, EDGE, positions)
        np.testing.assert_allclose(state.flat(), expected, rtol=1e-3, atol=1e-3)
        assert state.grid == EDGE.grid and list(state.positions) == list(positions)


def test_the_weights_of_tokens_travel() -> None:
    made, _, y = fitted(SAME)
    even, uneven = way_back(fitted(SAME, weighed=False)[0], y), way_back(made, y)
    one, other = (
        half.decoder.state(sent(half, SAME, y[0], "float")[1], EDGE, np.arange(6)).flat()
        for half in (even, uneven)
    )
    assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize("rank", [1, 5, 9])
def test_a_lower_rank_keeps_the_best_approximation_there_is(rank: int) -> None:
    """Eckart and Young: of all rank-r approximations, the truncated SVD has the least error."""
    made, _, y = fitted(SAME, weighed=False)
    feedback = way_back(made, y, rank)
    assert feedback.decoder.rank == rank + 1
    with torch.no_grad():
        whole = made.normal(made.back(torch.from_numpy(y))).flatten(0, 1).double().numpy()
    values = np.linalg.svd(whole, compute_uv=False)
    least = float(np.sqrt((values[rank:] ** 2).sum()))
    got = np.concatenate(
        [feedback.decoder.normal(sent(feedback, SAME, one, "float")[1]) for one in y]
    )
    assert np.linalg.norm(got - whole) == pytest.approx(least, rel=1e-2)


def test_coarser_points_take_fewer_bytes_and_lose_more() -> None:
    made, _, y = fitted(FINER)
    feedback = way_back(made, y)
    exact = feedback.decoder.normal(sent(feedback, FINER, y[0], "float")[1])
    sizes, errors = [], []
    for name in ("float", "fp8", "fine", "medium", "coarse"):
        body, latents = sent(feedback, FINER, y[0], name)
        assert len(body) <= feedback.decoder.max_payload_bytes
        sizes.append(len(body))
        errors.append(float(np.linalg.norm(feedback.decoder.normal(latents) - exact)))
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 5
    assert errors[2:] == sorted(errors[2:]) and errors[0] < 1e-5
    assert errors[-1] < float(np.linalg.norm(exact))
    assert feedback.decoder.point("") == feedback.decoder.point("fp8")


def test_the_round_trip_is_the_squared_error_of_the_edges_own_state() -> None:
    made, x, y = fitted(SAME)
    feedback = way_back(made, y)
    own = KVState.from_flat(x[0], EDGE, np.arange(6))
    with torch.no_grad():
        back = made.normal(made.back(torch.from_numpy(y[:1])))[0].double().numpy()
    normal = made.normal(torch.from_numpy(x[:1]))[0].double().numpy()
    wanted = ((back - normal) ** 2).sum() / (normal**2).sum()
    got = feedback.decoder.round_trip(sent(feedback, SAME, y[0], "float")[1], own)
    assert got == pytest.approx(wanted, rel=1e-3)


def test_a_map_of_one_way_has_no_way_back_and_an_unfitted_one_leads_nowhere() -> None:
    _, y = pairs(SAME)
    assert feedback_of(Ridge().make(EDGE, SAME), y) is None
    with pytest.raises(FitError, match="fit the map first"):
        feedback_of(Bidirectional().make(EDGE, SAME), y)


@pytest.fixture(scope="module")
def feedback() -> Feedback:
    made, _, y = fitted(FINER)
    return way_back(made, y, 4)


def test_equal_bytes_make_equal_halves(feedback: Feedback) -> None:
    again = FeedbackDecoder.from_bytes(feedback.decoder.to_bytes())
    assert again.to_bytes() == feedback.decoder.to_bytes()
    assert again.digest == feedback.decoder.digest and again.points == feedback.decoder.points


def test_a_truncated_half_is_refused_at_every_length(feedback: Feedback) -> None:
    blob = feedback.decoder.to_bytes()
    for length in range(0, len(blob), 7):
        with pytest.raises(BundleFormatError):
            FeedbackDecoder.from_bytes(blob[:length])


def test_another_file_is_no_such_half(feedback: Feedback) -> None:
    with pytest.raises(BundleFormatError, match="feedback decoder"):
        FeedbackDecoder.from_bytes(feedback.encoder.to_bytes())


@pytest.mark.parametrize(
    "change",
    [
        {"up": np.ones((4, 7), np.float32)},
        {"mean": np.full(EDGE.state_dim, np.nan, np.float32)},
        {"scale": np.zeros(EDGE.state_dim, np.float32)},
        {"regrid": np.ones((6, 5), np.float32)},
        {"centre": np.ones((16, 4), np.float32)},
        {"points": ()},
        {"steps": {}},
        {"entropy": {}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_half_that_contradicts_itself_is_refused(
    feedback: Feedback, change: dict[str, Any]
) -> None:
    with pytest.raises(BundleFormatError):
        dataclasses.replace(feedback.decoder, **change)


def test_a_frame_that_does_not_fit_is_a_typed_error(feedback: Feedback) -> None:
    decoder, every = feedback.decoder, np.ones(16, dtype=np.bool_)
    floats = decoder.point("float").index
    with pytest.raises(FrameMalformedError):
        decoder.decode(b"\0" * 320, every, 99)
    with pytest.raises(FrameMalformedError):
        decoder.decode(b"\0" * 320, every[:15], floats)
    for body in (b"", b"\0" * 319, b"\0" * 321):
        with pytest.raises(BridgeError):
            decoder.decode(body, every, floats)
    infinite = np.full((16, 5), np.inf, dtype="<f4").tobytes()
    with pytest.raises(NonFiniteError):
        decoder.decode(infinite, every, floats)
    huge = np.full((16, 5), 3e38, dtype=np.float32)
    with pytest.raises(NonFiniteError):
        decoder.state(huge, EDGE, np.arange(6))
    with pytest.raises(UnknownQuantizerError, match="'none'"):
        decoder.point("none")


def test_another_edge_model_is_refused(feedback: Feedback) -> None:
    other = dataclasses.replace(EDGE, weights_digest="z" * 8)
    with pytest.raises(IncompatibleLayoutError, match="is for the layout"):
        feedback.decoder.state(np.zeros((16, 5), np.float32), other, np.arange(6))


def test_dropped_tokens_are_the_mean(feedback: Feedback) -> None:
    kept = np.arange(16) < 3
    point = feedback.decoder.point("float")
    body = np.ones((3, 5), dtype="<f4").tobytes()
    latents = feedback.decoder.decode(body, kept, point.index)
    np.testing.assert_array_equal(latents[3:], 0)
    np.testing.assert_allclose(latents[:3], 1 + feedback.decoder.centre[:3], rtol=1e-6)
