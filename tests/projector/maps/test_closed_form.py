"""Reduced-rank regression against independent references."""

from __future__ import annotations

import numpy as np
import pytest

from projector.maps import closed_form
from projector.maps.base import grid_weights
from projector.maps.closed_form import Statistics, rank_regression
from projector.maps.moments import Moments
from projector.training.corpus import Corpus
from projector.training.fit import chunks
from tests.projector.maps.test_moments import layout

Floats = np.ndarray


@pytest.fixture(scope="module")
def pairs() -> tuple[Floats, Floats]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 9, 12)) @ rng.standard_normal((12, 12)) + 3.0
    y = x @ rng.standard_normal((12, 20)) + 2.0 * rng.standard_normal((40, 9, 20)) - 1.0
    return x, y


def _normalised(pairs: tuple[Floats, Floats]) -> tuple[Statistics, Statistics, Floats, Floats]:
    moments = Moments.of([pairs])
    stats = [moments.x_stats, moments.y_stats]
    flat = [s.normalise(p).reshape(-1, p.shape[-1]) for s, p in zip(stats, pairs, strict=True)]
    return stats[0], stats[1], flat[0], flat[1]


def fitted(
    pairs: tuple[Floats, Floats], rank: int, ridge: float = 1e-3
) -> tuple[Floats, Floats, Floats]:
    """`down`, `up` and the singular values of z-scored pairs."""
    return rank_regression(*Moments.of([pairs]).normalised(), rank, ridge)


def test_full_rank_is_ordinary_least_squares(pairs: tuple[Floats, Floats]) -> None:
    _, _, x, y = _normalised(pairs)
    down, up, _ = fitted(pairs, 12, 0.0)
    expected, *_ = np.linalg.lstsq(x.astype(np.float64), y.astype(np.float64), rcond=None)
    # Coefficients of correlated columns depend on the BLAS, as moments are products in float32.
    # What makes least squares is that no other map fits better, and that it predicts the same.
    np.testing.assert_allclose(x @ down @ up, x @ expected, atol=1e-3)
    least = ((x @ expected - y) ** 2).sum()
    assert ((x @ down @ up - y) ** 2).sum() <= least * (1 + 1e-7)


def test_no_random_map_of_the_same_rank_fits_better(pairs: tuple[Floats, Floats]) -> None:
    _, _, x, y = _normalised(pairs)
    down, up, _ = fitted(pairs, 3, 0.0)
    best = float(((x @ down @ up - y) ** 2).sum())
    rng = np.random.default_rng(1)
    for _ in range(50):
        near = down + 0.05 * rng.standard_normal(down.shape)
        its, *_ = np.linalg.lstsq(x @ near, y, rcond=None)  # the best `up` for that `down`
        assert float(((x @ near @ its - y) ** 2).sum()) >= best


def test_latents_have_unit_variance_so_one_step_fits_all(pairs: tuple[Floats, Floats]) -> None:
    _, _, x, _ = _normalised(pairs)
    down, _, _ = fitted(pairs, 5, 0.0)
    np.testing.assert_allclose(np.cov((x @ down).T, bias=True), np.eye(5), atol=1e-3)


def test_between_grids_it_is_a_regression_on_interpolated_states(
    pairs: tuple[Floats, Floats],
) -> None:
    source, target = layout(1, 1, 6, (3, 3)), layout(1, 1, 10, (2, 2))
    y_less = pairs[1][:, :4]
    corpus = Corpus(pairs[0], y_less, np.zeros((40, 9), np.float16))
    moments = Moments.of(chunks(corpus, source, target))
    down, up, _ = rank_regression(*moments.normalised(), 12, 0.0)
    between = grid_weights(source.grid, target.grid)
    assert between is not None
    x = moments.x_stats.normalise(between.numpy() @ pairs[0]).reshape(-1, 12)
    y = moments.y_stats.normalise(y_less).reshape(-1, 20)
    expected, *_ = np.linalg.lstsq(x.astype(np.float64), y.astype(np.float64), rcond=None)
    np.testing.assert_allclose(down @ up, expected, atol=1e-3)


def test_a_constant_dimension_does_not_divide_by_zero() -> None:
    states = np.zeros((3, 2, 4))
    states[..., 0] = np.arange(6).reshape(3, 2)
    stats = Moments.of([(states, states)]).x_stats
    assert np.isfinite(stats.normalise(states)).all()
    np.testing.assert_allclose(stats.scale[1:], 1.0)


def test_a_wide_map_is_found_without_a_full_decomposition(
    pairs: tuple[Floats, Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    down, up, singular = fitted(pairs, 3)
    monkeypatch.setattr(closed_form, "_WHOLE", 4)
    monkeypatch.setattr(closed_form, "_SPARE", 5)
    found_down, found_up, found = fitted(pairs, 3)
    assert len(found) == 8 < len(singular)
    np.testing.assert_allclose(found[:3], singular[:3], rtol=1e-6)
    np.testing.assert_allclose(found_down @ found_up, down @ up, atol=1e-4)
