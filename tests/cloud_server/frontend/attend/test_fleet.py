"""What devices say of themselves becomes a few figures, however many devices there are."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from cloud_server.frontend.attend import fleet, messages
from cloud_server.frontend.attend.fleet import Fleet
from cloud_server.metrics import Metrics
from protos.errors import BridgeError, FrameMalformedError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.cloud_server.frontend.attend.test_looking_after import report
from tests.fakes.loop import on_loop


class Scene:
    def __init__(self, store: Any = None) -> None:
        self.now = 1000.0
        self.metrics = Metrics()
        self.fleet = Fleet(store, self.metrics, None, self, lambda: self.now)  # type: ignore[arg-type]
        for name, version in (("gate-1", "1.0"), ("gate-2", "1.1"), ("gate-3", "1.1")):
            self.fleet.came(name, "acme", name, version)

    def passes(self, _: str) -> bool:
        return False

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"neural_bridge_cloud_{name}", labels)


def test_the_worst_device_is_shown_not_each_one() -> None:
    it = Scene()
    assert it.value("attending") == 3.0 and it.value("reporting_devices") == 0.0
    assert it.value("device_temperature_celsius") is None, "nobody told"
    it.fleet.said("gate-1", pb.Vitals(spool_frames=5, spool_oldest_age_s=60, certificate_end_s=9e9))
    it.fleet.said("gate-2", pb.Vitals(temperature_celsius=71, power_watts=4, throttled=True))
    it.fleet.said("gate-3", pb.Vitals(temperature_celsius=40, power_watts=5, certificate_end_s=8e9))
    it.now += 30.0
    assert it.value("reporting_devices") == 3.0
    assert it.value("device_spool_oldest_age_seconds") == 90.0, "it grows between reports"
    assert it.value("device_spool_frames") == 5.0
    assert it.value("device_temperature_celsius") == 71.0
    assert it.value("device_power_watts") == 9.0
    assert it.value("throttled_devices") == 1.0
    assert it.value("device_certificate_end_timestamp_seconds") == 8e9
    assert it.value("agent_devices", version="1.1") == 2.0


def test_a_device_that_left_counts_no_more() -> None:
    it = Scene()
    it.fleet.said("gate-2", pb.Vitals(throttled=True))
    it.fleet.came("gate-2", "acme", "gate-2", "1.2")  # a newer call: its vitals stay
    assert it.value("throttled_devices") == 1.0 and it.value("agent_devices", version="1.2") == 1.0
    it.fleet.left("gate-2")
    it.fleet.said("gate-2", pb.Vitals(throttled=True))
    assert it.value("throttled_devices") == 0.0 and it.value("attending") == 2.0
    assert it.fleet.of("gate-2") is None


@on_loop
async def test_devices_are_counted_again_after_the_database_was_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[Any] = [BridgeError("away"), 7]
    counted = asyncio.Event()

    def known(_: object) -> int:
        one = found.pop(0)
        if isinstance(one, BridgeError):
            raise one
        return int(one)

    async def sleep(_: float) -> None:
        if not found:
            counted.set()
            await asyncio.Event().wait()

    it = Scene(store=object())
    assert math.isnan(it.value("known_devices") or 0.0), "not known is not none"
    monkeypatch.setattr(fleet, "_known", known)
    monkeypatch.setattr(fleet.asyncio, "sleep", sleep)
    task = asyncio.create_task(it.fleet.run())
    await counted.wait()
    task.cancel()
    assert it.value("known_devices") == 7.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature_celsius": math.nan},
        {"power_watts": math.inf},
        {"certificate_end_s": 1e300},
        {"spool_bytes": 1 << 60},
    ],
)
def test_vitals_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(FrameMalformedError, match="vitals." + next(iter(wrong))):
        messages.report(report(vitals=pb.Vitals(**wrong)).SerializeToString())
