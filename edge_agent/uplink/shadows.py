"""Shadows: of a share of frames the picture goes too, where this device's owner allows it.

In order: `hold` (a frame is sealed, and chance chooses it) → `ended` (the service holds the frame)
→ `run` sends the picture in small parts while no frame is on its way. Masks are painted over before
a picture comes here. Each picture is sent once: one that is lost is counted, the next one will do.

Chance is a hash of the request's id under a key that nobody else knows, so that what a camera shows
cannot choose its own pictures.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from PIL import Image

from edge_agent.metrics import Metrics
from edge_agent.picture import PICTURE, PictureCodec
from edge_agent.uplink.call_errors import error_of, unhidden, unless_closed
from edge_agent.uplink.day_bytes import DayBytes
from edge_agent.uplink.outcome import Outcome
from edge_agent.uplink.session import Session
from edge_agent.uplink.stream import Stream
from protos.errors import BridgeError, OfflineError
from protos.neuralbridge.v1 import bridge_pb2, bridge_pb2_grpc
from protos.process.logs import Logger
from protos.shadow import shadow_parts

_PART_BYTES = 1024
_RATE = 32 * 1024
"""Bytes a second of a link whose rate is not known yet."""
_SHARE = 0.5
"""Largest share of the link's rate, beside frames."""
_LOOK_S = 0.02
_PATIENCE_S = 300.0
"""How long a picture waits for gaps between frames, all in all."""
_MEASURE_S = 180.0
_MOST_WAITING = 16
_MOST_RAW = 4
"""Pictures that are being encoded at once; more are dropped."""
_UNSERVED_S = 3600.0
"""How long none is sent to a service that takes none."""


@dataclass(frozen=True)
class _Shadow:
    """The picture of a frame that the service holds."""

    session: Session
    frame_number: int
    file: asyncio.Task[bytes]


