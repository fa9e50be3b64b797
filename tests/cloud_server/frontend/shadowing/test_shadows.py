"""The RPC Shadow through the front end: what is measured, refused, counted, shown and raised."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.errors import (
    FrameCorruptError,
    FrameMalformedError,
    FrameTooLargeError,
    OverloadedError,
    UnknownSceneError,
    UnknownSessionError,
)
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from tests.cloud_server import stage
from tests.cloud_server.front_end import running
from tests.cloud_server.frontend.shadowing.sending import held, parts, send
from tests.fakes.pages import fetch


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "config.json").write_text("{}")
    stage.describe(tmp_path, canary=stage.canary("0", "0", "1", "0", seen="0", question="canary ?"))
    patient = {"heartbeat_timeout_s": 60.0}  # a busy machine is not what is tested here
    return {"model": tmp_path, "bundles": [tmp_path]} | patient


def test_pictures_are_measured_with_the_frames_own_questions(paths: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running(paths, shadow_questions=2) as server:
            edge = await server.edge()
            first, second = await held(edge, "count 1", "count 2")
            assert await send(server, parts(edge, first, b"1")) == 1
            both = parts(edge, first, b"0") + parts(edge, second, b"2", size=1)
            assert await send(server, both) == 2
            assert await server.metric('shadows_total{outcome="measured"}') == 3
            # three frames with the two questions that were asked in the session
            told = [
                await server.metric(f'shadow_answers_total{{bundle="fake",same="{same}"}}')
                for same in ("no", "yes")
            ]
            assert told == [3, 3]
            assert await server.metric('shadow_error_ratio_sum{bundle="fake"}') == pytest.approx(
                1.5
            )
            name = 'shadow_layer_error_ratio{bundle="fake",layer="1"}'
            assert await server.metric(name) == pytest.approx(0.6)
            assert await server.metric('shadow_last_timestamp_seconds{bundle="fake"}') > 1.7e9

    asyncio.run(scene())


def test_frames_without_a_question_are_asked_the_bundles_own(paths: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            (number,) = await held(edge, "")
            assert await send(server, parts(edge, number, b"1")) == 1
            assert await server.metric('shadow_answers_total{bundle="fake",same="no"}') == 1

    asyncio.run(scene())


def _damaged(sent: list[pb.ShadowRequest]) -> list[pb.ShadowRequest]:
    sent[-1].digest = bytes(8)
    return sent


def _unnamed(sent: list[pb.ShadowRequest]) -> list[pb.ShadowRequest]:
    sent[0].session_id = b""
    return sent


def _stranger(sent: list[pb.ShadowRequest]) -> list[pb.ShadowRequest]:
    sent[0].session_id = bytes(16)
    return sent


def _lies(sent: list[pb.ShadowRequest]) -> list[pb.ShadowRequest]:
    sent[1].rest = 5
    return sent


@pytest.mark.quick(3)
@pytest.mark.parametrize(
    ("spoil", "number", "error"),
    [
        (_damaged, 0, FrameCorruptError),
        (_stranger, 0, UnknownSessionError),
        (lambda sent: sent, 77, UnknownSceneError),
        (_unnamed, 0, FrameMalformedError),
        (_lies, 0, FrameMalformedError),
        (lambda sent: sent[:-1], 0, FrameMalformedError),
        (lambda _: [pb.ShadowRequest(session_id=bytes(16))], 0, FrameMalformedError),
        (
            lambda _: [pb.ShadowRequest(session_id=bytes(16), picture=b"x", rest=1 << 31)],
            0,
            FrameTooLargeError,
        ),
    ],
)
def test_bad_pictures_are_refused_with_their_code_and_counted(
    paths: dict[str, Any], spoil: Any, number: int, error: Any
) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            (there,) = await held(edge, "count 1")
            sent = spoil(parts(edge, number or there, b"000", size=1))
            assert await send(server, sent) == -error.code
            assert await server.metric('shadows_total{outcome="refused"}') == 1
            assert await send(server, parts(edge, there, b"0")) == 1

    asyncio.run(scene())


def test_a_picture_that_finds_no_time_is_dropped_and_frees_its_memory(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, shadow_wait_s=0.2, shadow_memory_bytes=300) as server:
            edge = await server.edge()
            (number,) = await held(edge, "count 1")
            assert await send(server, parts(edge, number, b"never")) == -OverloadedError.code
            assert await send(server, parts(edge, number, b"0" * 300)) == -OverloadedError.code
            assert await server.metric('shadows_total{outcome="late"}') == 2
            assert await send(server, parts(edge, number, b"0")) == 1
            name = 'held_memory_bytes{store="shadows",tenant="local"}'
            assert await server.metric(name) == 0

    asyncio.run(scene())


def test_live_requests_are_answered_while_one_waits(paths: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running(paths, shadow_wait_s=60) as server:
            edge = await server.edge()
            (number,) = await held(edge, "count 1")
            sending = asyncio.create_task(send(server, parts(edge, number, b"never")))
            for seed in range(5, 10):
                assert (await edge.say("count 1", seed)).HasField("answer")
            assert not sending.done()
            sending.cancel()

    asyncio.run(scene())


def test_a_service_that_takes_none_says_so(paths: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running(paths, shadow_memory_bytes=0) as server:
            edge = await server.edge()
            (number,) = await held(edge, "count 1")
            call = bridge_pb2_grpc.BridgeStub(server.channel).Shadow(
                iter(parts(edge, number, b"0")), timeout=60
            )
            assert await call.code() == grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(scene())


def test_drift_is_counted_logged_and_shown_and_ends(
    paths: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    async def scene() -> None:
        async with running(paths, log_level="info", shadow_questions=1, api_port=0) as server:

            async def device() -> dict[str, Any]:
                status, text = await asyncio.to_thread(fetch, server.api_port, "/v1/devices")
                assert status == 200
                (one,) = json.loads(text)["data"]
                return dict(one)

            edge = await server.edge()
            (number,) = await held(edge, "count 1")
            assert (shown := await device())["drifting"] is None and shown["fit"] is None
            # calibrated: a quarter of the canary's answers differ, and the margin
            sent = 0
            while not await server.metric('drift_alarms_total{bundle="fake"}'):
                assert await send(server, parts(edge, number, b"1") * 10) == 10
                sent += 10
                assert sent <= 60
            assert (shown := await device())["drifting"] and "calibrated" in shown["fit"]["cause"]
            assert shown["fit"]["differ"]["mean"] == 1.0 and shown["fit"]["layer_errors"] == (
                pytest.approx([0.4, 0.6])
            )
            assert await send(server, parts(edge, number, b"0") * 40) == 40
            assert (await device())["drifting"] is False

    asyncio.run(scene())
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line[:1] == "{"]
    said = [line for line in lines if "map" in line["event"]]
    assert [line["event"] for line in said] == [
        "the map no longer fits what this camera sees",
        "the map fits what this camera sees again",
    ]
    assert said[0]["level"] == "error" and said[0]["limit"] == pytest.approx(0.3)
