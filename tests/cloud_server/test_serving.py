"""A real server process over loopback, from Negotiate to the answer."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cloud_server import cli
from projector.models.vlm import VLM
from protos import errors
from protos.header import Header
from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files


@pytest.fixture(scope="module")
def model(files: Files) -> VLM:
    return VLM.load(files.model)


def test_many_frames_at_once_give_the_answers_they_give_one_by_one(client: stage.Client) -> None:
    def requests() -> list[pb.InferRequest]:
        return [
            client.frame(seed=s, question=("what ? " * (1 + s % 4)), limit=1 + s % 7)
            for s in range(20, 32)
        ]

    alone = [client.answer(request).text for request in requests()]
    batch = requests()
    events = client.infer(*batch)
    together = {e.request_id: e.answer.text for e in events if e.HasField("answer")}
    assert [together[request.request_id] for request in batch] == alone
    assert len(set(alone)) > 1


def test_a_repeated_request_id_is_answered_once_and_then_from_memory(
    client: stage.Client,
) -> None:
    request = client.frame(seed=40)
    first = client.infer(request, request, request)
    answers = [event.answer for event in first if event.HasField("answer")]
    computed = [answer for answer in answers if not answer.from_memory]
    assert len(computed) == 1
    (again,) = client.infer(request)
    assert again.answer.from_memory and again.answer.text == computed[0].text


def test_a_request_id_used_for_another_question_is_refused_not_answered_with_the_old_one(
    client: stage.Client,
) -> None:
    request = client.frame(seed=41)
    client.answer(request)
    other = client.frame(seed=41, question="how many ?", request_id=request.request_id)
    (event,) = client.infer(other)
    assert event.refused.code == errors.FrameMalformedError.code


def test_health_and_reflection_answer_as_standard_tools_expect(
    client: stage.Client, server: stage.Server
) -> None:
    check = health_pb2_grpc.HealthStub(client.channel).Check
    for service in ("", "neuralbridge.v1.Bridge"):
        reply = check(health_pb2.HealthCheckRequest(service=service), timeout=20)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    listed = reflection_pb2_grpc.ServerReflectionStub(client.channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=20
    )
    names = {service.name for service in next(listed).list_services_response.service}
    assert {"neuralbridge.v1.Bridge", "grpc.health.v1.Health"} <= names
    assert server.get("/healthz") == (200, "ok\n")
    assert server.get("/readyz") == (200, "ready\n")
    assert server.get("/nothing")[0] == 404


def test_metrics_count_what_happened_exactly(client: stage.Client, server: stage.Server) -> None:
    prefix = "neural_bridge_cloud_"
    names = {
        "answers": f'{prefix}answers_total{{bundle="random-edge-a"}}',
        "refusals": f'{prefix}refusals_total{{reason="frame_corrupt"}}',
        "frames": f'{prefix}frames_total{{point="fp8"}}',
        "memory": f"{prefix}answers_from_memory_total",
        "decode": f'{prefix}stage_seconds_count{{stage="decode"}}',
        "first": f"{prefix}first_token_seconds_count",
        "kept": f"{prefix}kept_tokens_sum",
    }
    before = {key: server.metric(name) for key, name in names.items()}
    request = client.frame(seed=50)
    client.infer(request, client.frame(seed=51, constants=bytes(32)))
    client.infer(request)
    grown = {key: server.metric(name) - before[key] for key, name in names.items()}
    assert grown == {
        "answers": 1,
        "refusals": 1,
        "frames": 1,
        "memory": 1,
        "decode": 1,
        "first": 1,
        "kept": 16,
    }
    assert server.metric(f"{prefix}engine_up") == 1
    assert server.metric(f"{prefix}queue_depth") == 0


def _engine_pid(server: stage.Server) -> int:
    lines = [json.loads(line) for line in list(server.log) if line.startswith("{")]
    return int([entry for entry in lines if entry.get("event") == "engine ready"][-1]["pid"])


def test_an_engine_killed_in_mid_stream_fails_its_requests_retryably_and_comes_back(
    client: stage.Client, server: stage.Server
) -> None:
    restarts = server.metric("neural_bridge_cloud_engine_restarts_total")
    frames = [client.frame(seed=s, limit=32, question="what " * 60) for s in range(70, 86)]
    raw = [frame.SerializeToString() for frame in frames]
    engine, pause = _engine_pid(server), threading.Event()
    os.kill(engine, signal.SIGSTOP)  # or it might have answered everything before it is killed
    call = client.channel.stream_stream(
        "/neuralbridge.v1.Bridge/Infer", response_deserializer=pb.InferEvent.FromString
    )(iter(raw), metadata=client.metadata, timeout=60)
    for _ in range(100):
        if server.metric("neural_bridge_cloud_queue_depth") >= len(raw):
            break
        pause.wait(0.1)
    os.kill(engine, signal.SIGKILL)
    events = list(call)
    ended = {e.request_id: e for e in events if e.HasField("answer") or e.HasField("refused")}
    assert set(ended) == {frame.request_id for frame in frames}
    refused = [e.refused for e in ended.values() if e.HasField("refused")]
    assert refused and all(r.retryable and r.code == 502 for r in refused)

    # The same session and the same sealed bytes work again once the engine is back.
    for _ in range(1200):
        if server.get("/readyz")[0] == 200:
            break
        pause.wait(0.1)
    (*_, last) = client.infer(raw[0])
    assert last.HasField("answer")
    assert server.metric("neural_bridge_cloud_engine_restarts_total") == restarts + 1


@pytest.mark.parametrize(
    ("what", "error"),
    [("no_bundle", errors.BundleMissingError), ("no_model", errors.ModelError)],
)
def test_a_server_that_cannot_start_says_why_and_ends_with_that_errors_code(
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    what: str,
    error: type[errors.BridgeError],
) -> None:
    model = tmp_path if what == "no_model" else files.model
    bundle = tmp_path if what == "no_bundle" else files.bundle
    flags = ["--model", str(model), "--bundles", str(bundle), "--port", "0"]
    assert cli.main(["serve", *flags, "--metrics-port", "0"]) == error.exit_code
    written = capsys.readouterr()
    assert written.err.startswith(f"cloud-server: {error.name}: ") and written.out == ""


def test_a_delta_frame_is_taken_after_its_base_and_refused_without_it(
    client: stage.Client, server: stage.Server
) -> None:
    point = client.encoder.point(stage.INT8)
    key = client.encoder.encode(stage.state(1), point)
    delta = client.encoder.encode(stage.state(1), point, base=key.held)
    assert delta.kept.sum() == 1

    def frame(number: int, base: int | None, request_id: bytes | None = None) -> pb.InferRequest:
        coded = key if base is None else delta
        header = Header(
            stage.INT8, number, coded.kept, 0, coded.distortion, base, coded.differences
        )
        return client.sealed(header, coded.payload, request_id=request_id)

    answer = client.answer(frame(1000, None))
    assert client.answer(frame(1001, 1000)).text == answer.text
    lost = frame(1002, 998)
    refused = client.infer(lost)[-1].refused
    assert (refused.code, refused.retryable) == (errors.MissingKeyFrameError.code, True)
    # The agent sends the picture again under the same id, as a key frame with a number of its own.
    assert client.answer(frame(1003, None, lost.request_id)).text == answer.text
    kinds = 'neural_bridge_cloud_frame_kinds_total{kind="%s"}'
    assert server.metric(kinds % "delta") == 2 and server.metric(kinds % "key") >= 2
