"""Task heads on tiny models: they learn, they resume, and they belong to one map."""

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
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from projector.bundle.certificate import GOOD, UNJUDGED, WORSE
from projector.commands import cli
from projector.heads.head import METADATA, Head, HeadConfig, read
from projector.heads.judge import judge, predictions, verdict
from projector.heads.labels import Labels, read_labels, write_labels
from projector.heads.samples import Samples
from projector.heads.train import HeadSettings, train
from projector.training.dataset import Dataset
from projector.validation.estimate import Estimate
from protos.errors import (
    BundleFormatError,
    BundleLayoutError,
    CorpusError,
    FitError,
    SourceError,
)
from tests.fakes.tiny_models import picture, tiny_idefics3, tiny_llava
from tests.fakes.toolkit import code_of, toolkit

PICTURES = 96
GRID = (3, 4)


# ---------------------------------------------------------------------- made-up states


def labels_of(classes: np.ndarray[Any, Any], **over: Any) -> Labels:
    n = len(classes)
    plain = Labels(
        task="made",
        pictures=np.arange(n),
        labels=tuple(map(str, classes.tolist())),
        kinds=("all",) * n,
        before=np.zeros((n, 0), dtype=np.int64),
        places=np.zeros((n, 0, 0, 2), dtype=np.float32),
        mark=np.zeros((n, 2), dtype=np.float32),
    )
    return replace(plain, **over)


def config(classes: int, **over: Any) -> HeadConfig:
    names = tuple(map(str, range(classes)))
    plain: dict[str, Any] = {"components": 8, "width": 32, "queries": 2} | over
    return HeadConfig("made", names, False, "native", "f" * 64, 16, GRID, **plain)


