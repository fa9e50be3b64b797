"""The front end with an engine that has no model: load, repeats, sessions, crashes, draining."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from cloud_server.engine.spawn import spawn_engine
from cloud_server.frontend.service import Service
from cloud_server.settings import load
from protos.calls import EVENTS_APART
from protos.digest import derived_id, session_constants
from protos.errors import BundleLayoutError, ConfigError, EngineUnavailableError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from reference.demo.relay import Relay
from tests.cloud_server import stage

FAST = {
    "port": 0,
    "metrics_port": 0,
    "engine": "fake",
    "heartbeat_s": 0.05,
    "restart_backoff_s": 0.01,
    "drain_s": 0.1,
    "log_level": "error",
}


class Edge(stage.Client):
    """A client on the event loop."""

    def __init__(self, channel: Any) -> None:
        super().__init__(channel)

    async def meet(self) -> pb.NegotiateResponse:
        self.session = await super().negotiate()
        reply: pb.NegotiateResponse = self.session
        return reply

    def open(self) -> Any:
        return bridge_pb2_grpc.BridgeStub(self.channel).Infer(metadata=self.metadata, timeout=120)

    async def say(self, question: str, seed: int = 0) -> pb.InferEvent:
        """One request on a stream of its own; its last event."""
        call = self.open()
        await call.write(self.frame(seed=seed, question=question))
        await call.done_writing()
        events = [event async for event in call]
        last: pb.InferEvent = events[-1]
        return last


class Running:
    def __init__(self, service: Service, task: asyncio.Task[None], ready: dict[str, Any]) -> None:
        self.service, self.task = service, task
        self.port, self.metrics_port = ready["port"], ready["metrics_port"]
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{self.port}",
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)],
        )

    async def edge(self) -> Edge:
        edge = Edge(self.channel)
        await edge.meet()
        return edge

    async def get(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.metrics_port}{path}") as reply,
        ):
            return reply.status, await reply.text()

    async def metric(self, name: str) -> float:
        lines = (await self.get("/metrics"))[1].splitlines()
        found = [
            line.split()[1] for line in lines if line.startswith(f"neural_bridge_cloud_{name} ")
        ]
        return float(found[0]) if found else 0.0

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        async def poll() -> None:
            while not await holds():
                await asyncio.sleep(0.01)

        await asyncio.wait_for(poll(), 120)


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "bundle.json").write_text("{}")
    return {"model": tmp_path, "bundles": [tmp_path]}


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """Socket paths are short; the directories of tests may not be."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def make(paths: dict[str, Any], announce: Callable[[str], None], **settings: Any) -> Service:
    return Service(
        load(paths | FAST | settings, environ={}),
        announce,
        partial(spawn_engine, module="tests.cloud_server.fake_engine"),
    )


@asynccontextmanager
async def running(paths: dict[str, Any], **settings: Any) -> AsyncIterator[Running]:
    lines: asyncio.Queue[str] = asyncio.Queue()
    service = make(paths, lines.put_nowait, **settings)
    task = asyncio.create_task(service.run())
    line = asyncio.create_task(lines.get())
    await asyncio.wait({task, line}, return_when=asyncio.FIRST_COMPLETED, timeout=120)
    if task.done():
        line.cancel()
        await task
    made = Running(service, task, json.loads(line.result()))
    try:
        yield made
    finally:
        await made.channel.close()
        service.stop()
        await task


