"""Work beside the run goes on after an error that nobody foresaw."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from edge_agent.device.beside import beside, lasting
from tests.fakes.loop import on_loop


@on_loop
async def test_an_error_that_nobody_foresaw_does_not_end_what_looks_after_the_agent() -> None:
    log: Any = structlog.testing.CapturingLogger()
    slept, runs = list[float](), 0
    now = 0.0

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def work() -> None:
        nonlocal runs, now
        runs += 1
        now += 4000.0 if runs == 12 else 1.0
        if runs < 14:
            raise OSError(28, "No space left on device")

    await lasting("updates", work, log, sleep, lambda: now)
    assert runs == 14 and len(log.calls) == len(slept) == 13
    assert log.calls[0].args == ("updates_failed",) and "No space" in log.calls[0].kwargs["cause"]
    assert slept[0] <= 1.0 and 450.0 <= slept[10] <= 900.0
    assert slept[11] <= 1.0, "it ran for an hour: the pause is short again"


@on_loop
async def test_it_ends_with_the_run() -> None:
    log: Any = structlog.testing.CapturingLogger()
    began, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with beside("upkeep", work, log):
        await began.wait()
    assert ended.is_set() and not log.calls
