"""An edge half in closed form: what it gives back, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from projector.hub.half import different, fit_half
from protos.errors import CorpusError

N, D, R = 9, 12, 4


def pictures(count: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States, latents that depend linearly on them with an intercept, and their deviations."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((count, N, D)) * rng.uniform(0.5, 3, D) + rng.standard_normal(D)
    z = x @ rng.standard_normal((D, R)) + rng.standard_normal(R) * 5
    z = z + noise * rng.standard_normal(z.shape)
    return x.astype(np.float32), z.astype(np.float32), z.reshape(-1, R).std(axis=0)


def test_a_linear_relation_is_found_with_its_intercept() -> None:
    x, z, scale = pictures(24)
    seen = z[:16].reshape(-1, R).std(axis=0)
    half = fit_half(x[:16], z[:16], seen.astype(np.float32))
    assert half.explained > 0.999
    np.testing.assert_allclose(half.project(x[16:]), z[16:], atol=0.01 * scale.min())


def test_a_noisy_relation_keeps_the_hubs_deviations() -> None:
    x, z, scale = pictures(64, noise=6.0)
    half = fit_half(x, z, scale.astype(np.float32))
    made = half.project(x).reshape(-1, R)
    np.testing.assert_allclose(made.std(axis=0), scale, rtol=0.02)
    np.testing.assert_allclose(made.mean(axis=0), z.reshape(-1, R).mean(axis=0), atol=0.05)
    assert (half.spread > 1).all()


def test_the_weight_is_chosen_over_pictures() -> None:
    """Pictures that differ in their mean alone say nothing of each other: ridge must be large."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((8, 1, D)), N, axis=1)
    z = np.repeat(rng.standard_normal((8, 1, R)), N, axis=1)
    half = fit_half(x.astype(np.float32), z.astype(np.float32), np.ones(R, dtype=np.float32))
    assert half.weight >= 1
    assert half.explained < 0.3


def test_three_pictures_are_too_few() -> None:
    x, z, scale = pictures(3)
    with pytest.raises(CorpusError, match="at least"):
        fit_half(x, z, scale.astype(np.float32))


def test_equal_pictures_count_once() -> None:
    assert different(("a", "b", "a", "c", "b")) == [0, 1, 3]
