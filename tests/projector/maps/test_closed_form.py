"""Reduced-rank regression against independent references."""

from __future__ import annotations

import numpy as np
import pytest

from projector.maps import closed_form
from projector.maps.closed_form import Statistics, reduced_rank

Floats = np.ndarray


@pytest.fixture(scope="module")
def pairs() -> tuple[Floats, Floats]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 9, 12)) @ rng.standard_normal((12, 12)) + 3.0
    y = x @ rng.standard_normal((12, 20)) + 2.0 * rng.standard_normal((40, 9, 20)) - 1.0
    return x, y


def _normalised(pairs: tuple[Floats, Floats]) -> tuple[Statistics, Statistics, Floats, Floats]:
    stats = [Statistics.of(p) for p in pairs]
    flat = [s.normalise(p).reshape(-1, p.shape[-1]) for s, p in zip(stats, pairs, strict=True)]
    return stats[0], stats[1], flat[0], flat[1]


def test_full_rank_is_ordinary_least_squares(pairs: tuple[Floats, Floats]) -> None:
    x_stats, y_stats, x, y = _normalised(pairs)
    fit = reduced_rank(*pairs, x_stats, y_stats, rank=12, ridge=0.0)
    expected, *_ = np.linalg.lstsq(x.astype(np.float64), y.astype(np.float64), rcond=None)
    np.testing.assert_allclose(fit.down @ fit.up, expected, atol=1e-4)


def test_no_random_map_of_the_same_rank_fits_better(pairs: tuple[Floats, Floats]) -> None:
    x_stats, y_stats, x, y = _normalised(pairs)
    fit = reduced_rank(*pairs, x_stats, y_stats, rank=3, ridge=0.0)
    best = float(((x @ fit.down @ fit.up - y) ** 2).sum())
    rng = np.random.default_rng(1)
    for _ in range(50):
        down = fit.down + 0.05 * rng.standard_normal(fit.down.shape)
        up, *_ = np.linalg.lstsq(x @ down, y, rcond=None)  # the best `up` for that `down`
        assert float(((x @ down @ up - y) ** 2).sum()) >= best


def test_latents_have_unit_variance_so_one_step_fits_all(pairs: tuple[Floats, Floats]) -> None:
    x_stats, y_stats, x, _ = _normalised(pairs)
    fit = reduced_rank(*pairs, x_stats, y_stats, rank=5, ridge=0.0)
    np.testing.assert_allclose(np.cov((x @ fit.down).T, bias=True), np.eye(5), atol=1e-3)


def test_between_grids_it_is_a_regression_on_interpolated_states(
    pairs: tuple[Floats, Floats],
) -> None:
    x_stats, y_stats, _, _ = _normalised(pairs)
    between = np.random.default_rng(2).random((4, 9)).astype(np.float32)
    y_less = pairs[1][:, :4]
    fit = reduced_rank(pairs[0], y_less, x_stats, y_stats, rank=12, ridge=0.0, between=between)
    x = (between @ x_stats.normalise(pairs[0])).reshape(-1, 12)
    y = y_stats.normalise(y_less).reshape(-1, 20)
    expected, *_ = np.linalg.lstsq(x.astype(np.float64), y.astype(np.float64), rcond=None)
    np.testing.assert_allclose(fit.down @ fit.up, expected, atol=1e-3)


def test_a_constant_dimension_does_not_divide_by_zero() -> None:
    states = np.zeros((3, 2, 4))
    states[..., 0] = np.arange(6).reshape(3, 2)
    stats = Statistics.of(states)
    assert np.isfinite(stats.normalise(states)).all()
    np.testing.assert_allclose(stats.scale[1:], 1.0)


def test_a_wide_map_is_found_without_a_full_decomposition(
    pairs: tuple[Floats, Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    x_stats, y_stats, _, _ = _normalised(pairs)
    exact = reduced_rank(*pairs, x_stats, y_stats, rank=3)
    monkeypatch.setattr(closed_form, "_WHOLE", 4)
    monkeypatch.setattr(closed_form, "_SPARE", 5)
    found = reduced_rank(*pairs, x_stats, y_stats, rank=3)
    assert len(found.singular) == 8 < len(exact.singular)
    np.testing.assert_allclose(found.singular[:3], exact.singular[:3], rtol=1e-6)
    np.testing.assert_allclose(found.down @ found.up, exact.down @ exact.up, atol=1e-4)
