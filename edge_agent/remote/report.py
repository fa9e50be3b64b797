"""What this device tells the service: crash reports, pieces of its log, how orders ended."""

from __future__ import annotations

import asyncio
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc

from edge_agent.device.crash import MOST_BYTES as MOST_CRASH_BYTES
from edge_agent.uplink.call_errors import error_of, unless_closed
from protos.neuralbridge.v1 import bridge_pb2, bridge_pb2_grpc

_CALL_S = 60.0
_PIECE_BYTES = 256 << 10
"""Text of one piece of the log; it travels compressed."""
_MOST_SENT_BYTES = 96 << 10


async def send(channel: grpc.aio.Channel, body: bridge_pb2.ReportBody) -> None:
    """Send one report.

    Raises:
        BridgeError: the service did not take it; `retryable` says whether it may later.
    """
    raw = body.SerializeToString()
    request = bridge_pb2.ReportRequest(id=hashlib.sha256(raw).digest(), body=raw)
    try:
        await unless_closed(bridge_pb2_grpc.BridgeStub(channel).Report(request, timeout=_CALL_S))
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


async def crash_of(path: Path) -> bridge_pb2.ReportBody | None:
    """The crash report in a file; None if it cannot be read."""
    try:
        raw = await asyncio.to_thread(path.read_bytes)
        told = json.loads(raw[: MOST_CRASH_BYTES + 1])
        kind, at_s = str(told["kind"]), float(told["at"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    crash = bridge_pb2.Crash(kind=kind[:16], json=zlib.compress(raw, 9))
    return bridge_pb2.ReportBody(at_s=at_s, crash=crash)


def pieces_of(order_id: bytes, lines: Sequence[str]) -> Iterator[bridge_pb2.LogPiece]:
    """Lines of the log as they travel, each piece below the bound of the protocol."""
    left, index = list(lines), 0
    while left:
        count, size = 0, 0
        while count < len(left) and size < _PIECE_BYTES:
            size += len(left[count].encode(errors="replace")) + 1
            count += 1
        while True:
            text = "\n".join(left[:count]).encode(errors="replace")
            packed = zlib.compress(text, 9)
            if len(packed) <= _MOST_SENT_BYTES or count == 1:
                break
            count = (count + 1) // 2
        del left[:count]
        yield bridge_pb2.LogPiece(order_id=order_id, index=index, lines=packed)
        index += 1
