"""Delta frames: what the cloud knows stays within a step of the truth, whatever is lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from projector.codec.deltas import Held
from projector.codec.encoder import Encoded, Encoder
from protos.errors import ConfigError, FrameMalformedError
from protos.points import RAW_KV_FP8_POINT, OperatingPoint
from protos.state import KVState
from tests.fakes.fake_edge import LAYOUT, make_encoder

Floats = npt.NDArray[np.float32]


def state_of(x: npt.NDArray[np.floating]) -> KVState:
    attention = np.full(LAYOUT.tokens, 1 / LAYOUT.tokens)
    return KVState.from_flat(x, LAYOUT, np.arange(LAYOUT.tokens), attention)


def scene(seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((LAYOUT.tokens, LAYOUT.state_dim), dtype=np.float32)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    made = make_encoder()
    return replace(made, points=tuple(replace(p, tokens=0) for p in made.points))


@pytest.fixture(scope="module")
def low(encoder: Encoder) -> OperatingPoint:
    return encoder.point(1)


def received(encoder: Encoder, sent: Encoded, point: OperatingPoint, base: Held | None) -> Held:
    z_hat = encoder.decode(sent.payload, sent.kept, point, base, sent.differences)
    return encoder.hold(z_hat, sent.kept, base)


def test_only_what_moved_travels(encoder: Encoder, low: OperatingPoint) -> None:
    x = scene(1)
    key = encoder.encode(state_of(x), low)
    moved = x.copy()
    moved[4] += 2
    delta = encoder.encode(state_of(moved), low, base=key.held)
    assert np.flatnonzero(delta.kept).tolist() == [4]
    assert len(delta.payload) < len(key.payload) / 2
    now = received(encoder, delta, low, key.held)
    np.testing.assert_array_equal(now.latents, delta.held.latents)
    still = np.arange(LAYOUT.tokens) != 4
    np.testing.assert_array_equal(now.latents[still], key.held.latents[still])
    np.testing.assert_allclose(now.latents[4], encoder.project(moved)[4], atol=0.2501)


def test_a_still_scene_sends_the_same_token_each_time_and_it_changes_nothing(
    encoder: Encoder, low: OperatingPoint
) -> None:
    """A parcel then tells it once; see `protos.parcel`."""
    usual = encoder.x_mean + np.zeros((LAYOUT.tokens, LAYOUT.state_dim), np.float32)
    x = np.where(np.arange(LAYOUT.tokens)[:, None] < 3, scene(5) * 3, usual).astype(np.float32)
    flat = replace(encoder, centre=np.zeros_like(encoder.centre))
    held, sent = flat.encode(state_of(x), low).held, set()
    rng = np.random.default_rng(0)
    for _ in range(5):
        noise = rng.normal(0, 1e-3, x.shape).astype(np.float32)
        again = flat.encode(state_of(x + noise), low, base=held)
        np.testing.assert_array_equal(again.held.latents, held.latents)
        sent.add((again.kept.tobytes(), again.payload))
        held = again.held
    assert len(sent) == 1


def test_a_still_scene_costs_one_token(encoder: Encoder, low: OperatingPoint) -> None:
    key = encoder.encode(state_of(scene(2)), low)
    again = encoder.encode(state_of(scene(2)), low, base=key.held)
    assert again.kept.sum() == 1
    assert again.distortion.quantize <= key.distortion.quantize


def test_tokens_that_were_dropped_before_are_added(encoder: Encoder, low: OperatingPoint) -> None:
    few = np.zeros(LAYOUT.tokens, dtype=np.bool_)
    few[:3] = True
    key = encoder.encode(state_of(scene(3)), low, kept=few)
    other = ~few
    other[8] = False
    delta = encoder.encode(state_of(scene(3)), low, kept=other, base=key.held)
    assert (delta.kept >= other).all() and not (delta.kept & few & (np.arange(9) != 0)).sum() > 1
    assert np.flatnonzero(delta.held.kept).tolist() == list(range(8))
    assert not delta.held.latents[8].any()


def test_small_changes_travel_as_differences(encoder: Encoder, low: OperatingPoint) -> None:
    x = scene(4) * 4
    key = encoder.encode(state_of(x), low)
    nudged = x + (encoder.projection @ np.array([0.8, 0, 0, 0], np.float32))
    delta = encoder.encode(state_of(nudged), low, base=key.held)
    assert delta.differences
    now = received(encoder, delta, low, key.held)
    np.testing.assert_array_equal(now.latents, delta.held.latents)
    assert np.abs(now.latents - encoder.project(nudged)).max() <= 0.5


@pytest.mark.parametrize("frames", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dead_zone", "quiet"), [(0.0, 0.0), (0.3, 0.0), (0.0, 6.0)])
def test_drift_is_bounded_over_thousands_of_frames(
    encoder: Encoder, dead_zone: float, quiet: float, frames: int
) -> None:
    """A scene wanders, things come and go, every 50th frame is lost, every 900th loses the base."""
    point = replace(encoder.point(1), dead_zone=dead_zone, quiet=quiet)
    rng = np.random.default_rng(5)
    x = scene(5)
    base: Held | None = None
    worst, keys, sent = 0.0, 0, 0
    steps = encoder.steps_of(point)
    for number in range(frames):
        x += rng.standard_normal(x.shape, dtype=np.float32) * 0.01
        if number % 7 == 0:
            x[rng.integers(LAYOUT.tokens)] = rng.standard_normal(LAYOUT.state_dim)
        if number % 900 == 890:
            base = None
        keys += base is None
        coded = encoder.encode(state_of(x), point, base=base)
        sent += int(coded.kept.sum())
        if number % 50 == 49:
            continue  # lost: not accepted, so no base of later frames
        if number % 10 == 0:
            known = received(encoder, coded, point, base)
            np.testing.assert_array_equal(known.latents, coded.held.latents)
        off = np.abs(encoder.project(x) - coded.held.latents) / steps
        worst = max(worst, float(off.max()))
        base = coded.held
    assert worst <= max(1, quiet**0.5) + 1e-4
    assert keys == 1 + (frames + 9) // 900 and sent < 0.4 * frames * LAYOUT.tokens


def test_points_without_latents_have_no_delta_frames(encoder: Encoder) -> None:
    raw = encoder.point(RAW_KV_FP8_POINT)
    key = encoder.encode(state_of(scene(6)), raw)
    with pytest.raises(ConfigError, match="no delta frames"):
        encoder.encode(state_of(scene(6)), raw, base=key.held)
    with pytest.raises(FrameMalformedError, match="no delta frames"):
        encoder.decode(key.payload, key.kept, raw, key.held)
