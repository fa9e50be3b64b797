"""A server for agents that are looked after."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import make_encoder


@pytest.fixture(scope="module")
def server() -> Iterator[FakeBridge]:
    served = FakeBridge(make_encoder())
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(served.start(), loop).result(10)
    yield served
    asyncio.run_coroutine_threadsafe(served.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
