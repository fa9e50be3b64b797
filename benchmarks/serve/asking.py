"""Two ways to ask about a held scene: gRPC's Ask, and the OpenAI-compatible HTTP API.

Both clients do as little as possible, so that the comparison shows the service.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc

from benchmarks.serve.site import Site
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.requests import seal_ask
from reference.demo.halves import CLOUD_MODEL

Complete = Callable[[str, int], Awaitable[str]]
"""Asks a question; the number bounds the answer's tokens."""


class Asker:
    """Asks by gRPC about the first frame of a session.

    Args:
        channel: a connection of the device.
        session: the service's answer to Negotiate.
        max_new_tokens: longest answer.
    """

    def __init__(
        self, channel: grpc.aio.Channel, session: pb.NegotiateResponse, max_new_tokens: int
    ) -> None:
        self._channel, self._session, self._most = channel, session, max_new_tokens
        self._stub = bridge_pb2_grpc.BridgeStub(channel)

    async def ask(self, question: str) -> str:
        """The answer.

        Raises:
            RuntimeError: it was refused.
        """
        session = self._session
        request = seal_ask(
            session.session_constants, session.session_id, os.urandom(8), 0, question, self._most
        )
        async for event in self._stub.Ask(request):
            if event.HasField("answer"):
                text: str = event.answer.text
                return text
            if event.HasField("refused"):
                raise RuntimeError(f"Ask was refused: {event.refused.message}")
        raise RuntimeError("Ask ended without an answer")

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


@asynccontextmanager
async def completions(place: Site, device: str) -> AsyncIterator[Complete]:
    """One connection to `/v1/chat/completions`, about a device's latest scene."""
    roots = place.identities.authority.trusted_pem.decode()
    context = ssl.create_default_context(cadata=roots)
    reader, writer = await asyncio.open_connection("127.0.0.1", place.api_port, ssl=context)

    async def complete(question: str, max_tokens: int) -> str:
        content = [
            {"type": "scene", "device": device, "at": "latest"},
            {"type": "text", "text": question},
        ]
        body = json.dumps(
            {
                "model": CLOUD_MODEL.name,
                "messages": [{"role": "user", "content": content}],
                "max_tokens": max_tokens,
            }
        ).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {place.identities.application}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answered = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(answered.partition("content-length:")[2].partition("\r\n")[0])
        told = json.loads(await reader.readexactly(length))
        if " 200 " not in answered.partition("\r\n")[0]:
            raise RuntimeError(f"the completion was refused: {told}")
        text: str = told["choices"][0]["message"]["content"]
        return text

    try:
        yield complete
    finally:
        writer.close()
        await writer.wait_closed()
