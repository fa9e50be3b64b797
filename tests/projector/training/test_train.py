"""Training a map: what it rounds is what travels, an interrupted run ends like a straight one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from projector.maps.trainable import LowRankMap, Way, _bits
from projector.models.vlm import VLM
from projector.training.corpus import Corpus, flat_states
from projector.training.train import Trainer, TrainSettings, closed_form
from projector.validation.reconstruction import reconstruction
from protos.entropy.tables import EntropyTables
from protos.errors import BundleFormatError
from protos.quantize import UniformQuantizer
from tests.fakes.tiny_models import picture
from tests.projector.conftest import GPU

PICTURES = 48
SETTINGS = TrainSettings(
    rank=6,
    inner=12,
    mix_width=16,
    mix_depth=2,
    reconstruct_steps=6,
    task_steps=8,
    batch=4,
    questions=2,
    rate=3e-3,
    step_scale=4.0,
    rate_weight=0.05,
)


@pytest.fixture(scope="module")
def corpus(vlms: dict[str, VLM]) -> Corpus:
    pictures = [picture(seed) for seed in range(PICTURES)]
    x, attention = flat_states(vlms["idefics3"], pictures, attention=True)
    y, _ = flat_states(vlms["llava-llama"], pictures, attention=False)
    return Corpus(*(part.astype(np.float16) for part in (x, y, attention)))


def questions(index: int, count: int, seed: int) -> list[tuple[str, str]]:
    words = ("red", "blue", "one", "two")
    return [(f"what is {words[(seed + k) % 4]}", words[(index + k) % 4]) for k in range(count)]


def trainer(
    corpus: Corpus, vlms: dict[str, VLM], folder: Path, settings: TrainSettings = SETTINGS
) -> Trainer:
    target = vlms["llava-llama"]
    lowrank = closed_form(corpus, vlms["idefics3"].layout, target, settings)
    return Trainer(lowrank, corpus, target, questions, settings, folder)


@pytest.fixture(scope="module")
def lowrank(corpus: Corpus, vlms: dict[str, VLM]) -> LowRankMap:
    return closed_form(corpus, vlms["idefics3"].layout, vlms["llava-llama"], SETTINGS)


def test_rounding_in_training_is_what_the_codec_does(lowrank: LowRankMap, corpus: Corpus) -> None:
    latents = lowrank.latents(torch.from_numpy(corpus.x[:5].astype(np.float32)))
    centre = lowrank.centre.detach().numpy()
    steps = 3.0 * lowrank.steps.detach().numpy()
    moved = latents.detach().numpy() - centre
    tables = EntropyTables.fit(np.rint(moved / steps).astype(np.int64).reshape(-1, 6))
    codec = UniformQuantizer(tables)
    received = [codec.decode(codec.encode(z, steps), len(z), 6, steps) + centre for z in moved]
    rounded, levels = lowrank.rounded(latents, 3.0)
    np.testing.assert_allclose(rounded.detach().numpy(), received, atol=1e-4)
    assert float((rounded - latents).detach().abs().max()) > 0.1 * steps.min()
    np.testing.assert_allclose(levels.detach().numpy(), moved / steps, atol=1e-4)


def test_the_centre_is_the_mean_latent_of_each_place(lowrank: LowRankMap, corpus: Corpus) -> None:
    latents = lowrank.latents(torch.from_numpy(corpus.x.astype(np.float32)))
    torch.testing.assert_close(lowrank.centre, latents.mean(0), atol=2e-3, rtol=0)


def test_rounding_lets_the_gradient_through_to_projection_and_steps(
    lowrank: LowRankMap, corpus: Corpus
) -> None:
    rounded, _ = lowrank.rounded(
        lowrank.latents(torch.from_numpy(corpus.x[:5].astype(np.float32))), 3.0
    )
    lowrank.zero_grad()
    rounded.pow(2).sum().backward()
    for parameter in (lowrank.down, lowrank.log_steps):
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)


def test_bits_are_zero_for_the_usual_token_and_grow_with_the_levels() -> None:
    levels = torch.zeros(2, 3, 4)
    assert float(_bits(levels)) == 0
    levels[0, 1, 2] = 1.0
    one = float(_bits(levels))
    assert one == pytest.approx(1 / levels.numel())
    levels[0, 1, 2] = -7.0
    assert float(_bits(levels)) == pytest.approx(3 * one)
    levels.requires_grad_()
    _bits(levels).backward()
    assert levels.grad is not None and float(levels.grad[0, 1, 2]) < 0


def test_training_lowers_both_losses_and_logs_each_step(
    corpus: Corpus, vlms: dict[str, VLM], tmp_path: Path
) -> None:
    settings = replace(SETTINGS, reconstruct_steps=60, task_steps=60, step_scale=0.0, rate=1e-2)
    trainer(corpus, vlms, tmp_path, settings).run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(120))
    for stage in ("reconstruct", "task"):
        losses = [row["loss"] for row in rows if row["stage"] == stage]
        assert np.mean(losses[-12:]) < 0.97 * np.mean(losses[:12]), (stage, losses)


def test_paying_for_bits_leaves_fewer(corpus: Corpus, vlms: dict[str, VLM], tmp_path: Path) -> None:
    spent = []
    x = torch.from_numpy(corpus.x.astype(np.float32))
    for weight in (0.0, 3.0):
        settings = replace(SETTINGS, task_steps=100, rate_weight=weight, rate=2e-2)
        made = trainer(corpus, vlms, tmp_path / str(weight), settings)
        made.run()
        _, levels = made.map.rounded(made.map.latents(x), settings.step_scale)
        spent.append(float(_bits(levels.detach())))
    assert spent[1] < 0.8 * spent[0]


def test_quiet_and_dropped_tokens_travel_as_they_will_be_sent(
    corpus: Corpus, vlms: dict[str, VLM], tmp_path: Path
) -> None:
    made = trainer(corpus, vlms, tmp_path).map
    x = torch.from_numpy(corpus.x[:4].astype(np.float32))
    latents, levels = made.rounded(made.latents(x), 4.0)
    squares = levels.square().sum(dim=-1)
    limit = float(squares.median())
    sent, _ = made.rounded(made.latents(x), 4.0, quiet=limit)
    quiet = squares < limit
    assert quiet.any() and not quiet.all()
    usual = made.centre.expand_as(sent)
    assert torch.allclose(sent[quiet], usual[quiet], atol=1e-5)
    assert torch.allclose(sent[~quiet], latents[~quiet])
    sent.sum().backward()  # a quiet token may grow loud again
    assert made.down.grad is not None and float(made.down.grad.abs().sum()) > 0

    kept = torch.ones(x.shape[:2], dtype=torch.bool)
    kept[:, 1] = False
    there, bits = made.travel(x, Way(4.0, kept=kept))
    moved = x.clone()
    moved[:, 1] += 5.0
    again, same = made.travel(moved, Way(4.0, kept=kept))
    assert torch.equal(there, again) and torch.equal(bits, same)
    assert not torch.equal(made.travel(x, Way(4.0))[0], made.travel(moved, Way(4.0))[0])


def test_training_that_drops_tokens_differs_and_repeats(
    corpus: Corpus, vlms: dict[str, VLM], tmp_path: Path
) -> None:
    plain = replace(SETTINGS, reconstruct_steps=0, task_steps=12)
    blobs = []
    for name, settings in (
        ("plain", plain),
        ("one", replace(plain, drop=0.6)),
        ("two", replace(plain, drop=0.6)),
        ("quiet", replace(plain, quiet=9.0)),
    ):
        made = trainer(corpus, vlms, tmp_path / name, settings)
        made.run()
        blobs.append(made.map.to_bytes({}))
    assert blobs[1] == blobs[2] and len(set(blobs)) == 3


def test_a_weighted_task_loss_keeps_the_states_nearer_to_the_targets_own(
    corpus: Corpus, vlms: dict[str, VLM], tmp_path: Path
) -> None:
    errors = []
    for weight in (0.0, 0.02):
        settings = replace(
            SETTINGS, reconstruct_steps=0, task_steps=60, step_scale=0.0, rate=2e-2, rate_weight=0.0
        )
        made = trainer(corpus, vlms, tmp_path / str(weight), replace(settings, task_weight=weight))
        made.run()
        errors.append(reconstruction(made.map, corpus)["whole"]["mse"])
    assert errors[1] < 0.9 * errors[0], errors


class Interrupted(Exception):
    pass


def test_an_interrupted_run_ends_like_a_straight_one(
    corpus: Corpus, vlms: dict[str, VLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = trainer(corpus, vlms, tmp_path / "straight")
    straight.run()

    # A checkpoint after every step: each look at the clock is ten minutes later.
    def clock() -> Iterator[float]:
        now = 0.0
        while True:
            now += 600
            yield now

    ticks = clock()
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    broken = trainer(corpus, vlms, tmp_path / "broken")
    task = broken._task

    def fail(step: int, *arguments: Any) -> torch.Tensor:
        if step == 10:
            raise Interrupted
        return task(step, *arguments)

    monkeypatch.setattr(broken, "_task", fail)
    with pytest.raises(Interrupted):
        broken.run()
    resumed = trainer(corpus, vlms, tmp_path / "broken")
    resumed.run()
    rows = (tmp_path / "broken" / "log.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(14))
    for name, tensor in straight.map.state_dict().items():
        torch.testing.assert_close(resumed.map.state_dict()[name], tensor, msg=name)


def test_a_checkpoint_of_other_settings_is_not_resumed(
    corpus: Corpus, vlms: dict[str, VLM], tmp_path: Path
) -> None:
    trainer(corpus, vlms, tmp_path).run()
    trainer(corpus, vlms, tmp_path, replace(SETTINGS, task_steps=9)).run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(14), *range(15)]


def test_a_trained_map_is_kept_whole_with_how_it_was_trained(lowrank: LowRankMap) -> None:
    again, about = LowRankMap.from_bytes(lowrank.to_bytes({"minutes": 1.5}))
    assert about == {"minutes": 1.5}
    kept, made = lowrank.state_dict(), again.state_dict()
    assert list(kept) == list(made)
    assert all(torch.equal(kept[name], made[name]) for name in kept)


def test_what_is_no_trained_map_is_refused(lowrank: LowRankMap) -> None:
    for blob in (b"", b"junk" * 9, lowrank.cloud.to_bytes(), lowrank.to_bytes({})[:-4]):
        with pytest.raises(BundleFormatError, match="not a trained map"):
            LowRankMap.from_bytes(blob)


@GPU
def test_a_gpu_trains_what_the_cpu_trains(
    corpus: Corpus, vlms: dict[str, VLM], tmp_path: Path
) -> None:
    source = vlms["idefics3"].layout
    losses, models = {}, {}
    for device in ("cpu", "cuda"):
        target = models[device] = VLM.load(vlms["llava-llama"].path, device)
        made = closed_form(corpus, source, target, SETTINGS)
        Trainer(made, corpus, target, questions, SETTINGS, tmp_path / device).run()
        assert made.down.device.type == device
        rows = (tmp_path / device / "log.jsonl").read_text().splitlines()
        losses[device] = [json.loads(row)["loss"] for row in rows]
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=0.02)

    here = closed_form(corpus, source, models["cpu"], SETTINGS)
    Trainer(here, corpus, models["cpu"], questions, SETTINGS, tmp_path / "cuda").run()
    state = torch.load(tmp_path / "cuda" / "map.pt", map_location="cpu", weights_only=True)["map"]
    assert all(torch.equal(state[name], tensor) for name, tensor in here.state_dict().items())
