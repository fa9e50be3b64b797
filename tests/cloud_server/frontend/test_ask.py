"""Another question about a scene that is held."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import grpc
import pytest

from protos.digest import frame_digest
from protos.errors import UnknownSessionError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.refusals import error_in
from protos.requests import seal_ask
from tests.cloud_server import stage
from tests.cloud_server.front_end import let_go_of, running


def test_a_held_scene_is_asked_about_and_gives_the_answer_of_asking_at_once(
    client: stage.Client,
) -> None:
    (event,) = client.infer(client.frame(seed=11, question=""))
    assert event.HasField("accepted")
    asked = client.ask(11, stage.QUESTION)[-1].answer
    at_once = client.answer(client.frame(seed=11, number=12))
    assert asked.text == at_once.text
    assert asked.distortion == at_once.distortion
    assert asked.timings.ttft_ms > 0


def test_asking_about_a_scene_that_is_not_held_fails_with_304(client: stage.Client) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        client.ask(4711, stage.QUESTION)
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
            other.ask(11, stage.QUESTION)
        assert dict(failure.value.trailing_metadata())["nb-error-code"] == "304"


def test_an_ask_with_a_blank_question_fails_with_its_code(client: stage.Client) -> None:
    client.infer(client.frame(seed=5, question=""))
    request = pb.AskRequest(
        session_id=client.session.session_id,
        frame_number=5,
        request_id=client.request_id(),
        question="  ",
        digest=b"12345678",
    )
    with pytest.raises(grpc.RpcError) as failure:
        list(client.stub.Ask(request, timeout=20))
    assert dict(failure.value.trailing_metadata())["nb-error-code"] == "401"
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_an_ask_whose_question_was_changed_on_the_way_is_refused(client: stage.Client) -> None:
    client.infer(client.frame(seed=5, question=""))
    digest = frame_digest(
        client.session.session_constants, b"12345678", struct.pack("<I", 5), b"", "what ?", 4
    )
    request = pb.AskRequest(
        session_id=client.session.session_id,
        frame_number=5,
        request_id=b"12345678",
        question="where ?",
        max_new_tokens=4,
        digest=digest,
    )
    with pytest.raises(grpc.RpcError) as failure:
        list(client.stub.Ask(request, timeout=20))
    assert dict(failure.value.trailing_metadata())["nb-error-code"] == "202"


def test_an_ask_whose_deadline_passes_frees_its_place(paths: dict[str, Any]) -> None:
    async def work() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            assert (await edge.say("", seed=1)).HasField("accepted")
            session = edge.session
            ask = seal_ask(session.session_constants, session.session_id, bytes(8), 1, "hold", 6)
            call = bridge_pb2_grpc.BridgeStub(server.channel).Ask(ask, timeout=0.5)
            with pytest.raises(grpc.aio.AioRpcError):
                while True:
                    await call.read()

            async def free() -> bool:
                return await server.metric("queue_depth") == 0

            await server.until(free)
            assert await let_go_of(server) == 1

    asyncio.run(work())


def test_after_a_restart_a_held_scene_is_unknown_and_the_caller_is_told_at_once(
    paths: dict[str, Any],
) -> None:
    async def work() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            assert (await edge.say("", seed=1)).HasField("accepted")
            session = edge.session
        async with running(paths) as server:
            ask = seal_ask(session.session_constants, session.session_id, bytes(8), 1, "what ?", 6)
            call = bridge_pb2_grpc.BridgeStub(server.channel).Ask(ask, timeout=60)
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await call.read()
            error = error_in(failure.value.trailing_metadata(), "")
            assert isinstance(error, UnknownSessionError)

    asyncio.run(work())
