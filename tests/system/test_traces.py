"""One trace from the camera's frame to the last token, told by agent, front end and engine."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from edge_agent.frame_maker import FrameMaker
from edge_agent.metrics import Metrics
from edge_agent.plan import Plan
from edge_agent.prefill import Sight
from edge_agent.sources import Capture
from edge_agent.tracing import FrameTraces
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.outcome import Outcome
from edge_agent.uplink.request import Request
from edge_agent.uplink.retry import RetryPolicy
from edge_agent.uplink.scenes import Scene, Scenes
from protos.process import logs
from protos.process.trace_export import Traces
from protos.process.trace_settings import TraceSettings
from reference.demo.halves import BUNDLE, CLOUD_MODEL, EDGE_MODEL, ENVIRONMENT
from reference.demo.processes import Child
from tests.cloud_server import stage
from tests.cloud_server.conftest import paths  # noqa: F401
from tests.cloud_server.front_end import Running, running
from tests.fakes.loop import on_loop
from tests.fakes.otlp import Collector, SpanTold, collector


class Device:
    """An agent's uplink and traces, with the model of `stage.SOURCE`."""

    def __init__(self, server: Running, folder: Path, endpoint: str) -> None:
        self.metrics, log = Metrics(), logs.configure("error")
        kept = TraceSettings(otlp_endpoint=endpoint, trace_share=1.0)
        self.traces = FrameTraces(Traces(kept, "neural-bridge-agent", log))
        address = f"127.0.0.1:{server.port}"
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.uplink = Uplink(
            stage.SOURCE,
            lambda: grpc.aio.insecure_channel(address, options=options),
            EncoderStore(folder),
            self.metrics,
            log,
            RetryPolicy(retries=0),
        )
        self.uplink.connection.context = self.traces.context

    def see(self, picture: Any) -> Sight:
        return Sight(stage.state(0), lambda question, limit: "")

    def maker(self) -> FrameMaker:
        picture = Image.fromarray(np.arange(243, dtype=np.uint8).reshape(9, 9, 3))
        model: Any = self
        return FrameMaker(Capture("a", picture, 1.0), model, Plan(point="fp8"), self.metrics)

    async def ask(self, question: str) -> Outcome:
        maker = self.maker()
        async with self.uplink.credit():
            outcome = await self.uplink.deliver(Request(question, maker))
        self.traces.ended(maker, outcome, outcome)
        return outcome

    async def hold_and_ask(self, question: str) -> Outcome:
        maker, scenes = self.maker(), Scenes(self.uplink)
        scene = await scenes.hold(Request("", maker))
        assert isinstance(scene, Scene)
        outcome = await scenes.ask(scene, b"r" * 16, question, 4)
        self.traces.ended(maker, outcome, scene.outcome)
        return outcome

    async def close(self) -> None:
        await self.uplink.close()
        await asyncio.to_thread(self.traces.close)


def by_trace(spans: list[SpanTold]) -> dict[str, dict[str, SpanTold]]:
    found: dict[str, dict[str, SpanTold]] = defaultdict(dict)
    for span in spans:
        assert span.name not in found[span.trace]
        found[span.trace][span.name] = span
    return dict(found)


def lies_under(spans: dict[str, SpanTold], name: str) -> list[str]:
    """A span's ancestors by name; the first one has no parent."""
    ids = {one.id: one for one in spans.values()}
    way, at = [], spans[name]
    while at.parent:
        at = ids[at.parent]
        way.append(at.name)
    return way


SERVICES = {"neural-bridge-agent", "neural-bridge", "neural-bridge-engine"}


