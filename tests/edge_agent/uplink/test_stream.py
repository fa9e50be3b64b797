"""A stream: who waits on it, and how it ends for each."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edge_agent.uplink.stream import Stream
from protos.errors import BridgeError, EngineUnavailableError, FrameTooLargeError
from tests.fakes.fake_edge import make_session


def stream() -> Stream:
    unused: Any = object()
    return Stream(make_session(), [unused], unused, unused)


@pytest.mark.parametrize(
    ("waiting", "kind"), [(1, FrameTooLargeError), (2, EngineUnavailableError)]
)
def test_an_error_that_is_one_requests_own_is_given_only_to_one_that_is_alone(
    waiting: int, kind: type[BridgeError]
) -> None:
    async def test() -> None:
        one = stream()
        futures = [one.expect(bytes([i] * 8), "answer", "refused") for i in range(waiting)]
        one.fail(FrameTooLargeError("larger"))
        assert isinstance(one.broken, FrameTooLargeError) and not one.waiting
        for future in futures:
            assert type(future.exception()) is kind

    asyncio.run(test())


def test_the_first_cause_of_a_break_stays() -> None:
    one = stream()
    one.fail(EngineUnavailableError("first"))
    one.fail(EngineUnavailableError("second"))
    assert "first" in str(one.broken)


def test_silence_is_counted_from_the_first_request_since_something_came_down() -> None:
    one = stream()
    one.asked(1.0)
    one.asked(2.0)
    assert one.asked_at == 1.0
    one.heard(3.0)
    assert (one.heard_at, one.asked_at) == (3.0, None)
    one.asked(4.0)
    assert one.asked_at == 4.0
