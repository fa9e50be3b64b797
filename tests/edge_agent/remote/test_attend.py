"""The call: over which connections, how often, and what goes up with it."""

from __future__ import annotations

import asyncio
import json
import zlib
from pathlib import Path
from typing import Any

import grpc
import pytest

from edge_agent.device.crash import CrashReports
from edge_agent.metrics import Metrics
from edge_agent.remote import attend
from edge_agent.remote.attend import Attendance
from edge_agent.uplink.dial import SecureDial
from protos.errors import EngineUnavailableError, MissingError, OverloadedError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.process import logs
from protos.refusals import trailer_of
from tests.edge_agent.remote.test_orders import Device, configure, order
from tests.fakes.loop import on_loop


class Service(bridge_pb2_grpc.BridgeServicer):
    """Gives the orders that a test puts in, and keeps the reports."""

    def __init__(self) -> None:
        self.asked: list[pb.AttendRequest] = []
        self.orders: asyncio.Queue[pb.Order | None] = asyncio.Queue()
        self.reports: asyncio.Queue[pb.ReportBody] = asyncio.Queue()
        self.errors: list[Any] = []
        self.report_errors: list[Any] = []
        self.too_old = False

    async def Attend(self, request: pb.AttendRequest, context: Any) -> Any:
        self.asked.append(request)
        if self.too_old:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "what is this")
        if self.errors:
            await self._end(context, self.errors.pop(0))
        await context.send_initial_metadata(())
        while (one := await self.orders.get()) is not None:
            yield one

    async def Report(self, request: pb.ReportRequest, context: Any) -> pb.ReportResponse:
        if self.report_errors:
            await self._end(context, self.report_errors.pop(0))
        self.reports.put_nowait(pb.ReportBody.FromString(request.body))
        return pb.ReportResponse()

    async def _end(self, context: Any, error: Any) -> None:
        await context.abort(
            getattr(grpc.StatusCode, error.grpc_status), error.message, trailer_of(error)
        )


class Connection:
    """A connection whose stream is there, or comes when it is opened."""

    def __init__(self, channel: Any, dial: Any) -> None:
        self.there = type("Stream", (), {"channels": [channel], "dial": dial, "broken": None})()
        self.stream: Any = self.there
        self.opened = 0

    async def open(self) -> Any:
        self.opened += 1
        self.stream = self.there
        return self.there


class Scene:
    """A service and a device that attends; time is counted, not spent."""

    def __init__(self, folder: Path, service: Service) -> None:
        self.service, self.device = service, Device(folder)
        self.slept: list[float] = []
        self.now = 0.0
        self.dial: Any = SecureDial("cloud.example:1", enrolled=object())  # type: ignore[arg-type]
        self.reports = CrashReports(folder / "reports", "boot")
        self.metrics = Metrics()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    async def __aenter__(self) -> Scene:
        self.server = grpc.aio.server()
        bridge_pb2_grpc.add_BridgeServicer_to_server(self.service, self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.address = f"127.0.0.1:{port}"
        self.channel = grpc.aio.insecure_channel(self.address)
        self.connection = Connection(self.channel, self.dial)
        self.attendance = Attendance(
            self.connection,
            self.device.orders,
            self.reports,
            lambda: [pb.Running(kind="agent", name="edge-agent")],
            "7",
            self.metrics,
            logs.configure("error"),
            sleep=self.sleep,
            clock=lambda: self.now,
        )
        self.task = asyncio.create_task(self.attendance.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})
        assert self.task.cancelled(), self.task.exception()
        await self.channel.close()
        await self.server.stop(None)

    async def reported(self) -> pb.ReportBody:
        return await asyncio.wait_for(self.service.reports.get(), 60)

    async def until(self, holds: Any) -> None:
        async def look() -> None:
            while not holds():
                await asyncio.sleep(0.001)

        await asyncio.wait_for(look(), 60)


@on_loop
async def test_orders_come_down_and_outcomes_go_up(tmp_path: Path) -> None:
    async with Scene(tmp_path, Service()) as it:
        asked = order(capture=pb.TakePicture(camera="gate"))
        it.service.orders.put_nowait(asked)
        body = await it.reported()
        assert body.outcome.order_id == asked.id and it.device.captured == ["gate"]
        await it.until(lambda: not it.device.orders.book.untold())
        it.service.orders.put_nowait(None)  # the service ends the call, as when it restarts
        await it.until(lambda: len(it.service.asked) == 2)
        assert it.service.asked[1].carried_out == [asked.id]
        it.service.orders.put_nowait(asked)
        assert (await it.reported()).outcome.order_id == asked.id
        assert it.device.captured == ["gate"]


