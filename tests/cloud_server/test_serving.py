"""A real server process over loopback, from Negotiate to the answer."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from PIL import Image

from cloud_server import cli
from projector.models.vlm import VLM
from protos import errors
from protos.calls import PROTOCOL_VERSION
from protos.digest import session_constants
from protos.header import Header
from protos.limits import Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.points import RAW_KV_FP8_POINT, points_from_json
from protos.requests import seal_ask
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files


@pytest.fixture(scope="module")
def model(files: Files) -> VLM:
    return VLM.load(files.model)


def _get(server: stage.Server, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{server.metrics_port}{path}", timeout=10
        ) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _metric(server: stage.Server, name: str) -> float:
    found = re.findall(rf"^{re.escape(name)} (\S+)$", _get(server, "/metrics")[1], re.M)
    return float(found[0]) if found else 0.0


def _ask(client: stage.Client, number: int, question: str, limit: int = 6) -> list[pb.InferEvent]:
    request = seal_ask(
        client.session.session_constants,
        client.session.session_id,
        client.request_id(),
        number,
        question,
        limit,
    )
    return list(client.stub.Ask(request, timeout=30))


def test_negotiate_names_the_bundle_limits_points_and_the_key_of_every_digest(
    client: stage.Client,
) -> None:
    session = client.session
    assert len(session.session_id) == 16
    assert session.session_constants == session_constants(
        session.session_id, stage.SOURCE.fingerprint, session.bundle_digest
    )
    assert (session.bundle_id, session.bundle_version) == ("random-edge-a", "1")
    assert Limits.from_proto(session.limits) == Limits()
    points = {point.name for point in points_from_json(session.operating_points_json)}
    assert points == {"fp8", "int8", "none", "uniform", "raw_kv_fp8", "picture"}
    assert session.default_point == "fp8" and list(session.ladder) == ["uniform", "fp8"]


def test_two_edge_models_are_served_side_by_side_each_with_its_own_bundle(
    server: stage.Server,
) -> None:
    with server.channel() as channel:
        one, two = stage.Client(channel), stage.Client(channel, stage.OTHER_SOURCE)
        assert one.negotiate().bundle_id == "random-edge-a"
        assert two.negotiate().bundle_id == "random-edge-b"
        assert one.answer(one.frame(seed=1)).tokens and two.answer(two.frame(seed=1)).tokens


def test_an_edge_with_few_codecs_is_offered_only_what_it_can_encode(server: stage.Server) -> None:
    with server.channel() as channel:
        session = stage.Client(channel, codecs=("int8",)).negotiate()
        names = {point.name for point in points_from_json(session.operating_points_json)}
        assert names == {"int8", "picture"} and session.default_point == "int8"


def test_the_fetched_encoder_is_the_one_that_was_named(client: stage.Client) -> None:
    request = pb.FetchEncoderRequest(
        session_id=client.session.session_id, encoder_digest=client.session.encoder_digest
    )
    chunks = list(client.stub.FetchEncoder(request, timeout=20))
    blob = b"".join(chunk.data for chunk in chunks)
    assert hashlib.sha256(blob).hexdigest() == client.session.encoder_digest
    assert {chunk.total_bytes for chunk in chunks} == {len(blob)}
    request.encoder_digest = "0" * 64
    with pytest.raises(grpc.RpcError) as failure:
        list(client.stub.FetchEncoder(request, timeout=20))
    assert dict(failure.value.trailing_metadata())["nb-error-code"] == "203"


@pytest.mark.parametrize(
    "point",
    [stage.FP8, stage.INT8, stage.NONE, stage.UNIFORM, RAW_KV_FP8_POINT],
)
def test_a_frame_at_every_operating_point_is_accepted_then_answered_token_by_token(
    client: stage.Client, point: int
) -> None:
    request = client.frame(seed=1, point=point)
    events = client.infer(request)
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["accepted", *["token"] * (len(kinds) - 2), "answer"]
    answer = events[-1].answer
    tokens = [event.token for event in events if event.HasField("token")]
    assert [token.index for token in tokens] == list(range(answer.tokens))
    assert "".join(token.text for token in tokens).strip() == answer.text
    assert {event.request_id for event in events} == {request.request_id}
    assert {event.frame_number for event in events} == {1}


def test_an_answer_carries_the_frames_distortion_and_where_the_time_went(
    client: stage.Client,
) -> None:
    encoded = client.encoder.encode(stage.state(1), client.encoder.point(stage.FP8))
    answer = client.answer(client.frame(seed=1))
    # To half a step of the scale on which the figures travel.
    assert answer.distortion.quantize == pytest.approx(encoded.distortion.quantize, rel=0.0184)
    assert answer.distortion.unfamiliarity == pytest.approx(
        encoded.distortion.unfamiliarity, rel=0.0184
    )
    timings = answer.timings
    parts = (timings.decode_ms, timings.project_ms, timings.inject_ms, timings.prefill_ms)
    assert all(part > 0 for part in parts)
    assert sum(parts) < timings.ttft_ms < timings.total_ms
    assert not answer.from_memory and not answer.fallback


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_picture_point_gives_the_answer_of_the_model_that_sees_the_picture(
    client: stage.Client, model: VLM, kind: str
) -> None:
    answers = set()
    for seed in range(3):
        file = stage.picture_file(seed, kind)
        answer = client.answer(client.picture(file, number=90 + seed))
        seen = Image.open(io.BytesIO(file))
        ids = model.answer_pictures([seen], [model.question_ids(stage.QUESTION)], 6)[0]
        assert answer.text == model.text(ids)
        answers.add(answer.text)
    assert len(answers) > 1


def test_an_answer_says_why_the_picture_came_in_the_frames_place(
    server: stage.Server, client: stage.Client
) -> None:
    count = 'neural_bridge_cloud_fallbacks_total{cause="unfamiliar"}'
    before = _metric(server, count)
    frame = client.picture(stage.picture_file(5), number=97, cause="unfamiliar")
    assert client.answer(frame).fallback == "unfamiliar"
    assert _metric(server, count) == before + 1
    again = client.answer(frame)
    assert again.from_memory and again.fallback == "unfamiliar"
    assert _ask(client, 97, stage.QUESTION)[-1].answer.fallback == "unfamiliar"
    assert client.answer(client.picture(stage.picture_file(5), number=98)).fallback == ""


def test_an_answer_to_a_picture_that_shows_nothing_carries_a_warning(
    server: stage.Server, client: stage.Client
) -> None:
    count = 'neural_bridge_cloud_warnings_total{cause="degenerate"}'
    before = _metric(server, count) if count in _get(server, "/metrics")[1] else 0
    for number, size in enumerate([(48, 48), (1, 1), (2, 300)], start=110):
        file = io.BytesIO()
        Image.new("RGBA", size, (200, 30, 40, 0)).save(file, "PNG")
        frame = client.picture(file.getvalue(), number=number, cause="degenerate" * (number > 110))
        answer = client.answer(frame)
        assert list(answer.warnings) == ["degenerate"]
        assert answer.fallback == "degenerate" * (number > 110)
        assert list(client.answer(frame).warnings) == ["degenerate"], "from memory too"
        assert list(_ask(client, number, stage.QUESTION)[-1].answer.warnings) == ["degenerate"]
        assert _metric(server, count) == before + number - 109, "once a picture"
    assert not client.answer(client.picture(stage.picture_file(5), number=120)).warnings
    assert not client.answer(client.frame(seed=121)).warnings


def test_a_picture_is_turned_upright_by_the_service(client: stage.Client) -> None:
    upright = Image.open(io.BytesIO(stage.picture_file(7))).crop((0, 0, 48, 30))
    exif = Image.Exif()
    exif[0x0112] = 3
    answers = []
    for number, (picture, how) in enumerate(
        [(upright, {}), (upright.rotate(180), {"exif": exif}), (upright.rotate(180), {})], start=130
    ):
        file = io.BytesIO()
        picture.save(file, "PNG", **how)
        sent = client.picture(file.getvalue(), number=number, question="")
        client.infer(sent)
        answers.append(
            [_ask(client, number, f"what is {place} ?")[-1].answer.text for place in range(6)]
        )
    assert answers[0] == answers[1] != answers[2]


def test_a_held_scene_is_asked_about_and_gives_the_answer_of_asking_at_once(
    client: stage.Client,
) -> None:
    (event,) = client.infer(client.frame(seed=11, question=""))
    assert event.HasField("accepted")
    asked = _ask(client, 11, stage.QUESTION)[-1].answer
    at_once = client.answer(client.frame(seed=11, number=12))
    assert asked.text == at_once.text
    assert asked.distortion == at_once.distortion
    assert asked.timings.ttft_ms > 0


def test_asking_about_a_scene_that_is_not_held_fails_with_304(client: stage.Client) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        _ask(client, 4711, stage.QUESTION)
    assert failure.value.code() == grpc.StatusCode.NOT_FOUND
    assert dict(failure.value.trailing_metadata())["nb-error-code"] == "304"


def test_one_sessions_scene_cannot_be_asked_about_from_another(
    client: stage.Client, server: stage.Server
) -> None:
    client.infer(client.frame(seed=11, question=""))
    with server.channel() as channel:
        other = stage.Client(channel)
        other.negotiate()
        with pytest.raises(grpc.RpcError) as failure:
            _ask(other, 11, stage.QUESTION)
        assert dict(failure.value.trailing_metadata())["nb-error-code"] == "304"


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


def test_shadow_says_why_it_is_not_served(client: stage.Client) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        client.stub.Shadow(iter([pb.ShadowRequest()]), timeout=20)
    assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "picture" in str(failure.value.details())


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
    assert _get(server, "/healthz") == (200, "ok\n")
    assert _get(server, "/readyz") == (200, "ready\n")
    assert _get(server, "/nothing")[0] == 404


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
    before = {key: _metric(server, name) for key, name in names.items()}
    request = client.frame(seed=50)
    client.infer(request, client.frame(seed=51, constants=bytes(32)))
    client.infer(request)
    grown = {key: _metric(server, name) - before[key] for key, name in names.items()}
    assert grown == {
        "answers": 1,
        "refusals": 1,
        "frames": 1,
        "memory": 1,
        "decode": 1,
        "first": 1,
        "kept": 16,
    }
    assert _metric(server, f"{prefix}engine_up") == 1
    assert _metric(server, f"{prefix}queue_depth") == 0


def test_the_same_request_id_is_in_the_answer_and_in_the_log(
    client: stage.Client, server: stage.Server
) -> None:
    request = client.frame(seed=60, request_id=b"\xab\xcd" * 5)
    client.answer(request)
    found: list[dict[str, object]] = []
    deadline = time.monotonic() + 20  # the line may come after the answer
    while not found and time.monotonic() < deadline:
        lines = [json.loads(line) for line in list(server.log) if line.startswith("{")]
        found = [entry for entry in lines if entry.get("request_id") == "abcd" * 5]
        time.sleep(0.05)
    (line,) = found
    assert line["event"] == "answered" and line["session"] == client.session.session_id.hex()


def _engine_pid(server: stage.Server) -> int:
    lines = [json.loads(line) for line in list(server.log) if line.startswith("{")]
    return int([entry for entry in lines if entry.get("event") == "engine ready"][-1]["pid"])


def test_an_engine_killed_in_mid_stream_fails_its_requests_retryably_and_comes_back(
    client: stage.Client, server: stage.Server
) -> None:
    restarts = _metric(server, "neural_bridge_cloud_engine_restarts_total")
    frames = [client.frame(seed=s, limit=32, question="what " * 60) for s in range(70, 86)]
    raw = [frame.SerializeToString() for frame in frames]
    engine, pause = _engine_pid(server), threading.Event()
    os.kill(engine, signal.SIGSTOP)  # or it might have answered everything before it is killed
    call = client.channel.stream_stream(
        "/neuralbridge.v1.Bridge/Infer", response_deserializer=pb.InferEvent.FromString
    )(iter(raw), metadata=client.metadata, timeout=60)
    for _ in range(100):
        if _metric(server, "neural_bridge_cloud_queue_depth") >= len(raw):
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
        if _get(server, "/readyz")[0] == 200:
            break
        pause.wait(0.1)
    (*_, last) = client.infer(raw[0])
    assert last.HasField("answer")
    assert _metric(server, "neural_bridge_cloud_engine_restarts_total") == restarts + 1


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
    assert _metric(server, kinds % "delta") == 2 and _metric(server, kinds % "key") >= 2


def test_a_bundle_whose_map_is_not_known_to_be_any_good_is_warned_of(server: stage.Server) -> None:
    """In the log, in the metrics, and to the device that negotiates it."""
    doubts = {}
    for layout in (stage.SOURCE, stage.OTHER_SOURCE):
        with server.channel() as channel:
            reply = bridge_pb2_grpc.BridgeStub(channel).Negotiate(
                pb.NegotiateRequest(
                    protocol_version=PROTOCOL_VERSION,
                    source_layout_json=layout.to_json(),
                    codecs=["fp8_e4m3"],
                ),
                timeout=60,
            )
        doubts[reply.bundle_id] = reply.bundle_doubt
    told = [json.loads(line) for line in server.log if "bundle in doubt" in line]
    assert {row["bundle"]: row["doubt"] for row in told} == doubts
    assert all(row["level"] == "warning" for row in told)
    unknown, worse = (doubts[f"random-{of.model_id}"] for of in (stage.SOURCE, stage.OTHER_SOURCE))
    assert unknown.startswith("not known: there are no figures of answers")
    assert worse == (
        "no better than its controls: right in 31.1%, beside blind 31.0%, mean state 30.0%, other "
        "picture 29.0%"
    )
    url = f"http://127.0.0.1:{server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=30) as page:
        metrics = page.read().decode()
    for id, verdict in zip(doubts, ("not known", "no better than its controls"), strict=True):
        line = f'neural_bridge_cloud_bundle_doubtful{{bundle="{id}",verdict="{verdict}"}} 1.0'
        assert line in metrics
