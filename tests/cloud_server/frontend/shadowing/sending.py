"""A device that shadows frames, for the tests of the front end."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.refusals import ERROR_METADATA_KEY
from protos.shadow import shadow_parts
from tests.cloud_server.front_end import Edge, Running


def parts(edge: Edge, number: int, file: bytes, size: int = 1 << 20) -> list[pb.ShadowRequest]:
    """The messages that bring the picture of a frame."""
    session = edge.session
    return list(shadow_parts(session.session_id, session.session_constants, number, file, size))


async def send(server: Running, messages: Sequence[pb.ShadowRequest]) -> int:
    """Pictures measured; of an error its code, negative."""
    call = bridge_pb2_grpc.BridgeStub(server.channel).Shadow(iter(messages), timeout=60)
    try:
        return int((await call).measured)
    except grpc.aio.AioRpcError as error:
        code = dict(error.trailing_metadata() or ()).get(ERROR_METADATA_KEY)
        assert code is not None, error
        return -int(code)


async def held(edge: Edge, *questions: str) -> list[int]:
    """Frames that the service holds, one a question; their numbers."""
    numbers = []
    for seed, question in enumerate(questions):
        await edge.say(question, seed)
        numbers.append(max(edge._used[edge.session.session_id]))
    return numbers