@on_loop
async def test_crash_reports_go_up_with_the_next_connection(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Service())
    scene.reports.begin({"version": "7"}, ["a line"])
    scene.reports.failed(ZeroDivisionError("by nothing"), ["a line"])
    (scene.reports.folder / "report-9.json").write_text("no JSON")
    scene.service.report_errors = [EngineUnavailableError("not now"), OverloadedError("full")]
    async with scene as it:
        told = json.loads(zlib.decompress((await it.reported()).crash.json))
        assert told["kind"] == "exception" and told["log"] == ["a line"]
        await it.until(lambda: not it.reports.waiting())
    assert scene.service.reports.empty()


@on_loop
async def test_a_report_that_the_service_never_takes_is_given_up(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Service())
    scene.service.report_errors = [MissingError("no such order")]
    async with scene as it:
        it.service.orders.put_nowait(order(capture=pb.TakePicture()))
        await it.until(lambda: it.device.captured and not it.device.orders.book.untold())
    assert scene.service.reports.empty()


@on_loop
async def test_a_service_that_is_too_old_is_not_asked_again_for_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert attend._TOO_OLD_S >= 4 * 3600.0
    monkeypatch.setattr(attend, "_TOO_OLD_S", 600.0)  # each second is a turn of the loop
    service = Service()
    service.too_old = True
    async with Scene(tmp_path, service) as it:
        await it.until(lambda: it.now > 290)
        assert len(service.asked) == 1
        service.too_old = False
        await it.until(lambda: len(service.asked) == 2)
        assert it.now >= 300


@on_loop
async def test_pauses_after_failures_are_random_and_grow(tmp_path: Path) -> None:
    service = Service()
    service.errors = [EngineUnavailableError("not now")] * 200
    async with Scene(tmp_path, service) as it:
        await it.until(lambda: len(service.asked) > 200)
        pauses = [pause for pause in it.slept if pause != 1.0]
        assert max(pauses) <= 900 and max(pauses) > 300 and min(pauses[20:]) < 100
        assert pauses[0] <= 10


@on_loop
async def test_a_device_without_a_connection_opens_one_after_a_while(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Service())
    async with scene as it:
        await it.until(lambda: it.service.asked)
        it.connection.there.broken = EngineUnavailableError("gone")
        it.service.orders.put_nowait(None)
        await it.until(lambda: it.connection.opened > 8)
        assert it.now >= 8, "not one look after another"


@on_loop
async def test_settings_with_which_the_service_is_not_reached_are_taken_back(
    tmp_path: Path,
) -> None:
    await Device(tmp_path).take(configure(1, linger_ms=250))
    scene = Scene(tmp_path, Service())
    scene.dial = lambda: None
    async with scene as it:
        await it.until(lambda: it.device.ended)
        assert it.now > 1800 and it.device.remote.wants_restart
    assert "not reached" in str(scene.device.remote.failed)
    assert Device(tmp_path).orders.now.linger_ms == 0


@on_loop
async def test_a_connection_that_is_closed_here_ends_a_call_and_not_the_attendance(
    tmp_path: Path,
) -> None:
    """As when the agent moves to a preferred server."""
    async with Scene(tmp_path, Service()) as it:
        await it.until(lambda: it.service.asked)
        before, it.channel = it.channel, grpc.aio.insecure_channel(it.address)
        it.connection.there.channels = [it.channel]
        await before.close()
        await it.until(lambda: len(it.service.asked) == 2)
        it.service.orders.put_nowait(order(capture=pb.TakePicture()))
        it.service.orders.put_nowait(order(capture=pb.TakePicture()))
        await it.until(lambda: it.device.captured)


@pytest.mark.parametrize("dial", [lambda: None, SecureDial("cloud.example:1")])
@on_loop
async def test_orders_are_taken_only_of_the_service_that_knows_this_device(
    tmp_path: Path, dial: Any
) -> None:
    """Whoever is on the way of a plain connection could give any."""
    scene = Scene(tmp_path, Service())
    scene.dial = dial
    async with scene as it:
        await it.until(lambda: it.now > 50)
        assert not it.service.asked
