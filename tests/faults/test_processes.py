"""Processes of the service killed, stopped and ended under load."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable

import pytest

from benchmarks.serve.pool import Pool
from benchmarks.serve.site import Site
from tests.faults.arena import Faults, steady, times

pytestmark = pytest.mark.slow


def replaced(place: Site, engine: int) -> Callable[[], bool]:
    """Tells whether an engine is gone and another there."""
    return lambda: place.tree()["engine"] not in ([engine], [])


def test_no_answer_is_lost_or_doubled_when_engines_are_killed_in_mid_decode(
    place: Site, pool: Pool, calm: list[str], faults: Faults
) -> None:
    kills = times(3, 200)
    chance = random.Random(0)

    async def scenario() -> None:
        killed = 0
        async with steady(place.dial, pool) as load:
            while killed < kills:
                await load.more(chance.randint(1, 12))
                (engine,) = place.tree()["engine"]
                working = [e for e in load.under_way if e.accepted]
                if not working:
                    continue
                os.kill(engine, signal.SIGKILL)
                killed += 1
                await load.until(replaced(place, engine), "another engine")
            await load.more(16)
        faults.judged("engine killed", killed, load.entries, calm, load.strangers)
        assert load.refusals()["engine_unavailable"] >= killed // 2

    asyncio.run(scenario())


def test_an_engine_that_stands_still_is_replaced_and_its_requests_are_answered(
    place: Site, pool: Pool, calm: list[str], faults: Faults
) -> None:
    stops = times(1, 20)

    async def scenario() -> None:
        async with steady(place.dial, pool) as load:
            for _ in range(stops):
                await load.more(8)
                (engine,) = place.tree()["engine"]
                os.kill(engine, signal.SIGSTOP)
                await load.until(replaced(place, engine), "another engine")
            await load.more(16)
        faults.judged("engine stopped", stops, load.entries, calm, load.strangers)

    asyncio.run(scenario())
