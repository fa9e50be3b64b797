"""One agent over one fake server, and captures for it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from edge_agent.agent import Agent
from edge_agent.metrics import Metrics
from edge_agent.plan import Plan
from edge_agent.record import AnswerRecord
from edge_agent.sources import Capture
from edge_agent.summary import Summary
from protos.process import logs
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import FakeModel, fake_uplink, make_encoder


class Captures:
    def __init__(self, items: list[Capture]) -> None:
        self.items = items
        self.taken = 0

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Capture]:
        for item in self.items:
            self.taken += 1
            yield item


def capture(name: str, size: int = 9, questions: tuple[str, ...] = ()) -> Capture:
    picture = Image.new("RGB", (size, size), (len(name), 5, 6))
    picture.putpixel((size - 1, 0), (9, 5, 6))  # one flat colour would be warned of
    return Capture(name, picture, 7.0, questions)


def nothing(name: str, size: tuple[int, int] = (9, 9)) -> Capture:
    """A capture that shows nothing."""
    return Capture(name, Image.new("RGB", size, (90, 90, 90)), 7.0)


class Run:
    """One agent over one fake server."""

    def __init__(
        self, items: list[Capture], tmp_path: Path, in_flight: int = 8, **kwargs: Any
    ) -> None:
        self.crops = kwargs.pop("crops", None)
        bridge = {k: kwargs.pop(k) for k in list(kwargs) if k in FakeBridge.__dataclass_fields__}
        self.served = FakeBridge(make_encoder(), **bridge)
        self.source, self.model = Captures(items), FakeModel()
        self.records: list[AnswerRecord] = []
        self.on_record: Callable[[AnswerRecord], None] = self.records.append
        self.watch: Callable[[Agent], None] = lambda agent: None
        self.ended, self.logged = 0, io.StringIO()
        self.metrics = Metrics()
        self.kwargs = {"plan": Plan(), **kwargs}
        self.tmp_path, self.in_flight = tmp_path, in_flight

    def __call__(self) -> Summary:
        async def run() -> Summary:
            await self.served.start()
            uplink = fake_uplink(
                self.served.dial, self.tmp_path, in_flight=self.in_flight, crops=self.crops
            )
            agent = Agent(
                self.source,
                self.model,
                uplink,
                on_record=self.on_record,
                metrics=self.metrics,
                log=logs.configure("warning", stream=self.logged),
                on_capture=self._one_more,
                **self.kwargs,
            )
            self.watch(agent)
            try:
                return await asyncio.wait_for(agent.run(), 30)
            finally:
                await self.served.stop()

        return asyncio.run(run())

    def _one_more(self) -> None:
        self.ended += 1

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value("neural_bridge_edge_" + name, labels) or 0.0
