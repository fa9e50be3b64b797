"""A simulated device: one connection, one session, one Infer stream, no model.

Call `connect`, then `send` while the credit allows it, then `close`. Events go into the ledger's
entries. With `tries` above one, a device sends a request again under the same id after a retryable
refusal or a broken stream, as an agent does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable
from typing import Any

import grpc

from benchmarks.serve.ledger import Entry
from benchmarks.serve.pool import Pool
from edge_agent.uplink.call_errors import error_of
from edge_agent.uplink.dial import Dial
from protos.calls import PROTOCOL_VERSION, SERVICE, SESSION_METADATA_KEY, WHOLE_ANSWERS
from protos.errors import BridgeError, UnknownSessionError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.quantize import QUANTIZERS
from protos.requests import seal

MAX_NEW_TOKENS = 8
_CONNECT_S = 20.0
_PAUSE_S = 0.05


class Device:
    """One simulated device.

    Args:
        name: its name, for the ledger and for a service without identities.
        dial: makes its channels.
        pool: the frames that it sends.
        tries: most attempts of one request.
        give_up_s: longest time for which a request is retried.
        priority: priority of its requests.
        whole: whether it asks for answers alone, as the agent does, and not for tokens.

    Attributes:
        limits: the limits that the service announced.
        reply: the service's answer to Negotiate.
        open: requests without a terminal event, by id.
        strangers: events of requests that this device never sent.
        ended: called with each request that has ended.
        overhear: called with each event, if it is set.
    """

    def __init__(
        self,
        name: str,
        dial: Dial,
        pool: Pool,
        *,
        tries: int = 1,
        give_up_s: float = 120.0,
        priority: int = 0,
        whole: bool = False,
    ) -> None:
        self.name, self._dial, self._pool = name, dial, pool
        self._tries, self._give_up_s, self._priority = tries, give_up_s, priority
        self._frames, self._whole = 0, whole
        self._channel: grpc.aio.Channel | None = None
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._again: dict[bytes, asyncio.Task[None]] = {}
        self._writing = asyncio.Lock()
        self._sealed: dict[bytes, bytes] = {}
        self._past: dict[bytes, Entry] = {}
        self._closing, self._broke = False, ""
        self._reading: asyncio.Event | None = None
        self.reply = pb.NegotiateResponse()
        self.limits = pb.Limits()
        self.open: dict[bytes, Entry] = {}
        self.strangers: list[pb.InferEvent] = []
        self.ended: Callable[[Entry], None] = lambda entry: None
        self.overhear: Callable[[pb.InferEvent], None] | None = None

    # ------------------------------------------------------------------ connection

    async def connect(self) -> None:
        """Negotiate if there is no session, and open the stream.

        Raises:
            BridgeError: the service refused, or nobody answered.
        """
        try:
            if self._channel is None:
                self._channel = self._dial()
            if not self.reply.session_id:
                await self._negotiate(self._channel)
            infer = self._channel.stream_stream(
                f"/{SERVICE}/Infer", response_deserializer=pb.InferEvent.FromString
            )
            metadata: tuple[tuple[str, str | bytes], ...] = (
                (SESSION_METADATA_KEY, self.reply.session_id),
            )
            self._call = infer(metadata=(*metadata, WHOLE_ANSWERS) if self._whole else metadata)
            self._reader = asyncio.create_task(self._read(self._call))
        except BridgeError:
            await self._hang_up()
            raise

    def raw_call(self) -> Any:
        """Another Infer call of this session that returns events as raw bytes."""
        if self._channel is None:
            raise RuntimeError(f"{self.name} is not connected")
        infer = self._channel.stream_stream(f"/{SERVICE}/Infer")
        return infer(metadata=((SESSION_METADATA_KEY, self.reply.session_id),))

    async def _negotiate(self, channel: grpc.aio.Channel) -> None:
        layout = self._pool.layout
        request = pb.NegotiateRequest(
            protocol_version=PROTOCOL_VERSION,
            source_layout_json=layout.versions[-1].to_json(),
            source_settings_digest=layout.settings_digest,
            codecs=sorted(QUANTIZERS),
            agent_version="simulated",
            device=self.name,
        )
        try:
            stub = bridge_pb2_grpc.BridgeStub(channel)
            self.reply = await stub.Negotiate(request, timeout=_CONNECT_S)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        self.limits = self.reply.limits

    async def _hang_up(self) -> None:
        channel, self._channel, self._call = self._channel, None, None
        if channel is not None:
            await channel.close()

    async def _connected(self) -> None:
        """Open the stream if there is none; one attempt serves all that wait."""
        if self._call is not None:
            return
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self.reach())
        await asyncio.shield(self._connecting)

    async def reach(self) -> None:
        """Connect, and retry while nobody answers.

        Raises:
            BridgeError: nobody answered for `give_up_s`.
        """
        deadline = time.monotonic() + self._give_up_s
        pause = _PAUSE_S
        while True:
            try:
                await self.connect()
                return
            except BridgeError as error:
                if isinstance(error, UnknownSessionError):
                    self.reply = pb.NegotiateResponse()
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(random.uniform(0, pause))
            pause = min(2 * pause, 1.0)

    # ------------------------------------------------------------------ requests

    def prepare(self, item: int, due: float = 0.0) -> Entry:
        """Make a request, sealed for the current session if there is one."""
        entry = Entry(os.urandom(8), self.name, item, due)
        if self.reply.session_id:
            self.sealed(entry)
        return entry

    def sealed(self, entry: Entry) -> bytes:
        """A request's bytes on the wire in the current session; the same each time."""
        if entry.id not in self._sealed:
            self._sealed[entry.id] = self._seal(entry)
        return self._sealed[entry.id]

    def hold_reading(self, until: asyncio.Event) -> None:
        """Stop reading events until `until` is set."""
        self._reading = until

    def _seal(self, entry: Entry) -> bytes:
        item = self._pool.items[entry.item]
        header, payload = item.packed(self._frames)
        self._frames += 1
        constants = self.reply.session_constants
        sealed = seal(
            constants, entry.id, header, payload, item.question, MAX_NEW_TOKENS, self._priority
        )
        raw: bytes = sealed.SerializeToString()
        return raw

    async def send(self, entry: Entry) -> None:
        """Write a request; its events arrive later.

        Raises:
            BridgeError: no stream could be opened.
        """
        self.open[entry.id] = entry
        async with self._writing:
            await self._connected()
            if self._again.pop(entry.id, None) is not None and entry.ended:
                return  # its answer came meanwhile
            raw = self.sealed(entry)
            entry.sent.append(time.monotonic())
            call = self._call
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(raw)  # if the stream is over, the reader says why

    async def _read(self, call: Any) -> None:
        cause = "the stream ended"
        try:
            async for event in call:
                if self._reading is not None:
                    await self._reading.wait()
                self._take(event)
        except grpc.aio.AioRpcError as error:
            typed = error_of(error)
            cause = self._broke = typed.name
            if isinstance(typed, UnknownSessionError):
                self.reply = pb.NegotiateResponse()
                self._sealed.clear()
        if self._closing or call is not self._call:
            return
        await self._hang_up()
        for entry in list(self.open.values()):
            if entry.sent:
                entry.broken.append(cause)
                self._send_again(entry, cause)

    def _take(self, event: pb.InferEvent) -> None:
        kind = event.WhichOneof("event")
        if self.overhear is not None:
            self.overhear(event)
        if kind == "rate_advice":
            return
        entry = self.open.get(event.request_id)
        if entry is None:
            self._surplus(event)
            return
        now = time.monotonic()
        if kind == "accepted":
            entry.accepted = entry.accepted or now
            if not self._pool.items[entry.item].question:
                self._end(entry, now)
        elif kind == "token":
            entry.first_token = entry.first_token or now
        elif kind == "answer":
            entry.first_token = entry.first_token or now
            entry.answers.append(event.answer.text)
            entry.from_memory += event.answer.from_memory
            entry.timings = event.answer.timings
            self._end(entry, now)
        elif kind == "refused":
            entry.refusals.append(event.refused.name)
            again = event.refused.retryable and len(entry.sent) < self._tries
            if again:
                self._send_again(entry, event.refused.name, event.refused.retry_after_ms / 1e3)
            else:
                entry.cause = event.refused.name
                self._end(entry, now)

    def _end(self, entry: Entry, now: float) -> None:
        entry.ended = now
        self.open.pop(entry.id, None)
        self._sealed.pop(entry.id, None)
        self._past[entry.id] = entry
        self.ended(entry)

    def _surplus(self, event: pb.InferEvent) -> None:
        """Handle an event of a request that has ended or was never sent."""
        entry = self._past.get(event.request_id)
        if entry is None:
            self.strangers.append(event)
            return
        entry.surplus += 1
        if event.HasField("answer"):
            entry.answers.append(event.answer.text)

    def _send_again(self, entry: Entry, cause: str, after_s: float = 0.0) -> None:
        if len(entry.sent) >= self._tries or time.monotonic() - entry.sent[0] > self._give_up_s:
            entry.cause = cause
            self._end(entry, time.monotonic())
            return
        if entry.id not in self._again:  # else it is on its way already
            self._again[entry.id] = asyncio.create_task(self._later(entry, after_s))

    async def _later(self, entry: Entry, after_s: float) -> None:
        pause = min(_PAUSE_S * 2.0 ** min(len(entry.sent), 5), 1.0)
        await asyncio.sleep(after_s + random.uniform(0, pause))
        if entry.ended:
            self._again.pop(entry.id, None)
            return
        try:
            await self.send(entry)
        except BridgeError as error:
            self._again.pop(entry.id, None)
            entry.cause = error.name
            self._end(entry, time.monotonic())

    async def broke(self) -> str:
        """Wait until the stream breaks; returns the error's name."""
        if self._reader is not None:
            await asyncio.wait({self._reader})
        return self._broke

    # ------------------------------------------------------------------ the end

    def forget(self) -> None:
        """Forget requests that have ended; later events of them count as strangers."""
        self._past.clear()

    async def settle(self, timeout_s: float) -> None:
        """Wait until no request is open; requests that are still open then count as lost."""
        deadline = time.monotonic() + timeout_s
        while self.open and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """End the stream and the connection."""
        self._closing = True
        for task in (*self._again.values(), self._connecting, self._reader):
            if task is not None:
                task.cancel()
        await self._hang_up()
