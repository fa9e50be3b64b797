"""A device and a service that know each other: enrolled, renewed, revoked, held back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cloud_server.state import devices
from edge_agent.frame_maker import FrameMaker
from edge_agent.identity.enrol import enrol
from edge_agent.identity.enrolled import Enrolled
from edge_agent.identity.identity import Identity
from edge_agent.identity.identity_file import IdentityFile
from edge_agent.identity.renewal import Renewal
from edge_agent.identity.service_clock import ServiceClock
from edge_agent.metrics import Metrics
from edge_agent.plan import Plan
from edge_agent.prefill import Sight
from edge_agent.sources import Capture
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.dial import dial_secure
from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.outcome import Outcome
from edge_agent.uplink.request import Request
from edge_agent.uplink.retry import RetryPolicy
from protos.errors import CertificateError, EnrolmentError, UnauthenticatedError
from protos.identity import OneTimeCode
from protos.process import logs
from tests.cloud_server import stage
from tests.cloud_server.conftest import paths  # noqa: F401
from tests.cloud_server.secured import Secured, secured
from tests.fakes.fake_edge import FakeSleep
from tests.fakes.loop import on_loop


class Device:
    """An agent's uplink, with the model of `stage.SOURCE`."""

    layout = stage.SOURCE

    def __init__(self, server: Secured, folder: Path) -> None:
        self.file = IdentityFile.under(folder)
        self.enrolled = Enrolled(self.file)
        self.dial = dial_secure(f"localhost:{server.ports['port']}", self.enrolled)
        self.folder, self.metrics = folder, Metrics()
        self.uplink = self.made(FakeSleep())

    def made(self, sleep: FakeSleep) -> Uplink:
        return Uplink(
            self.layout,
            self.dial,
            EncoderStore(self.folder),
            self.metrics,
            logs.configure("error"),
            RetryPolicy(answer_timeout_s=FakeSleep.ANSWER_TIMEOUT_S),
            clock=sleep.clock,
            sleep=sleep,
        )

    def see(self, picture: Any) -> Sight:
        return Sight(stage.state(0), lambda question, limit: "")

    async def ask(self, question: str, priority: int = 0) -> Outcome:
        picture = np.arange(243, dtype=np.uint8).reshape(9, 9, 3)
        capture = Capture("a", Image.fromarray(picture), 1.0)
        model: Any = self
        plan = Plan(point="fp8", priority=priority)
        request = Request(question, FrameMaker(capture, model, plan, self.metrics))
        async with self.uplink.credit():
            return await self.uplink.deliver(request)


async def enrolled(server: Secured, folder: Path, **more: Any) -> Identity:
    open_address = f"localhost:{server.ports['open_port']}"
    return await enrol(open_address, server.premises.code(), IdentityFile.under(folder), **more)


@on_loop
async def test_a_device_enrols_and_its_frames_are_answered_at_every_priority(
    paths: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        made = await enrolled(server, tmp_path / "edge")
        await server.settled()
        assert server.service.access.live.now.certificate(made.serial) is not None
        device = Device(server, tmp_path / "edge")
        for priority in range(3):
            outcome = await device.ask("what ?", priority)
            assert outcome.error is None and outcome.answer is not None
        await device.uplink.close()


@on_loop
async def test_a_code_works_once_and_only_at_its_own_service(
    paths: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        code, file = server.premises.code(), IdentityFile.under(tmp_path / "edge")
        elsewhere = OneTimeCode.fresh(b"the root of another service")
        with pytest.raises(CertificateError, match="nothing was sent"):
            await enrol(f"localhost:{server.ports['open_port']}", elsewhere, file)
        with pytest.raises(CertificateError, match="the port where devices enrol"):
            await enrol(f"localhost:{server.ports['port']}", code, file)
        made = await enrol(f"localhost:{server.ports['open_port']}", code, file)
        with pytest.raises(EnrolmentError):
            await enrol(f"localhost:{server.ports['open_port']}", code, file, force=True)
        assert file.load() == made


@on_loop
async def test_a_device_that_is_disabled_under_way_is_told_and_may_enrol_again(
    paths: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        await enrolled(server, tmp_path / "edge")
        device = Device(server, tmp_path / "edge")
        assert (await device.ask("what ?")).answer is not None
        with server.premises.store.write("test") as tx:
            devices.disable(tx, "acme", "gate-3")
        while device.uplink.connected:
            await asyncio.sleep(0.01)
        outcome = await device.ask("what ?")
        assert isinstance(outcome.error, UnauthenticatedError)
        assert "acme/gate-3" in outcome.error.message
        with server.premises.store.write("test") as tx:
            devices.enable(tx, "acme", "gate-3")
        await enrolled(server, tmp_path / "edge", force=True)
        outcome = await device.ask("what ?")
        assert outcome.answer is not None, outcome.error
        await device.uplink.close()


@on_loop
async def test_a_certificate_is_renewed_and_the_stream_of_the_old_one_goes_on(
    paths: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        first = await enrolled(server, tmp_path / "edge")
        device = Device(server, tmp_path / "edge")
        device.enrolled.clock = ServiceClock(lambda: 0.0)  # never set
        assert (await device.ask("what ?")).answer is not None
        stream = device.uplink.connection.stream
        renewal = Renewal(
            device.enrolled, device.dial, lambda: True, device.metrics, logs.configure("error")
        )
        await renewal.turn()
        second = device.enrolled.now
        assert second.serial != first.serial and second == device.file.load()
        assert (await device.ask("and then ?")).answer is not None
        assert device.uplink.connection.stream is stream
        fresh = Device(server, tmp_path / "edge")
        assert (await fresh.ask("what ?")).answer is not None
        await fresh.uplink.close()
        await device.uplink.close()


@on_loop
async def test_a_device_comes_again_when_the_service_told_it_to_and_not_before(
    paths: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    """Coming as the service asks, it needs one more attempt; the usual pauses would need many."""
    held_back = {"negotiations_per_s": 1.0, "negotiation_burst": 1}
    async with secured(paths, tmp_path / "svc", **held_back) as server:
        await enrolled(server, tmp_path / "edge")
        first, second = (Device(server, tmp_path / "edge") for _ in range(2))
        assert (await first.ask("what ?")).answer is not None
        waits = WaitingSleep()
        second.uplink = second.made(waits)
        assert (await second.ask("what ?")).answer is not None
        counted = second.metrics.registry.get_sample_value(
            "neural_bridge_edge_retries_total", {"cause": "overloaded"}
        )
        assert counted == 1 and waits.pauses[0] > 0.5
        await first.uplink.close()
        await second.uplink.close()


@on_loop
async def test_a_device_with_the_smallest_quota_connects_and_is_answered(
    paths: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    """Calls that open a session must not use up the one request that its first frame needs."""
    async with secured(paths, tmp_path / "svc", device_requests_per_s=0.5) as server:
        await enrolled(server, tmp_path / "edge")
        device = Device(server, tmp_path / "edge")
        waits = WaitingSleep()
        device.uplink = device.made(waits)
        assert (await device.ask("what ?")).answer is not None
        assert not waits.pauses, "the first frame passes at once"
        assert (await device.ask("and now ?")).answer is not None
        assert len(waits.pauses) == 1 and 1.0 < waits.pauses[0] <= 2.5, "the hint was true"
        await device.uplink.close()


class WaitingSleep(FakeSleep):
    """Pauses take their time; the answer timer still ends only when a test says so."""

    async def __call__(self, seconds: float) -> None:
        if seconds != self.ANSWER_TIMEOUT_S:
            await asyncio.sleep(seconds)
        await super().__call__(seconds)
