"""Static FP8 scales and steps: what calibration allots."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from projector.calibrate import GRANULARITIES, fp8_steps
from projector.families.low_rank import LowRank
from projector.moments import Moments
from protos import quantize
from protos.errors import ConfigError
from protos.layout import KVLayout

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