class Shadows:
    """Holds the pictures of some frames, and sends them.

    Args:
        share: of frames, 0..1.
        codec: how a picture becomes a file.
        budget: bytes that may be spent.
        memory_bytes: bound for the files held; the oldest go first.
        metrics: what is counted.
        log: structured logger.
        clock: seconds, monotonic.
        sleep: waits that many seconds.
        key: of the hash that chooses frames, a secret.

    Attributes:
        busy: whether frames are on their way; they go first.
        stream: the stream that is open; None without one.
        bytes_per_s: the link's rate.
        bytes: of the files held.
    """

    def __init__(
        self,
        share: float,
        codec: PictureCodec,
        budget: DayBytes,
        memory_bytes: int,
        metrics: Metrics,
        log: Logger,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        key: bytes = b"",
    ) -> None:
        self._share, self._codec, self._budget = share, codec, budget
        self._memory_bytes, self._metrics, self._log = memory_bytes, metrics, log
        self._clock, self._sleep = clock, sleep
        self._key = key or secrets.token_bytes(32)
        self._held: OrderedDict[bytes, asyncio.Task[bytes]] = OrderedDict()
        self._waiting: deque[_Shadow] = deque()
        self._raw = 0
        self._news = asyncio.Event()
        self._not_before = float("-inf")
        self.busy: Callable[[], bool] = lambda: False
        self.stream: Callable[[], Stream | None] = lambda: None
        self.bytes_per_s: Callable[[], float] = lambda: float("inf")
        self.bytes = 0

    def chosen(self, request_id: bytes) -> bool:
        """Whether chance has chosen the frame of that request."""
        drawn = hashlib.blake2b(request_id, key=self._key, digest_size=8).digest()
        return int.from_bytes(drawn, "big") < self._share * 2**64

    def hold(self, request_id: bytes, picture: Image.Image) -> None:
        """Hold the picture of a request until it ends, if chance has chosen it.

        Args:
            request_id: of a request with a frame of the picture.
            picture: as the small model sees it, masks painted over.
        """
        if request_id in self._held or not self.chosen(request_id):
            return
        if self._raw >= _MOST_RAW:
            self._count("memory")
            return
        self._raw += 1
        encoding = asyncio.create_task(asyncio.to_thread(self._codec.encode, picture))
        self._held[request_id] = encoding
        encoding.add_done_callback(self._encoded)

    def ended(self, outcome: Outcome) -> None:
        """A request has ended for good: its picture follows if the service holds its frame."""
        file = self._held.pop(outcome.request_id, None)
        sealed, session = outcome.sealed, outcome.session
        held = outcome.error is None and sealed is not None and session is not None
        if not held or sealed is None or session is None or sealed.frame.point.kind == PICTURE:
            self._let_go(file)
            return
        if file is None:
            if self.chosen(outcome.request_id):
                self._count("memory")  # or it was taken before the agent started again
            return
        if len(self._waiting) >= _MOST_WAITING:
            self._let_go(self._waiting.popleft().file)
            self._count("busy")
        self._waiting.append(_Shadow(session, sealed.frame_number, file))
        self._news.set()

    async def run(self) -> None:
        """Send pictures for ever, one at a time."""
        while True:
            await self._news.wait()
            while self._waiting:
                shadow = self._waiting.popleft()
                how = "failed"
                try:
                    how = await self._send(shadow)
                except BridgeError as error:  # the connection was closed here
                    how = "offline"
                    self._log.info("shadow_not_sent", cause=str(error))
                except (OSError, ValueError) as error:  # it cannot be encoded
                    self._log.warning("shadow_not_sent", cause=repr(error))
                finally:
                    self._let_go(shadow.file)
                    self._count(how)
            self._news.clear()

    async def _send(self, shadow: _Shadow) -> str:
        """Send one picture; returns what came of it, for the metric."""
        if self._clock() < self._not_before:
            return "unserved"
        file, session = await shadow.file, shadow.session
        if len(file) > session.limits.max_picture_bytes:
            return "too_large"
        until = self._clock() + _PATIENCE_S
        if not await self._gap(until):
            return "busy"
        stream = self.stream()
        if stream is None or stream.broken is not None or stream.session is not session:
            return "offline"
        if not await asyncio.to_thread(self._budget.take, len(file)):
            return "over_budget"
        parts = shadow_parts(
            session.session_id, session.constants, shadow.frame_number, file, _PART_BYTES
        )
        stub: Any = bridge_pb2_grpc.BridgeStub(stream.channel)
        call = stub.Shadow(timeout=_PATIENCE_S + _MEASURE_S)
        try:
            if not await self._parts(call, parts, until):
                return "busy"
            await unless_closed(call.done_writing())
            answer = await unless_closed(call)
        except grpc.aio.AioRpcError as error:
            return self._refused(await unhidden(call, error))
        except (grpc.RpcError, asyncio.InvalidStateError):
            ended = grpc.aio.AioRpcError(
                await call.code(),
                grpc.aio.Metadata(),
                await call.trailing_metadata(),
                await call.details(),
            )
            return self._refused(await unhidden(call, ended))
        finally:
            call.cancel()
        self._metrics.shadow_bytes.inc(len(file))
        return "measured" if answer.measured else "failed"

    async def _parts(
        self, call: Any, parts: Iterator[bridge_pb2.ShadowRequest], until: float
    ) -> bool:
        """Send the parts of a picture between frames; returns whether all of them left in time."""
        for part in parts:
            if not await self._gap(until):
                return False
            size = part.ByteSize()
            await unless_closed(call.write(part))
            self._metrics.sent_bytes.inc(size)
            rate = self.bytes_per_s()
            await self._sleep(size / (_SHARE * (rate if rate < float("inf") else _RATE)))
        return True

    async def _gap(self, until: float) -> bool:
        """Wait until no frame is on its way; returns whether that came in time."""
        while self.busy():
            if self._clock() >= until:
                return False
            await self._sleep(_LOOK_S)
        return True

    def _refused(self, error: grpc.aio.AioRpcError) -> str:
        if error.code() == grpc.StatusCode.UNIMPLEMENTED:
            self._not_before = self._clock() + _UNSERVED_S
            self._log.info("shadows_not_taken", cause=str(error.details()))
            return "unserved"
        typed = error_of(error)
        if isinstance(typed, OfflineError):
            return "offline"
        self._log.info("shadow_refused", error=typed.name, cause=str(typed))
        return "refused"

    def _encoded(self, task: asyncio.Task[bytes]) -> None:
        self._raw -= 1
        if task.cancelled() or task.exception() is not None:
            return  # whoever waits for it learns why
        self.bytes += len(task.result())
        while self.bytes > self._memory_bytes and self._held:
            self._let_go(self._held.popitem(last=False)[1])

    def _let_go(self, file: asyncio.Task[bytes] | None) -> None:
        """Forget a file; one that is still being encoded is forgotten when it is."""
        if file is None:
            return
        if not file.done():
            file.add_done_callback(self._let_go)
        elif not file.cancelled() and file.exception() is None:
            self.bytes -= len(file.result())

    def _count(self, outcome: str) -> None:
        self._metrics.shadows.labels(outcome).inc()
