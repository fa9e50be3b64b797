"""Every command of docs/model-engineer.md, on tiny models, in the order of the page."""

from __future__ import annotations

import json
import re
import shlex
from contextlib import ExitStack
from pathlib import Path

import pytest

from cloud_server import settings as cloud_settings
from edge_agent import cli as edge_cli
from edge_agent.settings import PREFIX
from projector.calibration import learn_risk
from projector.commands import cli
from projector.commands import settings as projector_settings
from projector.heads.labels import write_labels
from projector.training.dataset import write_questions, write_texts
from tests.cloud_server import stage
from tests.fakes.tiny_models import tiny_gemma3, tiny_idefics3, tiny_llava, tiny_lm
from tests.fakes.toolkit import WORDS, pictures_with_questions
from tests.projector.conftest import GPU

pytestmark = pytest.mark.slow

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "model-engineer.md"
ON_GPU = ("corpus", "train", "validate", "calibrate", "guard")


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.S)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def folder(path: Path, first: int, count: int) -> None:
    path.mkdir()
    labels: list[dict[str, object]] = [
        {"picture": name, "task": "fire", "label": "yes" if index % 3 else "no"}
        for index, name in enumerate(pictures_with_questions(path, count, first), start=first)
    ]
    write_labels(path, labels)


def notes(path: Path, first: int) -> None:
    path.mkdir()
    rows: list[dict[str, object]] = []
    texts = {}
    for index in range(first, first + 64):
        name, words = f"note-{index}", [WORDS[(index >> shift) % 4] for shift in (0, 2, 4)]
        texts[name] = f"the {' '.join(words)} car"
        rows += [
            {"text": name, "question": f"what is {k}", "answer": words[k % 3]} for k in range(6)
        ]
    write_texts(path, texts)
    write_questions(path, rows)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_the_guide_runs_from_two_checkpoints_to_a_verified_bundle(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").mkdir()
    tiny_idefics3(tmp_path).rename(tmp_path / "models" / "edge")
    tiny_llava(tmp_path, text="llama").rename(tmp_path / "models" / "cloud")
    folder(tmp_path / "photos", 0, 64)
    folder(tmp_path / "held-out", 100, 64)
    tiny_lm(tmp_path).rename(tmp_path / "models" / "edge-lm")
    tiny_gemma3(tmp_path).rename(tmp_path / "models" / "cloud-lm")
    notes(tmp_path / "notes", 0)
    notes(tmp_path / "held-out-notes", 64)
    (tmp_path / "bundles").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(PREFIX + "STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv(cloud_settings.PREFIX + "DEVICE", device)
    monkeypatch.setenv(projector_settings.PREFIX + "DEVICE", device)
    monkeypatch.setattr(learn_risk, "_LEAST_OF_EACH", 1)  # models that learnt nothing say one word
    ran = commands()
    for line in ran:
        if line[:2] in [["projector", name] for name in ON_GPU]:
            line += ["--device", device]
        if line[:2] == ["projector", "export"]:  # models that learnt nothing cannot be judged
            line += ["--force"]
        if line[:2] == ["projector", "guard"]:  # ... and agree on no more than the first
            line += ["--answer-tokens", "1"]
    assert {line[0] for line in ran} == {"projector", "cloud-server", "edge-agent"}
    assert len(ran) >= 20
    with ExitStack() as stack:
        for line in ran:
            main = edge_cli.main if line[0] == "edge-agent" else cli.main
            if line[0] == "cloud-server":
                served = dict(zip(line[2::2], line[3::2], strict=True))
                running = stage.running_server(Path(served["--model"]), [Path(served["--bundles"])])
                port = stack.enter_context(running).port
                monkeypatch.setenv(PREFIX + "SERVER", f"127.0.0.1:{port}")
                continue
            assert main(line[1:]) == 0, f"{shlex.join(line)}: {capsys.readouterr().err}"
    for report in ("report", "notes-report"):
        assert (tmp_path / report / "report.html").exists()
    assert json.loads((tmp_path / "report" / "report.json").read_text())["seen_in_training"] == 0
    out = capsys.readouterr().out
    assert "mine" in out and "fire from projected states" in out
