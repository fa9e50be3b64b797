"""Retries: which refusals go again, for how long, after which pauses."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edge_agent.metrics import Metrics
from edge_agent.uplink.retry import Retries, RetryPolicy
from protos.errors import (
    BridgeError,
    EngineUnavailableError,
    OfflineError,
    OverloadedError,
    UnknownSessionError,
)
from protos.process import logs
from tests.edge_agent.uplink.traffic import (
    assert_one_answer_each,
    bridge,
    deliver_all,
    requests,
    run,
    total,
)
from tests.fakes.fake_edge import FakeSleep, fake_uplink

pytestmark = pytest.mark.usefixtures("connections")


def test_an_overloaded_service_is_given_the_time_that_it_asks_for(tmp_path: Path) -> None:
    async def test() -> None:
        refusals: dict[str, list[BridgeError]] = {
            "q1": [OverloadedError("full", retry_after_s=7.0)],
            "q2": [OverloadedError("full", retry_after_s=1e6)],
        }
        async with bridge(refusals=refusals) as served:
            sleep = FakeSleep()
            uplink, items = fake_uplink(served.dial, tmp_path, sleep, give_up_s=0), requests(3)
            assert_one_answer_each(await deliver_all(uplink, items), items)
            waited = sorted(sleep.pauses)
            assert len(waited) == 2
            assert 7.0 <= waited[0] <= 11.0 and 60.0 <= waited[1] <= 64.0
            await uplink.close()

    run(test)


def test_after_a_long_outage_a_service_that_forgot_the_session_is_asked_again_soon() -> None:
    async def test() -> None:
        for _ in range(20):
            sleep, log = FakeSleep(), logs.configure("critical")
            policy = RetryPolicy(give_up_s=0.0, backoff_s=0.1, backoff_max_s=60.0)
            errors: list[BridgeError] = [OfflineError("gone")] * 12
            errors.append(UnknownSessionError("negotiate again"))
            async for attempt in Retries(policy, Metrics(), log, sleep.clock, sleep).attempts():
                with attempt:
                    if errors:
                        raise errors.pop(0)
            assert len(sleep.pauses) == 13 and sleep.pauses[-1] <= 0.1

    run(test)


def test_a_retryable_refusal_is_sent_again(tmp_path: Path) -> None:
    async def test() -> None:
        refusals = {"q1": [OverloadedError("full"), EngineUnavailableError("restarting")]}
        async with bridge(refusals=refusals) as served:
            uplink, items = fake_uplink(served.dial, tmp_path), requests(3)
            outcomes = await deliver_all(uplink, items)
            assert_one_answer_each(outcomes, items)
            assert [o.attempts for o in outcomes] == [1, 3, 1]
            assert total(uplink.metrics.reconnects) == 0
            await uplink.close()

    run(test)


def test_a_retryable_refusal_that_never_ends_is_reported_after_the_retries(tmp_path: Path) -> None:
    async def test() -> None:
        refusals = {"q0": [OverloadedError("full")] * 99}
        async with bridge(refusals=refusals) as served:
            sleep = FakeSleep()
            uplink = fake_uplink(served.dial, tmp_path, sleep, retries=4)
            outcomes = await deliver_all(uplink, requests(2))
            assert isinstance(outcomes[0].error, OverloadedError)
            assert outcomes[0].attempts == 5
            assert len(sleep.pauses) == 4
            assert all(p <= c for p, c in zip(sleep.pauses, (0.5, 1.0, 2.0, 4.0), strict=True))
            assert outcomes[1].answer is not None
            await uplink.close()

    run(test)


def test_without_a_server_the_frame_ends_as_offline_after_the_retries(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge() as served:
            dial = served.dial
        sleep = FakeSleep()
        uplink = fake_uplink(dial, tmp_path, sleep, retries=2)
        with pytest.raises(OfflineError):
            await uplink.connect()
        outcome = (await deliver_all(uplink, requests(1)))[0]
        assert isinstance(outcome.error, OfflineError)
        assert (outcome.attempts, outcome.message_bytes) == (0, 0)
        assert len(sleep.pauses) == 4
        await uplink.close()

    run(test)


def test_without_a_count_a_frame_is_kept_for_as_long_as_the_time_says(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge() as served:
            sleep = FakeSleep()
            uplink = fake_uplink(served.dial, tmp_path, sleep, retries=None)
            await uplink.connect()
            await served.stop()
            outcome = (await deliver_all(uplink, requests(1)))[0]
            assert isinstance(outcome.error, OfflineError | EngineUnavailableError)
            assert 60 <= sum(sleep.pauses) < 60 + 4
            await uplink.close()

    run(test)


@pytest.mark.quick(1)
def test_kept_for_as_long_as_it_takes(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge() as served:
            sleep = FakeSleep()
            uplink = fake_uplink(served.dial, tmp_path, sleep, retries=None, give_up_s=0.0)
            await uplink.connect()
            await served.stop()
            work = asyncio.create_task(deliver_all(uplink, requests(1)))
            while sum(sleep.pauses) < 1000:
                await asyncio.sleep(0.001)
            assert not work.done()
            await served.start()
            (outcome,) = await work
            assert outcome.answer is not None
            await uplink.close()

    run(test)
