"""Crops through the front end: who is asked, what is waited for, what goes out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cloud_server.frontend.crops import judged
from protos.calls import CROP_KEY
from protos.crop import seal_crop
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from tests.cloud_server import stage
from tests.cloud_server.front_end import Edge, Running, running

RISK = 0.8808


@pytest.fixture
def risky(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "config.json").write_text("{}")
    stage.describe(tmp_path, risky=True)
    patient = {"heartbeat_timeout_s": 60.0}  # a busy machine is not what is tested here
    return {"model": tmp_path, "bundles": [tmp_path], "crop_limit": 0.5, "crop_gain": 0.4} | patient


def _open(server: Running, edge: Edge, allowed: str | None = "4096") -> Any:
    more = () if allowed is None else ((CROP_KEY, allowed),)
    stub = bridge_pb2_grpc.BridgeStub(server.channel)
    return stub.Infer(metadata=(*edge.metadata, *more), timeout=60)


async def _read(call: Any, kind: str) -> pb.InferEvent:
    while not (event := await call.read()).HasField(kind):
        assert event.WhichOneof("event") != "answer", event
    found: pb.InferEvent = event
    return found


def _sealed(edge: Edge, id: bytes, file: bytes) -> pb.InferRequest:
    return seal_crop(edge.session.session_constants, id, file)


def test_a_device_that_allows_it_is_asked_and_one_answer_says_crop(risky: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running(risky) as server:
            edge = await server.edge()
            call = _open(server, edge, "900")
            request = edge.frame(question="count 2")
            await call.write(request)
            wanted = await _read(call, "crop_wanted")
            assert wanted.request_id == request.request_id
            assert wanted.crop_wanted == pb.CropWanted(
                left=0, top=0, right=500, bottom=500, max_bytes=900
            )
            await call.write(_sealed(edge, request.request_id, b"file"))
            await call.done_writing()
            last = await call.read()  # the frame's own tokens are kept back
            assert last.answer.text == "4 bytes of [0, 0, 500, 500]"
            assert last.answer.fallback == "crop"
            assert last.answer.risk == pytest.approx(judged(RISK, 0.75, 0.4), abs=1e-3)
            assert await server.metric('crops_total{outcome="used"}') == 1
            # the same request again is answered from memory, with the same answer
            again = _open(server, edge)
            await again.write(request)
            answer = (await _read(again, "answer")).answer
            assert (answer.text, answer.fallback) == (last.answer.text, "crop")
            again.cancel()

    asyncio.run(scene())


@pytest.mark.quick(2)
@pytest.mark.parametrize("how", ["not allowed", "none", "late", "damaged", "not risky"])
def test_otherwise_the_frames_own_answer_goes_out_with_its_risk(
    risky: dict[str, Any], how: str
) -> None:
    async def scene() -> None:
        more = {"crop_limit": 0.95} if how == "not risky" else {"crop_wait_s": 0.2}
        async with running(risky | more) as server:
            edge = await server.edge()
            call = _open(server, edge, None if how == "not allowed" else "4096")
            request = edge.frame(question="count 2")
            await call.write(request)
            if how in ("none", "late", "damaged"):
                await _read(call, "crop_wanted")
            if how == "none":
                await call.write(_sealed(edge, request.request_id, b""))
            elif how == "damaged":
                broken = _sealed(edge, request.request_id, b"file")
                broken.crop.digest = bytes(8)
                await call.write(broken)
            answer = (await _read(call, "answer")).answer
            assert (answer.text, answer.fallback) == ("0 1", "")
            assert answer.risk == pytest.approx(RISK, abs=1e-3)
            call.cancel()

    asyncio.run(scene())


def test_a_crop_that_nobody_asked_for_changes_nothing(risky: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running(risky) as server:
            edge = await server.edge()
            call = _open(server, edge)
            await call.write(_sealed(edge, b"12345678", b"file"))
            request = edge.frame(question="")
            await call.write(request)
            await _read(call, "accepted")
            await call.write(_sealed(edge, request.request_id, b"file"))
            second = edge.frame(seed=1, question="count 1")
            await call.write(second)
            await _read(call, "crop_wanted")
            await call.write(_sealed(edge, second.request_id, b""))
            assert (await _read(call, "answer")).answer.text == "0"
            assert await server.metric('crops_total{outcome="unasked"}') == 2
            call.cancel()

    asyncio.run(scene())


def test_a_broken_stream_is_asked_again_on_the_next_one(risky: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running(risky) as server:
            edge = await server.edge()
            request = edge.frame(question="count 1")
            first, second = _open(server, edge), _open(server, edge)
            await first.write(request)
            await _read(first, "crop_wanted")
            await second.write(request)  # joins the running computation
            await _read(second, "crop_wanted")
            first.cancel()
            await second.write(_sealed(edge, request.request_id, b"file"))
            assert (await _read(second, "answer")).answer.fallback == "crop"
            second.cancel()

    asyncio.run(scene())
