"""How the device is goes up: now and then, when heat begins, not to a service that is too old."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from edge_agent.metrics import Metrics
from edge_agent.remote import vitals
from edge_agent.remote.vitals import tell_vitals, vitals_of
from protos.errors import EngineUnavailableError, FrameMalformedError
from protos.process import logs
from tests.fakes.loop import on_loop


class Scene:
    """A service that takes reports; time is counted, not spent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
        self.metrics, self.now, self.hot_at = Metrics(), 0.0, math.inf
        self.sent: list[tuple[float, Any]] = []
        self.errors = list(errors)
        self.enough = asyncio.Event()
        monkeypatch.setattr(vitals, "send", self._send)

    async def _send(self, _: object, body: Any) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.sent.append((self.now, body.vitals))

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.metrics.throttled.set(self.now >= self.hot_at)
        if self.now > 1000.0:
            self.enough.set()
            await asyncio.Event().wait()

    async def run(self, every_s: float) -> None:
        telling = asyncio.create_task(
            tell_vitals(
                None,  # type: ignore[arg-type]
                self.metrics,
                every_s,
                logs.configure("error"),
                self.sleep,
                lambda low, high: (low + high) / 2,
            )
        )
        waiting = asyncio.create_task(self.enough.wait())
        await asyncio.wait({telling, waiting}, return_when=asyncio.FIRST_COMPLETED)
        for task in (telling, waiting):
            task.cancel()


def test_what_is_not_measured_is_left_out() -> None:
    metrics = Metrics()
    metrics.power.set(math.nan)
    metrics.temperature.set(55.5)
    metrics.spool_frames.set(3)
    found = vitals_of(metrics)
    assert found.temperature_celsius == 55.5 and not found.HasField("power_watts")
    assert found.spool_frames == 3 and not found.throttled


@on_loop
async def test_they_go_up_at_once_and_then_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Scene(monkeypatch)
    await it.run(300.0)
    assert [round(at) for at, _ in it.sent] == [8, 308, 608, 908]


@on_loop
async def test_heat_is_told_when_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Scene(monkeypatch)
    it.hot_at = 100.0
    await it.run(300.0)
    assert [one.throttled for _, one in it.sent][:2] == [False, True]
    assert 100.0 <= it.sent[1][0] <= 115.0


@on_loop
async def test_a_service_that_is_too_old_is_told_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it = Scene(monkeypatch, EngineUnavailableError("not now"), FrameMalformedError("what is this"))
    await it.run(300.0)
    assert not it.sent and not it.errors and it.now < 400.0


@on_loop
async def test_zero_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Scene(monkeypatch)
    await it.run(0.0)
    assert not it.sent and it.now == 0.0
