"""The risk model: what it sees, what is learnt, and that a bundle's edge half carries it whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from projector.calibration.learn_risk import _halves, learn, logistic
from projector.codec.encoder import Encoder
from projector.codec.risk import RiskModel, feature_count, features
from projector.validation.estimate import auroc
from protos.distortion import Distortion
from protos.errors import BundleFormatError, FitError
from tests.fakes.fake_edge import RANK, make_encoder

MOVED = np.random.default_rng(0).standard_normal((9, RANK)).astype(np.float32)


def model(limit: float = 0.3, bias: float = 0.0, quantize: float = 0.0) -> RiskModel:
    weights = np.zeros(feature_count(RANK), np.float32)
    weights[0] = quantize
    return RiskModel(np.zeros_like(weights), weights, bias, limit)


def test_features_are_finite_and_as_many_as_the_model_has_weights() -> None:
    found = features(
        Distortion(0.1, 0.0, 0.0, 1.0), "is it ?", np.full(7, 1 / 7, np.float32), MOVED
    )
    assert found.shape == (feature_count(RANK),) and np.isfinite(found).all()
    assert (features(Distortion(), "is it ?", None, MOVED) != found).any()


def test_what_is_not_known_counts_as_usual() -> None:
    weights = np.ones(feature_count(RANK), np.float32)
    usual = np.full(feature_count(RANK), 0.25, np.float32)
    risky = RiskModel(usual, weights, bias=-2.0, limit=0.5)
    hidden = features(Distortion(), "", None, MOVED)
    told = np.where(np.isnan(hidden), usual, hidden)
    assert np.isnan(hidden).any()
    assert risky.risk(hidden) == risky.risk(told.astype(np.float32))


def test_the_regression_finds_the_odds_that_made_the_answers() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((40_000, 3)) * (1.0, 5.0, 1.0) + (0.0, 2.0, -1.0)
    true, bias = np.array([1.0, -0.3, 2.0]), 0.5
    y = rng.random(len(x)) < 1 / (1 + np.exp(-(x @ true + bias)))
    weights, intercept = logistic(x, y.astype(float), ridge=1e-3, rising=())
    np.testing.assert_allclose(weights, true, atol=0.15)
    assert intercept == pytest.approx(bias, abs=0.2)


def test_losing_more_never_lowers_the_risk() -> None:
    """Though where it was learnt the coarser frames happened to be of the easier pictures."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((4000, 5))
    y = (x @ np.array([-1.0, 0.5, 0.0, -2.0, 1.0]) + rng.logistic(size=4000) > 0).astype(float)
    free, _ = logistic(x, y, ridge=1.0, rising=())
    held, _ = logistic(x, y, ridge=1.0)
    assert free[0] < -0.5
    assert held[0] == 0.0 and held[1] > 0.2 and held[3] < -1.0
    alone, _ = logistic(x[:, 1:], y, ridge=1.0, rising=())
    np.testing.assert_allclose(held[1:], alone, atol=1e-6)


def test_at_the_learnt_limit_falling_back_keeps_the_answers() -> None:
    rng = np.random.default_rng(2)
    count = 4000
    found = rng.standard_normal((count, feature_count(RANK))).astype(np.float32)
    disagree = rng.random(count) < 1 / (1 + np.exp(-(10 * found[:, 5] - 12)))
    picture = rng.random(count) < 0.95
    frame = picture & ~disagree
    of = np.arange(count) // 4
    learnt = learn(found, disagree, of, frame, picture, within=0.01, ridge=1.0)
    risky = learnt.risk
    over = risky.risk(found) > risky.limit
    assert np.where(over, picture, frame).mean() >= picture.mean() - 0.015
    assert over.mean() < 0.5
    none = learn(found, disagree, of, frame, picture, within=1.0, ridge=1.0).risk
    assert (none.risk(found) > none.limit).mean() < 0.01
    assert auroc(learnt.crossed, disagree) > 0.9
    held_out = np.where(learnt.over, picture, frame).mean()
    assert picture.mean() - 0.02 <= held_out < picture.mean(), "limits of the other half"
    assert learnt.over.mean() < 0.5
    assert np.corrcoef(learnt.crossed, risky.risk(found))[0, 1] > 0.9


def test_the_limit_is_that_of_the_frames_which_are_usually_sent() -> None:
    """Coarser ones are learnt from as well, and are not what is to be kept within the loss."""
    rng = np.random.default_rng(3)
    count = 4000
    found = rng.standard_normal((count, 5)).astype(np.float32)
    usual = np.arange(count) % 2 == 0
    found[:, 0] = np.where(usual, 0.1, 0.9)
    disagree = rng.random(count) < np.where(usual, 0.05, 0.6)
    picture = np.ones(count, np.bool_)
    given = (found, disagree, np.arange(count) // 4, picture & ~disagree, picture)
    every = learn(*given, within=0.06, ridge=1.0).risk
    only = learn(*given, within=0.06, ridge=1.0, limiting=usual).risk
    np.testing.assert_array_equal(every.weights, only.weights)
    assert only.weights[0] > 1.0
    assert (only.risk(found[usual]) > only.limit).mean() < 0.2
    assert (only.risk(found[~usual]) > only.limit).mean() > 0.9


@pytest.mark.parametrize("differ", [0, 19, 81, 100])
def test_answers_that_hardly_ever_differ_or_agree_teach_nothing(differ: int) -> None:
    disagree = np.arange(100) < differ
    with pytest.raises(FitError, match="10 of each"):
        learn(np.zeros((100, 2)), disagree, np.arange(100), ~disagree, ~disagree, within=0.1)


def test_halves_are_of_pictures_and_hold_as_many_that_differ_whatever_their_numbers() -> None:
    pictures = np.repeat(np.arange(0, 80, 2), 3)  # no odd number among them
    disagree = pictures < 40
    fold = _halves(pictures, disagree)
    for number in np.unique(pictures):
        assert len(set(fold[pictures == number])) == 1
    assert [int(disagree[fold == half].sum()) for half in (0, 1)] == [30, 30]
    assert [int((fold == half).sum()) for half in (0, 1)] == [60, 60]
    x = np.random.default_rng(0).standard_normal((120, 4))
    learnt = learn(x, disagree, pictures, ~disagree, np.ones(120, np.bool_), within=0.1, ridge=1.0)
    assert np.isfinite(learnt.crossed).all()


def test_the_encoder_carries_the_model_and_encoders_without_one_stay_as_they_were() -> None:
    plain = make_encoder()
    risky = replace(plain, risk=model(limit=0.25, bias=-1.5, quantize=2.0))
    read = Encoder.from_bytes(risky.to_bytes())
    assert read.risk is not None and read.to_bytes() == risky.to_bytes()
    assert (read.risk.limit, read.risk.bias) == (0.25, -1.5)
    assert Encoder.from_bytes(plain.to_bytes()).risk is None
    assert plain.to_bytes() != risky.to_bytes()


def test_a_model_that_does_not_fit_its_encoder_is_refused() -> None:
    short = RiskModel(np.zeros(5, np.float32), np.zeros(5, np.float32), 0.0, 0.5)
    with pytest.raises(BundleFormatError, match="features"):
        replace(make_encoder(), risk=short)
    with pytest.raises(BundleFormatError, match="finite"):
        model(bias=float("nan"))
    with pytest.raises(BundleFormatError, match="limit"):
        model(limit=1.5)
