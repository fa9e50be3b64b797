"""Updates from the service: fetched in parts, verified, installed, told; a cut at any moment."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import structlog

from edge_agent import __main__ as edge
from edge_agent.device import status_view
from edge_agent.metrics import Metrics
from edge_agent.update import boot, commands, fetch, from_service, install, told, waiting
from edge_agent.update.boot import HEALTHY_FRAMES, MOST_STARTS, Slot, Slots
from edge_agent.update.fetch import Fetch
from edge_agent.update.from_service import FOLDER, REFUSED, WAITS, FromService
from edge_agent.update.settings import UpdateSettings
from edge_agent.update.waiting import install_waiting
from projector.bundle.keys import SigningKey, TrustedKeys
from projector.bundle.update import open_update
from protos.errors import (
    BridgeError,
    CertificateError,
    DiskFullError,
    FrameMalformedError,
    MissingError,
    NotAllowedHereError,
    OfflineError,
)
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.refusals import trailer_of
from tests.fakes.loop import on_loop
from tests.fakes.updates import write_update


class Service(bridge_pb2_grpc.BridgeServicer):
    """Offers one update, and may break off, err or refuse.

    Attributes:
        blob: what it sends.
        offered: what it offers; None: nothing.
        heard: what devices said.
        parts: offset and length of each part that was asked for.
        breaks: after so many parts the link breaks, once.
    """

    def __init__(self) -> None:
        self.blob = b""
        self.offered: pb.CheckUpdateResponse | None = None
        self.heard: list[pb.CheckUpdateRequest] = []
        self.parts: list[tuple[int, int]] = []
        self.breaks = 0

    async def CheckUpdate(self, request: pb.CheckUpdateRequest, context: Any) -> Any:
        self.heard.append(request)
        return self.offered or pb.CheckUpdateResponse()

    async def FetchUpdate(self, request: pb.FetchUpdateRequest, context: Any) -> Any:
        if self.offered is None or request.digest != self.offered.digest:
            error = MissingError("no such update")
            await context.abort(grpc.StatusCode.NOT_FOUND, error.message, trailer_of(error))
        self.parts.append((request.offset, request.length))
        if self.breaks and len(self.parts) == self.breaks:
            self.breaks = 0
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the link is gone")
        part = self.blob[request.offset : request.offset + request.length]
        for at in range(0, len(part), 10_000):
            yield pb.Chunk(data=part[at : at + 10_000], total_bytes=len(self.blob))

    @property
    def told(self) -> dict[str, str]:
        """State (and cause) of each update as the device said last."""
        return {one.digest: f"{one.state} {one.cause}".strip() for one in self.heard[-1].states}


class Device:
    """A device with slots, whose agent asks a service over a real channel."""

    def __init__(self, folder: Path, service: Service, address: str, **settings: Any) -> None:
        self.folder, self.service, self.address = folder, service, address
        self.slots, self.state = Slots(folder / "slots-root"), folder / "state"
        if self.slots.state() is None:
            (self.slots.root / "parts" / "first").mkdir(parents=True)
            boot.adopt(self.slots, Slot("first", 1, "v1", "install", {"agent": "first"}))
        self.keys = folder / "keys.toml"
        self.settings = UpdateSettings(
            slots=self.slots.root,
            update_keys=self.keys,
            **{"update_from_service": True, "update_bytes_per_s": 0} | settings,
        )
        self.slept: list[float] = []
        self.log = structlog.testing.CapturingLogger()
        self.metrics = Metrics()
        self.agent = self.started()

    def started(self) -> FromService:
        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)

        log: Any = self.log
        return FromService(
            self.settings,
            self.state,
            lambda: grpc.aio.insecure_channel(self.address),
            lambda: True,
            lambda: False,
            self.metrics,
            log,
            sleep=sleep,
        )

    def offer(self, key: SigningKey, number: int = 2, size: int = 300_000, **about: Any) -> str:
        path = self.folder / "offered"
        contents = {"model/export.json": b"{}", "model/weights": os.urandom(size)}
        write_update(path, key, contents, number=number, version=f"v{number}", **about)
        with open_update(path, TrustedKeys({key.public: "maker"})) as update:
            digest = update.digest
        self.service.blob = path.read_bytes()
        self.service.offered = pb.CheckUpdateResponse(
            digest=digest, number=number, version=f"v{number}", size_bytes=len(self.service.blob)
        )
        return digest

    @property
    def waits(self) -> bool:
        return (self.state / FOLDER / WAITS).exists()

    @property
    def runs(self) -> int:
        state = self.slots.state()
        slot = self.slots.slot(state.wanted) if state is not None else None
        assert slot is not None and (self.slots.root / "current" / "agent").is_dir()
        return slot.number

    def install(self) -> str:
        return install_waiting(self.settings, self.state)

    def judge(self, answers: bool) -> None:
        if answers:
            slot = self.slots.slot(boot.NAMES[1])
            assert slot is not None
            boot.judge(self.slots, {"id": slot.id, "frames": HEALTHY_FRAMES}, "this boot", 1.0)
        else:
            for _ in range(MOST_STARTS + 1):
                boot.start(self.slots)


class Place:
    """A service and one device of it; the key is the one that the device trusts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.service = folder, Service()
        self.key = SigningKey.create(folder / "maker.pem")

    async def __aenter__(self) -> Device:
        self.server = grpc.aio.server()
        bridge_pb2_grpc.add_BridgeServicer_to_server(self.service, self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        device = Device(self.folder, self.service, f"127.0.0.1:{port}")
        device.keys.write_text(f'[keys]\nmaker = "{self.key.public}"\n')
        return device

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop(None)


@on_loop
async def test_an_update_is_fetched_installed_kept_and_told(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with place as device:
        await device.agent.turn()
        first = device.service.heard[-1]
        assert (first.number, first.digest, first.takes, len(first.states)) == (1, "", True, 0)
        assert first.python.startswith("3.") and first.machine and first.jetpack
        digest = device.offer(place.key)
        await device.agent.turn()
        assert device.waits and device.service.told == {digest: "fetched"}
        assert device.agent.shown is not None and device.agent.shown["state"] == "fetched"
        value = device.metrics.registry.get_sample_value
        assert value("neural_bridge_edge_update_bytes_total") == len(device.service.blob)
        assert "number 2 (v2), signed by maker: in slot b" in device.install()
        assert device.runs == 2 and device.install() == "", "once"

        device.agent = device.started()  # the new slot's
        await device.agent.turn()
        assert device.service.told == {digest: "trial"}
        device.judge(answers=True)
        device.service.offered = None
        await device.agent.turn()
        last = device.service.heard[-1]
        assert (last.number, last.digest, len(last.states)) == (2, digest, 0)
        assert not device.waits and list((device.state / FOLDER).iterdir()) == []
        assert (device.slots.root / "current/model/export.json").read_bytes() == b"{}"


@on_loop
async def test_an_update_that_does_not_answer_is_left_and_told_and_not_tried_again(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path)
    async with place as device:
        digest = device.offer(place.key)
        await device.agent.turn()
        device.install()
        device.judge(answers=False)
        assert device.runs == 1
        device.service.offered = None
        await device.agent.turn()
        (state,) = device.service.heard[-1].states
        assert (state.digest, state.state, state.cause) == (digest, "failed", "crash_loop")
        assert state.failures == 1 and device.install() == "", "systemd may look again"
        device.offer(place.key)  # the same again is another digest: its bytes are drawn anew
        await device.agent.turn()
        assert device.waits


@on_loop
async def test_an_update_is_tried_again_when_the_operator_says_so(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with place as device:
        digest = device.offer(place.key)
        for failures in (1, 2):
            await device.agent.turn()
            device.install()
            assert device.runs == 2
            device.judge(answers=False)
            device.agent = device.started()
            await device.agent.ask(grpc.aio.insecure_channel(device.address))
            (state,) = device.service.heard[-1].states
            assert (state.digest, state.failures) == (digest, failures)


@on_loop
async def test_a_broken_link_costs_only_what_was_on_its_way(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with place as device:
        device.offer(place.key)
        device.service.breaks = 3
        assert await device.agent.turn() < 60, "it does not wait an hour"
        there = (device.state / FOLDER).glob("*.part").__next__().stat().st_size
        assert there > 0 and not device.waits
        device.agent = device.started()
        await device.agent.turn()
        assert device.waits and device.service.parts[3][0] == there
        assert "number 2" in device.install()


@on_loop
async def test_rubbish_where_it_broke_off_is_fetched_again(tmp_path: Path) -> None:
    """A power cut may leave a file longer than what was written to it."""
    place = Place(tmp_path)
    async with place as device:
        digest = device.offer(place.key)
        part = device.state / FOLDER / f"{digest}.part"
        part.parent.mkdir(parents=True)
        for rubbish in (bytes(5000), bytes(len(device.service.blob)), bytes(1 << 20)):
            part.write_bytes(rubbish)
            await device.agent.turn()
            assert device.waits and device.service.told == {digest: "fetched"}
            shutil.rmtree(part.parent)
            part.parent.mkdir()


@on_loop
async def test_what_no_trusted_key_signed_is_never_installed(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with place as device:
        digest = device.offer(SigningKey.create(tmp_path / "other.pem"))
        await device.agent.turn()
        assert not device.waits and device.service.told == {digest: "failed signature"}
        assert not list((device.state / FOLDER).glob("*.part"))
        # An agent that was taken over hands it to root anyway.
        file = device.state / FOLDER / f"{digest}.nbupdate"
        file.write_bytes(device.service.blob)
        waits = {"digest": digest, "number": 2, "version": "v2", "older": True, "failures": 0}
        (device.state / FOLDER / WAITS).write_text(json.dumps(waits))
        with pytest.raises(BridgeError, match="not trusted"):
            device.install()
        assert device.runs == 1
        state = device.slots.state()
        assert state is not None
        assert (state.history[-1]["event"], state.history[-1]["cause"]) == ("refused", "signature")
        assert device.install() == ""


@pytest.mark.parametrize(
    "waits",
    [
        {}, {"digest": 7}, {"digest": "../../etc/passwd", "number": 2}, {"digest": "a" * 64},
        {"digest": "a" * 64, "number": -1}, {"digest": "a" * 64, "number": "2"}, [], None,
    ],
)  # fmt: skip
def test_root_ignores_what_is_no_order(tmp_path: Path, waits: Any) -> None:
    device = Device(tmp_path, Service(), "127.0.0.1:1")
    (device.state / FOLDER).mkdir(parents=True)
    file = device.state / FOLDER / WAITS
    if waits is not None:
        file.write_text(json.dumps(waits))
    before = (device.slots.root / "boot.json").read_bytes()
    assert device.install() == ""
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    assert device.install() == "", "a pipe is not waited for"
    assert (device.slots.root / "boot.json").read_bytes() == before


@on_loop
async def test_the_owner_says_whether_and_when(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with place as device:
        digest = device.offer(place.key)
        hour = time.localtime().tm_hour
        for settings, said in (
            ({"update_hours": f"{(hour + 2) % 24}-{(hour + 3) % 24}"}, "waiting hours"),
            ({"update_keys": tmp_path / "none"}, "waiting no_keys"),
        ):
            device.agent.settings = device.settings.model_copy(update=settings)
            for _ in range(2):
                await device.agent.turn()
            assert device.service.told == {digest: said} and not device.waits
            assert device.agent.shown is not None and device.agent.shown["state"] == "waiting"
        device.agent.settings = device.settings.model_copy(update={"update_from_service": False})
        await device.agent.turn()
        assert not device.service.heard[-1].takes and not device.waits, "whatever it offers"
        device.agent.settings = device.settings
        await device.agent.turn()
        device.settings = device.settings.model_copy(update={"update_from_service": False})
        with pytest.raises(NotAllowedHereError):
            device.install()
        assert device.runs == 1


@on_loop
async def test_fetching_stops_at_the_end_of_the_hours_and_goes_on_in_the_next_ones(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path)
    async with place as device:
        digest = device.offer(place.key)
        hour = time.localtime().tm_hour
        hours = {"update_hours": f"{hour}-{(hour + 1) % 24}"}
        device.agent.settings = device.settings.model_copy(update=hours)
        begun = time.time()
        device.agent.now = lambda: begun + 3600.0 * (len(device.service.parts) > 1)
        await device.agent.turn()
        first = device.service.parts
        assert device.service.told == {digest: "waiting hours"} and not device.waits
        assert len(first) == 2 and "update_failures" not in str(device.log.calls)
        device.agent.now = lambda: begun
        await device.agent.turn()
        assert device.waits and device.service.parts[2][0] == sum(first[1])


@on_loop
async def test_a_disk_that_errs_while_an_update_is_fetched_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path)
    async with place as device:
        device.offer(place.key)

        def broken(*_: Any) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(from_service.os, "fsync", broken)
            assert await device.agent.turn() <= 30.0
        (call,) = [call for call in device.log.calls if call.args == ("update_not_taken",)]
        assert "Input/output error" in call.kwargs["cause"]
        await device.agent.turn()
        assert device.waits


@on_loop
async def test_an_older_one_only_where_the_owner_allows_it(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with place as device:
        digest = device.offer(place.key, number=1)
        assert device.service.offered is not None
        device.service.offered.older = True
        await device.agent.turn()
        with pytest.raises(BridgeError, match="not newer"):
            device.install()
        offered, device.service.offered = device.service.offered, None
        await device.agent.turn()
        assert device.service.told == {digest: "failed update"}
        device.service.offered = offered
        device.settings = device.settings.model_copy(update={"update_older": True})
        device.agent = device.started()
        shutil.rmtree(device.state)
        await device.agent.turn()
        assert device.service.heard[-1].takes_older
        device.install()
        state = device.slots.state()
        assert state is not None and state.trial is not None


@on_loop
async def test_a_full_disk_is_said_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path)
    async with place as device:
        digest = device.offer(place.key)
        with monkeypatch.context() as patch:
            patch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
            await device.agent.turn()
        assert device.service.parts == [] and device.service.told == {digest: "waiting disk_full"}
        await device.agent.turn()
        assert device.waits, "it goes on once there is room"


@on_loop
async def test_an_update_that_root_has_no_room_for_waits_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path)
    async with place as device:
        digest, order = device.offer(place.key), device.state / FOLDER / WAITS
        await device.agent.turn()
        with monkeypatch.context() as patch:
            patch.setattr(install.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
            for _ in range(30):
                with pytest.raises(DiskFullError):
                    device.install()
        state, before = device.slots.state(), order.stat()
        assert state is not None and [one["event"] for one in state.history] == [
            "installed", "waits",
        ], "hours of waiting push nothing out of the history"  # fmt: skip
        await device.agent.turn()
        assert device.service.told == {digest: "waiting disk_full"}
        assert device.service.heard[-1].states[0].failures == 0
        assert device.agent.shown is not None and device.agent.shown["cause"] == "disk_full"
        assert order.stat().st_ino != before.st_ino, "systemd sees it again, so root tries again"
        assert "in slot b" in device.install() and device.runs == 2
        await device.agent.turn()
        assert device.service.told == {digest: "trial"}


def test_wheels_that_find_no_room_are_a_full_disk_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, path = Place(tmp_path), tmp_path / "wheels"
    device = Device(tmp_path, place.service, "")
    write_update(path, place.key, {"agent/a.whl": b"x"}, number=2, version="v2")
    said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    failed = SimpleNamespace(returncode=1, stdout="", stderr=said)
    monkeypatch.setattr(install.subprocess, "run", lambda *_, **__: failed)
    with open_update(path, TrustedKeys({place.key.public: "maker"})) as opened:
        with pytest.raises(DiskFullError, match="no room for its wheels"):
            install.install(opened, device.slots)
    assert [each.name for each in (device.slots.root / "parts").iterdir()] == ["first"]


@on_loop
async def test_a_service_that_errs_harms_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with place as device:
        device.offer(place.key)
        offered = device.service.offered
        assert offered is not None
        for change in (
            {"digest": "../../x"}, {"size_bytes": 0}, {"size_bytes": 1 << 40},
            {"size_bytes": len(device.service.blob) + 1}, {"number": 0}, {"number": 1 << 60},
        ):  # fmt: skip
            device.service.offered = pb.CheckUpdateResponse()
            device.service.offered.CopyFrom(offered)
            for name, value in change.items():
                setattr(device.service.offered, name, value)
            await device.agent.turn()
            failed = device.metrics.registry.get_sample_value(
                "neural_bridge_edge_update_failures_total", {"error": "frame_malformed"}
            )
            assert failed
            assert not device.waits and device.install() == ""
        device.service.offered = None
        await device.agent.turn()
        assert list((device.state / FOLDER).iterdir()) == []


@on_loop
async def test_frames_go_first_and_the_rate_is_bounded(tmp_path: Path) -> None:
    """By a clock that only sleeping moves: the link itself takes no time here."""
    place = Place(tmp_path)
    async with place as device:
        digest = device.offer(place.key)
        now, busy = [0.0], [True] * 3

        async def sleep(seconds: float) -> None:
            now[0] += seconds

        told_: list[int] = []
        fetching = Fetch(
            tmp_path / "there", 50_000.0, lambda: bool(busy) and busy.pop(), 30.0,
            lambda: now[0], sleep, told_.append,
        )  # fmt: skip
        async with grpc.aio.insecure_channel(device.address) as channel:
            whole = await fetching.run(channel, digest, len(device.service.blob))
        size = len(device.service.blob)
        assert whole.read_bytes() == device.service.blob and told_[-1] == size
        assert not busy, "it looked for frames before it asked for a part"
        last = device.service.parts[-1][1]
        assert now[0] >= (size - last) / 50_000 - 1e-6


@on_loop
async def test_a_slow_link_gets_small_parts_and_half_of_the_time(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with place as device:
        digest = device.offer(place.key)
        now, slept = [0.0], [0.0]

        async def sleep(seconds: float) -> None:
            now[0] += seconds
            slept[0] += seconds

        real = Fetch._part

        async def slow(self: Fetch, *given: Any) -> bytes:
            data = await real(self, *given)
            now[0] += len(data) / 10_000  # 80 kbit/s
            return data

        fetching = Fetch(tmp_path / "there", 0.0, clock=lambda: now[0], sleep=sleep)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Fetch, "_part", slow)
            async with grpc.aio.insecure_channel(device.address) as channel:
                await fetching.run(channel, digest, len(device.service.blob))
        lengths = [length for _, length in device.service.parts[3:]]
        assert max(lengths) <= 8192, "no part holds the link for a second"
        assert slept[0] > 0.45 * now[0]


@on_loop
async def test_an_update_that_is_withdrawn_while_it_is_fetched_is_left(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with place as device:
        digest = device.offer(place.key)
        async with grpc.aio.insecure_channel(device.address) as channel:
            fetching = Fetch(tmp_path / "there")
            device.service.offered = pb.CheckUpdateResponse(digest="f" * 64)
            with pytest.raises(MissingError):
                await fetching.run(channel, digest, 10)
        with pytest.raises((OfflineError, FrameMalformedError)):
            async with grpc.aio.insecure_channel("127.0.0.1:1") as nobody:
                await fetching.run(nobody, digest, 10)


@on_loop
async def test_the_commands_ask_the_service_and_install_what_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path)
    async with place as device:

        async def said(*words: str) -> str:
            given = ["update", *words, "--slots", str(device.slots.root)]
            given += ["--state-dir", str(device.state), "--update-keys", str(device.keys)]
            given += ["--insecure", "--server", device.address]
            capsys.readouterr()
            assert await asyncio.to_thread(edge.main, given) == 0
            return capsys.readouterr().out

        assert "update_from_service is off here" in await said("--check")
        assert not device.service.heard[-1].takes
        assert "offers no update" in await said("--check", "--update-from-service")
        digest = device.offer(place.key)
        assert "number 2 (v2), 0.3 MB" in await said("--check", "--update-from-service")
        shown = json.loads(await said("--check", "--json", "--update-from-service"))
        assert shown["offered"]["digest"] == digest and device.service.heard[-1].takes
        assert device.service.parts == [], "nothing is fetched"
        assert "no update waits" in await said("waiting", "--update-from-service")
        await device.agent.turn()
        assert "in slot b" in await said("waiting", "--update-from-service")
        assert device.runs == 2
        stand = f"{digest[:12]}…: trial, 0 failures"
        assert stand in await said("--check", "--update-from-service")


def test_a_device_that_is_not_enrolled_is_told_so_and_calls_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "check", lambda *_: pytest.fail("somebody was called"))
    for more in ([], ["--server", "127.0.0.1:9"]):
        given = ["update", "--check", "--state-dir", str(tmp_path), *more]
        assert edge.main(given) == CertificateError.exit_code
        assert "this device is not enrolled" in capsys.readouterr().err


def test_the_status_shows_what_is_under_way() -> None:
    found = {
        "number": 7, "version": "0.2.0", "state": "fetching", "bytes": 43_100_000,
        "size_bytes": 118_400_000, "cause": None,
    }  # fmt: skip
    assert status_view.update(found) == "number 7 (0.2.0): fetching, 43.1 of 118.4 MB"
    found |= {"state": "waiting", "bytes": None, "cause": "hours"}
    assert status_view.update(found) == "number 7 (0.2.0): waiting (hours)"


class PowerCut(BaseException):
    """Ends everything, as `except Exception` must not catch it."""


def cut_after(patch: pytest.MonkeyPatch, calls: int) -> None:
    """Let the power fail at the n-th call that changes the disk."""
    left = itertools.count(calls, -1)

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if next(left) <= 0:
                raise PowerCut
            return real(*args, **more)

        return call

    for owner, name in (
        (os, "replace"), (os, "fsync"), (os, "pwrite"), (Path, "rename"), (Path, "symlink_to"),
        (Path, "mkdir"), (Path, "unlink"), (boot.shutil, "rmtree"),
    ):  # fmt: skip
        patch.setattr(owner, name, failing(getattr(owner, name)))


@pytest.mark.slow
@on_loop
async def test_after_a_power_cut_at_any_step_a_whole_slot_runs_and_the_update_goes_on(
    tmp_path: Path,
) -> None:
    """From the first byte that is fetched to the switch: every call that changes the disk."""
    place = Place(tmp_path)
    async with place as device:
        digest, root = device.offer(place.key, size=60_000), tmp_path
        for calls in itertools.count():
            device = Device(root / f"cut{calls}", place.service, device.address)
            shutil.copy(root / "keys.toml", device.keys)
            whole = False
            with pytest.MonkeyPatch.context() as patch:
                cut_after(patch, calls)
                try:
                    await device.agent.turn()
                    device.install()
                    whole = True
                except PowerCut:
                    pass
            boot.start(device.slots)  # the machine starts again
            assert device.runs in (1, 2)
            device.agent = device.started()
            device.agent.again()
            await device.agent.turn()
            device.install()
            assert device.runs == 2 and digest in device.service.told
            state = device.slots.state()
            assert state is not None and state.trial is not None and state.good == "a"
            device.judge(answers=False)
            assert device.runs == 1, "the old slot is whole"
            if whole:
                assert calls > 20
                return


def test_settings_of_hours_are_two_hours() -> None:
    assert from_service._within("22-5", time.mktime((2026, 1, 1, 23, 0, 0, 0, 0, -1)))
    assert from_service._within("22-5", time.mktime((2026, 1, 1, 4, 59, 0, 0, 0, -1)))
    assert not from_service._within("22-5", time.mktime((2026, 1, 1, 5, 0, 0, 0, 0, -1)))
    assert from_service._within("2-5", time.mktime((2026, 1, 1, 2, 0, 0, 0, 0, -1)))
    assert not from_service._within("2-5", 100.0), "the clock is not set"
    assert from_service._within("", 100.0)
    for bad in ("22", "24-1", "5-5", "a-b", "22-5-6"):
        with pytest.raises(ValueError):
            UpdateSettings(update_hours=bad)


def test_an_older_boot_program_names_no_digest_and_its_failures_are_found(tmp_path: Path) -> None:
    device = Device(tmp_path, Service(), "127.0.0.1:1")
    state = device.slots.state()
    assert state is not None
    history = (
        {"event": "trial", "number": 2, "version": "v2", "source": "a" * 64},
        {"event": "rolled_back", "cause": "not_whole"},
        {"event": "kept", "number": 2, "version": "v2"},
    )
    device.slots.save(boot.BootState("a", None, history))
    found = told.here(device.slots, tmp_path / REFUSED)
    assert found is not None and found.stands == {"a" * 64: told.Stand("failed", "not_whole", 1)}
    assert waiting._failures_before("x") == 0
    assert asyncio.iscoroutinefunction(FromService.run)
