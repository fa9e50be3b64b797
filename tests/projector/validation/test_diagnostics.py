"""A linear map taken apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from projector.validation.answers import Validator
from projector.validation.diagnostics import principal


def test_a_linear_map_cut_to_its_principal_components_is_the_best_of_that_rank(
    judge: Validator,
) -> None:
    made = judge.trainer.map
    x = made.normal(torch.from_numpy(judge.corpus.x.astype(np.float32))).flatten(0, 1)
    u, s, v = principal(made, x)
    whole = (x @ made.weights()).detach().double().numpy()
    np.testing.assert_allclose((x @ u * s @ v).detach().numpy(), whole, atol=1e-3)
    cut = (x @ (u[:, :5] * s[:5]) @ v[:5]).detach().double().numpy()
    singular = np.linalg.svd(whole, compute_uv=False)  # Eckart and Young: no rank 5 comes nearer
    best = np.sqrt(np.square(singular[5:]).sum())
    assert np.linalg.norm(whole - cut) == pytest.approx(best, rel=1e-3)
