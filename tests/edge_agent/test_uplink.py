"""The uplink against a misbehaving server: nothing is lost, nothing is answered twice."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_agent.encode import Plan
from edge_agent.metrics import Metrics
from edge_agent.picture import PictureCodec
from edge_agent.pipeline import Outgoing, View
from edge_agent.sources import Capture
from edge_agent.uplink.session import Session
from edge_agent.uplink.uplink import Outcome, Packed, Scene, Uplink
from protos.errors import (
    BridgeError,
    BundleCorruptError,
    ConfigError,
    EngineUnavailableError,
    FrameCorruptError,
    FrameMalformedError,
    FrameTooLargeError,
    IncompatibleLayoutError,
    MissingKeyFrameError,
    OfflineError,
    OverloadedError,
    ProtocolVersionError,
    QuestionError,
    QuestionTooLongError,
)
from protos.header import unpack_header
from protos.limits import Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.process import logs
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import FakeModel, FakeSleep, fake_uplink, make_encoder


def parcels(count: int, plan: Plan | None = None, question: str = "q{}") -> list[Outgoing]:
    model = FakeModel()
    return [
        Outgoing(
            question.format(i),
            View(
                Capture(str(i), Image.new("RGB", (9, 9), (i, 2, 3)), 10.0 + i),
                model,
                plan or Plan(),
                Metrics(),
            ),
        )
        for i in range(count)
    ]


def picture_parcel(side_px: int, question: str) -> Outgoing:
    """A PNG of noise: about three bytes a pixel."""
    noise = np.random.default_rng(0).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
    capture = Capture(question, Image.fromarray(noise), 9.0)
    view = View(capture, FakeModel(), Plan(point="picture", picture=PictureCodec("png")), Metrics())
    return Outgoing(question, view)


async def deliver_all(uplink: Uplink, items: list[Outgoing]) -> list[Outcome]:
    async def one(item: Outgoing) -> Outcome:
        async with uplink.credit():
            return await uplink.deliver(item)

    return list(await asyncio.gather(*(one(item) for item in items)))


APART = True


@pytest.fixture(autouse=True, params=[True, False], ids=["apart", "one connection"])
def connections(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds whether events come on a connection of their own or not."""
    monkeypatch.setattr(sys.modules[__name__], "APART", request.param)


@asynccontextmanager
async def bridge(**kwargs: Any) -> AsyncIterator[FakeBridge]:
    served = FakeBridge(make_encoder(), **{"apart": APART} | kwargs)
    await served.start()
    try:
        yield served
    finally:
        await served.stop()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), 30)

    asyncio.run(limited())


def total(metric: Any) -> float:
    return sum(
        float(sample.value)
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    )


def assert_one_answer_each(outcomes: list[Outcome], items: list[Outgoing]) -> None:
    assert [o.error for o in outcomes] == [None] * len(items)
    assert [o.answer.text for o in outcomes if o.answer] == [f"about {i.question}" for i in items]
    assert [o.request_id for o in outcomes] == [i.request_id for i in items]


