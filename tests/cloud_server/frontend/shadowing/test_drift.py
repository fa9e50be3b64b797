"""The test for drift: how often it is wrong, how soon it is right, and that it can be kept."""

from __future__ import annotations

import json
import math

import numpy as np
import numpy.typing as npt
import pytest

from cloud_server.frontend.shadowing.drift import BETS, YEAR_S, Drift

Outcomes = npt.NDArray[np.float64]
LIMIT, EVERY_S = 0.15, 100.0


def first_alarms(
    outcomes: Outcomes, limit: float, every_s: float, false_alarms: float
) -> npt.NDArray[np.int64]:
    """The frame at which each row's alarm begins, -1 for none; written from the formula alone."""
    devices, frames = outcomes.shape
    bets = np.array(BETS)[:, None]
    stakes = np.zeros((len(BETS), devices))
    first = np.full(devices, -1)
    for frame in range(frames):
        new = (86400.0 if frame == 0 else every_s) / YEAR_S
        stakes = (stakes + new) * (1 + bets / limit * (outcomes[:, frame] - limit))
        over = stakes.mean(axis=0) >= 1 / false_alarms
        first[over & (first < 0)] = frame
    return first


def _run(drift: Drift, outcomes: Outcomes, start_s: float = 1e9) -> int:
    for frame, outcome in enumerate(outcomes):
        if drift.see(float(outcome), LIMIT, start_s + frame * EVERY_S, 0.01):
            return frame
    return -1


def test_false_alarms_stay_below_the_stated_rate_at_the_limit_itself() -> None:
    """The worst that is no drift: 4,000 years of devices exactly at the limit."""
    rng, every_s, false_alarms = np.random.default_rng(1), 5 * 86400.0, 0.1
    outcomes = (rng.random((4000, 73)) < LIMIT).astype(float)
    alarms = int((first_alarms(outcomes, LIMIT, every_s, false_alarms) >= 0).sum())
    years = 4000 * (73 * every_s + 86400.0) / YEAR_S
    assert 0 < alarms <= false_alarms * years + 3 * math.sqrt(false_alarms * years)


def test_outcomes_that_depend_on_those_before_raise_no_more_alarms() -> None:
    """Scenes change slowly: the mean given the past stays at the limit, single frames cluster."""
    rng, devices, frames = np.random.default_rng(2), 2000, 73
    outcomes = np.zeros((devices, frames))
    for frame in range(frames):
        drawn = rng.random(devices) < LIMIT  # after a difference they swing more, mean unchanged
        swing = outcomes[:, frame - 1] > 0 if frame else np.zeros(devices, bool)
        outcomes[:, frame] = np.where(swing, rng.beta(0.15, 0.85, devices), drawn)
    alarms = (first_alarms(outcomes, LIMIT, 5 * 86400.0, 0.1) >= 0).sum()
    assert alarms <= 0.1 * devices * 1.1


def test_the_product_computes_the_formula() -> None:
    rng = np.random.default_rng(3)
    outcomes = (rng.random((40, 300)) < 0.3).astype(float)
    wanted = first_alarms(outcomes, LIMIT, EVERY_S, 0.01)
    assert [_run(Drift(), row) for row in outcomes] == wanted.tolist()
    assert (wanted >= 0).any()


def test_years_without_change_make_the_alarm_no_later() -> None:
    rng = np.random.default_rng(4)
    change = (rng.random(2000) < 0.5).astype(float)
    fresh, old = Drift(), Drift()
    at_once = _run(fresh, change)
    before = (rng.random(100_000) < 0.02).astype(float)
    assert _run(old, before) == -1
    after = _run(old, change, 1e9 + len(before) * EVERY_S)
    assert 0 <= at_once <= after <= at_once + 25


def test_an_alarm_ends_when_answers_agree_again_and_not_before() -> None:
    rng, drift = np.random.default_rng(5), Drift()
    assert _run(drift, np.ones(100)) >= 0
    assert drift.alarm_s is not None and drift.alarms == 1
    assert _run(drift, (rng.random(5000) < 0.3).astype(float), 2e9) == -1
    ended = _run(drift, (rng.random(5000) < 0.03).astype(float), 3e9)
    assert 0 <= ended < 300 and drift.alarm_s is None
    assert _run(drift, np.ones(100), 4e9) >= 0 and drift.alarms == 2


def test_it_goes_on_from_what_was_kept() -> None:
    rng = np.random.default_rng(6)
    outcomes = (rng.random(200) < 0.3).astype(float)
    whole, kept = Drift(), Drift()
    for frame, outcome in enumerate(outcomes):
        for_now = float(outcome), LIMIT, 1e9 + frame * EVERY_S, 1e-9
        whole.see(*for_now)
        kept.see(*for_now)
        kept = Drift.from_json(json.loads(json.dumps(kept.to_json())))
    assert kept == whole and whole.evidence > 0


@pytest.mark.parametrize("now_s", [5e8, 1e9, 1e9 + 1e12])
def test_a_clock_that_jumps_neither_hides_nor_raises_an_alarm(now_s: float) -> None:
    drift = Drift()
    drift.see(0.0, LIMIT, 1e9, 0.01)
    drift.see(0.0, LIMIT, now_s, 0.01)
    assert 0 < drift.evidence < 0.1 and drift.alarm_s is None
    assert _run(drift, np.ones(100), now_s) >= 0