def test_the_front_end_imports_no_tensor_library() -> None:
    code = (
        "import sys, cloud_server.cli\n"
        "import cloud_server.frontend.service, cloud_server.frontend.bridge\n"
        "heavy = {'torch', 'onnxruntime', 'transformers', 'tensorflow'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_request_beyond_the_credit_is_refused_as_overload_and_may_be_sent_again(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, max_in_flight=2) as server:
            edge = await server.edge()
            call = edge.open()
            for seed in range(3):
                await call.write(edge.frame(seed=seed, question="hold"))
            seen = []
            while not seen or not seen[-1].HasField("refused"):
                seen.append(await call.read())
            assert seen[-1].refused.code == 501 and seen[-1].refused.retryable
            assert seen[-1].frame_number == 2
            assert (await edge.say("release", seed=9)).HasField("answer")
            answered = set()
            while len(answered) < 2:
                event = await call.read()
                if event.HasField("answer"):
                    answered.add(event.frame_number)
            await call.write(edge.frame(seed=2, number=2, question="count 1"))
            while event.frame_number != 2 or not event.HasField("answer"):
                event = await call.read()
            call.cancel()

    asyncio.run(scene())


@pytest.mark.parametrize("id_left_out", [False, True])
def test_another_frame_under_a_used_number_and_id_never_gets_the_first_ones_answer(
    paths: dict[str, Any], id_left_out: bool
) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            id = b"" if id_left_out else b"12345678"

            async def say(seed: int, question: str) -> pb.InferEvent:
                call = edge.open()
                await call.write(edge.frame(seed, question, number=5, request_id=id))
                await call.done_writing()
                return [event async for event in call][-1]

            assert not (await say(1, "count 2")).answer.from_memory
            assert (await say(1, "count 2")).answer.from_memory, "it was resent unchanged"
            other = await say(2, "count 2")
            assert other.refused.code == 203 and not other.refused.retryable
            assert (await say(1, "count 2")).answer.from_memory

    asyncio.run(scene())


def test_requests_beyond_the_queue_are_refused_whatever_their_stream(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, queue_requests=2) as server:
            edge = await server.edge()
            call = edge.open()
            for seed in range(2):
                await call.write(edge.frame(seed=seed, question="hold"))
                await call.read()
            refused = (await edge.say("release")).refused
            assert refused.code == 501 and refused.retryable
            assert await server.metric("queue_depth") == 2
            call.cancel()

    asyncio.run(scene())


def test_a_long_queue_lowers_the_credit_and_a_short_one_gives_it_back(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, queue_requests=4, max_in_flight=8) as server:
            edge = await server.edge()
            call = edge.open()
            advised: list[pb.RateAdvice] = []
            held = 0

            async def heard(done: Callable[[pb.InferEvent], bool]) -> None:
                event = await call.read()
                while not done(event):
                    if event.HasField("rate_advice"):
                        assert not event.request_id
                        advised.append(event.rate_advice)
                    event = await call.read()

            for seed in range(3):
                await call.write(edge.frame(seed=seed, question="hold"))
                await heard(lambda e: e.HasField("accepted"))
                held += 1
            await call.write(edge.frame(seed=3, question="count 1"))
            await heard(lambda e: e.HasField("answer") and e.frame_number == 3)
            (less,) = advised
            assert (less.max_in_flight, less.cause) == (2, "load")
            assert less.point == edge.session.default_point
            assert (await edge.say("release", seed=9)).HasField("answer")
            for _ in range(held):
                await heard(lambda e: e.HasField("answer"))
            await call.write(edge.frame(seed=4, question="count 1"))
            await heard(lambda e: e.HasField("answer"))
            assert [a.max_in_flight for a in advised] == [2, 8]
            call.cancel()

    asyncio.run(scene())


def test_an_edge_that_tells_its_settings_is_answered_from_a_bundle_of_before(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            edge.layout = replace(stage.SOURCE, settings_digest="5" * 64)
            reply = await edge.meet()
            assert reply.session_constants == session_constants(
                reply.session_id, stage.SOURCE.fingerprint, reply.bundle_digest
            )
            assert (await edge.say("count 1")).HasField("answer")

    asyncio.run(scene())


def test_a_request_without_an_id_is_known_by_its_session_and_frame_number(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            request = edge.frame(seed=1, question="count 1", request_id=b"")
            told = derived_id(edge.session.session_constants, 1)
            calls = [edge.open(), edge.open()]
            for call in calls:
                await call.write(request)
                while not (event := await call.read()).HasField("answer"):
                    assert event.request_id == told
                assert event.request_id == told
                assert event.answer.from_memory == (call is calls[1])
            await calls[1].write(edge.frame(seed=1, number=1, question="another", request_id=b""))
            again = await calls[1].read()
            assert again.refused.code == 203 and again.request_id == told
            blank = edge.frame(seed=2, question="  ", request_id=b"")
            await calls[1].write(blank)
            refused = await calls[1].read()
            assert refused.refused.code == 401
            assert refused.request_id == derived_id(edge.session.session_constants, 2)
            for call in calls:
                call.cancel()

    asyncio.run(scene())


def test_events_apart_come_on_their_own_call_and_end_their_infer_calls_when_it_goes(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            stub = bridge_pb2_grpc.BridgeStub(server.channel)

            def infer() -> Any:
                return stub.Infer(metadata=(*edge.metadata, EVENTS_APART), timeout=120)

            async def open_events() -> Any:
                request = pb.EventsRequest(session_id=edge.session.session_id)
                call = stub.Events(request, timeout=120)
                await call.initial_metadata()
                return call

            async def end(call: Any) -> tuple[grpc.StatusCode, str]:
                code, trailer = await call.code(), dict(await call.trailing_metadata())
                return code, trailer.get("nb-error-code", "")

            assert await end(infer()) == (grpc.StatusCode.UNAVAILABLE, "502")
            events, first, second = await open_events(), infer(), infer()
            await first.write(edge.frame(seed=1, question="count 1"))
            await second.write(edge.frame(seed=2, question="count 1"))
            answered = set()
            while answered != {1, 2}:
                event = await events.read()
                if event.HasField("answer"):
                    answered.add(event.frame_number)
            await first.done_writing()
            assert await first.read() is grpc.aio.EOF and await first.code() == grpc.StatusCode.OK
            held = edge.frame(seed=3, question="hold")
            await second.write(held)
            assert (await events.read()).HasField("accepted")
            newer = await open_events()
            assert await events.read() is grpc.aio.EOF
            assert await end(second) == (grpc.StatusCode.UNAVAILABLE, "502")
            third = infer()
            await third.write(held)
            assert (await newer.read()).HasField("accepted")
            assert (await edge.say("release")).HasField("answer")
            while not (event := await newer.read()).HasField("answer"):
                pass
            assert event.request_id == held.request_id
            assert await server.metric("joined_requests_total") == 1
            newer.cancel()
            assert await end(third) == (grpc.StatusCode.UNAVAILABLE, "502")
            assert await end(stub.Events(pb.EventsRequest(session_id=bytes(16)))) == (
                grpc.StatusCode.FAILED_PRECONDITION,
                "303",
            )

    asyncio.run(scene())


def test_a_request_resent_on_a_new_stream_joins_the_computation_of_the_broken_one(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            request = edge.frame(seed=1, question="hold")
            with Relay(f"127.0.0.1:{server.port}") as relay:
                cut = grpc.aio.insecure_channel(relay.address)
                broken = bridge_pb2_grpc.BridgeStub(cut).Infer(metadata=edge.metadata)
                await broken.write(request)
                assert (await broken.read()).HasField("accepted")
            await server.until(lambda: _positive(server.metric('left_requests_total{how="lost"}')))
            await cut.close()
            call = edge.open()
            await call.write(request)
            assert (await call.read()).HasField("accepted")
            await edge.say("release", seed=9)
            kinds = []
            while not kinds or kinds[-1] != "answer":
                kinds.append((await call.read()).WhichOneof("event"))
            assert kinds == ["token", "answer"]
            assert await server.metric("joined_requests_total") == 1
            assert await server.metric('frames_total{point="fp8"}') == 2  # hold and release
            call.cancel()

    asyncio.run(scene())


def test_a_message_above_grpcs_own_cap_ends_its_stream_and_no_answer_is_lost(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            held, elsewhere = (
                edge.frame(seed=1, question="hold"),
                edge.frame(seed=2, question="hold"),
            )
            cut, other = edge.open(), edge.open()
            await cut.write(held)
            await other.write(elsewhere)
            assert (await cut.read()).HasField("accepted")
            assert (await other.read()).HasField("accepted")
            huge = edge.frame(seed=3)
            huge.frame.payload = bytes(edge.session.limits.max_picture_bytes + (17 << 20))
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await cut.write(huge)
                await cut.read()
            assert ended.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert f"larger than max ({huge.ByteSize()} vs. " in str(ended.value.details())
            assert "nb-error-code" not in dict(ended.value.trailing_metadata())
            again = edge.open()
            await again.write(held)
            assert (await again.read()).HasField("accepted")
            await edge.say("release", seed=9)
            for call, request in ((again, held), (other, elsewhere)):
                while not (event := await call.read()).HasField("answer"):
                    pass
                assert event.request_id == request.request_id
                call.cancel()

    asyncio.run(scene())


def test_a_session_pushed_out_by_newer_ones_is_refused_with_303_and_negotiates_again(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, sessions=1) as server:
            first = await server.edge()
            call = first.open()
            await call.write(first.frame(seed=1, question="count 1"))
            while not (await call.read()).HasField("answer"):
                pass
            assert (await (await server.edge()).say("count 1")).HasField("answer")
            await call.write(first.frame(seed=2, question="count 1"))
            event = await call.read()
            assert event.refused.code == 303 and event.refused.retryable
            call.cancel()
            await first.meet()
            assert (await first.say("count 2")).answer.tokens == 2
            assert await server.metric("sessions") == 1

    asyncio.run(scene())


def test_an_engine_that_dies_is_started_again_and_meanwhile_the_service_says_so(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            assert (await server.get("/readyz"))[0] == 200
            refused = (await edge.say("die")).refused
            assert refused.code == 502 and refused.retryable
            assert (await server.get("/readyz"))[0] == 503
            assert (await server.get("/healthz"))[0] == 200
            assert await server.metric("engine_up") == 0
            assert (await edge.say("count 1")).refused.code == 502

            async def back() -> bool:
                return (await server.get("/readyz"))[0] == 200

            await server.until(back)
            assert (await edge.say("count 1")).HasField("answer")
            assert await server.metric("engine_restarts_total") == 1
            assert await server.metric("engine_up") == 1

    asyncio.run(scene())


def test_an_engine_that_hangs_in_a_step_is_ended_and_its_requests_may_be_sent_again(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, engine_stall_s=0.5) as server:
            edge = await server.edge()
            refused = (await edge.say("hang")).refused
            assert refused.code == 502 and "hung" in refused.message

            async def back() -> bool:
                return (await edge.say("count 1")).HasField("answer")

            await server.until(back)

    asyncio.run(scene())


def test_draining_answers_what_is_under_way_and_takes_nothing_new(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, drain_s=20.0) as server:
            edge = await server.edge()
            call = edge.open()
            await call.write(edge.frame(seed=1, question="slow"))
            await server.until(lambda: _positive(server.metric("queue_depth")))
            server.service.stop()
            await server.until(lambda: _draining(server))
            await call.write(edge.frame(seed=2, question="count 1"))
            ends = {}
            while len(ends) < 2:
                event = await call.read()
                if event.WhichOneof("event") in ("answer", "refused"):
                    ends[event.frame_number] = event
            assert ends[1].HasField("answer")
            assert ends[2].refused.retryable
            await server.task

    asyncio.run(scene())


async def _positive(value: Awaitable[float]) -> bool:
    return await value > 0


async def _draining(server: Running) -> bool:
    return (await server.get("/readyz")) == (503, "draining\n")


def test_an_engine_that_says_why_it_cannot_start_ends_the_service_with_that_error(
    paths: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE_FAILS", "typed")
    with pytest.raises(BundleLayoutError, match="another model"):
        asyncio.run(make(paths, lambda line: None).run())


def test_an_engine_that_never_gets_ready_is_given_up_after_some_starts(
    paths: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE_FAILS", "silent")
    with pytest.raises(EngineUnavailableError, match="exit code 3"):
        asyncio.run(make(paths, lambda line: None).run())


def test_the_ready_file_holds_the_ports_which_no_other_service_can_take(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async def scene() -> None:
        async with running(paths, ready_file=tmp_path / "ready.json") as server:
            ready = json.loads((tmp_path / "ready.json").read_text())
            assert ready.pop("event") == "ready"
            assert ready == {"port": server.port, "metrics_port": server.metrics_port}
            for flag, port in ready.items():
                with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')}"):
                    await make(paths, print, **{flag: port}).run()

    asyncio.run(scene())


def test_the_engines_socket_is_where_the_setting_says_and_the_owners_alone(
    paths: dict[str, Any], short_dir: Path
) -> None:
    async def scene() -> None:
        async with running(paths, engine_socket_dir=short_dir / "sockets") as server:
            assert os.stat(short_dir / "sockets").st_mode & 0o777 == 0o700
            held = {path.name for path in (short_dir / "sockets").iterdir()}
            assert held == {"engine.sock", "lock"}
            assert (await (await server.edge()).say("count 2")).answer.text == "0 1"

    asyncio.run(scene())
