"""A tuned half: it starts as the closed form, and ends as one matrix with learnt grid weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from projector.hub.coder import encoder_for
from projector.hub.half import FittedHalf, fit_half
from projector.hub.space import LatentSpace
from projector.hub.tune import TunedHalf, hub_map
from projector.maps.rounding import Way
from protos.layout import KVLayout
from tests.projector.conftest import cloud_files, make_map
from tests.projector.hub.test_hub import make_space

R = 8


@pytest.fixture
def start(source: KVLayout, target: KVLayout) -> tuple[Any, FittedHalf, TunedHalf, LatentSpace]:
    """Sixteen random pictures, a closed form and what tunes it, between two grids."""
    space = make_space(target, grid=(3, 2), centre=np.zeros((6, R), dtype=np.float32))
    hub_source = replace(source, grid=(3, 2))
    made = hub_map(cloud_files(make_map(hub_source, target)).weights, hub_source, target)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, source.tokens, source.state_dim)).astype(np.float32)
    weights = rng.dirichlet(np.ones(source.tokens), 6).astype(np.float32)
    placed = weights @ x
    z = rng.standard_normal((16, 6, R)).astype(np.float32)
    half = fit_half(placed, z, space.latent_scale)
    encoder = encoder_for(space, source, half, placed, weights)
    return x, half, TunedHalf(half, encoder, made, placed), space


def test_tuning_starts_from_the_closed_form(start: Any) -> None:
    x, half, module, _ = start
    placed = module.grid.detach().numpy() @ x
    with torch.no_grad():
        latents = module.latents(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(latents, half.project(placed), atol=1e-3)


def test_what_was_tuned_is_one_matrix_with_its_grid(start: Any) -> None:
    x, half, module, _ = start
    with torch.no_grad():
        module.added += 0.1 * torch.randn(module.added.shape)
        module.shift += 1
        module.grid *= 1.1
        latents = module.latents(torch.from_numpy(x)).numpy()
    made, weights = module.result(half)
    np.testing.assert_allclose(made.project(weights @ x), latents, atol=2e-3)


def test_gradients_reach_the_half_and_nothing_of_the_hub(start: Any) -> None:
    x, _, module, _ = start
    states, cost = module.travel(torch.from_numpy(x), Way(scale=2.0, quiet=1.0))
    (states.square().mean() + cost).backward()
    assert module.added.grad.abs().sum() > 0 and module.grid.grad.abs().sum() > 0
    assert all(p.grad is None for p in module.cloud[0].parameters())
    trained = {id(p) for p in module.parameters()}
    assert trained == {id(module.added), id(module.shift), id(module.grid)}
