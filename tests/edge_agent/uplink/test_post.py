"""Frames that share a message: when they leave, and that each still ends by itself."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Hashable
from pathlib import Path

import pytest

from edge_agent.plan import Plan
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.outcome import Outcome
from edge_agent.uplink.request import Request
from protos.calls import PRIORITIES
from protos.errors import OverloadedError, QuestionError
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
ALARM, BACKGROUND = PRIORITIES.index("alarm"), PRIORITIES.index("background")


class Lingering(FakeSleep):
    """The linger time ends only when a test says so."""

    LINGER_S = 77.0

    def __init__(self) -> None:
        super().__init__()
        self.lingering = 0
        self.over = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        if seconds != self.LINGER_S:
            await super().__call__(seconds)
            return
        self.lingering += 1
        await self.over.wait()


def lingering(
    served_dial: Callable[[], object], state_dir: Path, in_flight: int = 16
) -> tuple[Uplink, Lingering]:
    sleep = Lingering()
    uplink = fake_uplink(
        served_dial, state_dir, sleep, in_flight=in_flight, linger_s=Lingering.LINGER_S
    )
    return uplink, sleep


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.001)


def start(uplink: Uplink, items: list[Request]) -> Awaitable[list[Outcome]]:
    return asyncio.ensure_future(deliver_all(uplink, items))


def sealed(items: list[Request]) -> Callable[[], bool]:
    return lambda: all(item.sealed is not None for item in items)


def test_frames_that_wait_leave_together_when_the_time_is_over(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(max_parcel=16) as served:
            uplink, sleep = lingering(served.dial, tmp_path)
            items = requests(5)
            work = start(uplink, items)
            await until(sealed(items))
            await until(lambda: sleep.lingering == 1)
            assert not served.groups and not served.requests
            sleep.over.set()
            outcomes = await work
            assert_one_answer_each(outcomes, items)
            assert served.groups == [5]
            assert sum(o.message_bytes for o in outcomes) == total(uplink.metrics.sent_bytes)
            assert [o.attempts for o in outcomes] == [1] * 5
            await uplink.close()

    run(test)


def test_a_full_message_leaves_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(max_parcel=4) as served:
            uplink, sleep = lingering(served.dial, tmp_path)
            items = requests(9)
            work = start(uplink, items)
            await until(lambda: served.groups == [4, 4])
            await until(sealed(items))
            uplink.hurry()
            assert_one_answer_each(await work, items)
            assert served.groups == [4, 4, 1]
            await uplink.close()

    run(test)


def test_an_alarm_leaves_at_once_and_takes_the_waiting_frames_along(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(max_parcel=16) as served:
            uplink, _ = lingering(served.dial, tmp_path)
            patient, urgent = requests(3), requests(1, Plan(priority=ALARM), "fire {}")
            work = start(uplink, patient)
            await until(sealed(patient))
            assert not served.groups
            assert_one_answer_each(await deliver_all(uplink, urgent), urgent)
            assert_one_answer_each(await work, patient)
            assert served.groups == [4]
            await uplink.close()

    run(test)


def test_an_older_server_gets_each_frame_in_a_message_of_its_own(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge() as served:
            uplink, sleep = lingering(served.dial, tmp_path)
            items = requests(3)
            assert_one_answer_each(await deliver_all(uplink, items), items)
            assert served.groups == [1, 1, 1] and not sleep.lingering
            await uplink.close()

    run(test)


def test_after_a_broken_stream_each_frame_comes_again_under_its_own_id(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(max_parcel=16, drop_after=[0]) as served:
            uplink, sleep = lingering(served.dial, tmp_path)
            items = requests(6)
            work = start(uplink, items)
            await until(sealed(items))
            ids = [item.request_id for item in items]
            sleep.over.set()
            assert_one_answer_each(await work, items)
            assert [item.request_id for item in items] == ids
            assert {rid for _, rid, _ in served.requests} == set(ids)
            assert all(count == 1 for count in served.computed.values())
            await uplink.close()

    run(test)


def test_frames_that_wait_when_the_stream_breaks_come_again_on_the_next(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(max_parcel=16) as served:
            uplink, sleep = lingering(served.dial, tmp_path)
            items = requests(4)
            work = start(uplink, items)
            await until(sealed(items))
            assert not served.groups
            await served.restart()
            sleep.over.set()
            assert_one_answer_each(await work, items)
            assert len({session for session, _, _ in served.requests}) == 1
            await uplink.close()

    run(test)


def test_a_damaged_message_is_sent_again_whole_and_nothing_is_computed_twice(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with bridge(max_parcel=16, damage=1) as served:
            uplink, sleep = lingering(served.dial, tmp_path)
            items = requests(4)
            work = start(uplink, items)
            await until(sealed(items))
            sleep.over.set()
            assert_one_answer_each(await work, items)
            assert all(count == 1 for count in served.computed.values())
            await uplink.close()

    run(test)


def test_a_refused_frame_takes_no_neighbour_with_it(tmp_path: Path) -> None:
    async def test() -> None:
        refusals = {"q1": [QuestionError("not that")], "q2": [OverloadedError("later")]}
        async with bridge(max_parcel=16, refusals=refusals) as served:
            uplink, sleep = lingering(served.dial, tmp_path)
            items = requests(4)
            work = start(uplink, items)
            await until(sealed(items))
            sleep.over.set()
            outcomes = await work
            assert isinstance(outcomes[1].error, QuestionError)
            others = [0, 2, 3]
            assert_one_answer_each([outcomes[i] for i in others], [items[i] for i in others])
            assert [o.attempts for o in outcomes] == [1, 1, 2, 1]
            assert served.groups[0] == 4
            await uplink.close()

    run(test)


def test_delta_frames_in_a_message_change_the_frame_before_them(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(max_parcel=16) as served:
            uplink, sleep = lingering(served.dial, tmp_path)
            calm = Plan(point="low", delta=True)
            plans = [calm] * 4 + [dataclasses.replace(calm, priority=BACKGROUND)] * 2
            items = [requests(1, plan, "")[0] for plan in plans]  # of the same picture
            work = []
            for item in items:  # one after the other: their order is the captures'
                work.append(start(uplink, [item]))
                await until(sealed([item]))
            sleep.over.set()
            outcomes = [outcome for one in work for outcome in await one]
            assert [o.error for o in outcomes] == [None] * 6
            bases = [o.sealed.frame.base for o in outcomes if o.sealed is not None]
            # Frames of another class may be decoded in another order: nothing was accepted yet.
            assert bases == [None, 0, 1, 2, None, 4]
            assert served.groups == [6]
            await uplink.close()

    run(test)


def test_a_delta_frame_changes_the_last_one_of_an_earlier_message_before_its_event(
    tmp_path: Path,
) -> None:
    """Acknowledgements may wait for long; else each message would begin with old changes."""

    async def test() -> None:
        async with bridge(max_parcel=2, gate=asyncio.Event()) as served:
            uplink, _ = lingering(served.dial, tmp_path)
            items = [requests(1, Plan(point="low", delta=True), "")[0] for _ in range(4)]
            work = []
            for item in items:
                work.append(start(uplink, [item]))
                await until(sealed([item]))
            await until(lambda: served.groups == [2, 2])
            assert not any(one.done() for one in work)
            served.gate.set()
            outcomes = [outcome for one in work for outcome in await one]
            bases = [o.sealed.frame.base for o in outcomes if o.sealed is not None]
            assert bases == [None, 0, 1, 2]
            await uplink.close()

    run(test)


def test_a_question_is_told_once_on_a_stream(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(max_parcel=16) as served:
            uplink, _ = lingering(served.dial, tmp_path)
            uplink.hurry()
            question = "what is left of the red car, behind the second fence from the right ?"
            sizes = []
            for _ in range(3):
                (outcome,) = await deliver_all(uplink, requests(1, None, question))
                assert outcome.error is None
                sizes.append(outcome.message_bytes)
            assert sizes[1] + len(question) <= sizes[0] and sizes[2] <= sizes[1]
            assert [q for q in served.computed] == [question]
            await uplink.close()

    run(test)


def test_the_link_is_told_of_each_frame_that_leaves_and_of_its_end(tmp_path: Path) -> None:
    """Else a frame that is gone would count as on its way for ever, and hold others back."""

    async def test() -> None:
        async with bridge(max_parcel=16) as served:
            uplink, sleep = lingering(served.dial, tmp_path)
            open_keys: set[object] = set()
            told = uplink.controller
            sent, lost, ended = told.sent, told.lost, told.ended

            def on_sent(key: Hashable, size: int) -> None:
                open_keys.add(key)
                sent(key, size)

            def on_lost(key: Hashable) -> None:
                open_keys.discard(key)
                lost(key)

            def on_ended(key: Hashable, server_s: float) -> None:
                open_keys.discard(key)
                ended(key, server_s)

            told.sent, told.lost, told.ended = on_sent, on_lost, on_ended  # type: ignore[method-assign]
            items = requests(5)
            work = [asyncio.ensure_future(deliver_all(uplink, [item])) for item in items]
            await until(sealed(items))
            work[1].cancel()
            await asyncio.wait({work[1]})
            await served.restart()
            sleep.over.set()
            for i in (0, 2, 3, 4):
                assert_one_answer_each(await work[i], [items[i]])
            assert not open_keys
            await uplink.close()

    run(test)


def test_a_request_that_is_given_up_while_it_waits_holds_up_nobody(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(max_parcel=16) as served:
            uplink, sleep = lingering(served.dial, tmp_path)
            items = requests(3)
            work = [asyncio.ensure_future(deliver_all(uplink, [item])) for item in items]
            await until(sealed(items))
            work[1].cancel()
            await asyncio.wait({work[1]})
            sleep.over.set()
            for i in (0, 2):
                assert_one_answer_each(await work[i], [items[i]])
            await uplink.close()

    run(test)
