"""The views of the live page over HTTP: what a device sends is what they show, as it comes."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from cloud_server.frontend.scenes import HeldScenes
from cloud_server.page.watch import Watch
from cloud_server.page_settings import PageSettings
from cloud_server.state import device_reports
from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.cloud_server import stage
from tests.cloud_server.api.over_http import Asking, asking
from tests.cloud_server.api.test_management import calling
from tests.cloud_server.secured import secured
from tests.fakes.loop import on_loop

LIMIT_S = 30.0


@asynccontextmanager
async def following(it: Asking, query: str = "") -> AsyncIterator[Any]:
    """The events of a feed, one by one."""
    async with it.http.stream("GET", f"/v1/live/events{query}") as feed:
        lines = feed.aiter_lines()

        async def following_one() -> dict[str, Any]:
            while True:
                line = await asyncio.wait_for(anext(lines), LIMIT_S)
                if line.startswith("data: ") and line != "data: {}":
                    return dict(json.loads(line[6:]))

        yield following_one


@on_loop
async def test_a_fleet_shows_whole_then_what_changed(paths: dict[str, Any]) -> None:
    async with asking(paths) as it, following(it) as next_event:
        first = await next_event()
        assert first["whole"] and [row["scene"]["id"] for row in first["rows"]] == [it.scene]
        assert (await it.edge.say("", seed=2)).HasField("accepted")
        second = await next_event()
        assert not second["whole"] and second["rows"][0]["scene"]["id"] != it.scene
        assert second["rows"][0]["heard_at"] <= second["now"]


@on_loop
async def test_a_device_shows_its_tokens_its_timeline_and_its_requests(
    paths: dict[str, Any],
) -> None:
    async with asking(paths) as it, following(it, f"?device={it.device}") as next_event:
        first = await next_event()
        scene = (await it.http.get(f"/v1/scenes/{it.scene}")).json()
        assert first["grid"]["kept"] == scene["token_map"] and first["whole"]
        assert sum(first["timeline"]["frames"]) == 1
        assert sum(first["timeline"]["bytes"]) == scene["payload_bytes"]
        assert first["distortion"] == scene["distortion"]
        assert await it.text("count 2") == "0 1"
        second = await next_event()
        assert not second["whole"] and len(second["timeline"]["at"]) <= 2
        (newest, before) = second["requests"]
        assert (newest["question"], newest["answer"]) == ("count 2", "0 1")
        assert (before["question"], before["answer"], before["asked_by"]) == ("", "", it.device)


@on_loop
async def test_a_request_shows_where_its_time_went_and_what_travelled(
    paths: dict[str, Any],
) -> None:
    async with asking(paths) as it:
        file = stage.picture_file(5)
        call = it.edge.open()
        await call.write(it.edge.picture(file, cause="unfamiliar"))
        await call.done_writing()
        pictured = [event async for event in call][-1]
        asked = await it.edge.say("count 3", seed=4)
        held = (await it.http.get(f"/v1/live/devices/{it.device}")).json()["requests"]
        assert [one["question"] for one in held[:2]] == ["count 3", stage.QUESTION]
        path = f"/v1/live/devices/{it.device}/requests"
        found = (await it.http.get(f"{path}/{held[0]['id']}")).json()
        assert found["id"] == asked.request_id.hex() and found["answer"] == "0 1 2"
        assert found["picture_bytes"] == len(file) > found["payload_bytes"] > 0
        stages = found["stages"]
        assert [one["name"] for one in stages][:6] == [
            "queue", "decode", "project", "inject", "prefill", "generate",
        ]  # fmt: skip
        ends = [one["begins_ms"] + one["ms"] for one in stages]
        assert all(
            abs(end - after["begins_ms"]) < 0.01
            for end, after in zip(ends, stages[1:], strict=False)
        )
        # The fake engine's stages may take longer than it does.
        assert stages[-1]["name"] == "generate" or abs(ends[-1] - found["total_ms"]) < 0.01
        assert [one["name"] for one in found["distortion"]][0] == "quantize"
        shown = (await it.http.get(f"{path}/{pictured.request_id.hex()}")).json()
        assert (shown["fallback"], shown["distortion"]) == ("unfamiliar", [])
        assert (await it.http.get(f"{path}/{'0' * 32}")).status_code == 404


@on_loop
async def test_a_scene_is_doubted_above_the_guards_limit_and_that_is_an_alarm(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with asking(paths) as it:
        (row,) = (await it.http.get("/v1/live/fleet")).json()["rows"]
        assert row["belief"] == "unknown" and "no guard" in row["why"]
    stage.describe(tmp_path / "risky", risky=True)
    async with asking(paths | {"bundles": [tmp_path / "risky"]}) as it:
        found = (await it.http.get(f"/v1/live/devices/{it.device}")).json()
        assert found["row"]["belief"] == "doubted" and "88%" in found["row"]["why"]
        assert sum(found["timeline"]["alarms"]) == 1
        assert found["timeline"]["risk_most"][-1] == pytest.approx(0.88, abs=0.01)
        assert (await it.edge.say("no", seed=3)).HasField("refused")
        found = (await it.http.get(f"/v1/live/devices/{it.device}")).json()
        assert sum(found["timeline"]["alarms"]) == 2
        assert found["requests"][0]["refused"] == "question"


def test_nothing_that_fails_here_fails_a_request() -> None:
    watch = Watch(PageSettings(), HeldScenes(1 << 20, lambda *_: 0), structlog.get_logger())
    watch.scene(None)  # type: ignore[arg-type]
    watch.ended(None, None, None, None)  # type: ignore[arg-type]


@on_loop
async def test_a_device_that_tells_how_it_is_is_alive_as_long_as_it_attends(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as it, calling(it) as caller:
        device = await it.enrol(it.premises.code())
        await it.settled()
        anna = await caller(it.premises.key("acme", "anna"))

        async def row() -> dict[str, Any]:
            return dict((await anna("GET", "/v1/live/fleet"))[1]["rows"][0])

        never = await row()
        assert (never["heard_at"], never["attends"], never["status"]) == (None, False, None)
        call = it.stub(device).Attend(pb.AttendRequest(agent_version="7"))
        await asyncio.wait_for(call.initial_metadata(), LIMIT_S)
        vitals = pb.Vitals(spool_frames=3, spool_oldest_age_s=9, power_watts=7.25, throttled=True)
        body = pb.ReportBody(at_s=5.0, vitals=vitals).SerializeToString()
        report = pb.ReportRequest(id=hashlib.sha256(body).digest(), body=body)
        await it.stub(device).Report(report, timeout=LIMIT_S)
        told = await row()
        assert told["attends"] and told["heard_at"] is not None
        assert told["status"] == {
            "at": told["status"]["at"],
            "spool_frames": 3,
            "spool_oldest_s": 9,
            "watts": 7.25,
            "celsius": None,
            "throttled": True,
        }
        call.cancel()

        async def gone() -> None:
            while (await row())["attends"]:
                await asyncio.sleep(0.01)

        await asyncio.wait_for(gone(), LIMIT_S)
        with it.premises.store.read() as session:
            assert device_reports.of(session, "acme", "gate-3") == [], "it is not kept as a report"
