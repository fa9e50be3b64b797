"""Delivery against a misbehaving server: nothing is lost, nothing is answered twice."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from edge_agent.uplink.request import Request, Sealed
from edge_agent.uplink.session import Session
from protos.errors import (
    FrameCorruptError,
    FrameMalformedError,
    FrameTooLargeError,
)
from protos.limits import Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.edge_agent.uplink.traffic import (
    assert_one_answer_each,
    bridge,
    deliver_all,
    picture_request,
    requests,
    run,
    total,
)
from tests.fakes.fake_edge import FakeSleep, fake_uplink

pytestmark = pytest.mark.usefixtures("connections")


def test_many_frames_are_in_flight_and_every_byte_is_what_the_contract_says(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(gate=asyncio.Event()) as served:
            assert served.gate is not None
            uplink, items = fake_uplink(served.dial, tmp_path, in_flight=3), requests(10)
            work = asyncio.create_task(deliver_all(uplink, items))
            while served.most_in_flight < 3:
                await asyncio.sleep(0.001)
            served.gate.set()
            assert_one_answer_each(await work, items)
            assert served.most_in_flight == 3
            assert len({number for _, _, number in served.requests}) == 10
            await uplink.close()

    run(test)


def test_the_servers_limit_holds_where_it_is_lower(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(limits=Limits(max_in_flight=2), gate=asyncio.Event()) as served:
            assert served.gate is not None
            uplink, items = fake_uplink(served.dial, tmp_path, in_flight=50), requests(8)
            await uplink.connect()
            work = asyncio.create_task(deliver_all(uplink, items))
            while served.most_in_flight < 2:
                await asyncio.sleep(0.001)
            served.gate.set()
            assert_one_answer_each(await work, items)
            assert served.most_in_flight == 2
            await uplink.close()

    run(test)


def test_a_stream_that_breaks_in_mid_flight_loses_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(drop_after=[3, 0, 5]) as served:
            sleep = FakeSleep()
            uplink, items = fake_uplink(served.dial, tmp_path, sleep), requests(12)
            outcomes = await deliver_all(uplink, items)
            assert_one_answer_each(outcomes, items)
            assert {rid for _, rid, _ in served.requests} == {i.request_id for i in items}
            # Within a session a resent request is the same message, byte for byte.
            assert all(len(raw) == 1 for raw in served.messages.values())
            assert total(uplink.metrics.reconnects) >= 3
            assert sleep.pauses and all(0 <= pause <= 4.0 for pause in sleep.pauses)
            await uplink.close()

    run(test)


def test_a_stream_that_one_bad_request_ended_costs_the_others_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        error = FrameMalformedError("not a request")
        async with bridge(drop_after=[2], drop_error=error, gate=asyncio.Event()) as served:
            assert served.gate is not None
            uplink, items = fake_uplink(served.dial, tmp_path), requests(5)
            work = asyncio.create_task(deliver_all(uplink, items))
            while len(served.requests) < 5:
                await asyncio.sleep(0.001)
            served.gate.set()
            assert_one_answer_each(await work, items)
            await uplink.close()

    run(test)


@pytest.mark.quick(1)
@pytest.mark.parametrize("side_px", [200, 700], ids=["120 kB", "1.5 MB"])
def test_a_frame_above_a_proxys_cap_ends_typed_and_its_neighbours_are_answered(
    tmp_path: Path, side_px: int
) -> None:
    async def test() -> None:
        async with bridge(cap_bytes=50_000, gate=asyncio.Event()) as served:
            assert served.gate is not None
            uplink, items = fake_uplink(served.dial, tmp_path), requests(6)
            work = asyncio.create_task(deliver_all(uplink, items[:3]))
            while len(served.requests) < 3:
                await asyncio.sleep(0.001)
            large = [picture_request(side_px, "large"), *items[3:]]
            more = asyncio.create_task(deliver_all(uplink, large))
            while (
                not total(uplink.metrics.reconnects)
                or len({request_id for _, request_id, _ in served.requests}) < 6
            ):
                await asyncio.sleep(0.001)
            served.gate.set()
            refused, *answered = await more
            assert isinstance(refused.error, FrameTooLargeError)
            assert "takes 50000" in str(refused.error) and refused.attempts == 1
            assert_one_answer_each([*await work, *answered], items)
            assert total(uplink.metrics.reconnects) == 1 and served.negotiations == 1
            # The cap is known now: the next one does not go out at all.
            again = (await deliver_all(uplink, [picture_request(side_px, "again")]))[0]
            assert isinstance(again.error, FrameTooLargeError) and again.attempts == 0
            assert total(uplink.metrics.reconnects) == 1
            await uplink.close()

    run(test)


def test_a_frame_above_a_proxys_cap_that_is_alone_ends_typed_too(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(cap_bytes=50_000) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            outcome = (await deliver_all(uplink, [picture_request(200, "large")]))[0]
            assert isinstance(outcome.error, FrameTooLargeError) and outcome.attempts == 1
            assert_one_answer_each(await deliver_all(uplink, items := requests(2)), items)
            await uplink.close()

    run(test)


def test_a_request_above_the_servers_limits_is_never_sent(tmp_path: Path) -> None:
    class Heavy:
        """Seals more than it should."""

        def __init__(self, inner: Request, limits: Limits) -> None:
            self.question, self._inner, self._limits = inner.question, inner, limits

        def ready(self, session: Session) -> bool:
            return False

        def seal(self, session: Session) -> Sealed:
            sealed = self._inner.seal(session)
            message = pb.InferRequest()
            message.CopyFrom(sealed.message)
            message.frame.payload = bytes(self._limits.max_request_bytes)
            return dataclasses.replace(sealed, message=message)

        def accepted(self, session: Session) -> None:
            raise AssertionError("it is never sent")

        def base_lost(self, session: Session) -> None:
            raise AssertionError("it is never sent")

        def renew(self) -> Heavy:
            return self

    async def test() -> None:
        limits = Limits(max_payload_bytes=1000, max_picture_bytes=1000)
        async with bridge(limits=limits) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            outcome = await uplink.deliver(Heavy(requests(1)[0], limits))
            assert isinstance(outcome.error, FrameTooLargeError) and outcome.attempts == 0
            assert not served.requests and uplink.connected
            await uplink.close()

    run(test)


def test_an_answer_that_comes_twice_is_given_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(answers_per_request=3) as served:
            uplink, items = fake_uplink(served.dial, tmp_path), requests(5)
            assert_one_answer_each(await deliver_all(uplink, items), items)
            assert_one_answer_each(await deliver_all(uplink, more := requests(1)), more)
            async with asyncio.timeout(20):  # the last copies come after the answer was given
                while total(uplink.metrics.duplicates) < 12:
                    await asyncio.sleep(0.01)
            await uplink.close()
            assert total(uplink.metrics.duplicates) == 12

    run(test)


def test_a_final_refusal_is_reported_at_once_and_hurts_no_other_frame(tmp_path: Path) -> None:
    async def test() -> None:
        refusals = {"q1": [FrameMalformedError("no such point")]}
        async with bridge(refusals=refusals) as served:
            uplink, items = fake_uplink(served.dial, tmp_path), requests(3)
            outcomes = await deliver_all(uplink, items)
            assert isinstance(outcomes[1].error, FrameMalformedError)
            assert outcomes[1].attempts == 1
            assert [o.answer is not None for o in outcomes] == [True, False, True]
            await uplink.close()

    run(test)


def test_a_frame_damaged_on_the_way_is_sent_again_and_no_other_is_taken_for_it(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with bridge(damage=2, gate=asyncio.Event()) as served:
            assert served.gate is not None
            uplink, items = fake_uplink(served.dial, tmp_path), requests(4)
            work = asyncio.create_task(deliver_all(uplink, items))
            while len({request_id for _, request_id, _ in served.requests}) < 4:
                await asyncio.sleep(0.001)
            served.gate.set()
            assert_one_answer_each(await work, items)
            assert total(uplink.metrics.reconnects) == 0
            await uplink.close()

    run(test)


@pytest.mark.parametrize(("times", "attempts"), [(3, 4), (9, 4)])
def test_a_frame_whose_bytes_changed_goes_again_a_few_times(
    tmp_path: Path, times: int, attempts: int
) -> None:
    async def test() -> None:
        async with bridge(refusals={"q0": [FrameCorruptError("digest")] * times}) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            (outcome,) = await deliver_all(uplink, requests(1))
            assert outcome.attempts == attempts
            assert isinstance(outcome.error, FrameCorruptError) == (times > 3)
            await uplink.close()

    run(test)


def test_a_frame_that_is_never_answered_is_sent_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(ignore=1) as served:
            sleep = FakeSleep()
            uplink, items = fake_uplink(served.dial, tmp_path, sleep), requests(1)
            work = asyncio.create_task(deliver_all(uplink, items))
            while not served.requests:
                await asyncio.sleep(0.001)
            sleep.expire.set()
            assert_one_answer_each(await work, items)
            assert len(served.requests) == 2
            await uplink.close()

    run(test)


def test_an_end_wakes_a_frame_that_waits_though_the_credit_is_still_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with bridge(gate=asyncio.Event()) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            await uplink.connect()
            monkeypatch.setattr(uplink, "_may_send", lambda: uplink.controller._link.idle)
            first, second = requests(2)
            async with uplink.credit():
                ended = asyncio.create_task(uplink.deliver(first))
                while uplink.controller._link.idle:
                    await asyncio.sleep(0)
                waits = asyncio.create_task(deliver_all(uplink, [second]))
                await asyncio.sleep(0.05)
                assert served.gate is not None and len(served.requests) <= 1
                served.gate.set()
                await ended
                (outcome,) = await asyncio.wait_for(waits, 10)
            assert outcome.error is None
            await uplink.close()

    run(test)
