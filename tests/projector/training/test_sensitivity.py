"""What an error of the target's state costs, and that a map spends its rank where it costs most."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from projector.maps.low_rank import LowRank
from projector.maps.metric import Metric
from projector.maps.mix import Mix
from projector.maps.moments import Moments
from projector.models.vlm import VLM
from projector.training.corpus import Corpus, flat_states
from projector.training.sensitivity import FLOOR, second_moments, token_weights
from projector.training.settings import TrainSettings
from projector.training.train import Trainer
from protos.errors import FitError
from tests.fakes.tiny_models import picture

NOTHING = TrainSettings(reconstruct_steps=0, task_steps=0)


def pairs(vlm: VLM, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng, d = np.random.default_rng(0), vlm.layout.state_dim
    x = rng.standard_normal((count, vlm.layout.tokens, d))
    return x, x @ rng.standard_normal((d, d)) / d**0.5


def test_a_metric_spends_the_rank_where_errors_cost_most(vlms: dict[str, VLM]) -> None:
    layout = vlms["llava-llama"].layout
    x, y = pairs(vlms["llava-llama"])
    moments = Moments.of([(x, y)])
    blocks, width = 2 * layout.layers, layout.state_dim // (2 * layout.layers)
    dear = np.zeros((blocks, width, width))
    dear[-1] = np.eye(width)  # only the last layer's values matter
    metric = Metric.of(dear, moments.y_stats.scale, 1e-4)
    errors = {}
    for name in ("variance", "answers"):
        member = LowRank(r=4, metric=name, spread=False)
        made = member.build(layout, layout, replace(moments, metric=metric))
        assert float(made.penalty()) < 1e-3, "U is no longer orthonormal"
        missed = y - made(torch.from_numpy(x.astype(np.float32))).detach().numpy()
        missed = missed / moments.y_stats.scale
        errors[name] = np.square(missed).mean((0, 1)).reshape(blocks, -1).mean(1)
    assert errors["answers"][-1] < 0.9 * errors["variance"][-1]
    assert errors["answers"][:-1].mean() > errors["variance"][:-1].mean()


def test_a_power_of_a_metric_is_undone_by_its_inverse() -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((6, 5, 5))
    metric = Metric.of(root @ root.swapaxes(1, 2), rng.uniform(0.5, 2, 30), 0.1)
    rows = rng.standard_normal((3, 30))
    np.testing.assert_allclose(metric.times(metric.times(rows, 0.5), -0.5), rows, atol=1e-9)
    once = metric.times(rows, 1.0)
    np.testing.assert_allclose(once, metric.times(metric.times(rows, 0.5), 0.5), atol=1e-9)
    assert (np.einsum("nd,nd->n", once, rows) > 0).all()


@pytest.mark.parametrize(
    "member", [LowRank(r=4, metric="answers"), Mix(config={"r": 4, "metric": "answers"}, width=16)]
)
def test_a_metric_that_was_not_measured_is_refused(vlms: dict[str, VLM], member: Any) -> None:
    layout = vlms["llava-llama"].layout
    assert member.asks_answers
    with pytest.raises(FitError, match="has to be measured"):
        member.build(layout, layout, Moments.of([pairs(vlms["llava-llama"], 8)]))


def test_an_unknown_metric_is_refused_with_those_there_are(vlms: dict[str, VLM]) -> None:
    layout = vlms["llava-llama"].layout
    with pytest.raises(FitError, match="metric 'mse': expected one of variance, answers"):
        LowRank(metric="mse").make(layout, layout)


@pytest.mark.slow
def test_sensitivity_is_the_kl_that_a_small_error_causes(
    vlms: dict[str, VLM], tmp_path: Path
) -> None:
    vlm = vlms["llava-llama"]
    flat, attention = flat_states(vlm, [picture(0)], attention=True)
    corpus = Corpus(flat, flat, attention)
    trainer: Any = Trainer(
        None, corpus, vlm, lambda *_: [("what is two", "red")], NOTHING, tmp_path / "state"
    )
    states, packed = flat, trainer.packed([0], 1, 0)
    blocks = 2 * vlm.layout.layers
    fisher = second_moments(trainer, [(states, packed)] * 400) / 400
    rng, size = np.random.default_rng(0), 0.03
    found, told = [], []
    with torch.no_grad():
        want = trainer.logits(packed, trainer.native_layers(states)).log_softmax(-1)
        for block in range(blocks):  # an error of the first token's in one block, many draws
            for _ in range(40):
                error = np.zeros((*states.shape[:2], blocks, fisher.shape[1]), dtype=np.float32)
                error[:, 0, block] = size * rng.standard_normal(error.shape[-1])
                moved = states + error.reshape(states.shape)
                got = trainer.logits(packed, trainer.native_layers(moved)).log_softmax(-1)
                found.append(float((want.exp() * (want - got)).sum()))
            told.append(0.5 * size**2 * float(np.trace(fisher[block])))
    # The moments are summed over all tokens, so they bound what the first one's error costs.
    assert 0 < float(np.mean(found)) < 2 * float(np.mean(told))
    assert bool((np.linalg.eigvalsh(fisher) > -1e-9).all())


@pytest.mark.slow
def test_a_token_weighs_what_the_answers_lose_by_an_error_of_it(
    vlms: dict[str, VLM], tmp_path: Path
) -> None:
    """Beside the KL that errors of one token at a time cause, measured."""
    vlm = vlms["llava-llama"]
    flat, attention = flat_states(vlm, [picture(i) for i in range(3)], attention=True)
    corpus = Corpus(flat, flat, attention)
    asked = [("what is two", "red"), ("what is one", "blue")] * 8
    trainer: Any = Trainer(None, corpus, vlm, lambda *_: asked, NOTHING, tmp_path / "state")
    weights = token_weights(trainer)
    assert weights.shape == flat.shape[:2] and weights.dtype == np.float32
    assert weights.mean() == pytest.approx(1.0, rel=1e-3)
    assert weights.min() >= FLOOR / (1 + FLOOR) - 1e-6
    rng, deviation = np.random.default_rng(0), flat.std((0, 1))
    packed = trainer.packed([0], 2, 0)
    lost = np.zeros(flat.shape[1])
    with torch.no_grad():
        want = trainer.logits(packed, trainer.native_layers(flat[:1])).log_softmax(-1)
        for token in range(flat.shape[1]):
            for _ in range(24):
                moved = flat[:1].copy()
                moved[0, token] += 0.1 * deviation * rng.standard_normal(flat.shape[2])
                got = trainer.logits(packed, trainer.native_layers(moved)).log_softmax(-1)
                lost[token] += float((want.exp() * (want - got)).sum())
    assert np.corrcoef(np.log(lost), np.log(weights[0] - FLOOR / (1 + FLOOR) + 1e-6))[0, 1] > 0.5


def test_where_no_answer_depends_on_a_state_there_is_nothing_to_weigh_by(
    vlms: dict[str, VLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = vlms["llava-llama"]
    flat, attention = flat_states(vlm, [picture(0)], attention=True)
    trainer: Any = Trainer(
        None,
        Corpus(flat, flat, attention),
        vlm,
        lambda *_: [("what is two", "red")] * 16,
        NOTHING,
        tmp_path / "state",
    )
    logits = trainer.logits
    monkeypatch.setattr(trainer, "logits", lambda *given: 0 * logits(*given))
    with pytest.raises(FitError, match="nothing to weigh by"):
        token_weights(trainer)
