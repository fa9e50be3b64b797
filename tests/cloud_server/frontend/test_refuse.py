"""Refusals: all of them counted, a few of them logged."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.cloud_server.front_end import running


def test_refusals_beyond_a_few_are_counted_in_the_log_and_all_of_them_in_the_metrics(
    paths: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    async def scene() -> None:
        slow = {"log_level": "warning", "log_burst": 3, "log_interval_s": 3600.0}
        async with running(paths, **slow) as server:
            edge = await server.edge()
            call = edge.open()
            for seed in range(50):
                await call.write(edge.frame(seed=seed, question=" "))
                assert (await call.read()).refused.code == 401
            call.cancel()
            assert await server.metric('refusals_total{reason="question"}') == 50

    asyncio.run(scene())
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    lines = [line for line in told if "question" in (line.get("error"), line.get("what"))]
    assert [line["event"] for line in lines] == ["refused"] * 3 + ["more of the same"]
    assert lines[-1]["count"] == 47
