"""A measuring client: frames made beforehand, sent through the service, every event kept.

An agent would never send what a comparison needs (every operating point, every picture codec, two
arms in turn), so this client stands beside it and uses the same front end, stream and engine. The
calls, in order: `Service` (Negotiate, FetchEncoder, one Infer stream, its events on a connection of
their own), then `infer` (frames with questions), or `hold` (frames alone) and `ask` (questions).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from edge_agent.metrics import Metrics
from edge_agent.uplink.call_errors import error_of
from edge_agent.uplink.dial import dial_insecure
from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.negotiate import negotiate
from edge_agent.uplink.session import Session
from edge_agent.uplink.stream import open_events
from protos.calls import EVENTS_APART, SESSION_METADATA_KEY
from protos.distortion import Distortion
from protos.errors import BridgeError, OfflineError, from_code
from protos.header import Header, pack_header
from protos.layout import KVLayout
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.points import PICTURE_POINT
from protos.requests import id_of, seal, seal_ask

_TRIES = 6
_PAUSE_S = 0.2


@dataclass(frozen=True, eq=False)
class Shot:
    """One picture ready to be sent at one operating point.

    Attributes:
        point: index of the operating point.
        payload: what the quantizer made, or a picture's file.
        kept: bool [N]; empty at the picture point.
        distortion: as measured while encoding.
    """

    point: int
    payload: bytes
    kept: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    distortion: Distortion = field(default_factory=Distortion)

    @classmethod
    def of_picture(cls, file: bytes) -> Shot:
        """A picture's file at the picture point."""
        return cls(PICTURE_POINT, file)


@dataclass(frozen=True)
class Reply:
    """How one request ended.

    Attributes:
        text: the answer; empty for a frame without a question.
        frame_number: the number by which `ask` names the scene.
        message_bytes: size of the request's message.
        timings_ms: the server's own timings, by name without unit (`ttft`, `total`, `decode`, …).
    """

    text: str
    frame_number: int
    message_bytes: int
    timings_ms: dict[str, float]


