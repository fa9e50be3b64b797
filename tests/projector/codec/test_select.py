"""The contract that every selector keeps, and what each of them is for."""

from __future__ import annotations

import numpy as np
import pytest

from projector.codec import select
from projector.codec.select.base import Selector
from projector.codec.select.key_diversity import KeyDiversity
from projector.codec.select.kv_norm import KVNorm
from projector.codec.select.random import Random
from projector.codec.select.raw_focus import RawFocus
from projector.codec.select.symmetric_focus import SymmetricFocus
from projector.codec.select.task_aware import TaskAware
from projector.codec.select.uniform import Uniform
from projector.codec.select.value_aware import ValueAware
from protos.errors import ConfigError
from protos.state import KVState

STATE_DIM, LATENTS = 48, 5
_RNG = np.random.default_rng(1)
TASK_AWARE = TaskAware(
    normal_mean=_RNG.standard_normal(STATE_DIM).astype(np.float32),
    normal_scale=np.full(STATE_DIM, 2, dtype=np.float32),
    projection=_RNG.standard_normal((STATE_DIM, LATENTS)).astype(np.float32),
    empty=_RNG.standard_normal((36, LATENTS)).astype(np.float32),
    weights=np.array([0, 1, 2, 3, 4], dtype=np.float32),
)
SELECTORS: list[Selector] = [
    SymmetricFocus(),
    RawFocus(),
    KVNorm(),
    ValueAware(),
    KeyDiversity(),
    TASK_AWARE,
    Uniform(),
    Random(seed=3),
]


def state(seed: int = 0, grid: tuple[int, int] = (6, 6)) -> KVState:
    rng = np.random.default_rng(seed)
    tokens = grid[0] * grid[1]
    shape = (3, 2, tokens, 4)
    attention = rng.random(tokens).astype(np.float32)
    return KVState(
        keys=rng.standard_normal(shape).astype(np.float32),
        values=rng.standard_normal(shape).astype(np.float32),
        positions=np.arange(5, 5 + tokens),
        grid=grid,
        attention=attention / attention.sum(),
    )


def test_every_registered_selector_is_under_contract() -> None:
    assert {s.name for s in SELECTORS} == set(select.SELECTORS)


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda s: s.name)
class TestContract:
    def test_scores_are_one_finite_number_per_token(self, selector: Selector) -> None:
        score = selector.score(state())
        assert score.shape == (36,) and np.isfinite(score).all() and (score >= 0).all()

    def test_mass_sums_to_one(self, selector: Selector) -> None:
        assert selector.mass(state()).sum() == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize("budget", [1, 7, 35, 36, 99])
    def test_a_budget_is_met_exactly(self, selector: Selector, budget: int) -> None:
        kept = selector.keep(state(), budget=budget)
        assert kept.dtype == np.bool_ and kept.sum() == min(budget, 36)

    def test_without_budget_or_threshold_everything_stays(self, selector: Selector) -> None:
        assert selector.keep(state()).all() and selector.keep(state(), budget=0).all()

    @pytest.mark.parametrize("threshold", [0.01, 0.5, 0.9, 1.0])
    def test_a_threshold_keeps_the_fewest_tokens_that_reach_it(
        self, selector: Selector, threshold: float
    ) -> None:
        picture = state()
        kept = selector.keep(picture, threshold=threshold)
        mass = selector.mass(picture).astype(np.float64)
        assert mass[kept].sum() >= threshold - 1e-5
        if kept.sum() > 1:
            assert mass[kept].sum() - mass[kept].min() < threshold

    def test_a_larger_budget_only_adds_tokens(self, selector: Selector) -> None:
        small, large = (selector.keep(state(), budget=b) for b in (5, 20))
        assert not (small & ~large).any()

    def test_the_same_picture_gives_the_same_choice(self, selector: Selector) -> None:
        assert (selector.keep(state(), budget=9) == selector.keep(state(), budget=9)).all()

    def test_a_budget_bounds_a_threshold(self, selector: Selector) -> None:
        assert selector.keep(state(), budget=4, threshold=1.0).sum() == 4

    @pytest.mark.parametrize("wrong", [{"budget": -1}, {"threshold": 0.0}, {"threshold": 1.5}])
    def test_nonsense_is_refused(self, selector: Selector, wrong: dict[str, float]) -> None:
        with pytest.raises(ConfigError):
            selector.keep(state(), **wrong)  # type: ignore[arg-type]

    def test_a_picture_that_nothing_looks_at_still_keeps_a_token(self, selector: Selector) -> None:
        blank = state()
        blank = KVState(
            np.zeros_like(blank.keys),
            np.zeros_like(blank.values),
            blank.positions,
            blank.grid,
            np.zeros_like(blank.attention),
        )
        assert selector.keep(blank, threshold=0.5).any()


