"""Frames of the fake model on their way to a fake server, for the tests of `edge_agent/uplink`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from PIL import Image

from edge_agent.frame_maker import FrameMaker
from edge_agent.metrics import Metrics
from edge_agent.picture import PictureCodec
from edge_agent.plan import Plan
from edge_agent.sources import Capture
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.outcome import Outcome
from edge_agent.uplink.request import Request
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import FakeModel, make_encoder


def requests(count: int, plan: Plan | None = None, question: str = "q{}") -> list[Request]:
    model = FakeModel()
    return [
        Request(
            question.format(i),
            FrameMaker(
                Capture(str(i), Image.new("RGB", (9, 9), (i, 2, 3)), 10.0 + i),
                model,
                plan or Plan(),
                Metrics(),
            ),
        )
        for i in range(count)
    ]


def picture_request(side_px: int, question: str) -> Request:
    """A PNG of noise: about three bytes a pixel."""
    noise = np.random.default_rng(0).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
    capture = Capture(question, Image.fromarray(noise), 9.0)
    maker = FrameMaker(
        capture, FakeModel(), Plan(point="picture", picture=PictureCodec("png")), Metrics()
    )
    return Request(question, maker)


async def deliver_all(uplink: Uplink, items: list[Request]) -> list[Outcome]:
    async def one(item: Request) -> Outcome:
        async with uplink.credit():
            return await uplink.deliver(item)

    return list(await asyncio.gather(*(one(item) for item in items)))


APART = True
"""Whether events come on a connection of their own; the fixture `connections` tries both."""


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


def assert_one_answer_each(outcomes: list[Outcome], items: list[Request]) -> None:
    assert [o.error for o in outcomes] == [None] * len(items)
    assert [o.answer.text for o in outcomes if o.answer] == [f"about {i.question}" for i in items]
    assert [o.request_id for o in outcomes] == [i.request_id for i in items]