class Service:
    """A session with a server, for measuring. Use as a context manager."""

    def __init__(self, address: str, layout: KVLayout, state_dir: Path) -> None:
        """Does not connect yet; the `with` block does."""
        self._address, self._layout, self._state_dir = address, layout, state_dir
        self._loop = asyncio.new_event_loop()
        self._channel: Any = None
        self._down: Any = None
        self._stream: Any = None
        self._events: Any = None
        self._stub: Any = None
        self._frames = 0
        self.session: Session

    def __enter__(self) -> Service:
        self._loop.run_until_complete(self._open())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _open(self) -> None:
        self._channel = dial_insecure(self._address)()
        self.session = await negotiate(
            self._channel, self._layout, EncoderStore(self._state_dir), Metrics(), timeout_s=60
        )
        self._stub = bridge_pb2_grpc.BridgeStub(self._channel)
        self._down = dial_insecure(self._address)()
        self._events = await open_events(self._down, self.session, timeout_s=60)
        metadata = ((SESSION_METADATA_KEY, self.session.session_id), EVENTS_APART)
        self._stream = self._stub.Infer(metadata=metadata)

    async def _close(self) -> None:
        for call in (self._stream, self._events):
            if call is not None:
                call.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await call.code()
        for channel in (self._channel, self._down):
            if channel is not None:
                await channel.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def infer(
        self,
        shots: Sequence[Shot],
        questions: Sequence[str],
        in_flight: int = 8,
        max_new_tokens: int = 8,
        done: Callable[[], None] | None = None,
    ) -> list[Reply]:
        """Send frames, each with its question (empty: just hold the scene), and wait for all.

        Raises:
            BridgeError: a refusal that is not retryable, or that persists after all retries.
        """
        work = self._infer(shots, questions, in_flight, max_new_tokens, done)
        try:
            return self._loop.run_until_complete(work)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error

    def hold(self, shots: Sequence[Shot], in_flight: int = 8) -> list[Reply]:
        """Send frames without questions; `frame_number` of the replies is what `ask` takes."""
        return self.infer(shots, [""] * len(shots), in_flight)

    def ask(
        self,
        frame_numbers: Sequence[int],
        questions: Sequence[str],
        in_flight: int = 8,
        max_new_tokens: int = 8,
        done: Callable[[], None] | None = None,
    ) -> list[Reply]:
        """Ask about scenes that the cloud holds, one question per frame number.

        Raises:
            BridgeError: as `infer`.
        """

        async def work() -> list[Reply]:
            credit = asyncio.Semaphore(in_flight)
            asks = [
                self._ask(credit, number, question, max_new_tokens, done)
                for number, question in zip(frame_numbers, questions, strict=True)
            ]
            return list(await asyncio.gather(*asks))

        return self._loop.run_until_complete(work())

    async def _infer(
        self,
        shots: Sequence[Shot],
        questions: Sequence[str],
        in_flight: int,
        max_new_tokens: int,
        done: Callable[[], None] | None,
    ) -> list[Reply]:
        credit = max(1, min(in_flight, self.session.limits.max_in_flight))
        waiting = list(range(len(shots)))[::-1]
        tries = [0] * len(shots)
        sent: dict[bytes, tuple[int, pb.InferRequest]] = {}  # by derived request id
        replies: dict[int, Reply] = {}
        while len(replies) < len(shots):
            while waiting and len(sent) < credit:
                row = waiting.pop()
                request = self._seal(shots[row], questions[row], max_new_tokens)
                sent[id_of(request, self.session.constants)] = (row, request)
                await self._stream.write(request)
            event = await self._events.read()
            if event is grpc.aio.EOF:
                raise OfflineError("the server ended the stream while requests were open")
            if event.request_id not in sent:
                continue
            row, request = sent[event.request_id]
            what = event.WhichOneof("event")
            if what == "refused":
                tries[row] += 1
                error = from_code(event.refused.code, event.refused.message)
                if not event.refused.retryable or tries[row] >= _TRIES:
                    raise error
                del sent[event.request_id]
                waiting.append(row)
                await asyncio.sleep(_PAUSE_S * tries[row])
            elif what == "answer" or (what == "accepted" and not questions[row]):
                del sent[event.request_id]
                replies[row] = _reply(event, request.ByteSize())
                if done is not None:
                    done()
        return [replies[row] for row in range(len(shots))]

    def _seal(self, shot: Shot, question: str, max_new_tokens: int) -> pb.InferRequest:
        header = Header(shot.point, self._frames, shot.kept, 0, shot.distortion)
        self._frames += 1
        head, payload = pack_header(header, shot.payload)
        constants = self.session.constants
        return seal(constants, b"", head, payload, question, max_new_tokens)

    async def _ask(
        self,
        credit: asyncio.Semaphore,
        frame_number: int,
        question: str,
        max_new_tokens: int,
        done: Callable[[], None] | None,
    ) -> Reply:
        session = self.session
        failure: BridgeError = OfflineError("nothing was sent")
        async with credit:
            for turn in range(_TRIES):
                request = seal_ask(
                    session.constants,
                    session.session_id,
                    os.urandom(8),
                    frame_number,
                    question,
                    max_new_tokens,
                )
                try:
                    async for event in self._stub.Ask(request):
                        what = event.WhichOneof("event")
                        if what == "answer":
                            if done is not None:
                                done()
                            return _reply(event, request.ByteSize())
                        if what == "refused":
                            failure = from_code(event.refused.code, event.refused.message)
                except grpc.aio.AioRpcError as error:
                    failure = error_of(error)
                if not failure.retryable:
                    break
                await asyncio.sleep(_PAUSE_S * (turn + 1))
        raise failure


def _reply(event: pb.InferEvent, message_bytes: int) -> Reply:
    timings = event.answer.timings
    named = {
        entry.name.removesuffix("_ms"): float(getattr(timings, entry.name))
        for entry in timings.DESCRIPTOR.fields
    }
    return Reply(event.answer.text, event.frame_number, message_bytes, named)
