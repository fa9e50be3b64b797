"""Rival of the front end: a bare grpc.aio server that sends the same bytes back.

`python -m benchmarks.serve.echo FILE` replays the recording in FILE: the answer to Negotiate, and
for each message the recorded events of one request, with the message's request id.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.serve.device import Device
from benchmarks.serve.identities import Identities
from protos.calls import SERVICE
from protos.neuralbridge.v1 import bridge_pb2 as pb

_ID = slice(2, 10)  # of an InferRequest and an InferEvent: tag and length, then the id's 8 bytes


@dataclass(frozen=True)
class Recording:
    """What the echo server sends.

    Attributes:
        reply: a serialized NegotiateResponse.
        events: the serialized events of one request.
        options: the gRPC options of the front end.
        directory: the service's directory, for the same TLS.
    """

    reply: bytes
    events: Sequence[bytes]
    options: Sequence[tuple[str, int]]
    directory: Path

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        plain = {
            "reply": self.reply.hex(),
            "events": [event.hex() for event in self.events],
            "options": list(self.options),
            "directory": str(self.directory),
        }
        path.write_text(json.dumps(plain), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Recording:
        """Read what `write` wrote."""
        plain = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            bytes.fromhex(plain["reply"]),
            [bytes.fromhex(event) for event in plain["events"]],
            [(name, value) for name, value in plain["options"]],
            Path(plain["directory"]),
        )

    @classmethod
    async def of(
        cls, device: Device, options: Sequence[tuple[str, int]], directory: Path
    ) -> Recording:
        """Record one request of a connected device."""
        heard: list[pb.InferEvent] = []
        device.overhear = heard.append
        entry = device.prepare(0)
        await device.send(entry)
        await device.settle(20)
        reply = device.reply.SerializeToString()
        return cls(reply, [event.SerializeToString() for event in heard], options, directory)


async def serve(recording: Recording) -> None:
    """Serve until SIGTERM; prints a readiness line like the service's."""
    heads = [event[: _ID.start] for event in recording.events]
    tails = [event[_ID.stop :] for event in recording.events]

    async def negotiate(raw: bytes, context: Any) -> bytes:
        return recording.reply

    async def infer(requests: AsyncIterator[bytes], context: Any) -> None:
        async for raw in requests:
            request_id = raw[_ID]
            for head, tail in zip(heads, tails, strict=True):
                await context.write(head + request_id + tail)

    methods = {
        "Negotiate": grpc.unary_unary_rpc_method_handler(negotiate),
        "Infer": grpc.stream_stream_rpc_method_handler(infer),
    }
    server = grpc.aio.server(options=recording.options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    known = Identities(recording.directory, [], "", "")
    port = server.add_secure_port("127.0.0.1:0", known.server_credentials())
    await server.start()
    print(json.dumps({"event": "ready", "port": port, "metrics_port": 0}), flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(serve(Recording.read(Path(sys.argv[1]))))
