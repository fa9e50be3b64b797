"""Static FP8 scales and steps: what calibration allots."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from projector.calibration.calibrate import FIXED, GRANULARITIES, fp8_steps, with_fixed
from projector.codec.encoder import Encoder
from projector.maps.low_rank import LowRank
from projector.maps.moments import Moments
from projector.models.vlm import VLM
from protos import quantize
from protos.errors import ConfigError
from protos.layout import KVLayout
from tests.fakes.tiny_models import picture
from tests.projector.conftest import make_encoder

TOKENS, HEADS, HEAD_DIM = 200, 6, 8


def states() -> np.ndarray:
    """Heads of very different sizes, and one channel that is an outlier, as keys have."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((TOKENS, HEADS, HEAD_DIM)) * np.geomspace(1e-4, 1, HEADS)[:, None]
    x[:, 3, 2] *= 300
    return x.reshape(TOKENS, -1).astype(np.float32)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_no_calibration_value_saturates_and_each_scale_is_as_small_as_its_group_allows(
    granularity: str,
) -> None:
    x = states()
    steps = fp8_steps(x, granularity, HEAD_DIM)
    assert steps.shape == (HEADS * HEAD_DIM,) and steps.dtype == np.float32
    groups = {"tensor": 1, "head": HEADS, "channel": HEADS * HEAD_DIM}[granularity]
    assert len(np.unique(steps)) == groups
    largest = (np.abs(x) / steps).reshape(TOKENS, groups, -1).max(axis=(0, 2))
    np.testing.assert_allclose(largest, 224, rtol=1e-4)


def test_finer_scales_lose_less_of_small_heads() -> None:
    x = states()
    errors = []
    for granularity in GRANULARITIES:
        steps, fp8 = fp8_steps(x, granularity, HEAD_DIM), quantize.get("fp8_e4m3")
        again = fp8.decode(fp8.encode(x, steps), *x.shape, steps)
        small = slice(0, HEAD_DIM)
        errors.append(float(np.linalg.norm((again - x)[:, small]) / np.linalg.norm(x[:, small])))
    assert errors[0] > 5 * errors[1] and errors[1] < 0.04 and errors[2] < 0.04


def test_an_unknown_granularity_or_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="tensor, head, channel"):
        fp8_steps(states(), "layer")
    with pytest.raises(ConfigError, match="divide"):
        fp8_steps(states(), "head", 7)


def test_one_step_of_any_latent_moves_the_target_equally_far(
    source: KVLayout, target: KVLayout
) -> None:
    """Reverse water-filling: equal distortion per latent, so steps are 1 / |J_j|."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((40, source.tokens, source.state_dim)).astype(np.float32)
    mixing = rng.standard_normal((source.state_dim, target.state_dim)) / source.state_dim**0.5
    y = (x @ mixing).astype(np.float16)
    made = LowRank(r=6).build(source, target, Moments.of([(x, y)], target_gram=True))
    latents = torch.randn(3, source.tokens, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        still = made.cloud(latents)
        moved = []
        for j, step in enumerate(made.steps().tolist()):
            nudged = latents.clone()
            nudged[..., j] += step
            moved.append(float((made.cloud(nudged) - still).norm()))
    np.testing.assert_allclose(moved, moved[0], rtol=1e-3)


def test_points_of_fixed_size_replace_those_there_and_lose_what_their_bits_lose(
    vlms: dict[str, VLM],
) -> None:
    vlm, source = vlms["idefics3"], vlms["idefics3"].layout
    before = make_encoder(source)
    seen = vlm.states(vlm.prefill([picture(seed) for seed in range(12)]))
    states = [state.flat() for state in seen]
    made = with_fixed(before, states, list(FIXED), "head", source.head_dim)
    encoder = Encoder.from_bytes(made.to_bytes())
    coded = [p.name for p in before.points if p.quantizer == "uniform" or p.kind != "latent"]
    assert [p.name for p in encoder.points] == [*coded, *FIXED]
    heads = encoder.raw_scale.reshape(-1, source.head_dim)
    assert (heads == heads[:, :1]).all() and len(np.unique(heads)) == len(heads)
    errors, sizes = {}, {}
    for name, (index, quantizer) in FIXED.items():
        point = encoder.point(index)
        assert (point.name, point.quantizer) == (name, quantizer)
        lost, size = 0.0, 0
        for state in seen:
            frame = encoder.encode(state, point)
            lost += frame.distortion.quantize
            size += len(frame.payload)
        errors[name], sizes[name] = lost, size
    assert errors["float"] < errors["int8"] < errors["int4"]
    assert errors["fp8"] < errors["int4"] and errors["fp8-token"] < errors["int4"]
    assert sizes["int4"] < sizes["int8"] == sizes["fp8"] < sizes["fp8-token"] < sizes["float"]
    travelling = with_fixed(before, states, raw_scale="token")
    raw = next(p for p in travelling.points if p.kind == "raw_kv")
    for state in seen:
        frame = travelling.encode(state, raw)
        assert frame.distortion.quantize < 0.1
        assert len(frame.payload) == state.tokens * (source.state_dim + 2)
    untouched = with_fixed(before, states)
    assert untouched.points == before.points
    np.testing.assert_array_equal(untouched.raw_scale, before.raw_scale)
    with pytest.raises(ConfigError, match="int4"):
        with_fixed(before, states, ["int2"])
