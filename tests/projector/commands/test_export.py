"""`projector export`: a judged map becomes a bundle; one of no use only by force, and says so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from projector.bundle.certificate import (
    GOOD,
    UNJUDGED,
    WORSE,
)
from projector.bundle.load import Bundle
from projector.commands import cli
from projector.maps import load
from projector.models.vlm import VLM
from projector.training.dataset import write_questions
from projector.validation import literature
from protos.errors import UselessMapError
from tests.fakes.tiny_models import picture, tiny_idefics3, tiny_llava
from tests.fakes.toolkit import code_of, toolkit


@pytest.mark.slow
def test_a_judged_map_becomes_a_bundle_that_answers_like_the_map(
    run: Any,
    data: Path,
    corpus: Path,
    made: Path,
    models: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report, folder = tmp_path / "report", tmp_path / "bundle"
    assert run("validate", made, data, corpus, report) == 0
    written = ("export", made, data, corpus, folder, "--report", report / "report.json", "--force")
    assert run(*written, "--id", "mine") == 0
    source, target = VLM.load(models[0]), VLM.load(models[1])
    bundle = Bundle.load(folder, source.layout, target.layout)
    assert bundle.info.id == "mine" and bundle.certificate["forced"]["verdict"]
    one = load((made / "map.safetensors").read_bytes(), source.layout, target.layout)
    state = source.states(source.prefill([picture(70)]))[0]
    point = bundle.encoder.point(11)  # not quantized
    sent = bundle.encoder.encode(state, point)
    latents = bundle.encoder.decode(sent.payload, sent.kept, point)[None]
    for name in ("onnxruntime", "torch"):
        keys, values = bundle.backend(name).project(latents, sent.kept[None], target.positions)
        with torch.no_grad():
            flat = one(torch.from_numpy(state.flat()[None].astype(np.float32)))
        want = flat.unflatten(-1, (2, target.layout.layers, target.layout.kv_heads, -1))
        np.testing.assert_allclose(
            values[:, 0].transpose(2, 0, 1, 3), want[0, :, 1].numpy(), atol=1e-3
        )
        assert keys.shape == values.shape
    half = tmp_path / "half"
    assert run(*written[:4], half, *written[5:], "--precision", "bfloat16") == 0
    narrow = Bundle.load(half, source.layout, target.layout)
    assert narrow.certificate["stored_in"] == "bfloat16"
    assert len(narrow.cloud.weights) < 0.8 * len(bundle.cloud.weights)
    outputs = [
        narrow.backend(name).project(latents, sent.kept[None], target.positions)
        for name in ("onnxruntime", "torch")
    ]
    for graph, weights in zip(*outputs, strict=True):
        np.testing.assert_allclose(graph, weights, atol=1e-3)
    capsys.readouterr()
    (report / "report.json").write_text("{}")
    assert run(*written) == code_of("config")
    assert "no report of" in capsys.readouterr().err


@pytest.mark.slow
def test_a_report_of_another_map_certifies_nothing(
    run: Any, data: Path, corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    flags = ("--family", "ridge", "--set", "weight=0.01", "--held-out")
    for name, share in (("one", "0.1"), ("two", "0.5")):  # one configuration, other pictures
        assert run("train", data, corpus, tmp_path / name, *flags, share) == 0
    assert run("validate", tmp_path / "one", data, corpus, tmp_path / "report") == 0
    report = tmp_path / "report" / "report.json"
    given = (data, corpus, tmp_path / "bundle", "--report", report, "--force")
    capsys.readouterr()
    assert run("export", tmp_path / "two", *given) == code_of("config")
    assert "judges another map" in capsys.readouterr().err
    judged = json.loads(report.read_text())
    for gone in ("bound", "tier_by_answers", "map"):
        report.write_text(json.dumps({k: v for k, v in judged.items() if k != gone}))
        assert run("export", tmp_path / "one", *given) == code_of("config")
        assert "no report of" in capsys.readouterr().err
    report.write_text(json.dumps(judged | {"accuracy": list(judged["accuracy"])}))
    assert run("export", tmp_path / "one", *given) == code_of("config")
    other = {"map": {**judged["map"], "target": judged["map"]["source"]}}
    report.write_text(json.dumps(judged | other))
    assert run("export", tmp_path / "one", *given) == code_of("config")
    assert "between other models" in capsys.readouterr().err
    report.write_text(json.dumps(judged))
    assert run("export", tmp_path / "one", *given) == 0


@pytest.mark.slow
def test_a_report_from_before_fingerprints_of_version_two_still_counts(
    run: Any, data: Path, corpus: Path, models: tuple[Path, Path], made: Path, tmp_path: Path
) -> None:
    assert run("validate", made, data, corpus, tmp_path / "report") == 0
    report = tmp_path / "report" / "report.json"
    judged = json.loads(report.read_text())
    for side, path in zip(("source", "target"), models, strict=True):
        new, old = VLM.load(path).layout.fingerprints
        assert judged["map"][side] == new
        judged["map"][side] = old
    report.write_text(json.dumps(judged))
    given = (made, data, corpus, tmp_path / "bundle", "--report", report, "--force")
    assert run("export", *given) == 0


PICTURES = 64


def arm(mean: float, half: float = 0.02) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[..., int]]:
    """A map judged by questions that nobody can answer: every arm is at 0 %."""
    folder = tmp_path_factory.mktemp("honest")
    run = toolkit((tiny_idefics3(folder), tiny_llava(folder, text="llama")))
    data = folder / "data"
    data.mkdir()
    rows: list[dict[str, object]] = []
    for index in range(PICTURES):
        picture(index).save(data / f"{index:03d}.png")
        rows += [
            {
                "picture": f"{index:03d}.png",
                "question": f"what is {k}",
                "answer": f"never {index} so",
                "kind": ("hazard", "counting", "scene")[k % 3],
            }
            for k in range(6)
        ]
    write_questions(data, rows)
    assert run("corpus", data, folder / "corpus") == 0
    assert run("train", data, folder / "corpus", folder / "map", "--family", "ridge") == 0
    return folder, run


@pytest.fixture(scope="module")
def judged(stage: Any) -> dict[str, Any]:
    folder, run = stage
    assert run("validate", folder / "map", folder / "data", folder / "corpus", folder / "r") == 0
    found: dict[str, Any] = json.loads((folder / "r" / "report.json").read_text())
    return found


@pytest.mark.slow
def test_a_report_of_nothing_says_that_it_cannot_be_judged(
    stage: Any, judged: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = stage
    assert {a["mean"] for n, a in judged["accuracy"].items() if n != "edge_only"} == {0.0}
    assert judged["verdict"] == UNJUDGED
    for name in ("retention", "tier_by_answers", "grade_by_answers"):
        assert judged[name] is None
    said = {row["claim"]: row["holds"] for row in judged["literature"]["statements"]}
    about_answers = [
        claim for claim in said if re.search(r"loses|gains|FP8 costs|grade by|every task's", claim)
    ]
    assert len(about_answers) == 5
    assert [said[claim] for claim in about_answers] == [None] * 5, "neither yes nor no"
    tasks = {row["task"]: row["measured"] for row in judged["literature"]["tasks"]}
    assert tasks.pop("object tracking (5 classes)") is None, "counting is not tracking"
    assert [measured["within"] for measured in tasks.values()] == [None, None]
    again = folder / "again"
    assert run("validate", folder / "map", folder / "data", folder / "corpus", again) == 0
    shown = capsys.readouterr().out
    page = (again / "report.html").read_text()
    for text in (shown, page):
        assert "CANNOT BE JUDGED: the large model is right in 0.0%" in text
        assert "fire detection" in text, "its questions are those of the literature"
        row = next(line for line in re.split(r"\n|</tr>", text) if "loses two points" in line)
        assert "cannot be judged" in row and "yes" not in row
    assert "tier cannot be judged and grade cannot be judged by answers" in shown


@pytest.mark.slow
def test_a_map_of_no_use_is_exported_by_force_alone_and_says_so(
    stage: Any, judged: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = stage
    written = ("export", folder / "map", folder / "data", folder / "corpus", folder / "bundle")
    given = (*written, "--report", folder / "r" / "report.json")
    capsys.readouterr()
    assert run(*given) == UselessMapError.exit_code == 17
    told = capsys.readouterr().err
    assert told.startswith("projector: useless_map: ") and "cannot be judged" in told
    assert "--force" in told and not (folder / "bundle").exists()
    assert run(*given, "--force") == 0
    certificate = json.loads((folder / "bundle" / "certificate.json").read_text())
    assert certificate["forced"]["verdict"] == UNJUDGED and certificate["forced"]["why"]
    capsys.readouterr()
    assert cli.main(["catalogue", str(folder), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["judged"]["verdict"] == UNJUDGED
    assert listed["judged"]["tier_by_answers"] is None
    assert cli.main(["inspect", str(folder / "bundle")]) == 0
    assert "cannot be judged" in capsys.readouterr().out


@pytest.mark.slow
def test_a_report_of_a_good_map_is_exported_as_before(
    stage: Any, judged: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One from before verdicts were written too: only its intervals are looked at."""
    folder, run = stage
    good = {**judged, "tier_by_answers": "gold", "pictures": 512}
    for name in ("differences", "verdict", "why", "pictures_asked"):
        del good[name]
    for name, found in good["accuracy"].items():
        high = name in ("native", "mapped")
        good["accuracy"][name] = arm(0.9 if high else 0.3) | {k: 0.0 for k in found if k == "x"}
    path = tmp_path / "report.json"
    path.write_text(json.dumps(good))
    written = ("export", folder / "map", folder / "data", folder / "corpus", tmp_path / "bundle")
    assert run(*written, "--report", path) == 0
    certificate = json.loads((tmp_path / "bundle" / "certificate.json").read_text())
    assert "forced" not in certificate


