"""What leaves on a stream: requests that can wait share a message, a parcel.

`Post.send` seals a request and adds it to the group that waits. The group leaves after `linger_s`,
when it is full, or with a request that cannot wait: an alarm, or one that is sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc

from edge_agent.metrics import Metrics
from edge_agent.uplink.point_controller import PointController
from edge_agent.uplink.request import Deliverable, Sealed
from edge_agent.uplink.session import Base
from edge_agent.uplink.stream import Stream
from protos.calls import PRIORITIES
from protos.errors import BridgeError, EngineUnavailableError
from protos.neuralbridge.v1 import bridge_pb2
from protos.parcel import pack

MOST_BYTES = 64 << 10
"""A group of more bytes leaves at once."""


@dataclass(frozen=True, eq=False)
class Letter:
    """A sealed request, from its sealing to its terminal event.

    Attributes:
        event: gets the terminal event, or the error that ended the stream.
        left: gets its share of the message's bytes when the message leaves.
        posted_at: when it was sealed, seconds.
    """

    sealed: Sealed
    question: str
    priority: int
    event: asyncio.Future[bridge_pb2.InferEvent]
    left: asyncio.Future[int]
    posted_at: float


class Post:
    """Seals requests and writes messages.

    Args:
        metrics: what is counted.
        controller: is told of every frame that leaves.
        clock: seconds, monotonic.
        sleep: waits that many seconds.
        linger_s: longest time that a request waits for others, seconds.
        most: most requests in one message; the server's own limit holds too.
    """

    def __init__(
        self,
        metrics: Metrics,
        controller: PointController,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        linger_s: float = 0.0,
        most: int = 1,
    ) -> None:
        self._metrics, self._controller = metrics, controller
        self._clock, self._sleep = clock, sleep
        self._linger_s, self._most = linger_s, most
        self._stream: Stream | None = None
        self._group: list[Letter] = []
        self._last: Letter | None = None
        self._timer: asyncio.Task[None] | None = None
        self._writes: set[asyncio.Task[None]] = set()
        self._sealing = asyncio.Lock()

    @property
    def lingers(self) -> bool:
        """Whether requests may wait for others."""
        return self._linger_s > 0

    def hurry(self) -> None:
        """Let nothing wait from now on."""
        self._linger_s = 0.0
        self._leave()

    async def send(self, stream: Stream, request: Deliverable, again: bool) -> Letter:
        """Seal a request for a stream; it leaves now or with others.

        Args:
            stream: an open one.
            request: not under way.
            again: whether it was sent before.

        Raises:
            BridgeError: the frame cannot be sealed or sent, or the stream broke meanwhile.
        """
        if not self.lingers or not stream.session.max_parcel:
            letter = await self._seal(stream, request)
            self._write([letter], stream)
            return letter
        async with self._sealing:
            if self._stream is not stream:
                self._leave()  # what waited for a broken one comes again
                self._stream, self._last = stream, None
            request.follow(self.base)
            letter = await self._seal(stream, request)
            alarm = PRIORITIES[letter.priority] == "alarm"
            self._add(letter, again or alarm or not request.can_wait)
        return letter

    def base(self, priority: int) -> Base | None:
        """The last frame that waits for others or for its event; the next delta frame changes it.

        It goes up before the next one, on the same stream. None if there is none of that priority:
        frames of another one may be decoded later.

        Args:
            priority: of the next frame.
        """
        last = self._last
        if last is None or last.priority != priority or last.event.done():
            return None
        held = last.sealed.frame.held
        return None if held is None else Base(last.sealed.frame_number, held)

    def refused(self) -> None:
        """The server refused a frame: it may lack what later ones change."""
        self._last = None

    async def _seal(self, stream: Stream, request: Deliverable) -> Letter:
        if request.ready(stream.session):
            sealed = request.seal(stream.session)
        else:
            sealed = await asyncio.to_thread(request.seal, stream.session)
        if stream.broken is not None:
            raise EngineUnavailableError(f"the stream broke before: {stream.broken}")
        stream.session.check_message(sealed.message.ByteSize())
        end = "answer" if request.question else "accepted"
        return Letter(
            sealed,
            request.question,
            sealed.message.priority,
            stream.expect(sealed.request_id, end, "refused"),
            asyncio.get_running_loop().create_future(),
            self._clock(),
        )

    def _add(self, letter: Letter, at_once: bool) -> None:
        stream = self._stream
        if stream is None:
            return
        room = min(MOST_BYTES, stream.session.max_message_bytes)
        sizes = sum(one.sealed.message.ByteSize() for one in self._group)
        if self._group and sizes + letter.sealed.message.ByteSize() > room:
            self._leave()
        self._group.append(letter)
        self._last = letter
        full = min(self._most, stream.session.max_parcel, stream.session.max_in_flight)
        if at_once or not self.lingers or len(self._group) >= full:
            self._leave()
        elif self._timer is None:
            self._timer = asyncio.create_task(self._leave_later())

    async def _leave_later(self) -> None:
        await self._sleep(self._linger_s)
        self._timer = None
        self._leave()

    def _leave(self) -> None:
        """Write the group that waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        group, self._group = sorted(self._group, key=lambda one: one.sealed.frame_number), []
        if group and self._stream is not None:
            self._write(group, self._stream)

    def _write(self, group: Sequence[Letter], stream: Stream) -> None:
        task = asyncio.create_task(self._written(group, stream))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _written(self, group: Sequence[Letter], stream: Stream) -> None:
        if stream.broken is not None:
            _fail(group, EngineUnavailableError(f"the stream broke before: {stream.broken}"))
            return
        try:
            await self._put(group, stream, _message(group, stream))
        except BridgeError as error:
            _fail(group, error)

    async def _put(
        self, group: Sequence[Letter], stream: Stream, message: bridge_pb2.InferRequest
    ) -> None:
        shares = _shares(group, message.ByteSize())
        now = self._clock()
        for letter, share in zip(group, shares, strict=True):
            self._metrics.linger_seconds.observe(now - letter.posted_at)
            if not letter.left.done():
                letter.left.set_result(share)
        stream.asked(now)
        try:
            async with stream.writing:
                for letter, share in zip(group, shares, strict=True):
                    if not letter.event.done():  # else it was given up
                        self._controller.sent(letter.sealed.request_id, share)
                await stream.call.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError):
            await stream.read_out()
            # The stream had ended before these requests expected an event.
            _fail(group, EngineUnavailableError(f"the stream broke: {stream.broken}"))
            return
        self._metrics.messages_sent.labels(len(group)).inc()
        self._metrics.sent_bytes.inc(message.ByteSize())
        for letter in group:
            self._metrics.frames_sent.labels(letter.sealed.frame.point.name).inc()


def _message(group: Sequence[Letter], stream: Stream) -> bridge_pb2.InferRequest:
    """The message of a group; without parcels a group has one request."""
    if not stream.session.max_parcel:
        return group[0].sealed.message
    messages = [letter.sealed.message for letter in group]
    return pack(stream.session.constants, messages, stream.course)


def _shares(group: Sequence[Letter], size: int) -> list[int]:
    """A message's bytes by request: each its own payload, and the rest in equal parts."""
    payloads = [len(letter.sealed.message.frame.payload) for letter in group]
    each, more = divmod(size - sum(payloads), len(group))
    return [payload + each + (i < more) for i, payload in enumerate(payloads)]


def _fail(group: Sequence[Letter], error: BridgeError) -> None:
    for letter in group:
        for waiting in (letter.left, letter.event):
            if not waiting.done():
                waiting.set_exception(error)