@on_loop
async def test_a_frames_answer_is_one_trace_of_agent_front_end_and_engine(
    paths: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    with collector() as heard:
        traced = {"otlp_endpoint": heard.endpoint, "trace_share": 1.0}
        async with running(paths, **traced) as server:
            device = Device(server, tmp_path, heard.endpoint)
            answered = await device.ask("count 3")
            refused = await device.ask("loud" * 3000)
            sent = device.metrics.registry.get_sample_value("neural_bridge_edge_sent_bytes_total")
            await device.close()
            assert answered.answer is not None
        traces = by_trace(heard.spans())
    spans = next(one for one in traces.values() if "generate" in one)
    assert {one.service for one in spans.values()} == SERVICES
    assert lies_under(spans, "generate") == ["engine", "infer", "uplink", "frame"]
    assert lies_under(spans, "edge.encode") == ["frame"]
    assert spans["frame"].begin_ns <= spans["uplink"].begin_ns <= spans["infer"].begin_ns
    assert spans["infer"].end_ns <= spans["frame"].end_ns
    for name in ("frame", "infer"):
        told = spans[name].attributes["neural_bridge.request_id"]
        assert told == answered.request_id.hex()
    assert refused.error is not None
    without = await sent_without_traces(paths, tmp_path)
    assert sent == without, "not a byte of a frame's message is for traces"


async def sent_without_traces(paths: dict[str, Any], folder: Path) -> float | None:  # noqa: F811
    with collector() as heard:
        async with running(paths) as server:
            device = Device(server, folder, heard.endpoint)
            device.uplink.connection.context = None
            await device.ask("count 3")
            await device.ask("loud" * 3000)
            await device.close()
    return device.metrics.registry.get_sample_value("neural_bridge_edge_sent_bytes_total")


@on_loop
async def test_a_question_by_a_call_of_its_own_lies_in_the_agents_trace(
    paths: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    with collector() as heard:
        traced = {"otlp_endpoint": heard.endpoint, "trace_share": 1.0}
        async with running(paths, **traced) as server:
            device = Device(server, tmp_path, heard.endpoint)
            assert (await device.hold_and_ask("count 2")).answer is not None
            await device.close()
        traces = by_trace(heard.spans())
    assert len(traces) == 2  # the held frame's, and the question's
    held, asked = sorted(traces.values(), key=lambda spans: "generate" in spans)
    assert lies_under(held, "decode") == ["engine", "infer", "uplink", "frame"]
    assert held["infer"].attributes["neural_bridge.held"] is True
    assert lies_under(asked, "generate") == ["engine", "infer", "uplink", "frame"]


@on_loop
async def test_ordinary_requests_are_left_out_and_refused_ones_are_sent(
    paths: dict[str, Any],  # noqa: F811
) -> None:
    with collector() as heard:
        traced = {"otlp_endpoint": heard.endpoint, "trace_share": 0.0, "trace_slow_s": 3600.0}
        async with running(paths, **traced) as server:
            edge = await server.edge()
            await edge.say("count 3")
            assert (await edge.say(" ", seed=1)).WhichOneof("event") == "refused"
            assert await server.metric('traces_total{why="refused"}') == 1
        spans = heard.spans()
    assert [one.name for one in spans] == ["infer"]
    assert spans[0].failed and spans[0].attributes["error.type"] == "question"


@pytest.mark.slow
def test_real_processes_tell_one_trace(tmp_path: Path) -> None:
    with collector() as heard:
        flags = ("--otlp-endpoint", heard.endpoint, "--trace-share", "1")
        serve = [
            *("cloud_server", "serve", "--model", str(CLOUD_MODEL), "--bundles", str(BUNDLE)),
            *("--port", "0", "--metrics-port", "0", "--threads", "1", *flags),
        ]
        with Child("cloud-server", serve, tmp_path / "service.log", ENVIRONMENT) as service:
            port = service.ready(400)["port"]
            watch = [
                *("edge_agent", "run", "--server", f"127.0.0.1:{port}"),
                *("--model", str(EDGE_MODEL), "--source", "yard://validation?count=2&questions=2"),
                *("--output", str(tmp_path / "answers"), "--state-dir", str(tmp_path / "state")),
                *flags,
            ]
            with Child("edge-agent", watch, tmp_path / "agent.log", ENVIRONMENT) as agent:
                agent.check(agent.wait(lambda: None, 240))
        whole = [one for one in by_trace(whole_spans(heard)).values() if "generate" in one]
    assert len(whole) == 4
    for spans in whole:
        assert {one.service for one in spans.values()} == SERVICES
        for name in ("decode", "project", "inject", "prefill", "generate"):
            assert lies_under(spans, name) == ["engine", "infer", "uplink", "frame"]
        assert {"edge.prefill", "edge.encode", "queue", "reply"} <= set(spans)
        order = [spans[name].begin_ns for name in ("frame", "infer", "decode", "generate")]
        assert order == sorted(order)


def whole_spans(heard: Collector) -> list[SpanTold]:
    return heard.spans(4 * 12)
