"""The connection: what it does when a stream, a session or a server is gone."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from edge_agent.uplink.dial import dial_insecure
from protos.errors import (
    BundleCorruptError,
    EngineUnavailableError,
    OfflineError,
)
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.process import logs
from tests.edge_agent.uplink.networks import silence
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


def test_a_server_that_restarts_and_forgets_the_session_gets_every_frame_again(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with bridge(gate=asyncio.Event()) as served:
            assert served.gate is not None
            uplink, items = fake_uplink(served.dial, tmp_path), requests(6)
            work = asyncio.create_task(deliver_all(uplink, items))
            while len(served.requests) < 6:
                await asyncio.sleep(0.001)
            await served.restart()
            served.gate.set()
            assert_one_answer_each(await work, items)
            assert served.negotiations >= 2
            # Same request ids, sealed anew: the digest of the first session would be refused.
            sessions: dict[bytes, list[bytes]] = {}
            for session, request_id, _ in served.requests:
                sessions.setdefault(request_id, []).append(session)
            assert all(len(set(seen)) >= 2 for seen in sessions.values())
            # The id travels only where the session is not the one that it was derived in.
            first = served.requests[0][0]
            for (session, request_id), raw in served.messages.items():
                carried = b"" if session == first else request_id
                assert {pb.InferRequest.FromString(r).request_id for r in raw} == {carried}
            assert served.fetches == 1
            await uplink.close()

    run(test)


def test_a_server_that_forgets_the_session_but_stays_up_is_renegotiated_with(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with bridge(drop_after=[0]) as served:
            uplink, items = fake_uplink(served.dial, tmp_path), requests(3)
            await uplink.connect()
            served.sessions.clear()
            assert_one_answer_each(await deliver_all(uplink, items), items)
            assert served.negotiations >= 2
            await uplink.close()

    run(test)


def test_events_that_break_off_alone_lose_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(apart=True, gate=asyncio.Event()) as served:
            assert served.gate is not None
            uplink, items = fake_uplink(served.dial, tmp_path), requests(4)
            work = asyncio.create_task(deliver_all(uplink, items))
            while len(served.requests) < 4:
                await asyncio.sleep(0.001)
            (down,) = served.down.values()
            down.put_nowait(None)
            while not total(uplink.metrics.reconnects):
                await asyncio.sleep(0.001)
            served.gate.set()
            assert_one_answer_each(await work, items)
            await uplink.close()

    run(test)


@pytest.mark.quick(1)
def test_behind_a_load_balancer_events_come_on_the_frames_own_connection(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(apart=True, elsewhere=True) as served:
            uplink, items = fake_uplink(served.dial, tmp_path), requests(3)
            assert_one_answer_each(await deliver_all(uplink, items), items)
            assert served.negotiations == 1 and not served.down
            await served.restart()
            assert_one_answer_each(await deliver_all(uplink, more := requests(3)), more)
            await uplink.close()

    run(test)


def test_a_connection_on_which_nothing_comes_down_is_left_though_no_request_waits_so_long(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with bridge(ignore=2) as served:
            sleep = FakeSleep()
            uplink, items = fake_uplink(served.dial, tmp_path, sleep), requests(3)
            await uplink.connect()
            for item in items[:2]:  # given up long before the time for an answer is over
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(uplink.deliver(item), 0.2)
                sleep.pauses.append(0.6 * FakeSleep.ANSWER_TIMEOUT_S)
            (outcome,) = await deliver_all(uplink, items[2:])
            assert outcome.answer is not None
            assert total(uplink.metrics.reconnects) == 1
            await uplink.close()

    run(test)


def test_what_cannot_be_agreed_any_more_is_tried_again_with_pauses(tmp_path: Path) -> None:
    """A service that was changed under way to what this agent cannot read may be changed back."""

    async def test() -> None:
        async with bridge() as served:
            sleep = FakeSleep()
            uplink = fake_uplink(served.dial, tmp_path, sleep)
            await deliver_all(uplink, requests(1))
            good = served.encoder
            served.encoder = dataclasses.replace(good, centre=good.centre + 1)
            served.encoder_blob = b"\0" * 64
            await served.restart()
            (failed,) = await deliver_all(uplink, requests(1))
            assert isinstance(failed.error, BundleCorruptError) and len(sleep.pauses) >= 6
            served.encoder, served.encoder_blob = good, None
            (outcome,) = await deliver_all(uplink, requests(1))
            assert outcome.answer is not None
            await uplink.close()

    run(test)


def test_advice_moves_auto_to_another_point_and_changes_the_credit(tmp_path: Path) -> None:
    async def test() -> None:
        advice = pb.RateAdvice(point="low", max_in_flight=1, cause="load")
        async with bridge(advice=advice) as served:
            uplink, items = fake_uplink(served.dial, tmp_path), requests(3)
            points = []
            for item in items:
                outcome = (await deliver_all(uplink, [item]))[0]
                assert outcome.sealed is not None
                points.append(outcome.sealed.frame.point.name)
            assert points == ["fp8", "low", "low"]
            assert uplink._allowed() == 1
            assert uplink.connection.stream is not None
            uplink.connection.stream.call.cancel()
            assert uplink.connection.stream.reader is not None
            await asyncio.wait({uplink.connection.stream.reader})
            (outcome,) = await deliver_all(uplink, requests(1))
            assert outcome.sealed is not None and outcome.sealed.frame.point.name == "fp8"
            assert uplink._allowed() == 8, "advice is a stream's; the server took none back"
            await uplink.close()

    run(test)


@pytest.mark.quick(1)
def test_closing_ends_what_waits(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(gate=asyncio.Event()) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            work = asyncio.create_task(deliver_all(uplink, requests(1)))
            while not served.requests:
                await asyncio.sleep(0.001)
            close = asyncio.create_task(uplink.close())
            outcome = (await work)[0]
            assert isinstance(outcome.error, OfflineError | EngineUnavailableError)
            await close

    run(test)


def test_a_device_says_that_its_bundle_is_in_doubt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        for number, doubt in enumerate(("", "cannot be judged: 0 % everywhere")):
            async with bridge() as served:
                served.doubt = doubt
                log = logs.configure("warning", "edge_agent")
                uplink = fake_uplink(served.dial, tmp_path / str(number), log=log)
                items = requests(1)
                assert_one_answer_each(await deliver_all(uplink, items), items)
                await uplink.close()

    run(test)
    logs.drain()
    told = [line for line in capsys.readouterr().err.splitlines() if "bundle in doubt" in line]
    assert len(told) == 1 and "cannot be judged: 0 % everywhere" in told[0]


def test_closing_while_it_connects_ends_what_waits_with_an_error(tmp_path: Path) -> None:
    """Else a request would vanish without a record: a cancelled attempt is no cancelled request."""

    async def test() -> None:
        with silence() as port:
            uplink = fake_uplink(dial_insecure(f"127.0.0.1:{port}"), tmp_path)
            work = asyncio.create_task(deliver_all(uplink, requests(2)))
            while uplink.held < 2:
                await asyncio.sleep(0.001)
            await uplink.close()
            outcomes = await work
            assert [type(one.error) for one in outcomes] == [OfflineError, OfflineError]

    run(test)


def test_closing_ends_a_long_pause_between_attempts(tmp_path: Path) -> None:
    class Long(FakeSleep):
        async def __call__(self, seconds: float) -> None:
            self.pauses.append(seconds)
            await asyncio.Event().wait()

    async def test() -> None:
        sleep = Long()
        uplink = fake_uplink(dial_insecure("127.0.0.1:1"), tmp_path, sleep)
        work = asyncio.create_task(deliver_all(uplink, requests(1)))
        while not sleep.pauses:
            await asyncio.sleep(0.001)
        await uplink.close()
        (outcome,) = await work
        assert isinstance(outcome.error, OfflineError)

    run(test)
