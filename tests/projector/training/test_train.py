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
import torch.nn.functional as F

from projector.maps import Map, load
from projector.maps.mix import Mix
from projector.maps.rounding import Rounding, Way, bits
from projector.models.vlm import VLM
from projector.training.corpus import Corpus, flat_states
from projector.training.fit import moments_of
from projector.training.settings import TrainSettings
from projector.training.train import Trainer, apart
from projector.validation.reconstruction import reconstruction
from protos.entropy.tables import EntropyTables
from protos.errors import BundleFormatError
from protos.quantize import UniformQuantizer
from tests.fakes.tiny_models import picture
from tests.projector.conftest import GPU

PICTURES = 48
MEMBER = Mix("factors", {"r": 12, "travels": 6}, width=16, depth=2, order="target")
SETTINGS = TrainSettings(
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
    made = start(corpus, vlms["idefics3"], vlms["llava-llama"])
    return Trainer(made, corpus, vlms["llava-llama"], questions, settings, folder)


def start(corpus: Corpus, source: VLM, target: VLM) -> Map:
    """The closed form of `MEMBER`, which learns to round."""
    torch.manual_seed(0)
    moments = moments_of(corpus, source, target, target_gram=False)
    made = MEMBER.build(source.layout, target.layout, moments)
    made.start_rounding(torch.from_numpy(corpus.x.mean(axis=0, dtype=np.float32)))
    return made


def rounding_of(made: Map) -> Rounding:
    assert made.rounding is not None
    return made.rounding


def latents_of(made: Map, corpus: Corpus, count: int = PICTURES) -> torch.Tensor:
    return made.down(made.normal(torch.from_numpy(corpus.x[:count].astype(np.float32))))


@pytest.fixture(scope="module")
def made(corpus: Corpus, vlms: dict[str, VLM]) -> Map:
    return start(corpus, vlms["idefics3"], vlms["llava-llama"])


def test_rounding_in_training_is_what_the_codec_does(made: Map, corpus: Corpus) -> None:
    latents = latents_of(made, corpus, 5)
    centre = made.centre().detach().numpy()
    steps = 3.0 * made.steps().numpy()
    moved = latents.detach().numpy() - centre
    tables = EntropyTables.fit(np.rint(moved / steps).astype(np.int64).reshape(-1, 6))
    codec = UniformQuantizer(tables)
    received = [codec.decode(codec.encode(z, steps), len(z), 6, steps) + centre for z in moved]
    rounded, levels = rounding_of(made).rounded(latents, made.centre(), Way(3.0))
    np.testing.assert_allclose(rounded.detach().numpy(), received, atol=1e-4)
    assert float((rounded - latents).detach().abs().max()) > 0.1 * steps.min()
    np.testing.assert_allclose(levels.detach().numpy(), moved / steps, atol=1e-4)


def test_the_centre_is_the_mean_latent_of_each_place(made: Map, corpus: Corpus) -> None:
    latents = latents_of(made, corpus)
    torch.testing.assert_close(made.centre(), latents.mean(0), atol=2e-3, rtol=0)


def test_rounding_lets_the_gradient_through_to_projection_and_steps(
    made: Map, corpus: Corpus
) -> None:
    rounding = rounding_of(made)
    rounded, _ = rounding.rounded(latents_of(made, corpus, 5), made.centre(), Way(3.0))
    made.zero_grad()
    rounded.pow(2).sum().backward()
    for parameter in (made.get_parameter("inner.inward"), rounding.log_steps):
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)


def test_bits_are_zero_for_the_usual_token_and_grow_with_the_levels() -> None:
    levels = torch.zeros(2, 3, 4)
    assert float(bits(levels)) == 0
    levels[0, 1, 2] = 1.0
    one = float(bits(levels))
    assert one == pytest.approx(1 / levels.numel())
    levels[0, 1, 2] = -7.0
    assert float(bits(levels)) == pytest.approx(3 * one)
    levels.requires_grad_()
    bits(levels).backward()
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


@pytest.mark.slow
def test_paying_for_bits_leaves_fewer(corpus: Corpus, vlms: dict[str, VLM], tmp_path: Path) -> None:
    spent = []
    for weight in (0.0, 3.0):
        settings = replace(SETTINGS, task_steps=100, rate_weight=weight, rate=2e-2)
        run = trainer(corpus, vlms, tmp_path / str(weight), settings)
        run.run()
        rounding, way = rounding_of(run.map), Way(settings.step_scale)
        _, levels = rounding.rounded(latents_of(run.map, corpus), run.map.centre(), way)
        spent.append(float(bits(levels.detach())))
    assert spent[1] < 0.8 * spent[0]