def counted(count: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """States `[n, N, d]` in which 0 to 3 tokens carry a sign, and how many do."""
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((count, GRID[0] * GRID[1], 16)).astype(np.float32)
    amount = rng.integers(0, 4, count)
    for row, many in enumerate(amount):
        states[row, rng.permutation(12)[:many], :4] += 6.0
    return states, amount


def made(count: int = 400, **over: Any) -> tuple[Head, Samples, Samples]:
    states, amount = counted(count)
    torch.manual_seed(0)
    head = Head(config(4, **over))
    head.fit_lens(states[: count // 2])
    seen = head.through_lens(states)
    training, held = labels_of(amount).split(0.25)
    return head, *(Samples.of(seen, part, head.config.classes) for part in (training, held))


@pytest.mark.slow
def test_a_head_learns_to_count_and_says_what_guessing_scores(tmp_path: Path) -> None:
    head, training, held = made()
    train(head, training, held, HeadSettings(steps=300, patience=0), tmp_path)
    found = judge(head, held)
    assert found["accuracy"]["mean"] > 0.9
    assert found["accuracy"]["low"] <= found["accuracy"]["mean"] <= found["accuracy"]["high"]
    commonest = np.bincount(training.targets).argmax()
    assert found["majority"]["mean"] == pytest.approx(np.mean(held.targets == commonest), abs=1e-4)
    assert found["other_picture"]["mean"] < 0.5 < found["accuracy"]["mean"]
    right = predictions(head, held) == held.targets
    assert found["accuracy"]["mean"] == pytest.approx(right.mean(), abs=1e-4)
    assert set(found["by_class"]) == {"0", "1", "2", "3"}


def test_the_lens_keeps_what_varies_most_as_numpy_says() -> None:
    rng = np.random.default_rng(1)
    basis = rng.standard_normal((3, 16))
    states = (rng.standard_normal((50, 12, 3)) * (9, 4, 2) @ basis + 5).astype(np.float32)
    head = Head(config(2, components=3))
    head.fit_lens(states)
    seen = head.through_lens(states).reshape(-1, 3)
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(seen.std(0), 1, atol=2e-2)
    flat = states.reshape(-1, 16).astype(np.float64)
    flat -= flat.mean(0)
    again = seen @ np.linalg.lstsq(seen, flat, rcond=None)[0]
    assert np.linalg.norm(flat - again) < 1e-2 * np.linalg.norm(flat)


def tracked(count: int, seed: int) -> tuple[np.ndarray[Any, Any], Labels]:
    """Sequences of two pictures with three objects, which swap places between them."""
    rng = np.random.default_rng(seed)
    states = 0.3 * rng.standard_normal((2 * count, 12, 16)).astype(np.float32)
    places = np.zeros((count, 1, 3, 2), dtype=np.float32)
    mark = np.zeros((count, 2), dtype=np.float32)
    label = rng.integers(3, size=count)
    for row in range(count):
        looks = rng.standard_normal((3, 16)) * 2
        for picture_, cells in ((2 * row, rng.permutation(12)), (2 * row + 1, rng.permutation(12))):
            states[picture_, cells[:3]] += looks
            centres = np.stack([cells[:3] % 4 + 0.5, cells[:3] // 4 + 0.5], axis=1) / (4, 3)
            if picture_ % 2:
                mark[row] = centres[label[row]]
            else:
                places[row, 0] = centres
    plain = labels_of(label + 1, pictures=2 * np.arange(count) + 1, places=places, mark=mark)
    return states, replace(plain, before=2 * np.arange(count)[:, None])


@pytest.mark.slow
def test_a_tracking_head_tells_objects_apart_where_the_nearest_place_does_not(
    tmp_path: Path,
) -> None:
    states, labels = tracked(500, 0)
    torch.manual_seed(0)
    shape = {"tracks": True, "classes": ("1", "2", "3"), "components": 16}
    head = Head(replace(config(3), **shape))  # type: ignore[arg-type]
    head.fit_lens(states[:400])
    seen = head.through_lens(states)
    training, held = (Samples.of(seen, p, head.config.classes) for p in labels.split(0.3))
    train(head, training, held, HeadSettings(steps=400, patience=0, rate=5e-3), tmp_path)
    found = judge(head, held)
    assert found["nearest"]["mean"] < 0.5
    assert found["accuracy"]["mean"] > 0.85
    assert found["above"]["low"] > 0.2

    # The objects' order means nothing: with the candidates turned round, so are the answers.
    order = [2, 0, 1]
    turned = replace(held, labels=replace(held.labels, places=held.labels.places[:, :, order]))
    rows = np.arange(len(held))
    with torch.no_grad():
        torch.testing.assert_close(
            head.logits(turned, rows), head.logits(held, rows)[:, order], atol=1e-5, rtol=0
        )


def test_a_soft_window_looks_where_it_is_told() -> None:
    head = Head(replace(config(3), tracks=True))
    with torch.no_grad():
        head.log_radius.fill_(-3.0)
    x = torch.eye(12)[None]
    places = torch.tensor([[[0.125, 1 / 6], [0.875, 5 / 6], [0.375, 0.5]]])
    assert head._at(x, places)[0].argmax(-1).tolist() == [0, 11, 5]


class Interrupted(Exception):
    pass


def test_an_interrupted_head_ends_like_a_straight_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = HeadSettings(steps=40, patience=15, batch=16)
    straight, training, held = made(80)
    train(straight, training, held, settings, tmp_path / "straight")

    def clock() -> Iterator[float]:  # a checkpoint after every step
        now = 0.0
        while True:
            now += 600
            yield now

    ticks = clock()
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    broken, *_ = made(80)
    logits, calls = broken.logits, 0

    def fail(samples: Samples, rows: Any, keep: float = 1.0) -> torch.Tensor:
        nonlocal calls
        calls += keep < 1
        if calls == 12:
            raise Interrupted
        return logits(samples, rows, keep)

    monkeypatch.setattr(broken, "logits", fail)
    with pytest.raises(Interrupted):
        train(broken, training, held, settings, tmp_path / "broken")
    resumed, *_ = made(80)
    train(resumed, training, held, settings, tmp_path / "broken")
    for name, tensor in straight.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, msg=name)
    logs = [(tmp_path / n / "log.jsonl").read_text() for n in ("straight", "broken")]
    assert logs[0] == logs[1]
    train(resumed, training, held, settings, tmp_path / "broken")  # nothing is left to do
    assert (tmp_path / "broken" / "log.jsonl").read_text() == logs[0]


@pytest.mark.slow
def test_training_ends_early_with_the_best_weights_reported(tmp_path: Path) -> None:
    head, training, held = made()
    train(head, training, held, HeadSettings(steps=2000, patience=2, rate=0.02), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(rows) < 2000 and [row["step"] for row in rows] == list(range(len(rows)))
    best = max(row["accuracy"] for row in rows if "accuracy" in row)
    assert np.mean(predictions(head, held) == held.targets) == pytest.approx(best)


def test_splits_keep_a_sequence_on_one_side() -> None:
    _, labels = tracked(20, 0)
    both = replace(
        labels.take(np.repeat(np.arange(20), 2)),
        mark=np.random.default_rng(0).random((40, 2), np.float32),
    )
    training, held = both.split(0.25)
    assert not set(training.clusters) & set(held.clusters)
    assert (len(training), len(held)) == (30, 10)
    with pytest.raises(CorpusError, match="cannot be split"):
        both.split(0.0)


def test_a_damaged_head_is_refused_and_nothing_is_allocated_on_its_word() -> None:
    head, *_ = made(40)
    blob = head.to_bytes()
    same = Head.from_bytes(blob)
    for name, tensor in head.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], tensor)
    for cut in (0, 7, 100, len(blob) - 1):
        with pytest.raises(BundleFormatError, match="not a task head"):
            Head.from_bytes(blob[:cut])
    plain = json.loads(
        json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"][METADATA]
    )
    tensors = load_tensors(blob)
    for name, value in (
        ("dim", 1 << 20),
        ("width", 1 << 20),
        ("queries", 1 << 20),
        ("classes", ["a"]),
        ("classes", [1, 2]),
        ("grid", [3]),
        ("tracks", 1),
        ("components", 17),
    ):
        lie = {METADATA: json.dumps(plain | {name: value})}
        with pytest.raises(BundleFormatError, match="not a task head"):
            Head.from_bytes(save_tensors(tensors, metadata=lie))
    tensors["lens"] = tensors["lens"] * float("nan")
    with pytest.raises(BundleFormatError, match="not finite"):
        Head.from_bytes(save_tensors(tensors, metadata={METADATA: json.dumps(plain)}))


# ---------------------------------------------------------------------- labels in files


def test_labels_that_make_no_sense_are_refused_with_their_line(tmp_path: Path) -> None:
    for index in range(3):
        picture(index).save(tmp_path / f"{index}.png")
    data = Dataset(tmp_path)
    with pytest.raises(SourceError, match="holds no labels.jsonl"):
        read_labels(data, "fire")
    good: dict[str, Any] = {
        "picture": "2.png",
        "task": "track",
        "label": "2",
        "before": ["0.png", "1.png"],
        "places": [[[0, 0], [1, 1]]] * 2,
        "mark": [0.5, 0.5],
    }
    write_labels(tmp_path, [good, {"picture": "0.png", "task": "fire", "label": "no"}])
    found = read_labels(data, "track")
    assert found.before.tolist() == [[0, 1]] and found.objects == 2 and len(found) == 1
    with pytest.raises(SourceError, match="did you mean 'fire'"):
        read_labels(data, "fira")
    for bad in (
        {"picture": "9.png"},
        {"picture": 3},
        {"label": "3"},
        {"label": ""},
        {"before": ["0.png"]},
        {"before": "0.png"},
        {"before": ["0.png", "7.png"]},
        {"places": [[[0, 0]]] * 2},
        {"places": [[[0, 0], [1, 2]]] * 2},
        {"places": "all over"},
        {"places": [[[0, 0], [1]]] * 2},
        {"mark": [0.5]},
        {"mark": [0.5, float("nan")]},
        {"kind": 5},
    ):
        write_labels(tmp_path, [good, good | bad])
        with pytest.raises(SourceError, match="line 2"):
            read_labels(data, "track")
    other = good | {"places": [[[0, 0], [1, 1], [0.5, 0.5]]] * 2}
    for text in (json.dumps(other), "[]", "{", '{"picture": "0.png"}'):
        write_labels(tmp_path, [good])
        with (tmp_path / "labels.jsonl").open("a") as file:
            file.write(text + "\n")
        with pytest.raises(SourceError, match="line 2"):
            read_labels(data, "track")


# ---------------------------------------------------------------------- the commands


@pytest.mark.parametrize(
    ("above", "other", "state"),
    [
        (Estimate(0.3, 0.2, 0.4), Estimate(0.3, 0.2, 0.4), GOOD),
        (Estimate(0.2, -0.1, 0.5), Estimate(0.3, 0.2, 0.4), UNJUDGED),
        (Estimate(0.0, -0.1, 0.1), Estimate(0.3, 0.2, 0.4), WORSE),
        (Estimate(0.3, 0.2, 0.4), Estimate(0.2, -0.1, 0.5), UNJUDGED),
        (Estimate(0.3, 0.2, 0.4), Estimate(0.0, -0.1, 0.1), WORSE),
        (Estimate(0.3, 0.2, 0.4), Estimate(0.0, 0.0, 0.0), WORSE),
    ],
)
def test_a_head_is_not_called_useless_for_lack_of_samples(
    above: Estimate, other: Estimate, state: str
) -> None:
    assert verdict(50, 3, 0.5, above, other).state == state
    assert verdict(9, 3, 0.5, above, other).state == UNJUDGED


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A map, another map, a corpus of pictures whose brightness is labelled, and the runner."""
    folder = tmp_path_factory.mktemp("heads")
    run = toolkit((tiny_idefics3(folder), tiny_llava(folder)))
    data = folder / "data"
    data.mkdir()
    rows: list[dict[str, object]] = []
    for index in range(PICTURES):
        image = picture(index)
        bright = index % 2 == 0
        image = image.point(lambda v, b=bright: v // 2 + 127 * b)
        image.save(data / f"{index:03d}.png")
        label = "bright" if bright else "dark"
        rows.append({"picture": f"{index:03d}.png", "task": "light", "label": label})
        rows.append({"picture": f"{index:03d}.png", "task": "one", "label": "always"})
    write_labels(data, rows)

    corpus = folder / "corpus"
    assert run("corpus", data, corpus) == 0
    for name, rank in (("map", 8), ("other", 6)):
        assert run("train", data, corpus, folder / name, "--set", f"r={rank}") == 0
    return folder, run


@pytest.mark.quick(1)
@pytest.mark.parametrize("view", ["projected", "native", "edge", "latents"])
def test_every_view_can_be_learnt_from(view: str, stage: Any, tmp_path: Path) -> None:
    folder, run = stage
    inputs = (folder / "map", folder / "data", folder / "corpus")
    flags = ("--task", "light", "--view", view, "--steps", "60", "--components", "16")
    assert run("head", "train", *inputs, tmp_path / "head", *flags) == 0
    out = tmp_path / "figures.json"
    assert run("head", "test", *inputs, tmp_path / "head", "--out", out) == 0
    found = json.loads(out.read_text())
    assert found["view"] == view and found["samples"] == PICTURES
    assert found["accuracy"]["mean"] > 0.8 > found["majority"]["mean"] + 0.2


@pytest.mark.slow
def test_a_head_is_refused_with_another_map_and_a_native_one_serves_any(
    stage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = stage
    inputs = (folder / "data", folder / "corpus")
    flags = ("--task", "light", "--steps", "20", "--components", "8")
    for view in ("projected", "native"):
        out = tmp_path / view
        assert run("head", "train", folder / "map", *inputs, out, *flags, "--view", view) == 0
    capsys.readouterr()
    assert run("head", "test", folder / "other", *inputs, tmp_path / "projected") == code_of(
        BundleLayoutError.name
    )
    assert "train one with it" in capsys.readouterr().err
    native = (*inputs, tmp_path / "native", "--json")
    assert run("head", "test", folder / "other", *native, "--view", "projected") == 0
    assert json.loads(capsys.readouterr().out)["view"] == "projected"
    assert run("head", "test", folder / "other", *native, "--view", "latents") == code_of("config")
    stranger = replace(read(tmp_path / "native").config, owner="0" * 64)
    with pytest.raises(BundleLayoutError):
        Head(stranger).require("f" * 64, "this")


@pytest.mark.slow
def test_training_a_head_again_gives_the_same_bytes(stage: Any, tmp_path: Path) -> None:
    folder, run = stage
    inputs = (folder / "map", folder / "data", folder / "corpus")
    flags = ("--task", "light", "--steps", "30", "--components", "8")
    for name in ("a", "b", "a"):
        assert run("head", "train", *inputs, tmp_path / name, *flags) == 0
    a, b = ((tmp_path / name / "head.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b
    story = json.loads((tmp_path / "a" / "head.json").read_text())
    assert story["owner"] == read(tmp_path / "a").config.owner
    assert story["held_out"]["majority"]["mean"] <= 1


@pytest.mark.slow
def test_bad_input_to_heads_ends_with_its_error(
    stage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = stage
    data, corpus = folder / "data", folder / "corpus"
    training = ("head", "train", folder / "map", data, corpus, tmp_path / "o")
    cases: list[tuple[tuple[object, ...], str, str]] = [
        (("head",), "config", "no command"),
        ((*training, "--task", "lihgt"), "source", "mean 'light'"),
        ((*training, "--task", "one"), FitError.name, "1 classes"),
        ((*training, "--task", "light", "--view", "above"), "config", "no view 'above'"),
        ((*training, "--task", "light", "--point", "fine"), "config", "no operating points"),
        ((*training, "--task", "light", "--held-out", "0"), "corpus", "cannot be split"),
        (("head", "train", tmp_path, data, corpus, tmp_path, "--task", "light"), "fit", "no map"),
        (("head", "test", folder / "map", data, corpus, tmp_path / "none"), "fit", "no head at"),
    ]
    for arguments, name, said in cases:
        command = cli.main(["head"]) if len(arguments) == 1 else run(*arguments)
        assert command == code_of(name), arguments
        shown = capsys.readouterr().err
        assert said in shown and "Traceback" not in shown, shown
