"""Routers that forget idle connections: no frame is lost in one, and the agent learns to ping."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from tests.edge_faults.faults import EdgeFaults
from tests.edge_faults.station import Device, Service, until

START_S = 28
FORGETS_S = {"30": 8, "60": 15, "300": 75}
"""The router's memory in seconds, by the one that it stands for: time runs four times as fast."""


def learnt_s(device: Device) -> float:
    """The interval that the device has learnt; the first one before that."""
    file = device.state / "keepalive.json"
    known = json.loads(file.read_text())["networks"] if file.exists() else {}
    return float(next(iter(known.values()), START_S))


def broken(device: Device) -> int:
    """How many of its streams have broken so far."""
    return len(device.events("stream_broken"))


def test_routers_that_forget_idle_connections(
    device: Callable[..., Device], service: Service, edge_faults: EdgeFaults
) -> None:
    flags = ("--keepalive-s", str(START_S))
    program = "tests.edge_faults.quick_keepalive"
    them = {name: device(f"nat-{name}", *flags, program=program) for name in FORGETS_S}
    for name, each in them.items():
        each.way.forget(FORGETS_S[name])
        each.start(f"{each.way.here}:{service.port}")
        each.show()
    for each in them.values():
        each.until_answered()
    faults = 0
    for name in ("30", "60"):
        each, breaks = them[name], 0
        while learnt_s(each) >= FORGETS_S[name]:
            breaks += 1
            until(lambda: broken(each) >= breaks, "the dead connection is found")  # noqa: B023
            each.show(2)
            each.until_answered()
        faults += breaks
    quiet = {name: broken(each) for name, each in them.items()}
    time.sleep(2.2 * FORGETS_S["60"])
    for each in them.values():
        each.show(3)
        each.until_answered()
        each.stop()
    ends = [each.ended() for each in them.values()]
    lost, doubled = sum(end[0] for end in ends), sum(end[1] for end in ends)
    frames = sum(len(each.shown) for each in them.values())
    learnt = {f"learnt_s_nat_{name}": learnt_s(each) for name, each in them.items()}
    edge_faults.judged("network: NAT forgets", faults, frames, lost, doubled, **learnt)
    assert quiet == {name: broken(each) for name, each in them.items()}
    assert learnt_s(them["300"]) == START_S and quiet["300"] == 0
