"""Several servers in order of preference: the next one takes over, the better one comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edge_agent.uplink.dial import InsecureDial
from edge_agent.uplink.servers import Servers
from protos.errors import ConfigError, OverloadedError, UnauthenticatedError
from tests.edge_agent.uplink.traffic import (
    assert_one_answer_each,
    bridge,
    deliver_all,
    requests,
    run,
    total,
)
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import fake_uplink


class Clock:
    """Seconds that pass only in pauses."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class Held(Clock):
    """Pauses last until the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.due = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        await self.due.wait()
        self.due.clear()
        await super().sleep(seconds)


@asynccontextmanager
async def two() -> AsyncIterator[tuple[FakeBridge, FakeBridge]]:
    async with bridge() as first, bridge() as second:
        yield first, second


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.001)


def test_the_next_server_takes_over_what_was_on_its_way_each_frame_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with two() as (first, second):
            first.gate = asyncio.Event()
            clock = Held()
            servers = Servers([first.dial, second.dial], clock=clock, sleep=clock.sleep)
            uplink, items = fake_uplink(servers, tmp_path), requests(6)
            work = asyncio.create_task(deliver_all(uplink, items))
            await until(lambda: len(first.requests) == 6)
            await first.stop()
            assert_one_answer_each(await work, items)
            assert set(second.computed.values()) == {1} and not first.computed
            ids = {request_id for _, request_id, _ in first.requests}
            assert ids == {request_id for _, request_id, _ in second.requests}
            assert total(uplink.metrics.server_switches) == 1
            assert uplink.metrics.server_rank._value.get() == 1
            await uplink.close()

    run(test)


def test_a_better_server_that_is_back_gets_new_frames_and_the_other_finishes_its_own(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with two() as (first, second):
            clock = Held()
            servers = Servers([first.dial, second.dial], clock=clock, sleep=clock.sleep)
            first.negotiate_error = OverloadedError("not now")
            uplink = fake_uplink(servers, tmp_path)
            await uplink.connect()
            second.gate = asyncio.Event()
            items = requests(4)
            work = asyncio.create_task(deliver_all(uplink, items))
            await until(lambda: len(second.requests) == 4)
            first.negotiate_error = None
            clock.due.set()
            await until(lambda: uplink.metrics.server_rank._value.get() == 0)
            later = requests(2, question="later {}")
            assert_one_answer_each(await deliver_all(uplink, later), later)
            assert set(first.computed) == {"later 0", "later 1"}
            assert not work.done()
            second.gate.set()
            assert_one_answer_each(await work, items)
            assert [len(second.requests), total(uplink.metrics.reconnects)] == [4, 0]
            await uplink.close()

    run(test)


def test_frames_that_share_a_message_survive_a_change_of_servers(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(max_parcel=8) as first, bridge(max_parcel=8) as second:
            clock = Held()
            servers = Servers([first.dial, second.dial], clock=clock, sleep=clock.sleep)
            first.negotiate_error = OverloadedError("not now")
            uplink = fake_uplink(servers, tmp_path, linger_s=3600.0)
            uplink._post._sleep = asyncio.sleep  # they wait for others, really
            await uplink.connect()
            items = requests(3)
            work = asyncio.create_task(deliver_all(uplink, items))
            stream = uplink.connection.stream
            assert stream is not None
            await until(lambda: len(stream.waiting) == 3)
            first.negotiate_error = None
            clock.due.set()
            await until(lambda: uplink.metrics.server_rank._value.get() == 0)
            later = requests(1, question="later {}")
            more = asyncio.create_task(deliver_all(uplink, later))
            assert_one_answer_each(await work, items)
            uplink.hurry()
            assert_one_answer_each(await more, later)
            assert set(second.computed) == {i.question for i in items}
            await uplink.close()

    run(test)


def test_a_server_that_comes_and_goes_is_tried_ever_less_often(tmp_path: Path) -> None:
    """It answers Negotiate for long enough to be chosen, then breaks every stream."""

    async def test() -> None:
        async with two() as (first, second):
            clock = Clock()
            servers = Servers([first.dial, second.dial], 30.0, 900.0, clock, clock.sleep)
            uplink = fake_uplink(servers, tmp_path, retries=None, give_up_s=0.0)
            first.drop_after = [0] * 1000
            count = 0
            while clock.now < 3600.0:
                count += 1
                items = requests(1, question=f"{count} {{}}")
                assert_one_answer_each(await deliver_all(uplink, items), items)
                await asyncio.sleep(0.001)
            assert first.negotiations <= 20  # an hour; back after each 30 s would be 120
            assert not first.computed and set(second.computed.values()) == {1}
            await uplink.close()

    run(test)


def test_two_servers_that_flap_answer_every_frame_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with two() as (first, second):
            clock = Clock()
            servers = Servers([first.dial, second.dial], 30.0, 900.0, clock, clock.sleep)
            uplink = fake_uplink(servers, tmp_path, retries=None, give_up_s=0.0)
            first.drop_after, second.drop_after = [2, 0, 3, 1, 2, 0, 5], [1, 4, 0, 0, 2, 1]
            items = requests(40)
            assert_one_answer_each(await deliver_all(uplink, items), items)
            await uplink.close()

    run(test)


def test_while_no_server_can_be_reached_none_is_preferred_less(tmp_path: Path) -> None:
    async def test() -> None:
        clock = Held()
        async with two() as (first, second):
            servers = Servers([first.dial, second.dial], clock=clock, sleep=clock.sleep)
            uplink = fake_uplink(servers, tmp_path, retries=3)
            first.negotiate_error = second.negotiate_error = OverloadedError("not now")
            (failed,) = await deliver_all(uplink, requests(1))
            assert failed.error is not None and failed.error.retryable
            first.negotiate_error = second.negotiate_error = None
            await deliver_all(uplink, requests(1))
            assert uplink.metrics.server_rank._value.get() == 0
            await uplink.close()

    run(test)


def test_a_server_that_refuses_this_device_does_not_bar_the_others(tmp_path: Path) -> None:
    async def test() -> None:
        async with two() as (first, second):
            first.negotiate_error = UnauthenticatedError("who are you?")
            servers = Servers([first.dial, second.dial])
            uplink, items = fake_uplink(servers, tmp_path), requests(2)
            assert_one_answer_each(await deliver_all(uplink, items), items)
            await uplink.close()

    run(test)


def test_front_ends_that_share_their_sessions_keep_the_session(tmp_path: Path) -> None:
    async def test() -> None:
        async with two() as (first, second):
            second.sessions = first.sessions
            servers = Servers([first.dial, second.dial])
            uplink = fake_uplink(servers, tmp_path)
            await deliver_all(uplink, requests(1))
            await first.stop()
            items = requests(2)
            assert_one_answer_each(await deliver_all(uplink, items), items)
            assert second.negotiations == 0
            await uplink.close()

    run(test)


def test_a_list_of_servers_makes_sense_or_is_refused() -> None:
    with pytest.raises(ConfigError, match="named twice"):
        Servers([InsecureDial("a.example:1"), InsecureDial("a.example:1")])
    with pytest.raises(ConfigError, match="no server"):
        Servers([])
