"""The guard: what is sent, or answered, in place of a frame that would be answered otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.guard import Guard, more_faithful
from edge_agent.picture import PictureCodec
from edge_agent.plan import Plan
from edge_agent.sources import Capture
from projector.codec.risk import RiskModel, feature_count
from protos.errors import OverloadedError
from protos.points import OperatingPoint
from protos.requests import parse_infer_request
from tests.fakes.fake_edge import RANK
from tests.fakes.fake_run import Run, capture, nothing

SMALL_PICTURE = b"smaller than a frame"
HOPELESS = {"bias": 3.0}
NEEDS_BITS = {"bias": -3.0, "quantize": 60.0}
"""Risky at the point `low`, whose error on its tokens is above 0.05; safe at `fp8`, with 0.02."""


def guarded(
    tmp_path: Path,
    guard: Guard,
    bias: float,
    quantize: float = 0.0,
    of: Capture | None = None,
    **kwargs: Any,
) -> Run:
    plan = Plan("low", guard=guard)
    run = Run([of or capture("a")], tmp_path, questions=("is it ?",), plan=plan, **kwargs)
    weights = np.zeros(feature_count(RANK), np.float32)
    weights[0] = quantize
    risk = RiskModel(np.zeros_like(weights), weights, bias, limit=0.5)
    fp8, low, raw = run.served.encoder.points
    run.served.encoder = replace(run.served.encoder, points=(low, fp8, raw), risk=risk)
    run.summary = run()  # type: ignore[attr-defined]
    return run


def test_a_frame_within_the_limit_goes_as_it_is_with_its_risk(tmp_path: Path) -> None:
    run = guarded(tmp_path, Guard("picture"), bias=-2.0)
    record = run.records[0]
    assert (record.point, record.fallback) == ("low", "")
    assert record.risk == pytest.approx(1 / (1 + np.exp(2.0)), rel=1e-4)
    assert run.value("risk_ratio_count") == 1


@pytest.mark.parametrize("mode", ["edge_only", "picture"])
def test_a_frame_that_lost_too_much_gets_more_bits(tmp_path: Path, mode: str) -> None:
    run = guarded(tmp_path, Guard(mode), **NEEDS_BITS)  # type: ignore[arg-type]
    record = run.records[0]
    assert (record.point, record.fallback, record.error) == ("fp8", "", None)
    assert record.risk is not None and record.risk < 0.5
    assert run.value("quantization_error_ratio_count") == 1, "of what went, not of what was tried"
    assert run.value("payload_bytes_count", point="fp8") == 1


def test_bits_that_cost_more_than_the_picture_are_not_sent_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PictureCodec, "encode", lambda *_: SMALL_PICTURE)
    record = guarded(tmp_path, Guard("picture"), **NEEDS_BITS).records[0]
    assert (record.point, record.fallback) == ("picture", "distortion")
    assert record.payload_bytes == len(SMALL_PICTURE)
    kept = guarded(tmp_path / "kept", Guard("edge_only"), **NEEDS_BITS).records[0]
    assert kept.point == "fp8", "where no picture may go, any bits that help do"


def test_a_picture_that_no_bits_help_is_sent_itself_where_that_is_allowed(tmp_path: Path) -> None:
    run = guarded(tmp_path, Guard("picture"), **HOPELESS)
    record = run.records[0]
    assert (record.point, record.fallback, record.answer) == (
        "picture",
        "unfamiliar",
        "about is it ?",
    )
    assert run.value("fallbacks_total", cause="unfamiliar") == 1
    ((raw,),) = run.served.messages.values()
    header = parse_infer_request(raw).header
    assert header.cause == "unfamiliar"


def test_a_picture_sent_in_a_frames_place_that_nobody_answered_is_no_fallback(
    tmp_path: Path,
) -> None:
    refusals = {"is it ?": [OverloadedError("full")] * 99}
    run = guarded(tmp_path, Guard("picture"), **HOPELESS, refusals=refusals)
    record, summary = run.records[0], run.summary  # type: ignore[attr-defined]
    assert (record.point, record.answer, record.fallback) == ("picture", None, "")
    assert (summary.fallbacks, summary.failed) == (0, 1)
    assert isinstance(summary.first_error, OverloadedError)
    assert run.value("fallbacks_total", cause="unfamiliar") == 0


def test_a_picture_stays_on_the_device_and_the_small_model_answers(tmp_path: Path) -> None:
    run = guarded(tmp_path, Guard("edge_only"), **HOPELESS)
    record = run.records[0]
    assert (record.answer, record.edge_answer, record.fallback) == (
        None,
        "edge is it ?",
        "unfamiliar",
    )
    assert not run.served.requests
    assert record.error is not None and record.error["name"] == "unfamiliar"
    assert record.risk is not None and record.risk > 0.5, "what kept it back is told"
    assert record.point == "low" and record.distortion["quantize"] > 0.05
    assert run.value("frames_coded_total", kind="key") == 0
    assert run.value("quantization_error_ratio_count") == 0


SAFE = {"bias": -9.0}


def test_a_picture_that_shows_nothing_is_sent_itself_under_its_own_cause(tmp_path: Path) -> None:
    """However sure the risk model is: it never saw such pictures."""
    for number, risk in enumerate((SAFE, HOPELESS, NEEDS_BITS)):
        run = guarded(tmp_path / str(number), Guard("picture"), of=nothing("a"), **risk)
        record = run.records[0]
        assert (record.point, record.fallback) == ("picture", "degenerate")
        assert (record.answer, record.warnings) == ("about is it ?", ("degenerate",))
        assert record.risk is not None and run.value("fallbacks_total", cause="degenerate") == 1
        ((raw,),) = run.served.messages.values()
        header = parse_infer_request(raw).header
        assert header.cause == "degenerate"


def test_a_picture_that_shows_nothing_stays_where_no_picture_may_go(tmp_path: Path) -> None:
    run = guarded(tmp_path, Guard("edge_only"), of=nothing("a"), **SAFE)
    record = run.records[0]
    assert (record.answer, record.edge_answer) == (None, "edge is it ?")
    assert (record.fallback, record.warnings) == ("degenerate", ("degenerate",))
    assert not run.served.requests
    assert record.error is not None and record.error["name"] == "degenerate"
    assert "one flat colour" in record.error["message"]


def test_a_picture_that_shows_nothing_needs_no_risk_model_to_be_kept_back(tmp_path: Path) -> None:
    plan = Plan("low", guard=Guard("edge_only"))
    run = Run([nothing("a"), capture("b")], tmp_path, questions=("is it ?",), plan=plan)
    run()
    assert run.served.encoder.risk is None
    assert {r.capture: r.fallback for r in run.records} == {"a": "degenerate", "b": ""}


@pytest.mark.parametrize("mode", ["off", "measure"])
def test_a_guard_that_only_looks_lets_a_picture_that_shows_nothing_go(
    tmp_path: Path, mode: str
) -> None:
    run = guarded(tmp_path, Guard(mode), of=nothing("a"), **SAFE)  # type: ignore[arg-type]
    record = run.records[0]
    assert (record.point, record.fallback, record.error) == ("low", "", None)
    assert record.warnings == ("degenerate",)


def test_bits_that_do_not_suffice_are_the_cause_that_is_given(tmp_path: Path) -> None:
    run = guarded(tmp_path, Guard("edge_only", limit=0.05), bias=-3.0, quantize=400.0)
    assert run.records[0].fallback == "distortion"


def test_by_default_the_risk_is_only_reported(tmp_path: Path) -> None:
    record = guarded(tmp_path, Guard(), **HOPELESS).records[0]
    assert (record.point, record.fallback, record.error) == ("low", "", None)
    assert record.risk is not None and record.risk > 0.9
    assert guarded(tmp_path, Guard("off"), **HOPELESS).records[0].risk is None


def test_more_bits_come_before_more_tokens() -> None:
    few, fine, most, whole = (
        OperatingPoint(i, name, tokens=tokens, rank=RANK, steps="s")
        for i, (name, tokens) in enumerate([("few", 4), ("fine", 4), ("most", 8), ("whole", 0)])
    )
    points = {p.name: p for p in (few, fine, most, whole)}
    ladder = ["few", "most", "fine", "whole", "gone"]
    assert more_faithful(few, points, ladder) == [fine, most, whole]
    assert more_faithful(most, points, ladder) == [whole]
