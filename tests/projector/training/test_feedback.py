"""The way back is trained and judged by what the edge model answers from it, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from projector.maps.bidirectional import Bidirectional, BidirectionalMap
from projector.maps.moments import Moments
from projector.models.vlm import VLM
from projector.training import feedback
from projector.training.corpus import Corpus, collect
from projector.training.dataset import Dataset
from projector.training.fit import moments_of, split
from projector.training.settings import TrainSettings
from protos.errors import FitError
from tests.fakes.tiny_models import tiny_idefics3, tiny_llava
from tests.fakes.toolkit import pictures_with_questions, toolkit
from tests.projector.maps.test_moments import layout, pairs

PICTURES = 64
STEPS = ("--reconstruct-steps", "6", "--task-steps", "4", "--batch", "4", "--rate", "0.01")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Edge of 3x3 tokens, cloud of 4x4: the way back crosses grids."""
    folder = tmp_path_factory.mktemp("pair")
    return tiny_idefics3(folder, grid=3), tiny_llava(folder, text="llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    pictures_with_questions(folder, PICTURES)
    return folder


@pytest.fixture(scope="module")
def pair(
    models: tuple[Path, Path], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[VLM, VLM, Dataset, Corpus, Path]:
    source, target = VLM.load(models[0]), VLM.load(models[1])
    pictures, folder = Dataset(data), tmp_path_factory.mktemp("corpus")
    made = collect(source, target, pictures.picture, PICTURES, folder, inputs=pictures.digest)
    return source, target, pictures, made, folder


def both_ways(pair: Any) -> BidirectionalMap:
    source, target, _, corpus, _ = pair
    made = Bidirectional().build(source.layout, target.layout, moments_of(corpus, source, target))
    assert isinstance(made, BidirectionalMap)
    return made.eval()


@pytest.mark.parametrize("returned", [0.0, 0.3, 1.0])
def test_the_fit_of_the_way_back_weighs_both_sorts_of_states_as_it_says(returned: float) -> None:
    source, target = layout(2, 1, 8, (3, 3)), layout(3, 2, 8, (3, 3), theta=5e5)
    x, y = pairs(source, target)
    member = Bidirectional(weight=0.05, returned=returned)
    made = member.build(source, target, Moments.of([(x, y)], target_gram=True))
    assert isinstance(made, BidirectionalMap)
    with torch.no_grad():
        xn = made.normal(torch.from_numpy(x)).flatten(0, 1).double().numpy()
        forth = xn @ made.matrix.double().numpy()
        own = ((torch.from_numpy(y) - made.y_mean) / made.y_scale).flatten(0, 1).double().numpy()
    n, d = own.shape
    # Least squares over both samples, each weighted, with the ridge as further rows.
    rows = np.vstack(
        [own * ((1 - returned) / n) ** 0.5, forth * (returned / n) ** 0.5, 0.05**0.5 * np.eye(d)]
    )
    wanted = np.vstack(
        [xn * ((1 - returned) / n) ** 0.5, xn * (returned / n) ** 0.5, np.zeros((d, xn.shape[1]))]
    )
    best, *_ = np.linalg.lstsq(rows, wanted, rcond=None)
    np.testing.assert_allclose(made.compress.detach().numpy(), best, atol=1e-4)


@pytest.mark.parametrize("returned", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(returned: float) -> None:
    with pytest.raises(FitError, match="expected 0 to 1"):
        Bidirectional(returned=returned).make(layout(2, 1, 8, (3, 3)), layout(2, 1, 8, (3, 3)))


def test_training_moves_the_way_back_alone_lowers_its_error_and_goes_on_after_a_stop(
    pair: Any, tmp_path: Path
) -> None:
    source, _, pictures, corpus, _ = pair
    training, held = split(corpus, 0.25)
    settings = TrainSettings(reconstruct_steps=30, task_steps=2, batch=4, rate=0.2)

    def trained(folder: Path) -> BidirectionalMap:
        made = both_ways(pair)
        with torch.no_grad():
            made.compress.mul_(0.3)
        worse = feedback.errors(made, training)
        figures = feedback.train(made, training, held, source, pictures, settings, folder, "one")
        better = feedback.errors(made, training)
        assert all(better[name] < 0.95 * worse[name] for name in worse)
        assert 0 <= figures["accuracy"] <= 1
        return made

    first = trained(tmp_path)
    start = both_ways(pair)
    assert torch.equal(first.matrix, start.matrix), "the way there was trained too"
    assert float(first.attend.detach().abs().max()) > 0, "the weights of tokens were not trained"
    again = trained(tmp_path)  # from the last checkpoint: nothing is left to do
    assert torch.equal(first.compress, again.compress) and torch.equal(first.attend, again.attend)
    log = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(32))


@pytest.mark.slow
def test_a_way_back_that_leads_to_the_mean_answers_like_the_mean(pair: Any, tmp_path: Path) -> None:
    source, _, pictures, corpus, _ = pair
    made = both_ways(pair)
    found = feedback.judge(made, corpus, source, pictures, 6, tmp_path)
    assert found["questions"] == 6 * PICTURES
    assert set(found["accuracy"]) == {
        *("own", "returned", "sent", "from_picture"),
        *("blind", "other_picture", "mean_state", "untrained"),
    }
    assert found["weights"] == pytest.approx(1.0)
    assert 0 < found["bytes"] < 4 * corpus.y.shape[1] * (found["rank"] + 1)
    narrow = feedback.judge(made, corpus, source, pictures, 6, tmp_path, rank=2)
    assert narrow["rank"] == 2 and narrow["bytes"] < found["bytes"]
    assert narrow["accuracy"]["own"] == found["accuracy"]["own"]
    with torch.no_grad():
        made.compress.mul_(1e-6)
    lost = feedback.judge(made, corpus, source, pictures, 6, tmp_path)
    assert lost["accuracy"]["returned"] == lost["accuracy"]["mean_state"]
    assert lost["errors"]["round_trip"] == pytest.approx(1.0, abs=1e-3)
    assert lost["kl_nats"] > found["kl_nats"]


@pytest.mark.slow
def test_the_commands_train_and_judge_both_ways(
    pair: Any, models: tuple[Path, Path], data: Path, tmp_path: Path, capsys: Any
) -> None:
    corpus, out = pair[4], tmp_path / "map"
    run = toolkit(models)
    assert run("train", data, corpus, out, "--family", "bidirectional", *STEPS) == 0
    story = json.loads((out / "training.json").read_text())
    assert set(story["held_out_back"]) == {
        *("round_trip", "from_picture", "accuracy", "own", "blind")
    }
    assert (out / "loss-back.png").read_bytes().startswith(b"\x89PNG")
    assert run("validate", out, data, corpus, tmp_path / "report", "--feedback-rank", 4) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["way_back"]["rank"] == 4
    assert run("validate", out, data, corpus, tmp_path / "whole") == 0
    ranks = json.loads((tmp_path / "whole" / "report.json").read_text())["way_back"]["by_rank"]
    assert len(ranks) > 1 and ranks == sorted(ranks, key=lambda r: r["rank"])
    lost = [one["round_trip"] for one in ranks]
    assert lost == sorted(lost, reverse=True), "more numbers bring back less"
    errors = report["way_back"]["errors"]
    assert errors["sent"] > lost[0] and errors["sent"] > errors["round_trip"]
    assert errors["round_trip"] == pytest.approx(report["round_trip"], rel=1e-3)
    assert "The way back" in (tmp_path / "report" / "report.html").read_text()
    shown = capsys.readouterr().out
    assert "returned" in shown and "from_picture" in shown and "rank 4)" in shown
