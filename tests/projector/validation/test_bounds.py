"""The bound: guaranteed where it says so, covering what it promises, refused where it cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from projector.maps import Family, Map
from projector.maps.base import grid_weights
from projector.maps.low_rank import LowRank
from projector.maps.mix import Mix
from projector.maps.mlp import MLP
from projector.maps.moments import Moments
from projector.maps.ridge import Ridge
from projector.training.corpus import Corpus
from projector.validation.bounds import LEVEL, Bound, cloud_matrix, conformal_rank, frame_errors
from protos.errors import FitError
from protos.layout import KVLayout
from tests.projector.maps.test_moments import layout

SOURCE, TARGET = layout(2, 1, 8, (3, 3)), layout(3, 2, 8, (3, 3))
WIDER = layout(3, 2, 8, (4, 6))


def corpus(count: int, seed: int, noise: float = 1.0, target: KVLayout = TARGET) -> Corpus:
    rng = np.random.default_rng(7)
    true = rng.standard_normal((SOURCE.state_dim, target.state_dim))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 9, SOURCE.state_dim))
    grid = grid_weights(SOURCE.grid, target.grid)
    placed = x if grid is None else grid.numpy() @ x
    y = placed @ true + noise * rng.standard_normal((*placed.shape[:2], target.state_dim))
    return Corpus(
        x.astype(np.float16), y.astype(np.float16), np.full((count, 9), 1 / 9, np.float16)
    )


def built(member: Family, target: KVLayout = TARGET) -> Map:
    pairs, grid = corpus(300, 0, target=target), grid_weights(SOURCE.grid, target.grid)
    x = pairs.x if grid is None else grid.numpy() @ pairs.x.astype(np.float32)
    return member.build(SOURCE, target, Moments.of([(x, pairs.y)]))


def coarse(z: np.ndarray) -> np.ndarray:
    return (np.rint(z / 0.5) * 0.5).astype(np.float32)


@pytest.mark.parametrize("target", [TARGET, WIDER], ids=["one grid", "two grids"])
@pytest.mark.parametrize("member", [Ridge(), LowRank(r=5)], ids=lambda m: m.name)
def test_the_guaranteed_part_always_holds_and_the_statistical_part_covers(
    member: Family, target: KVLayout
) -> None:
    made = built(member, target)
    bound = Bound.calibrate(made, corpus(400, 1, target=target))
    found = bound.check(made, corpus(1000, 2, target=target), coarse)
    assert found["guarantee_violations"] == 0
    assert found["coverage"] >= LEVEL - 0.005
    assert found["bound_over_actual"] >= 1
    assert 0.5 < found["estimate_over_actual"] < 2


def test_the_quantile_is_the_conformal_one() -> None:
    made = built(Ridge())
    frames = corpus(199, 3)
    ordered = np.sort(frame_errors(made, frames, None)[0])
    assert Bound.calibrate(made, frames).residual == ordered[198 - 1]  # ceil(200 * 0.99) = 198


@pytest.mark.parametrize("frames", [299, 400, 640, 5000])
def test_from_299_frames_on_the_quantile_covers_in_95_of_100_calibrations(frames: int) -> None:
    assert conformal_rank(298) == 297 and conformal_rank(299) == 299
    # Coverage of the m-th smallest of n uniform errors is that error itself.
    ordered = np.sort(np.random.default_rng(0).random((4000, frames)), axis=1)
    covered = (ordered[:, conformal_rank(frames) - 1] >= LEVEL).mean()
    assert 0.94 < covered  # with two standard errors of room
    assert (ordered[:, conformal_rank(frames) - 2] >= LEVEL).mean() < 0.96


def test_under_shift_the_statistical_part_no_longer_covers() -> None:
    made = built(Ridge())
    bound = Bound.calibrate(made, corpus(400, 1))
    assert bound.check(made, corpus(200, 5, noise=3.0), coarse)["coverage"] < 0.5


def test_between_grids_the_guarantee_is_the_frames_own_norm_and_is_reached() -> None:
    made = built(LowRank(r=5), WIDER)
    bound = Bound.calibrate(made, corpus(120, 1, target=WIDER))
    frames = torch.eye(9 * 5).unflatten(1, (9, 5))
    with torch.no_grad():
        matrix = (made.cloud(frames) - made.cloud(torch.zeros_like(frames))).flatten(1).double()
    assert bound.lipschitz == pytest.approx(float(torch.linalg.matrix_norm(matrix, ord=2)))
    assert bound.expected == pytest.approx(float(matrix.norm()) / (9 * 5) ** 0.5)


def test_the_norm_is_that_of_the_cloud_half_not_of_the_whole_map() -> None:
    made = built(LowRank(r=5))
    matrix = cloud_matrix(made)
    assert matrix.shape == (5, TARGET.state_dim)
    z = torch.randn(4, 9, 5)
    with torch.no_grad():
        moved = made.cloud(z) - made.cloud(torch.zeros_like(z))
    np.testing.assert_allclose(moved.numpy(), z.numpy() @ matrix, atol=1e-4)


def test_what_has_no_exact_norm_or_too_few_frames_is_refused() -> None:
    mixed = built(Mix(inner="low_rank", config={"r": 5}, width=16, heads=2))
    for made in (mixed, built(MLP(hidden=8))):
        with pytest.raises(FitError, match="no exact norm"):
            Bound.calibrate(made, corpus(120, 1))
    with pytest.raises(FitError, match="needs 99 or more"):
        Bound.calibrate(built(Ridge()), corpus(98, 1))
