"""A cascade: what the small model is confident about stays here, and each record says so."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_agent import cli
from edge_agent.agent import Agent
from edge_agent.cascade import CONFIDENT, Cascade
from edge_agent.metrics import Metrics
from edge_agent.plan import Plan
from edge_agent.sight import Seen, Sight
from edge_agent.sources.folder import Folder
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.encoder_store import EncoderStore
from projector.calibration.confidence import calibration_error, learn_confidence
from projector.codec.confidence import FEATURES, Confidence, features
from projector.codec.risk import WORDS
from projector.commands import cli as projector
from projector.models.exported.manifest import read_manifest
from protos.errors import ConfigError, FitError, OfflineError, QuestionError
from protos.process import logs
from reference.export_yard import export as export_yard
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import FakeModel, make_encoder

ROOT = Path(__file__).resolve().parents[2]


class Sure(FakeModel):
    """Sure of its answer to every question that begins with "sure"; cannot take "odd"."""

    def see(self, seen: Seen) -> Sight:
        assert isinstance(seen, Image.Image)

        def first_token(question: str) -> np.ndarray:
            if question == "odd":
                raise QuestionError("an odd question")
            first = 0.97 if question.startswith("sure") else 0.4
            rest = (1 - first) / 2
            return np.array([first, rest, rest, 0], np.float32)

        return replace(super().see(seen), first_token=first_token)


def by_probability() -> Confidence:
    """The confidence is about the first token's probability: 0.97 gives .95, 0.4 gives .35."""
    weights = np.zeros(FEATURES)
    weights[WORDS] = 4.0
    return Confidence(weights, 3.066)


def run(tmp_path: Path, questions: tuple[str, ...], flat: bool = False) -> tuple[Any, ...]:
    (tmp_path / "in").mkdir()
    picture = Image.new("RGB", (9, 9), (1, 2, 3))
    if not flat:
        picture.putpixel((8, 0), (255, 1, 2))
    picture.save(tmp_path / "in" / "a.png")

    async def drive() -> tuple[Any, ...]:
        served, records, metrics = FakeBridge(make_encoder()), list[Any](), Metrics()
        await served.start()
        log, model = logs.configure("error"), Sure()
        agent = Agent(
            Folder.from_path(tmp_path / "in"),
            model,
            Uplink(model.layout, served.dial, EncoderStore(tmp_path), Metrics(), log),
            Plan(max_new_tokens=3),
            records.append,
            metrics,
            log,
            questions=questions,
            cascade=Cascade(by_probability(), 0.9, metrics, log),
        )
        summary = await agent.run()
        await served.stop()
        return records, summary, metrics, served

    return asyncio.run(drive())


def test_only_questions_that_the_small_model_is_unsure_of_go_up(tmp_path: Path) -> None:
    records, summary, metrics, served = run(tmp_path, ("sure ?", "hm ?", "sure 2 ?", "odd"))
    by_question = {record.question: record for record in records}
    assert set(by_question) == {"sure ?", "hm ?", "sure 2 ?", "odd"}
    here, up = by_question["sure ?"], by_question["hm ?"]
    assert (here.answer, here.edge_answer, here.fallback) == (None, "edge sure ?", CONFIDENT)
    assert (here.payload_bytes, here.attempts, here.error) == (0, 0, None)
    assert here.confidence == pytest.approx(0.95, abs=0.01)
    assert (up.answer, up.edge_answer, up.fallback) == ("about hm ?", None, "")
    assert up.confidence == pytest.approx(0.35, abs=0.01)
    assert json.loads(here.to_json())["confidence"] == pytest.approx(here.confidence, abs=1e-6)
    assert by_question["odd"].answer == "about odd"
    assert sum(len(raws) for raws in served.messages.values()) == 2
    counts = summary.questions, summary.confident, summary.answered, summary.failed
    assert counts == (4, 2, 2, 0)
    value = metrics.registry.get_sample_value
    assert value("neural_bridge_edge_fallbacks_total", {"cause": CONFIDENT}) == 2


def test_a_picture_that_shows_nothing_is_never_answered_from_confidence(tmp_path: Path) -> None:
    (record,), _, _, _ = run(tmp_path, ("sure ?",), flat=True)
    assert record.answer == "about sure ?" and record.confidence is None


def test_a_learnt_confidence_is_calibrated() -> None:
    rng = np.random.default_rng(0)
    found = np.zeros((6000, FEATURES))
    found[:, WORDS] = np.log(rng.uniform(0.05, 1.0, len(found)))
    true = 1 / (1 + np.exp(-(1.5 + 2 * found[:, WORDS])))
    right = rng.random(len(found)) < true
    made = learn_confidence(found, right, np.arange(len(found)) // 6)
    assert np.abs(made.confidence.of_features(found) - true).mean() < 0.02
    assert made.error < 0.03
    assert calibration_error(np.full(len(found), 0.99), right) > 0.1
    with pytest.raises(FitError, match="10 of each"):
        learn_confidence(found[:50], np.ones(50, bool), np.arange(50))


@pytest.fixture(scope="module")
def calibrated(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    export_yard(folder / "pictures", "validation", 0, 64, 5)
    shutil.copytree(export, folder / "edge-a")
    assert projector.main(["calibrate-edge", str(folder / "edge-a"), str(folder / "pictures")]) == 0
    return folder / "edge-a"


@pytest.mark.slow
def test_a_calibrated_export_answers_here_or_asks(
    calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    confidence = read_manifest(calibrated).confidence
    assert confidence is not None and confidence.questions == 320
    assert 0.6 < confidence.accuracy < 0.95 and confidence.error < 0.15
    picture = next((calibrated.parent / "pictures").glob("*.png"))
    ask = ["ask", str(picture), "is there a fire ?", "--model", str(calibrated), "--cascade"]
    ask += ["--state-dir", str(tmp_path), "--server", "127.0.0.1:1", "--give-up-s", "0.2"]
    assert cli.main([*ask, "--edge-fallback", "--cascade-limit", "0", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["fallback"], record["error"]) == (CONFIDENT, None)
    assert 0 < record["confidence"] < 1 and record["edge_answer"] in ("yes", "no")
    assert cli.main([*ask, "--cascade-limit", "1"]) == OfflineError.exit_code


@pytest.mark.slow
def test_a_model_without_a_confidence_is_refused(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    for model in (export, ROOT / "reference/models/edge-a"):
        arguments = ["ask", str(tmp_path / "a.png"), "what ?", "--model", str(model), "--cascade"]
        assert cli.main([*arguments, "--server", "127.0.0.1:1"]) == ConfigError.exit_code
        assert re.search("calibrate-edge", capsys.readouterr().err)


def test_the_features_are_those_of_the_guard_without_the_frame() -> None:
    from projector.codec import risk
    from protos.distortion import Distortion

    first = np.array([0.7, 0.2, 0.1], np.float32)
    whole = risk.features(Distortion(0, 0, 0, 0), "is there a dog ?", first, np.zeros((4, 2)))
    np.testing.assert_allclose(features("is there a dog ?", first), whole[4 : 4 + FEATURES])
