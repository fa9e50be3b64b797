"""The whole report of a map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from projector.maps.bidirectional import Bidirectional
from projector.maps.moments import Moments
from projector.report import validate_page
from projector.training.settings import TrainSettings
from projector.training.train import Trainer
from projector.validation.answers import Validator
from projector.validation.validate import validate


@pytest.mark.slow
def test_the_native_cache_agrees_with_itself(judge: Validator) -> None:
    native = judge.native()
    assert all(native.first) and all(native.full)
    assert max(native.kl) < 1e-5 and max(native.variation) < 1e-4
    report = validate(judge)
    assert "32 frames" in report["bound"]["none"]
    far = judge.blind()
    assert np.mean(far.kl) > np.mean(native.kl)


@pytest.mark.slow
def test_a_linear_map_is_shown_cut_to_lower_ranks_and_in_fewer_bits(judge: Validator) -> None:
    report = validate(judge)
    ranks = [row["rank"] for row in report["retention_by_rank"]]
    if report["retention"] is not None:
        assert ranks[:3] == [4, 8, 16] and max(ranks) < judge.trainer.map.rank
    whole, half, brain = report["precision"]
    assert whole["cosine_lost"] == 0 and whole["answers_changed"] == 0
    assert abs(half["cosine_lost"]) < abs(brain["cosine_lost"]) < 0.02
    report["map"] = {"family": "ridge"}
    page = validate_page.html(report, judge.dataset)
    assert ("Retention against rank" in page) == bool(ranks)
    assert "bfloat16" in page and "no way back" in page


@pytest.mark.slow
def test_a_map_with_a_way_back_is_judged_by_its_round_trip_too(judge: Validator) -> None:
    both = Bidirectional().build(
        judge.trainer.map.source,
        judge.trainer.map.target,
        Moments.of([(judge.corpus.x, judge.corpus.y)], target_gram=True),
    )
    other = Validator(
        Trainer(
            both,
            judge.corpus,
            judge.trainer.target,
            judge.dataset.questions,
            TrainSettings(),
            judge.trainer.folder,
        ),
        judge.corpus,
        judge.dataset,
    )
    x = torch.from_numpy(judge.corpus.x.astype(np.float32))
    with torch.no_grad():
        normal = both.normal(x).double()
        again = both.normal(both.back(both(x))).double()
    want = float((again - normal).square().sum() / normal.square().sum())
    assert validate(other)["round_trip"] == pytest.approx(want, rel=1e-3)