@pytest.mark.slow
def test_statements_hold_again_where_a_map_is_good(judged: dict[str, Any]) -> None:
    good = {
        **judged,
        **{"verdict": GOOD, "grade_by_answers": "A", "grade_by_reconstruction": "A"},
        "accuracy": {name: arm(0.9) for name in judged["accuracy"]} | {"edge_only": arm(0.5)},
    }
    said = {row["claim"]: row["holds"] for row in literature.statements(good)}
    assert said["projecting loses two points on the cloud alone"] is True
    assert said["projecting gains two points on the edge alone"] is True


@pytest.mark.slow
def test_nothing_good_is_said_of_a_map_that_another_picture_replaces(
    judged: dict[str, Any],
) -> None:
    idle = {
        **judged,
        "verdict": WORSE,
        "accuracy": {name: arm(0.5) for name in judged["accuracy"]} | {"edge_only": arm(0.1)},
    }
    said = {row["claim"]: row["holds"] for row in literature.statements(idle)}
    assert said["projecting loses two points on the cloud alone"] is None
    assert said["projecting gains two points on the edge alone"] is None
    idle["accuracy"] |= {"native": arm(0.9), "edge_only": arm(0.8)}
    said = {row["claim"]: row["holds"] for row in literature.statements(idle)}
    assert said["projecting loses two points on the cloud alone"] is False
    assert said["projecting gains two points on the edge alone"] is False