def test_quiet_and_dropped_tokens_travel_as_they_will_be_sent(
    corpus: Corpus, vlms: dict[str, VLM], tmp_path: Path
) -> None:
    made = trainer(corpus, vlms, tmp_path).map
    x = torch.from_numpy(corpus.x[:4].astype(np.float32))
    rounding, whole = rounding_of(made), latents_of(made, corpus, 4)
    latents, levels = rounding.rounded(whole, made.centre(), Way(4.0))
    squares = levels.square().sum(dim=-1)
    limit = float(squares.median())
    sent, _ = rounding.rounded(whole, made.centre(), Way(4.0, quiet=limit))
    quiet = squares < limit
    assert quiet.any() and not quiet.all()
    usual = made.centre().expand_as(sent)
    assert torch.allclose(sent[quiet], usual[quiet], atol=1e-5)
    assert torch.allclose(sent[~quiet], latents[~quiet])
    sent.sum().backward()  # a quiet token may grow loud again
    inward = made.get_parameter("inner.inward")
    assert inward.grad is not None and float(inward.grad.abs().sum()) > 0

    kept = torch.ones(x.shape[:2], dtype=torch.bool)
    kept[:, 1] = False
    there, bits = made.travel(x, Way(4.0, kept=kept))
    moved = x.clone()
    moved[:, 1] += 5.0
    again, same = made.travel(moved, Way(4.0, kept=kept))
    assert torch.equal(there, again) and torch.equal(bits, same)
    assert not torch.equal(made.travel(x, Way(4.0))[0], made.travel(moved, Way(4.0))[0])


@pytest.mark.slow
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
        blobs.append(made.map.to_bytes())
    assert blobs[1] == blobs[2] and len(set(blobs)) == 3


@pytest.mark.slow
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


def test_a_map_that_learnt_to_round_is_kept_whole(made: Map) -> None:
    blob = made.to_bytes()
    again = load(blob, made.source, made.target)
    kept, read = made.state_dict(), again.state_dict()
    assert list(kept) == list(read) and "rounding.log_steps" in kept
    assert all(torch.equal(kept[name], read[name]) for name in kept)
    for wrong in (b"", b"junk" * 9, blob[:-4]):
        with pytest.raises(BundleFormatError, match="not a map"):
            load(wrong, made.source, made.target)


def test_a_map_that_does_not_round_is_trained_as_before(
    corpus: Corpus, vlms: dict[str, VLM], tmp_path: Path
) -> None:
    """Rounding is the map's own: without it a way changes nothing and costs nothing."""
    source, target = vlms["idefics3"], vlms["llava-llama"]
    plain = start(corpus, source, target)
    plain.rounding = None
    x = torch.from_numpy(corpus.x[:4].astype(np.float32))
    states, cost = plain.travel(x, Way(4.0, quiet=9.0))
    assert torch.equal(states, plain(x)) and float(cost) == 0
    assert [group["scale"] for group in plain.groups()] == [1.0]


def test_the_loss_of_reconstruction_is_torchs_own_with_its_gradient() -> None:
    torch.manual_seed(0)
    got, want = torch.randn(3, 5, 40, dtype=torch.float64), torch.randn(3, 5, 40).double()
    want[0, 0] = 0
    got[1, 1] *= 1e-3
    gradients = []
    for loss in (
        apart,
        lambda a, b: F.mse_loss(a, b) + 0.5 * (1 - F.cosine_similarity(a, b, dim=-1).mean()),
    ):
        one = got.clone().requires_grad_()
        value = loss(one, want)
        value.backward()
        gradients.append((value.detach(), one.grad))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


@GPU
def test_a_gpu_trains_what_the_cpu_trains(
    corpus: Corpus, vlms: dict[str, VLM], tmp_path: Path
) -> None:
    source = vlms["idefics3"]
    losses, models = {}, {}
    for device in ("cpu", "cuda"):
        target = models[device] = VLM.load(vlms["llava-llama"].path, device)
        made = start(corpus, source, target)
        Trainer(made, corpus, target, questions, SETTINGS, tmp_path / device).run()
        assert made.x_mean.device.type == device
        rows = (tmp_path / device / "log.jsonl").read_text().splitlines()
        losses[device] = [json.loads(row)["loss"] for row in rows]
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=0.02)

    here = start(corpus, source, models["cpu"])
    Trainer(here, corpus, models["cpu"], questions, SETTINGS, tmp_path / "cuda").run()
    state = torch.load(tmp_path / "cuda" / "map.pt", map_location="cpu", weights_only=True)["map"]
    assert all(torch.equal(state[name], tensor) for name, tensor in here.state_dict().items())