def test_symmetric_focus_keeps_what_is_looked_at() -> None:
    picture = state()
    kept = SymmetricFocus().keep(picture, budget=5)
    assert picture.attention[kept].min() >= picture.attention[~kept].max()


def test_raw_focus_favours_the_early_where_symmetric_focus_does_not() -> None:
    even = state()
    even = KVState(
        even.keys, even.values, even.positions, even.grid, np.full(36, 1 / 36, dtype=np.float32)
    )
    assert set(np.flatnonzero(RawFocus().keep(even, budget=4))) == {0, 1, 2, 3}
    assert np.ptp(SymmetricFocus().score(even)) == 0


def test_kv_norm_keeps_the_longest_states_wherever_they_stand() -> None:
    picture = state()
    picture.keys[:, :, 7] *= 10
    picture.values[:, :, 30] *= 10
    assert set(np.flatnonzero(KVNorm().keep(picture, budget=2))) == {7, 30}


def test_kv_norm_is_not_ruled_by_the_one_head_with_the_longest_keys() -> None:
    picture = state()
    picture.keys[2, 1] *= 1000  # all tokens alike: says nothing about any of them
    picture.values[:, :, 30] *= 10
    assert KVNorm().keep(picture, budget=1)[30]


def test_value_aware_drops_what_is_looked_at_but_moves_nothing() -> None:
    picture = state()
    looked_at = int(picture.attention.argmax())
    picture.values[:, :, looked_at] = 0
    assert SymmetricFocus().keep(picture, budget=1)[looked_at]
    assert not ValueAware().keep(picture, budget=35)[looked_at]


def test_key_diversity_keeps_the_keys_unlike_the_rest() -> None:
    picture = state()
    picture.keys[:] = picture.keys[:, :, :1] + 0.01 * picture.keys
    picture.keys[:, :, 11] *= -1
    assert KeyDiversity().keep(picture, budget=1)[11]


def test_task_aware_keeps_what_costs_most_to_lose() -> None:
    picture = state()
    x = picture.flat().astype(np.float64)
    latents = (x - TASK_AWARE.normal_mean) / 2 @ TASK_AWARE.projection.astype(np.float64)
    lost = ((latents - TASK_AWARE.empty) ** 2 * np.arange(5)).sum(axis=1)
    np.testing.assert_allclose(TASK_AWARE.score(picture), lost, rtol=1e-4)
    assert TASK_AWARE.keep(picture, budget=1)[lost.argmax()]


def test_uniform_leaves_no_quadrant_of_the_grid_empty() -> None:
    kept = Uniform().keep(state(), budget=8).reshape(6, 6)
    for rows in (slice(0, 3), slice(3, 6)):
        for columns in (slice(0, 3), slice(3, 6)):
            assert 1 <= kept[rows, columns].sum() <= 3


def test_uniform_is_the_same_for_every_picture_and_random_is_not() -> None:
    for selector, same in ((Uniform(), True), (Random(), False)):
        first, second = (selector.keep(state(seed), budget=12) for seed in (0, 1))
        assert bool((first == second).all()) is same


def test_an_unknown_selector_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'kv_norm'"):
        select.get("kvnorm")


def test_weights_that_only_a_bundle_has_are_not_made_up() -> None:
    with pytest.raises(ConfigError, match="bundle"):
        select.get("task_aware")


@pytest.mark.parametrize("grid", [(1, 1), (2, 7), (16, 9)])
def test_uniform_orders_every_token_of_any_grid_once(grid: tuple[int, int]) -> None:
    score = Uniform().score(state(grid=grid))
    assert sorted(score) == list(range(1, grid[0] * grid[1] + 1))
