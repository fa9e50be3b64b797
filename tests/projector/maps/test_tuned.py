"""A closed form carried on in its best directions: begins where it was, ends as what it was."""

from __future__ import annotations

import pytest
import torch

from projector.maps import Family, Map
from projector.maps.base import grid_weights
from projector.maps.low_rank import LowRank
from projector.maps.moments import Moments
from projector.maps.procrustes import Procrustes
from projector.maps.ridge import Ridge
from projector.maps.tuned import Tuned, best_directions
from projector.training.corpus import Corpus
from protos.errors import FitError
from protos.layout import KVLayout
from tests.projector.validation.test_bounds import SOURCE, TARGET, WIDER, corpus

K = 12


def moments(target: KVLayout) -> tuple[Moments, Corpus]:
    pairs, grid = corpus(300, 0, target=target), grid_weights(SOURCE.grid, target.grid)
    x = pairs.x if grid is None else grid.numpy() @ pairs.x.astype("float32")
    return Moments.of([(x, pairs.y)]), pairs


def begun(member: Family, target: KVLayout) -> tuple[Map, Tuned, torch.Tensor]:
    found, pairs = moments(target)
    start = member.build(SOURCE, target, found)
    x = torch.from_numpy(pairs.x[:5].astype("float32"))
    return start, Tuned(start, best_directions(start, found, K)), x


@pytest.mark.parametrize("target", [TARGET, WIDER], ids=["one grid", "two grids"])
@pytest.mark.parametrize(
    "member", [Ridge(), LowRank(r=5), LowRank(r=5, spread=False)], ids=lambda m: str(m)
)
def test_it_begins_at_the_closed_form_and_comes_back_as_one_of_its_family(
    member: Family, target: KVLayout
) -> None:
    start, made, x = begun(member, target)
    with torch.no_grad():
        want = start.predict(x)
        torch.testing.assert_close(made.predict(x), want, rtol=0.03, atol=0.03)
        for parameter in made.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        moved, merged = made.predict(x), made.merged()
        assert float((moved - want).abs().max()) > 0.1
        torch.testing.assert_close(merged.predict(x), moved, rtol=0.03, atol=0.03)
    assert type(merged) is type(start) and merged.family == start.family
    assert merged.rank == start.rank and merged.parameters_count() == start.parameters_count()


def test_only_the_best_directions_are_trained() -> None:
    start, made, x = begun(LowRank(r=5), TARGET)
    assert sum(p.numel() for p in made.parameters()) == K * 5 + 5 * TARGET.state_dim
    states, bits = made.travel(x)
    states.square().sum().backward()
    assert float(bits) == 0
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in made.parameters())
    assert all(p.grad is None for p in start.parameters())


def test_other_families_and_counts_out_of_range_are_refused() -> None:
    found, _ = moments(TARGET)
    low = LowRank(r=5).build(SOURCE, TARGET, found)
    for count in (4, SOURCE.state_dim + 1):
        with pytest.raises(FitError, match="expected 5 to"):
            best_directions(low, found, count)
    for member in (Procrustes(), LowRank(r=5, start="covariance")):
        with pytest.raises(FitError, match="have directions"):
            best_directions(member.build(SOURCE, TARGET, found), found, K)
