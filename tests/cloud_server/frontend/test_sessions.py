"""Which sessions are held: floods push out their own."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import msgspec
import pytest

from cloud_server.frontend.sessions import Session, Sessions
from cloud_server.frontend.versions.offers import choices_of
from protos.quantize import QUANTIZERS
from tests.cloud_server import stage
from tests.cloud_server.front_end import Edge, running


def test_devices_that_work_keep_their_sessions_through_a_flood_of_empty_ones(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        few = {"sessions": 4, "fresh_sessions": 16, "negotiations_per_s": 0.0}
        async with running(paths, **few) as server:
            working = [await server.edge() for _ in range(4)]
            for edge in working:
                assert (await edge.say("count 1")).HasField("answer")
            flood = Edge(server.channel)
            for _ in range(200):
                await flood.meet()
            for edge in working:
                assert (await edge.say("count 1", seed=1)).HasField("answer")
            assert await server.metric("sessions") == 4 + 16
            assert await server.metric("fresh_sessions") == 16
            assert await server.metric("sessions_dropped_total") == 200 - 16

    asyncio.run(scene())


def _sessions(most: int, fresh: int) -> tuple[Sessions, list[Session]]:
    dropped: list[Session] = []
    made = Sessions(most, fresh, dropped.append)
    made.offer([stage.offer()])
    return made, dropped


def _open(sessions: Sessions, peer: str) -> Session:
    return sessions.open(stage.SOURCE, tuple(QUANTIZERS), "", peer)


def test_a_new_device_survives_a_flood_from_another_address() -> None:
    sessions, dropped = _sessions(8, 8)
    quiet = _open(sessions, "10.0.0.1")
    for _ in range(100):
        _open(sessions, "10.0.0.2")
    assert sessions.get(quiet.id) is quiet
    assert {session.peer for session in dropped} == {"10.0.0.2"}


def test_an_address_that_makes_its_sessions_work_pushes_out_its_own() -> None:
    sessions, dropped = _sessions(8, 8)
    quiet = [_open(sessions, f"10.0.0.{i}") for i in range(4)]
    for session in quiet:
        sessions.worked(session)
    for _ in range(100):
        sessions.worked(_open(sessions, "10.0.0.9"))
    assert {session.peer for session in dropped} == {"10.0.0.9"}
    assert len(sessions) == 8


def test_among_addresses_of_one_session_each_the_longest_unused_goes_first() -> None:
    sessions, dropped = _sessions(3, 8)
    made = [_open(sessions, f"10.0.0.{i}") for i in range(4)]
    for session in made[:3]:
        sessions.worked(session)
    sessions.get(made[0].id)
    sessions.worked(made[3])
    assert dropped == [made[1]]


@pytest.mark.slow
def test_a_session_takes_no_more_memory_than_it_is_counted_with() -> None:
    sessions, _ = _sessions(10_000, 10_000)
    for index in range(64):
        _open(sessions, f"10.0.1.{index}")
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    made = [_open(sessions, f"10.0.{i // 200}.{i % 200}") for i in range(2000)]
    assert (tracemalloc.get_traced_memory()[0] - before) / len(made) < 2048
    tracemalloc.stop()


def test_a_session_pushed_out_by_newer_ones_is_refused_with_303_and_negotiates_again(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, sessions=1) as server:
            first = await server.edge()
            call = first.open()
            await call.write(first.frame(seed=1, question="count 1"))
            while not (await call.read()).HasField("answer"):
                pass
            assert (await (await server.edge()).say("count 1")).HasField("answer")
            await call.write(first.frame(seed=2, question="count 1"))
            event = await call.read()
            assert event.refused.code == 303 and event.refused.retryable
            call.cancel()
            await first.meet()
            assert (await first.say("count 2")).answer.tokens == 2
            assert await server.metric("sessions") == 1

    asyncio.run(scene())


def test_frames_that_waited_get_a_session_on_their_own_bundle_while_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sessions, dropped = _sessions(8, 8)
    old, new = stage.offer(), msgspec.structs.replace(stage.offer(), bundle_digest="c" * 64)
    sessions.serve(choices_of([new]), [old, new])

    def opened(keep: bool, digest: str = old.bundle_digest) -> Session:
        codecs = tuple(QUANTIZERS)
        return sessions.open(stage.SOURCE, codecs, digest, "10.0.0.1", keep=keep)

    assert opened(keep=False).offer is new
    kept = opened(keep=True)
    assert kept.offer is old and kept not in sessions.misplaced()
    assert opened(keep=True, digest="d" * 64).offer is new  # never heard of
    assert sessions.on(old.bundle_digest) == 1

    monkeypatch.setattr("cloud_server.frontend.sessions._KEPT_UNUSED_S", -1.0)
    assert sessions.on(old.bundle_digest) == 0  # it brought no frame: nothing keeps the bundle
    sessions.worked(kept)
    assert sessions.on(old.bundle_digest) == 1
    sessions.serve(choices_of([new]), [new])
    assert dropped == [kept] and opened(keep=True).offer is new
