"""A stolen session id is worth as much as an invented one, on every call that names a session."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import grpc
import pytest

from benchmarks.serve.identities import TENANTS
from benchmarks.serve.load import fleet
from benchmarks.serve.pool import Pool
from benchmarks.serve.site import Site
from protos.calls import SERVICE, SESSION_METADATA_KEY
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.requests import seal_ask
from tests.faults.arena import Faults, Steady, steady, times

pytestmark = pytest.mark.slow

VICTIM = 20


async def told(call: Any) -> tuple[Any, ...]:
    """How a call ended: status, text and error number, or what it brought."""
    try:
        brought = [event async for event in call] if hasattr(call, "__aiter__") else [await call]
    except grpc.aio.AioRpcError as error:
        trailers = {k: v for k, v in error.trailing_metadata() if k.startswith("nb-")}
        return error.code(), error.details(), tuple(sorted(trailers.items()))
    return tuple(event.SerializeToString() for event in brought)


def test_a_stolen_session_is_worth_as_much_as_an_invented_one(
    place: Site, pool: Pool, calm: list[str], faults: Faults
) -> None:
    """Of another tenant's device, and of the same tenant's; on every call that names a session."""
    rounds = times(2, 25)
    wrong: list[str] = []

    async def steal(load: Steady) -> int:
        tried = 0
        thieves = [VICTIM + len(TENANTS), VICTIM + 1]  # the victim's tenant, and another
        async with fleet(1, place.dial, pool, first=VICTIM) as (victim,):
            entry = victim.prepare(0)
            await victim.send(entry)
            await victim.settle(60)
            assert entry.answered
            stolen = victim.reply
            for thief in thieves:
                channel = place.dial(thief)()
                for _ in range(rounds):
                    for what in CALLS:
                        real = await told(what(channel, stolen.session_id, stolen, entry.id))
                        none = await told(what(channel, os.urandom(16), stolen, entry.id))
                        tried += 1
                        if real != none:
                            wrong.append(f"{what.__name__}: {real} against {none}")
                await channel.close()
            await victim.send(again := victim.prepare(1))
            await victim.settle(60)
            assert again.answered, "the theft ended the victim's session"
        return tried

    async def scenario() -> tuple[Steady, int]:
        async with steady(place.dial, pool) as load:
            return load, await steal(load)

    load, injected = asyncio.run(scenario())
    assert not wrong, wrong[:3]
    faults.judged("stolen sessions", injected, load.entries, calm, load.strangers + len(wrong))


def infer(channel: Any, session: bytes, reply: pb.NegotiateResponse, request_id: bytes) -> Any:
    call = channel.stream_stream(
        f"/{SERVICE}/Infer", response_deserializer=pb.InferEvent.FromString
    )
    return call(_nothing(), metadata=((SESSION_METADATA_KEY, session),), timeout=60)


async def _nothing() -> Any:
    return
    yield


def events(channel: Any, session: bytes, reply: pb.NegotiateResponse, request_id: bytes) -> Any:
    stub = bridge_pb2_grpc.BridgeStub(channel)
    return stub.Events(pb.EventsRequest(session_id=session), timeout=60)


def ask(channel: Any, session: bytes, reply: pb.NegotiateResponse, request_id: bytes) -> Any:
    sealed = seal_ask(reply.session_constants, session, request_id, 0, "is there a fire ?", 4)
    return bridge_pb2_grpc.BridgeStub(channel).Ask(sealed, timeout=60)


def fetch(channel: Any, session: bytes, reply: pb.NegotiateResponse, request_id: bytes) -> Any:
    asked = pb.FetchEncoderRequest(session_id=session, encoder_digest=reply.encoder_digest)
    return bridge_pb2_grpc.BridgeStub(channel).FetchEncoder(asked, timeout=60)


def feedback(channel: Any, session: bytes, reply: pb.NegotiateResponse, request_id: bytes) -> Any:
    sealed = seal_ask(reply.session_constants, session, request_id, 0, "", 0)
    asked = pb.FeedbackRequest(
        session_id=session, frame_number=0, request_id=request_id, digest=sealed.digest
    )
    return bridge_pb2_grpc.BridgeStub(channel).Feedback(asked, timeout=60)


CALLS = (infer, events, ask, fetch, feedback)
