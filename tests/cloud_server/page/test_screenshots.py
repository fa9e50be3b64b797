"""Pictures of the live page for the README and the guides, with the reference pair's answers.

`make screenshots` keeps them in docs/page/; without it they are looked at and thrown away.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.serve.device import Device
from benchmarks.serve.identities import Identities, certified
from benchmarks.serve.pool import Pool, pool
from benchmarks.serve.site import Site, site
from cloud_server.state import devices as known_devices
from cloud_server.state import keys
from cloud_server.state.location import open_store
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from tests.checkout import ROOT
from tests.cloud_server.page.browser import DESK, PHONE, Viewer, needs_browser, viewer

pytestmark = [pytest.mark.slow, needs_browser, pytest.mark.timeout(900)]

NAMES = ("dock-1", "dock-2", "gate-north", "gate-south", "yard-east", "yard-west")
SILENT = "lamp-post-9"
VITALS = {
    "dock-1": pb.Vitals(power_watts=9.4, temperature_celsius=54),
    "dock-2": pb.Vitals(power_watts=9.1, temperature_celsius=52),
    "gate-north": pb.Vitals(
        spool_frames=212, spool_oldest_age_s=340, power_watts=8.7, temperature_celsius=49
    ),
    "yard-east": pb.Vitals(power_watts=14.8, temperature_celsius=86, throttled=True),
}


async def attend(name: str, channel: Any) -> Any:
    """A device takes orders and says how it is; returns its call."""
    stub = bridge_pb2_grpc.BridgeStub(channel)
    call = stub.Attend(pb.AttendRequest(agent_version="1"))
    await asyncio.wait_for(call.initial_metadata(), 60)
    body = pb.ReportBody(at_s=time.time(), vitals=VITALS[name]).SerializeToString()
    report = pb.ReportRequest(id=hashlib.sha256(body).digest(), body=body)
    await stub.Report(report, timeout=60)
    return call


async def say(device: Device, item: int) -> None:
    """One frame with its question, until it is answered."""
    ended = asyncio.Event()
    device.ended = lambda _: ended.set()
    await device.send(device.prepare(item))
    await asyncio.wait_for(ended.wait(), 120)
    device.forget()


async def shots(place: Site, frames: Pool, key: str, into: Path) -> None:
    made = [Device(name, place.dial(number), frames) for number, name in enumerate(NAMES)]
    try:
        for device in made:
            await device.reach()
        for turn in range(6):
            for number, device in enumerate(made):
                await say(device, (7 * number + turn) % len(frames.items))
        beside = [(name, place.dial(NAMES.index(name))()) for name in VITALS]
        calls = [await attend(name, channel) for name, channel in beside]
        async with viewer(f"https://127.0.0.1:{place.api_port}") as seen:
            await seen.sign_in(key)
            await seen.page.get_by_role("row", name=NAMES[-1]).wait_for()
            await shot(seen, into, "fleet")
            await seen.page.get_by_role("link", name="gate-north").click()
            await seen.page.locator(".chart canvas").nth(4).wait_for()
            question = frames.items[14].question
            await seen.page.get_by_label("Ask about the newest scene").fill(question)
            await seen.page.get_by_role("button", name="Ask").click()
            await seen.sees("Where the time went")
            assert (await seen.page.locator("output").inner_text()).strip(), "an answer came"
            await shot(seen, into, "device")
            await seen.page.locator("table.requests a").nth(1).click()
            await seen.sees("What each stage lost")
            await shot(seen, into, "request")
        for call, (_, channel) in zip(calls, beside, strict=True):
            call.cancel()
            await channel.close()
    finally:
        for device in made:
            await device.close()


async def shot(seen: Viewer, into: Path, name: str) -> None:
    """A view on a desk in both schemes, and on a phone."""
    for kind, scheme, size in (
        ("", "light", DESK),
        ("-dark", "dark", DESK),
        ("-phone", "dark", PHONE),
    ):
        await seen.look(scheme, size)
        await seen.page.wait_for_function(
            "scheme => matchMedia(scheme).matches", arg=f"(prefers-color-scheme: {scheme})"
        )
        assert await seen.serious() == []
        path = into / f"{name}{kind}.png"
        await seen.page.screenshot(path=path, full_page=kind != "-phone")
        with Image.open(path) as picture:
            picture.quantize(128).save(path, optimize=True)
    await seen.look("light", DESK)


def test_the_pages_pictures_show_the_reference_pair(tmp_path: Path) -> None:
    given = os.environ.get("NEURAL_BRIDGE_SCREENSHOTS", "")
    into = ROOT / given if given else tmp_path / "shots"
    into.mkdir(parents=True, exist_ok=True)
    frames = pool(ROOT / "build" / "bench" / "serve")
    identities = Identities.make(tmp_path / "service", 0)
    store = open_store("", identities.directory)
    with store.write("test") as tx:
        for name in (*NAMES, SILENT):
            known_devices.add(tx, "north", name)
        for name in NAMES:
            identities.devices.append(certified(tx, identities.authority, "north", name))
        _, key = keys.add(tx, "north", "anna")
    store.close()
    with site(tmp_path, identities) as place:
        asyncio.run(shots(place, frames, key, into))
    assert len(list(into.glob("*.png"))) == 9