def test_many_frames_are_in_flight_and_every_byte_is_what_the_contract_says(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(gate=asyncio.Event()) as served:
            assert served.gate is not None
            uplink, items = fake_uplink(served.dial, tmp_path, in_flight=3), parcels(10)
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
            uplink, items = fake_uplink(served.dial, tmp_path, in_flight=50), parcels(8)
            await uplink.connect()
            work = asyncio.create_task(deliver_all(uplink, items))
            while served.most_in_flight < 2:
                await asyncio.sleep(0.001)
            served.gate.set()
            assert_one_answer_each(await work, items)
            assert served.most_in_flight == 2
            await uplink.close()

    run(test)


def test_an_overloaded_service_is_given_the_time_that_it_asks_for(tmp_path: Path) -> None:
    async def test() -> None:
        refusals: dict[str, list[BridgeError]] = {
            "q1": [OverloadedError("full", retry_after_s=7.0)],
            "q2": [OverloadedError("full", retry_after_s=1e6)],
        }
        async with bridge(refusals=refusals) as served:
            sleep = FakeSleep()
            uplink, items = fake_uplink(served.dial, tmp_path, sleep), parcels(3)
            assert_one_answer_each(await deliver_all(uplink, items), items)
            waited = sorted(sleep.pauses)
            assert len(waited) == 2
            assert 7.0 <= waited[0] <= 11.0 and 60.0 <= waited[1] <= 64.0
            await uplink.close()

    run(test)


def test_a_stream_that_breaks_in_mid_flight_loses_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(drop_after=[3, 0, 5]) as served:
            sleep = FakeSleep()
            uplink, items = fake_uplink(served.dial, tmp_path, sleep), parcels(12)
            outcomes = await deliver_all(uplink, items)
            assert_one_answer_each(outcomes, items)
            assert {rid for _, rid, _ in served.requests} == {i.request_id for i in items}
            # Within a session a resent request is the same message, byte for byte.
            assert all(len(raw) == 1 for raw in served.messages.values())
            assert total(uplink._metrics.reconnects) >= 3
            assert sleep.pauses and all(0 <= pause <= 4.0 for pause in sleep.pauses)
            await uplink.close()

    run(test)


def test_a_stream_that_one_bad_request_ended_costs_the_others_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        error = FrameMalformedError("not a request")
        async with bridge(drop_after=[2], drop_error=error, gate=asyncio.Event()) as served:
            assert served.gate is not None
            uplink, items = fake_uplink(served.dial, tmp_path), parcels(5)
            work = asyncio.create_task(deliver_all(uplink, items))
            while len(served.requests) < 5:
                await asyncio.sleep(0.001)
            served.gate.set()
            assert_one_answer_each(await work, items)
            await uplink.close()

    run(test)


@pytest.mark.parametrize("side_px", [200, 700], ids=["120 kB", "1.5 MB"])
def test_a_frame_above_a_proxys_cap_ends_typed_and_its_neighbours_are_answered(
    tmp_path: Path, side_px: int
) -> None:
    async def test() -> None:
        async with bridge(cap_bytes=50_000, gate=asyncio.Event()) as served:
            assert served.gate is not None
            uplink, items = fake_uplink(served.dial, tmp_path), parcels(6)
            work = asyncio.create_task(deliver_all(uplink, items[:3]))
            while len(served.requests) < 3:
                await asyncio.sleep(0.001)
            large = [picture_parcel(side_px, "large"), *items[3:]]
            more = asyncio.create_task(deliver_all(uplink, large))
            while (
                not total(uplink._metrics.reconnects)
                or len({request_id for _, request_id, _ in served.requests}) < 6
            ):
                await asyncio.sleep(0.001)
            served.gate.set()
            refused, *answered = await more
            assert isinstance(refused.error, FrameTooLargeError)
            assert "takes 50000" in str(refused.error) and refused.attempts == 1
            assert_one_answer_each([*await work, *answered], items)
            assert total(uplink._metrics.reconnects) == 1 and served.negotiations == 1
            # The cap is known now: the next one does not go out at all.
            again = (await deliver_all(uplink, [picture_parcel(side_px, "again")]))[0]
            assert isinstance(again.error, FrameTooLargeError) and again.attempts == 0
            assert total(uplink._metrics.reconnects) == 1
            await uplink.close()

    run(test)


def test_a_frame_above_a_proxys_cap_that_is_alone_ends_typed_too(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(cap_bytes=50_000) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            outcome = (await deliver_all(uplink, [picture_parcel(200, "large")]))[0]
            assert isinstance(outcome.error, FrameTooLargeError) and outcome.attempts == 1
            assert_one_answer_each(await deliver_all(uplink, items := parcels(2)), items)
            await uplink.close()

    run(test)


def test_a_request_above_the_servers_limits_is_never_sent(tmp_path: Path) -> None:
    class Heavy:
        """Packs more than it should, as a parcel of another kind might."""

        def __init__(self, inner: Outgoing, limits: Limits) -> None:
            self.question, self._inner, self._limits = inner.question, inner, limits

        def pack(self, session: Session) -> Packed:
            packed = self._inner.pack(session)
            request = pb.InferRequest()
            request.CopyFrom(packed.request)
            request.frame.payload = bytes(self._limits.max_request_bytes)
            return dataclasses.replace(packed, request=request)

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
            outcome = await uplink.deliver(Heavy(parcels(1)[0], limits))
            assert isinstance(outcome.error, FrameTooLargeError) and outcome.attempts == 0
            assert not served.requests and uplink.connected
            await uplink.close()

    run(test)


def test_a_server_that_restarts_and_forgets_the_session_gets_every_frame_again(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with bridge(gate=asyncio.Event()) as served:
            assert served.gate is not None
            uplink, items = fake_uplink(served.dial, tmp_path), parcels(6)
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
            uplink, items = fake_uplink(served.dial, tmp_path), parcels(3)
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
            uplink, items = fake_uplink(served.dial, tmp_path), parcels(4)
            work = asyncio.create_task(deliver_all(uplink, items))
            while len(served.requests) < 4:
                await asyncio.sleep(0.001)
            (down,) = served.down.values()
            down.put_nowait(None)
            while not total(uplink._metrics.reconnects):
                await asyncio.sleep(0.001)
            served.gate.set()
            assert_one_answer_each(await work, items)
            await uplink.close()

    run(test)


def test_behind_a_load_balancer_events_come_on_the_frames_own_connection(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(apart=True, elsewhere=True) as served:
            uplink, items = fake_uplink(served.dial, tmp_path), parcels(3)
            assert_one_answer_each(await deliver_all(uplink, items), items)
            assert served.negotiations == 1 and not served.down
            await served.restart()
            assert_one_answer_each(await deliver_all(uplink, more := parcels(3)), more)
            await uplink.close()

    run(test)


def test_an_answer_that_comes_twice_is_given_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(answers_per_request=3) as served:
            uplink, items = fake_uplink(served.dial, tmp_path), parcels(5)
            assert_one_answer_each(await deliver_all(uplink, items), items)
            assert_one_answer_each(await deliver_all(uplink, more := parcels(1)), more)
            async with asyncio.timeout(20):  # the last copies come after the answer was given
                while total(uplink._metrics.duplicates) < 12:
                    await asyncio.sleep(0.01)
            await uplink.close()
            assert total(uplink._metrics.duplicates) == 12

    run(test)


def test_a_retryable_refusal_is_sent_again(tmp_path: Path) -> None:
    async def test() -> None:
        refusals = {"q1": [OverloadedError("full"), EngineUnavailableError("restarting")]}
        async with bridge(refusals=refusals) as served:
            uplink, items = fake_uplink(served.dial, tmp_path), parcels(3)
            outcomes = await deliver_all(uplink, items)
            assert_one_answer_each(outcomes, items)
            assert [o.attempts for o in outcomes] == [1, 3, 1]
            assert total(uplink._metrics.reconnects) == 0
            await uplink.close()

    run(test)


def test_a_retryable_refusal_that_never_ends_is_reported_after_the_retries(tmp_path: Path) -> None:
    async def test() -> None:
        refusals = {"q0": [OverloadedError("full")] * 99}
        async with bridge(refusals=refusals) as served:
            sleep = FakeSleep()
            uplink = fake_uplink(served.dial, tmp_path, sleep, retries=4)
            outcomes = await deliver_all(uplink, parcels(2))
            assert isinstance(outcomes[0].error, OverloadedError)
            assert outcomes[0].attempts == 5
            assert len(sleep.pauses) == 4
            assert all(p <= c for p, c in zip(sleep.pauses, (0.5, 1.0, 2.0, 4.0), strict=True))
            assert outcomes[1].answer is not None
            await uplink.close()

    run(test)


def test_a_final_refusal_is_reported_at_once_and_hurts_no_other_frame(tmp_path: Path) -> None:
    async def test() -> None:
        refusals = {"q1": [FrameMalformedError("no such point")]}
        async with bridge(refusals=refusals) as served:
            uplink, items = fake_uplink(served.dial, tmp_path), parcels(3)
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
            uplink, items = fake_uplink(served.dial, tmp_path), parcels(4)
            work = asyncio.create_task(deliver_all(uplink, items))
            while len({request_id for _, request_id, _ in served.requests}) < 4:
                await asyncio.sleep(0.001)
            served.gate.set()
            assert_one_answer_each(await work, items)
            assert total(uplink._metrics.reconnects) == 0
            await uplink.close()

    run(test)


@pytest.mark.parametrize(("times", "attempts"), [(3, 4), (9, 4)])
def test_a_frame_whose_bytes_changed_goes_again_a_few_times(
    tmp_path: Path, times: int, attempts: int
) -> None:
    async def test() -> None:
        async with bridge(refusals={"q0": [FrameCorruptError("digest")] * times}) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            (outcome,) = await deliver_all(uplink, parcels(1))
            assert outcome.attempts == attempts
            assert isinstance(outcome.error, FrameCorruptError) == (times > 3)
            await uplink.close()

    run(test)


def test_a_connection_on_which_nothing_comes_down_is_left_though_no_request_waits_so_long(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with bridge(ignore=2) as served:
            sleep = FakeSleep()
            uplink, items = fake_uplink(served.dial, tmp_path, sleep), parcels(3)
            await uplink.connect()
            for item in items[:2]:  # given up long before the time for an answer is over
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(uplink.deliver(item), 0.2)
                sleep.pauses.append(0.6 * FakeSleep.ANSWER_TIMEOUT_S)
            (outcome,) = await deliver_all(uplink, items[2:])
            assert outcome.answer is not None
            assert total(uplink._metrics.reconnects) == 1
            await uplink.close()

    run(test)


def test_a_frame_that_is_never_answered_is_sent_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(ignore=1) as served:
            sleep = FakeSleep()
            uplink, items = fake_uplink(served.dial, tmp_path, sleep), parcels(1)
            work = asyncio.create_task(deliver_all(uplink, items))
            while not served.requests:
                await asyncio.sleep(0.001)
            sleep.expire.set()
            assert_one_answer_each(await work, items)
            assert len(served.requests) == 2
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
        outcome = (await deliver_all(uplink, parcels(1)))[0]
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
            outcome = (await deliver_all(uplink, parcels(1)))[0]
            assert isinstance(outcome.error, OfflineError | EngineUnavailableError)
            assert 60 <= sum(sleep.pauses) < 60 + 4
            await uplink.close()

    run(test)


def test_what_cannot_be_agreed_any_more_is_tried_again_with_pauses(tmp_path: Path) -> None:
    """A service that was changed under way to what this agent cannot read may be changed back."""

    async def test() -> None:
        async with bridge() as served:
            sleep = FakeSleep()
            uplink = fake_uplink(served.dial, tmp_path, sleep)
            await deliver_all(uplink, parcels(1))
            good = served.encoder
            served.encoder = dataclasses.replace(good, centre=good.centre + 1)
            served.encoder_blob = b"\0" * 64
            await served.restart()
            (failed,) = await deliver_all(uplink, parcels(1))
            assert isinstance(failed.error, BundleCorruptError) and len(sleep.pauses) >= 6
            served.encoder, served.encoder_blob = good, None
            (outcome,) = await deliver_all(uplink, parcels(1))
            assert outcome.answer is not None
            await uplink.close()

    run(test)


def test_kept_for_as_long_as_it_takes(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge() as served:
            sleep = FakeSleep()
            uplink = fake_uplink(served.dial, tmp_path, sleep, retries=None, give_up_s=0.0)
            await uplink.connect()
            await served.stop()
            work = asyncio.create_task(deliver_all(uplink, parcels(1)))
            while sum(sleep.pauses) < 1000:
                await asyncio.sleep(0.001)
            assert not work.done()
            await served.start()
            (outcome,) = await work
            assert outcome.answer is not None
            await uplink.close()

    run(test)


def test_an_incompatible_pair_is_refused_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        error = IncompatibleLayoutError("no bundle maps 'fake' to 'large'")
        async with bridge(negotiate_error=error) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            with pytest.raises(IncompatibleLayoutError, match="no bundle maps"):
                await uplink.connect()
            assert served.negotiations == 1
            await uplink.close()

    run(test)


def test_constants_that_do_not_match_are_a_protocol_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with bridge() as served:
            uplink = fake_uplink(served.dial, tmp_path)
            monkeypatch.setattr("edge_agent.uplink.session.session_constants", lambda *_: bytes(32))
            with pytest.raises(ProtocolVersionError):
                await uplink.connect()
            await uplink.close()

    run(test)


def test_the_encoder_is_fetched_once_and_checked_ever_after(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge() as served:
            for fetches in (1, 1):
                uplink = fake_uplink(served.dial, tmp_path)
                await uplink.connect()
                await uplink.close()
                assert served.fetches == fetches
            kept = tmp_path / f"{served.encoder.digest}.safetensors"
            blob = bytearray(kept.read_bytes())
            blob[-1] ^= 1
            kept.write_bytes(blob)
            uplink = fake_uplink(served.dial, tmp_path)
            await uplink.connect()
            await uplink.close()
            assert served.fetches == 2

    run(test)


@pytest.mark.parametrize("blob", [b"short", make_encoder(1).to_bytes()])
def test_an_encoder_that_is_not_the_one_named_is_refused(tmp_path: Path, blob: bytes) -> None:
    async def test() -> None:
        async with bridge(encoder_blob=blob) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            with pytest.raises(BundleCorruptError):
                await uplink.connect()
            assert not list(tmp_path.iterdir())
            await uplink.close()

    run(test)


def test_a_question_that_cannot_be_sent_is_refused_before_it_is(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(limits=Limits(max_question_bytes=20)) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            long = (await deliver_all(uplink, parcels(1, question="ü" * 11)))[0]
            blank = (await deliver_all(uplink, parcels(1, question="  ")))[0]
            half = (await deliver_all(uplink, parcels(1, question="\udcff")))[0]
            assert isinstance(long.error, QuestionTooLongError)
            assert isinstance(blank.error, QuestionError)
            assert isinstance(half.error, QuestionError)
            assert not served.requests
            await uplink.close()

    run(test)


def test_a_point_that_the_server_does_not_have_is_named_with_those_it_has(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge() as served:
            uplink = fake_uplink(served.dial, tmp_path)
            outcome = (await deliver_all(uplink, parcels(1, Plan(point="lw"))))[0]
            assert isinstance(outcome.error, ConfigError)
            assert "did you mean 'low'" in str(outcome.error)
            await uplink.close()

    run(test)


@pytest.mark.parametrize("point", ["fp8", "low", "raw_kv_fp8", "picture"])
def test_every_kind_of_point_arrives_intact(tmp_path: Path, point: str) -> None:
    async def test() -> None:
        async with bridge() as served:
            uplink, items = fake_uplink(served.dial, tmp_path), parcels(2, Plan(point=point))
            outcomes = await deliver_all(uplink, items)
            assert_one_answer_each(outcomes, items)
            packed = outcomes[0].packed
            assert packed is not None and packed.point == point
            expected = {"fp8": 9, "low": 4, "raw_kv_fp8": 9, "picture": 0}[point]
            assert packed.kept_tokens == expected
            await uplink.close()

    run(test)


def test_advice_moves_auto_to_another_point_and_changes_the_credit(tmp_path: Path) -> None:
    async def test() -> None:
        advice = pb.RateAdvice(point="low", max_in_flight=1, cause="load")
        async with bridge(advice=advice) as served:
            uplink, items = fake_uplink(served.dial, tmp_path), parcels(3)
            points = []
            for item in items:
                outcome = (await deliver_all(uplink, [item]))[0]
                assert outcome.packed is not None
                points.append(outcome.packed.point)
            assert points == ["fp8", "low", "low"]
            assert uplink._allowed() == 1
            assert uplink._stream is not None
            uplink._stream.call.cancel()
            assert uplink._stream.reader is not None
            await asyncio.wait({uplink._stream.reader})
            (outcome,) = await deliver_all(uplink, parcels(1))
            assert outcome.packed is not None and outcome.packed.point == "fp8"
            assert uplink._allowed() == 8, "advice is a stream's; the server took none back"
            await uplink.close()

    run(test)


def test_questions_about_a_held_scene_go_by_ask(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge() as served:
            uplink = fake_uplink(served.dial, tmp_path)
            scene = await uplink.hold(parcels(1, question="")[0])
            assert isinstance(scene, Scene)
            for number, question in enumerate(("a", "b")):
                outcome = await uplink.ask(scene, bytes([number] * 8), question, 8)
                assert outcome.answer is not None and outcome.answer.text == f"about {question}"
            assert len(served.requests) == 1
            await uplink.close()

    run(test)


@pytest.mark.parametrize("loss", ["scene", "server", "session"])
def test_a_scene_that_the_server_lost_is_held_again(tmp_path: Path, loss: str) -> None:
    async def test() -> None:
        async with bridge() as served:
            uplink = fake_uplink(served.dial, tmp_path)
            scene = await uplink.hold(parcels(1, question="")[0])
            assert isinstance(scene, Scene)
            if loss == "scene":
                served.lose_scene = 1
            elif loss == "server":
                await served.restart()
            else:
                served.sessions.clear()
            outcome = await uplink.ask(scene, b"12345678", "a", 8)
            assert outcome.error is None
            assert outcome.answer is not None and outcome.answer.text == "about a"
            ids = [request_id for _, request_id, _ in served.requests]
            assert len(ids) == len(set(ids)) == 2  # an id answered from memory would hold nothing
            assert served.asked == ["a"]
            await uplink.close()

    run(test)


def test_closing_ends_what_waits(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(gate=asyncio.Event()) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            work = asyncio.create_task(deliver_all(uplink, parcels(1)))
            while not served.requests:
                await asyncio.sleep(0.001)
            close = asyncio.create_task(uplink.close())
            outcome = (await work)[0]
            assert isinstance(outcome.error, OfflineError | EngineUnavailableError)
            await close

    run(test)


# ------------------------------------------------------------------ delta frames


def test_a_still_camera_sends_deltas_and_a_key_frame_when_the_base_is_lost(tmp_path: Path) -> None:
    async def test() -> None:
        refusals = {"q4": [MissingKeyFrameError("frame 3 is not held")]}
        async with bridge(refusals=refusals) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            model, metrics, picture = FakeModel(), Metrics(), Image.new("RGB", (9, 9), (1, 2, 3))
            headers = []
            for number in range(6):
                view = View(Capture("c", picture, 1.0), model, Plan("low", delta=True), metrics)
                item = Outgoing(f"q{number}", view)
                outcome = await uplink.deliver(item)
                assert outcome.error is None and outcome.packed is not None
                frame = outcome.packed.request.frame
                headers.append(unpack_header(frame.header, frame.payload)[0])
                assert outcome.attempts == (2 if number == 4 else 1)
            # The fifth was a delta to the fourth, came back, and went again as a key frame.
            assert [header.frame_number for header in headers] == [0, 1, 2, 3, 5, 6]
            assert [header.base for header in headers] == [None, 0, 1, 2, None, 5]
            assert [header.kept_tokens for header in headers] == [4, 1, 1, 1, 4, 1]
            coded = metrics.frames_coded
            assert coded.labels("key")._value.get() == 2 and coded.labels("delta")._value.get() == 5
            await uplink.close()

    run(test)


def test_an_end_wakes_a_frame_that_waits_though_the_credit_is_still_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with bridge(gate=asyncio.Event()) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            await uplink.connect()
            monkeypatch.setattr(uplink, "_may_send", lambda: uplink._budget._link.idle)
            first, second = parcels(2)
            async with uplink.credit():
                ended = asyncio.create_task(uplink.deliver(first))
                while uplink._budget._link.idle:
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


def test_a_device_says_that_its_bundle_is_in_doubt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        for number, doubt in enumerate(("", "cannot be judged: 0 % everywhere")):
            async with bridge() as served:
                served.doubt = doubt
                uplink, items = fake_uplink(served.dial, tmp_path / str(number)), parcels(1)
                uplink._log = logs.configure("warning", "edge_agent")
                assert_one_answer_each(await deliver_all(uplink, items), items)
                await uplink.close()

    run(test)
    logs.drain()
    told = [line for line in capsys.readouterr().err.splitlines() if "bundle in doubt" in line]
    assert len(told) == 1 and "cannot be judged: 0 % everywhere" in told[0]
