"""The ladder: what is measured is what is sent, what is kept is worth keeping."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from projector.calibration import ladder
from projector.calibration.calibrate import FIXED, with_fixed
from projector.calibration.ladder import Found, Sweep
from projector.codec.encoder import Encoder
from projector.models.vlm import VLM
from protos.errors import ConfigError
from protos.layout import KVLayout
from protos.points import Measured
from protos.state import KVState
from tests.fakes.tiny_models import picture
from tests.projector.conftest import POINTS, RANK, make_encoder


@pytest.fixture(scope="module")
def states(vlms: dict[str, VLM]) -> list[KVState]:
    vlm = vlms["idefics3"]
    return vlm.states(vlm.prefill([picture(seed) for seed in range(12)]))


class FakeJudge:
    """Answers the better, the less the latents are changed; remembers what it was asked."""

    def __init__(self, encoder: Encoder, states: list[KVState], weights: Any = None) -> None:
        self.encoder, self.states, self.weights = encoder, states, weights
        self.asked: list[str] = []
        self.blind_answers = 6

    def native(self) -> npt.NDArray[np.bool_]:
        return np.arange(12 * 20).reshape(12, 20) % 20 != 0  # 95 %

    def blind(self) -> npt.NDArray[np.bool_]:
        return self.native() & (np.arange(20) < self.blind_answers)

    def answers(
        self, latents: npt.NDArray[np.float32], kept: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
        lost = np.where(kept[..., None], 0, (latents - self.encoder.centre) ** 2) @ self.weights
        return np.ones((len(latents), 1), dtype=np.bool_), 0.5 + lost.sum(axis=1)

    def measure(self, encoder: Encoder, point: Any) -> Found:
        self.asked.append(point.name)
        frames = [encoder.encode(state, point) for state in self.states]
        error = float(np.mean([frame.distortion.quantize for frame in frames]))
        size = float(np.mean([len(frame.payload) for frame in frames]))
        measured = Measured(size, size + 50, max(0.0, 0.95 - 0.2 * error), error, 0.0)
        return Found(measured, np.ones((len(frames), 1), dtype=np.bool_), 16.0)


def test_a_ladder_of_questions_that_need_no_picture_is_not_judged(
    source: KVLayout, states: list[KVState]
) -> None:
    before = make_encoder(source)
    judge: Any = FakeJudge(before, states)
    judge.blind_answers = 20
    made = ladder.calibrate(before, judge, states, [Sweep((1.0, 2.0), (0.0,))])
    assert not made.judged and made.blind == made.native


@pytest.mark.parametrize(
    ("points", "kept"),
    [
        ([(10, 0.5)], [0]),
        ([(10, 0.5), (20, 0.5), (20, 0.4)], [0]),
        ([(30, 0.9), (10, 0.5), (20, 0.8)], [1, 2, 0]),
        ([(30, 0.9), (10, 0.5), (20, 0.6)], [1, 0]),  # below the line between the others
        ([(10, 0.5), (10, 0.7), (40, 0.65)], [1]),
    ],
)
def test_the_hull_holds_what_no_mixture_of_others_beats(
    points: list[tuple[float, float]], kept: list[int]
) -> None:
    assert ladder.hull(*zip(*points, strict=True)) == kept


def test_every_point_lies_on_or_below_the_hull_of_many() -> None:
    rng = np.random.default_rng(0)
    costs, gains = rng.uniform(10, 200, 300), rng.random(300)
    kept = ladder.hull(costs.tolist(), gains.tolist())
    line = np.interp(costs, costs[kept], gains[kept], left=np.inf)
    assert (gains <= line + 1e-12).all()
    assert (np.diff(costs[kept]) > 0).all() and (np.diff(gains[kept]) > 0).all()
    assert (np.diff(np.diff(gains[kept]) / np.diff(costs[kept])) < 0).all()


def test_a_calibrated_encoder_holds_the_hull_measured_and_starts_near_the_native_answers(
    source: KVLayout, states: list[KVState]
) -> None:
    before = make_encoder(source)
    judge: Any = FakeJudge(before, states)
    sweep = Sweep(coarseness=(0.5, 1.0, 2.0), quiet=(0.0, 6.0), ranks=(0, 4))
    made = ladder.calibrate(before, judge, states, [sweep, Sweep((1.0,), (6.0,))], within=0.05)
    assert made.judged and (made.native, made.blind) == (0.95, 0.25)
    assert len(made.tried) == 12 and set(made.tried) <= set(judge.asked)
    encoder = Encoder.from_bytes(made.encoder.to_bytes())
    coded = [p for p in encoder.points if p.quantizer == "uniform"]
    best = ladder.hull(
        [one.payload_bytes for one in made.tried.values()],
        [one.accuracy for one in made.tried.values()],
    )
    assert [p.name for p in coded] == [list(made.tried)[i] for i in best]
    for point in coded:
        assert point.measured == made.tried[point.name]
        sizes = [len(encoder.encode(state, point).payload) for state in states]
        assert np.mean(sizes) == point.measured.payload_bytes
    fixed = [p for p in encoder.points if p not in coded]
    assert [p.name for p in fixed] == [p.name for p in POINTS[1:]]
    assert all((p.measured is None) == (p.kind == "picture") for p in fixed)
    default = encoder.point(made.default_point)
    assert default.measured is not None and default.measured.accuracy >= 0.95 - 0.05
    cheaper = [p for p in coded if p.index < default.index and p.measured is not None]
    assert all(p.measured.accuracy < 0.95 - 0.05 for p in cheaper if p.measured is not None)
    assert made.ladder == tuple(p.index for p in encoder.points)
    sizes = [p.measured.payload_bytes for p in encoder.points if p.measured is not None]
    assert sizes == sorted(sizes) and len(sizes) == len(encoder.points) - 1


def test_coarseness_means_the_same_at_every_calibration(
    source: KVLayout, states: list[KVState]
) -> None:
    """The hull of the first need not hold the finest steps that it counted in."""
    before = make_encoder(source)
    judge: Any = FakeJudge(before, states)
    first = ladder.calibrate(before, judge, states, [Sweep((4.0,), (0.0,))])
    again = ladder.calibrate(first.encoder, judge, states, [Sweep((4.0,), (0.0,))])
    np.testing.assert_array_equal(again.encoder.steps["x4"], first.encoder.steps["x4"])
    np.testing.assert_allclose(first.encoder.steps["x4"], 4 * before.steps["coarse"], rtol=1e-6)


@pytest.mark.parametrize("order", [list(FIXED), list(FIXED)[::-1]])
def test_a_ladder_rises_in_bytes_whatever_points_of_fixed_size_there_are(
    source: KVLayout, states: list[KVState], order: list[str]
) -> None:
    before = with_fixed(make_encoder(source), [state.flat() for state in states], order)
    judge: Any = FakeJudge(before, states)
    made = ladder.calibrate(before, judge, states, [Sweep((1.0, 4.0), (0.0,))])
    points = [made.encoder.point(index) for index in made.ladder]
    sizes = [p.measured.payload_bytes for p in points if p.measured is not None]
    assert sizes == sorted(sizes) and len(sizes) >= len(FIXED)


def test_tables_are_fitted_to_the_levels_that_a_point_sends(
    source: KVLayout, states: list[KVState]
) -> None:
    before = make_encoder(source)
    moved = np.concatenate([before.project(state.flat()) - before.centre for state in states])
    limit = float(np.median((moved / before.steps["coarse"]) ** 2 @ np.ones(RANK)))
    (plain, factor), (quiet, _) = ladder.grid(Sweep((1.0,), (0.0, limit)), RANK)
    fitted = ladder.tabled(before, [(quiet, factor)], states)
    fooled = ladder.tabled(before, [(plain, factor)], states)
    unfit = make_encoder(
        source,
        points=(quiet,),
        steps=fitted.steps,
        entropy={quiet.name: fooled.entropy[plain.name]},
    )
    sizes = [
        sum(len(one.encode(state, quiet).payload) for state in states) for one in (fitted, unfit)
    ]
    assert sizes[0] < sizes[1]


def test_task_weights_are_those_that_the_loss_goes_by(
    source: KVLayout, states: list[KVState]
) -> None:
    encoder = make_encoder(source)
    truth = np.array([0, 0.1, 0.02, 0, 0.3, 0.05, 0, 0.2])
    judge: Any = FakeJudge(encoder, states, truth)
    learnt = ladder.learn_task_weights(judge, encoder, rounds=8)
    assert learnt.dtype == np.float32 and (learnt >= 0).all()
    np.testing.assert_allclose(learnt, truth, atol=0.02)


@pytest.mark.parametrize(
    "wrong", [{"coarseness": (0.0,)}, {"ranks": (RANK + 1,)}, {"quiet": (-1.0,)}, {"tokens": (-1,)}]
)
def test_a_sweep_of_the_impossible_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ladder.grid(Sweep(**wrong), RANK)


def test_a_bundle_without_steps_to_vary_is_refused(source: KVLayout, states: list[KVState]) -> None:
    rigid = make_encoder(source, points=POINTS[1:])
    with pytest.raises(ConfigError, match="entropy-coded"):
        ladder.calibrate(rigid, SimpleNamespace(states=states), states, [Sweep()])  # type: ignore[arg-type]
