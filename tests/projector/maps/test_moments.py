"""Moments: one pass gives what a pass over everything gives, and refuses what is no pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from projector.maps.moments import RIDGE_WEIGHTS, Moments, best_weight, crossed_weight, ridge
from protos.errors import CorpusError, FitError
from protos.layout import KVLayout, RopeSpec


def layout(
    layers: int, kv_heads: int, head_dim: int, grid: tuple[int, int], theta: float = 1e4
) -> KVLayout:
    return KVLayout(
        model_id=f"test:{layers}x{kv_heads}x{head_dim}",
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope=RopeSpec(
            theta=theta,
            rotary_dim=head_dim,
            interleaved=False,
            scaling="default",
            attention_factor=1.0,
            inv_freq=tuple(float(theta ** (-2 * i / head_dim)) for i in range(head_dim // 2)),
        ),
        cache_dtype="float32",
        grid=grid,
        tokenizer_digest="a" * 64,
        weights_digest="b" * 64,
    )


def pairs(source: KVLayout, target: KVLayout, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """States that are related, not centred, and on the target's grid on both sides."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, target.tokens, source.state_dim)) * 2 + 1
    true = rng.standard_normal((source.state_dim, target.state_dim))
    y = x @ true + rng.standard_normal((count, target.tokens, target.state_dim))
    return x.astype(np.float32), y.astype(np.float32)


def test_chunks_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((70, 5)) + 3, rng.standard_normal((70, 7))
    parts = Moments.of((x[i : i + 13], y[i : i + 13]) for i in range(0, 70, 13))
    stats = parts.x_stats
    np.testing.assert_allclose(stats.mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats.scale, x.std(0), rtol=1e-4)
    xx, xy = parts.normalised()
    a, b = (x - x.mean(0)) / x.std(0), (y - y.mean(0)) / y.std(0)
    np.testing.assert_allclose(xx, a.T @ a / 70, atol=1e-4)
    np.testing.assert_allclose(xy, a.T @ b / 70, atol=1e-4)


def test_moments_of_two_samples_add_up_to_those_of_both() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((70, 5)) + 3, rng.standard_normal((70, 7))
    one, two, both = (
        Moments.of([(x[part], y[part])], target_gram=True)
        for part in (slice(0, 20), slice(20, 70), slice(0, 70))
    )
    total = one + two
    assert total.count == 70
    for found, want in zip(total.normalised(), both.normalised(), strict=True):
        np.testing.assert_allclose(found, want, atol=1e-5)
    np.testing.assert_allclose(total.target_covariance(), both.target_covariance(), atol=1e-5)
    np.testing.assert_allclose(total.y_stats.scale, y.std(0), rtol=1e-4)


