"""What a client hears of its request: events in order, distortion, times, warnings."""

from __future__ import annotations

import io
import json
import time

import pytest
from PIL import Image

from protos.points import RAW_KV_FP8_POINT
from tests.cloud_server import stage


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


def test_an_answer_says_why_the_picture_came_in_the_frames_place(
    server: stage.Server, client: stage.Client
) -> None:
    count = 'neural_bridge_cloud_fallbacks_total{cause="unfamiliar"}'
    before = server.metric(count)
    frame = client.picture(stage.picture_file(5), number=97, cause="unfamiliar")
    assert client.answer(frame).fallback == "unfamiliar"
    assert server.metric(count) == before + 1
    again = client.answer(frame)
    assert again.from_memory and again.fallback == "unfamiliar"
    assert client.ask(97, stage.QUESTION)[-1].answer.fallback == "unfamiliar"
    assert client.answer(client.picture(stage.picture_file(5), number=98)).fallback == ""


def test_an_answer_to_a_picture_that_shows_nothing_carries_a_warning(
    server: stage.Server, client: stage.Client
) -> None:
    count = 'neural_bridge_cloud_warnings_total{cause="degenerate"}'
    before = server.metric(count) if count in server.get("/metrics")[1] else 0
    for number, size in enumerate([(48, 48), (1, 1), (2, 300)], start=110):
        file = io.BytesIO()
        Image.new("RGBA", size, (200, 30, 40, 0)).save(file, "PNG")
        frame = client.picture(file.getvalue(), number=number, cause="degenerate" * (number > 110))
        answer = client.answer(frame)
        assert list(answer.warnings) == ["degenerate"]
        assert answer.fallback == "degenerate" * (number > 110)
        assert list(client.answer(frame).warnings) == ["degenerate"], "from memory too"
        assert list(client.ask(number, stage.QUESTION)[-1].answer.warnings) == ["degenerate"]
        assert server.metric(count) == before + number - 109, "once a picture"
    assert not client.answer(client.picture(stage.picture_file(5), number=120)).warnings
    assert not client.answer(client.frame(seed=121)).warnings


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
