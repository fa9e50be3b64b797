"""The demo's figures follow from the agent's records."""

from __future__ import annotations

import pytest

from reference.demo.figures import agent_texts, latencies
from reference.demo.testset import TestSet


def test_latency_stages_are_counted_per_picture_and_totals_per_request() -> None:
    server = {n: 1.0 for n in ("queue", "decode", "project", "inject", "prefill", "generate")}
    records = [
        {
            "capture": "a",
            "edge_ms": {"prefill": 10.0, "select": 1.0, "encode": 2.0, "uplink": uplink},
            "server_ms": {**server, "ttft": 4.0, "total": 6.0},
        }
        for uplink in (9.0, 11.0)
    ]
    found = latencies(records)
    assert found["edge_prefill"]["p50"] == 10.0
    assert found["uplink"]["p50"] == pytest.approx(4.0)
    assert found["total"]["p50"] == pytest.approx(23.0)


def test_an_answer_that_is_missing_failed_or_fell_back_is_told() -> None:
    test = TestSet.load("test", 1, 3)
    first, second, third = (
        {"capture": test.names[0], "question": q.text, "answer": q.truth} for q in test.asked
    )
    records = [
        first,
        second | {"fallback": "unfamiliar"},
        third | {"answer": None, "error": {"name": "offline"}},
    ]
    texts, problems = agent_texts(records, test)
    assert texts == [test.asked[0].truth, test.asked[1].truth, ""]
    failed, missing, fell_back = problems
    assert "offline" in failed and missing.startswith("1 of 3") and fell_back.startswith("1 answer")
