"""Timelines and requests of the live page: what they say, and that they stay within their bytes."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from cloud_server.page.belief import limits_of
from cloud_server.page.requests import MOST_FRAMES, MOST_QUESTIONS, Requests, Seen
from cloud_server.page.timeline import SLOT_S, Slot, Timelines
from cloud_server.page.views import TimelineColumns
from projector.codec.risk import RiskModel, feature_count
from protos.distortion import Distortion

GATE = ("acme", "gate-3")
LOST = (0.1, 0.2, 0.3, 0.4)


def test_a_timeline_is_the_means_sums_and_maxima_of_its_slots() -> None:
    pick, times = random.Random(1), Timelines(1.0, 1 << 20)
    frames = sorted(
        (
            pick.uniform(1e6, 1e6 + 1800),
            pick.randrange(1, 100),
            pick.choice([None, pick.random()]),
            pick.choice([None, tuple(pick.random() for _ in range(4))]),
        )
        for _ in range(300)
    )
    for at_s, size, risk, lost in frames:
        times.frame(GATE, at_s, size, risk, lost)
    found = times.of(GATE, 1e6 + 1800)
    assert [slot.number for slot in found] == sorted({int(at / SLOT_S) for at, *_ in frames})
    for slot in found:
        mine = [one for one in frames if int(one[0] / SLOT_S) == slot.number]
        risks = [risk for *_, risk, _ in mine if risk is not None]
        losses = [lost for *_, lost in mine if lost is not None]
        assert (slot.frames, slot.bytes) == (len(mine), sum(size for _, size, *_ in mine))
        if risks:
            assert slot.risk == pytest.approx(sum(risks) / len(risks), rel=1e-6)
            assert slot.risk_most == pytest.approx(max(risks), rel=1e-6)
        else:
            assert math.isnan(slot.risk) and math.isnan(slot.risk_most)
        if losses:
            assert slot.unfamiliarity == pytest.approx(np.mean([lost[3] for lost in losses]))
    assert repr(times.newest(GATE)) == repr(found[-2:])  # NaN is not itself


def test_a_timeline_reaches_back_so_far_and_no_further() -> None:
    times = Timelines(1.0, 1 << 20)
    for minute in range(300):
        times.frame(GATE, 60.0 * minute, 1, 0.5, LOST)
    found = times.of(GATE, 60.0 * 299)
    assert len(found) == 60 and found[0].number * SLOT_S >= 60 * 239
    assert times.of(GATE, 1e9) == [], "hours later nothing of it is shown"
    times.alarm(GATE, 0.0)
    assert times.of(GATE, 60.0 * 299)[-1].alarms == 1, "a clock set back adds to the newest slot"


def test_timelines_stay_within_their_bytes_and_a_flood_evicts_its_own_tenant() -> None:
    bound = 1 << 18
    times = Timelines(6.0, bound)
    quiet = ("globex", "gate-9")
    for slot in range(100):
        times.frame(quiet, slot * SLOT_S, 1, 0.5, LOST)
    before = times.of(quiet, 100 * SLOT_S)
    for slot in range(100, 700):
        for device in range(40):
            times.frame(("acme", f"gate-{device}"), slot * SLOT_S, 1, 0.5, LOST)
        assert times.bytes <= bound
    for device in range(2000):
        times.frame(("acme", f"new-{device}"), 700 * SLOT_S, 1, 0.5, LOST)
        assert times.bytes <= bound
    assert times.of(quiet, 700 * SLOT_S) == before
    times.forget(quiet)
    assert times.of(quiet, 700 * SLOT_S) == [] and times.newest(quiet) == []


def test_columns_have_null_where_nothing_was_measured() -> None:
    columns = TimelineColumns.of([Slot(3, alarms=2), Slot(4, risk=0.5, risk_most=0.75)])
    assert columns.at == [90, 120] and columns.alarms == [2, 0]
    assert columns.risk == [None, 0.5] and columns.quantize == [None, None]
    assert "NaN" not in columns.model_dump_json()


def seen(number: int, question: str = "why?", answer: str = "so", tenant: str = "acme") -> Seen:
    return Seen(
        id=f"{number:032x}",
        device=(tenant, "gate-3"),
        asked_by="gate-3",
        scene="",
        name=("", number),
        at_s=float(number),
        point="uniform",
        payload_bytes=30,
        delta=False,
        question=question,
        answer=answer,
        tokens=1,
        stages_ms={},
        first_token_ms=None,
        total_ms=1.0,
        risk=None,
        risk_limit=None,
        risk_unknown="",
        lost=LOST,
        limits=(),
        fallback="",
        warnings=(),
    )


def test_frames_without_a_question_push_out_no_questions() -> None:
    kept = Requests(1 << 20)
    for number in range(100):
        kept.add(seen(number))
    for number in range(100, 1000):
        kept.add(seen(number, ""))
    found = kept.of(GATE)
    assert [one.question for one in found].count("why?") == MOST_QUESTIONS
    assert [one.question for one in found].count("") == MOST_FRAMES
    assert found[0].at_s == 999 and kept.find(GATE, f"{99:032x}") is not None
    kept.add(seen(99, answer="another"))
    again = kept.find(GATE, f"{99:032x}")
    assert again is not None and again.answer == "another" and len(kept.of(GATE)) == len(found)
    kept.forget(GATE)
    assert kept.of(GATE) == [] and kept.bytes == 0


def test_requests_stay_within_their_bytes_and_the_largest_tenant_loses() -> None:
    kept = Requests(1 << 17)
    kept.add(seen(1, tenant="globex"))
    for number in range(200):
        kept.add(seen(number, answer="x" * 4000))
        assert kept.bytes <= 1 << 17
    assert kept.find(("globex", "gate-3"), f"{1:032x}") is not None


def test_at_a_losss_limit_the_risk_is_the_guards_limit() -> None:
    pick = np.random.default_rng(3)
    weights = pick.normal(size=feature_count(4)).astype(np.float32)
    weights[:4] = 2.0, 0.5, 1.5, -1.0
    model = RiskModel(np.zeros_like(weights), weights, -3.0, 0.4)
    lost = (0.2, 0.3, 0.1, 1.2)
    risk = model.of_received(Distortion(*lost), "", 0.3)
    limits = limits_of(model, lost, risk)
    assert limits[3] is None, "more of it makes no answer riskier"
    for place, limit in enumerate(limits[:3]):
        assert limit is not None
        at_limit = [*lost]
        at_limit[place] = limit
        assert model.of_received(Distortion(*at_limit), "", 0.3) == pytest.approx(0.4, abs=1e-6)