def test_a_weight_counts_a_pair_so_many_times() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((2, 7, 5, 4)).astype(np.float32)
    times = rng.integers(0, 4, (7, 5))
    again = (
        np.repeat(x.reshape(-1, 4), times.ravel(), 0),
        np.repeat(y.reshape(-1, 4), times.ravel(), 0),
    )
    weighted = Moments.of([(x, y, times.astype(np.float32))], target_gram=True)
    repeated = Moments.of([again], target_gram=True)
    assert weighted.count == repeated.count == times.sum()
    for one, other in zip(weighted.normalised(), repeated.normalised(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(
        weighted.target_covariance(), repeated.target_covariance(), atol=1e-5
    )


def test_the_held_out_error_needs_no_second_pass() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((90, 5))
    y = x @ rng.standard_normal((5, 7)) + rng.standard_normal((90, 7))
    train, held = Moments.of([(x[:60], y[:60])]), Moments.of([(x[60:], y[60:])])
    w = ridge(*train.normalised(), 1e-3)
    xs, ys = train.x_stats, train.y_stats
    direct = np.square(ys.normalise(y[60:]) - xs.normalise(x[60:]) @ w).mean(0)
    np.testing.assert_allclose(held.squared_error(w, xs, ys), direct, rtol=1e-3)


def test_what_is_no_pair_is_refused() -> None:
    x, y = np.ones((4, 3)), np.ones((4, 2))
    with pytest.raises(CorpusError, match="empty"):
        Moments.of([])
    with pytest.raises(CorpusError, match="unpaired"):
        Moments.of([(x, y[:3])])
    with pytest.raises(CorpusError, match="two pairs of models mixed"):
        Moments.of([(x, y), (np.ones((4, 5)), y)])
    y[2, 1] = np.nan
    with pytest.raises(CorpusError, match="NaN"):
        Moments.of([(x, y)])


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(FitError, match="0 or more"):
        ridge(np.eye(2), np.eye(2), -1.0)


def test_the_weight_that_is_chosen_is_the_one_with_the_least_held_out_error() -> None:
    rng = np.random.default_rng(3)
    truth = rng.standard_normal((24, 10)) * 0.2

    def sample(count: int, noise: float) -> Moments:
        x = rng.standard_normal((1, count, 24)).astype(np.float32)
        y = x @ truth + noise * rng.standard_normal((1, count, 10))
        return Moments.of([(x, y.astype(np.float32))])

    chosen = {}
    for noise in (0.01, 3.0):
        moments = replace(sample(60, noise), held=sample(4000, noise))
        xx, xy = moments.normalised()
        assert moments.held is not None
        errors = [
            moments.held.squared_error(
                ridge(xx, xy, weight), moments.x_stats, moments.y_stats
            ).sum()
            for weight in RIDGE_WEIGHTS
        ]
        chosen[noise] = best_weight(moments)
        assert chosen[noise] == RIDGE_WEIGHTS[int(np.argmin(errors))]
    assert chosen[0.01] < 1e-2 < chosen[3.0], "more noise, more ridge"


def test_without_held_out_pairs_no_weight_is_chosen() -> None:
    x = np.random.default_rng(0).standard_normal((1, 50, 4)).astype(np.float32)
    with pytest.raises(FitError, match="none are held out"):
        best_weight(Moments.of([(x, x)]))


def test_a_weight_below_the_rounding_errors_of_a_singular_covariance_is_not_chosen() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 3)) @ rng.standard_normal((3, 8))  # five directions are empty
    exact = Moments.of([(x[None], x[None])])
    values, vectors = np.linalg.eigh(exact.xx)
    noisy = (vectors * np.where(values < 1.0, -0.5, values)) @ vectors.T
    moments = replace(exact, xx=noisy, held=exact)
    xx, xy = moments.normalised()
    with pytest.raises(FitError, match="singular"):
        ridge(xx, xy, RIDGE_WEIGHTS[0])
    chosen = best_weight(moments)
    assert chosen > RIDGE_WEIGHTS[0]
    assert np.isfinite(ridge(xx, xy, chosen)).all()


def test_the_crossed_weight_is_that_of_every_fold_tried_by_hand() -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((4, 15, 10))
    y = x @ rng.standard_normal((10, 3)) + 3 * rng.standard_normal((4, 15, 3))
    weights = (1e-3, 0.1, 1.0, 10.0)
    found, explained = crossed_weight([Moments.of([(x[k], y[k])]) for k in range(4)], weights)
    errors, usual = dict.fromkeys(weights, 0.0), 0.0
    for k in range(4):
        seen = np.arange(4) != k
        a, b = x[seen].reshape(-1, 10), y[seen].reshape(-1, 3)
        mean, scale, y_mean, y_scale = a.mean(0), a.std(0), b.mean(0), b.std(0)
        a, b = (a - mean) / scale, (b - y_mean) / y_scale
        apart, wanted = (x[k] - mean) / scale, (y[k] - y_mean) / y_scale
        usual += float(np.square(wanted).mean())
        for weight in weights:
            w = np.linalg.solve(a.T @ a / len(a) + weight * np.eye(10), a.T @ b / len(a))
            errors[weight] += float(np.square(wanted - apart @ w).mean())
    assert found == min(weights, key=lambda weight: errors[weight])
    assert explained == pytest.approx((usual - errors[found]) / 4, abs=1e-3)


def test_one_set_of_pictures_cannot_be_crossed() -> None:
    x = np.random.default_rng(0).standard_normal((8, 3))
    with pytest.raises(FitError, match="two sets"):
        crossed_weight([Moments.of([(x, x)])])
