"""Figures of reconstruction against their definitions, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from projector.validation.answers import Validator
from projector.validation.reconstruction import reconstruction


def test_reconstruction_figures_are_those_of_the_definitions(judge: Validator) -> None:
    made, pairs = judge.trainer.map, judge.corpus
    found = reconstruction(made, pairs)
    with torch.no_grad():
        got = made.predict(torch.from_numpy(pairs.x.astype(np.float32))).double().numpy()
    mean, scale = (part.numpy() for part in made.y_stats)
    want = ((pairs.y.astype(np.float64) - mean) / scale).reshape(-1, got.shape[-1])
    got = got.reshape(want.shape)
    assert found["whole"]["mse"] == pytest.approx(np.square(want - got).mean(), rel=1e-3)
    assert found["whole"]["relative_l2"] == pytest.approx(
        np.linalg.norm(want - got) / np.linalg.norm(want), rel=1e-3
    )
    block = want.shape[1] // (2 * made.target.layers)
    values = slice((made.target.layers + 1) * block, (made.target.layers + 2) * block)
    error = np.square(want[:, values] - got[:, values]).sum()
    spread = np.square(want[:, values] - want[:, values].mean(0)).sum()
    assert found["layers"][1]["values"]["r2"] == pytest.approx(1 - error / spread, rel=1e-3)
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (want, got)]
    assert found["whole"]["cosine"] == pytest.approx((unit[0] * unit[1]).sum(1).mean(), rel=1e-3)
