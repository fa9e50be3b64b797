"""Queues of events that streams still have to write; ends streams whose client does not read."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeAlias

from cloud_server.frontend.admission.memory import Room
from cloud_server.frontend.answers import Computation
from protos.errors import OverloadedError
from protos.neuralbridge.v1 import bridge_pb2 as pb

_MOST_EVENTS = 256
_MOST_BYTES = 1 << 20
_EVENT_BYTES = 512
"""Memory of an event beside its bytes."""
_UNTOLD_BYTES = 4096
"""An outbox that holds events may count so many bytes too few or too many."""
_LOOK_S = 1.0
_Entry: TypeAlias = tuple[pb.InferEvent | None, str, Computation | None, int]
"""An event, its kind, whose it is, and its memory in bytes."""


class Outbox:
    """Events that one stream still has to write. While it is full, no more requests are read.

    Args:
        memory: counts its bytes.
        tenant: the tenant they count for.

    Attributes:
        bytes: memory of the events.
        closed: set when the call that writes it has ended.
        leaving: whether the call ends after its requests, because the service stops.
        writer: the task that writes it while the call is open.
        writing_since: when the write under way began (monotonic); 0 without one.
        unread: the error for a client that does not read.
        wait_s: how long events that can wait may do so, seconds; 0: not at all, and each event is a
            message of its own.
        most_aside: how many events may wait.
    """

    def __init__(self, memory: Room | None = None, tenant: str = "") -> None:
        self._memory, self.tenant = Room() if memory is None else memory, tenant
        self._events: deque[_Entry] = deque()
        self._filled, self._drained = asyncio.Event(), asyncio.Event()
        self._waiting = self.bytes = self._counted = 0
        self.closed = asyncio.Event()
        self.leaving = False
        self.writer: asyncio.Task[None] | None = None
        self.writing_since = 0.0
        self.unread: OverloadedError | None = None
        self.wait_s, self.most_aside = 0.0, 1
        self._aside: list[_Entry] = []
        self._timer: asyncio.TimerHandle | None = None
        self._drained.set()

    def leave(self) -> None:
        """End the stream when no request waits for its terminal event."""
        self.leaving = True
        self.expect(0)

    def expect(self, requests: int) -> None:
        """Add to the number of requests that wait for their terminal event; may be negative."""
        self._waiting += requests
        if self.leaving and not self._waiting:
            self.put(None)

    def put_aside(self, event: pb.InferEvent, kind: str, computation: Computation) -> None:
        """Append an Accepted event that can wait for others; then without what its device knows."""
        if not self.wait_s:
            self.put(event, kind, computation)
            return
        if self.closed.is_set():
            return
        event = pb.InferEvent(
            request_id=event.request_id, frame_number=event.frame_number, accepted=pb.Accepted()
        )
        size = _EVENT_BYTES + event.ByteSize()
        self._aside.append((event, kind, computation, size))
        self._count(size)
        if len(self._aside) >= self.most_aside:
            self.bring()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.wait_s, self.bring)

    def bring(self) -> None:
        """Let the events go that were put aside."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._aside:
            self._events.extend(self._aside)
            self._aside.clear()
            self._filled.set()

    def put(
        self,
        event: pb.InferEvent | None,
        kind: str = "",
        computation: Computation | None = None,
    ) -> None:
        """Append an event.

        Args:
            event: None ends the stream.
            kind: of a computation's event.
            computation: whose event it is; None without one.
        """
        if self.closed.is_set():
            return
        if self._aside or self._timer is not None:
            self.bring()
        size = _EVENT_BYTES + (event.ByteSize() if event is not None else 0)
        self._events.append((event, kind, computation, size))
        self._count(size)
        self._filled.set()
        if len(self._events) >= _MOST_EVENTS or self.bytes >= _MOST_BYTES:
            self._drained.clear()

    async def filled(self) -> None:
        """Wait until it has an event."""
        while not self._events:
            if self._counted != self.bytes:
                self._tell()
            self._filled.clear()
            await self._filled.wait()

    @property
    def empty(self) -> bool:
        """Whether it has no event."""
        return not self._events

    def take(self) -> tuple[pb.InferEvent | None, str, Computation | None]:
        """Take the next event; there is one."""
        event, kind, computation, size = self._events.popleft()
        self._count(-size)
        if not self._drained.is_set():
            if len(self._events) < _MOST_EVENTS // 2 and self.bytes <= _MOST_BYTES // 2:
                self._drained.set()
        return event, kind, computation

    def more(self) -> list[tuple[pb.InferEvent, str, Computation | None]]:
        """Further events that are there already, for the same message."""
        found: list[tuple[pb.InferEvent, str, Computation | None]] = []
        while self.wait_s and self._events and self._events[0][0] is not None:
            event, kind, computation = self.take()
            if event is not None:
                found.append((event, kind, computation))
        return found

    @property
    def full(self) -> bool:
        """Whether no more requests are read for now."""
        return not self._drained.is_set()

    async def room(self) -> None:
        """Wait until it has room."""
        await self._drained.wait()

    def close(self) -> None:
        """Called when the call has ended: drop the events that are not written."""
        self.closed.set()
        self.bring()
        self._events.clear()
        self.bytes = 0
        self._tell()

    def give_up(self, error: OverloadedError) -> None:
        """End the call with an error, even while a write is stuck."""
        if self.unread is None and self.writer is not None:
            self.unread = error
            self.writer.cancel()

    def _count(self, size: int) -> None:
        self.bytes += size
        if not -_UNTOLD_BYTES < self.bytes - self._counted < _UNTOLD_BYTES:
            self._tell()

    def _tell(self) -> None:
        """Count its bytes as they are now."""
        self._memory.add(self.tenant, self.bytes - self._counted)
        self._counted = self.bytes


class Outboxes:
    """Those of the open calls; a call ends with an error if its client does not read.

    Args:
        memory: where their bytes are counted.
        most_bytes: most that those of one tenant may take together.
        most_s: longest time that a client may leave an event unread.
    """

    def __init__(self, memory: Room, most_bytes: int, most_s: float) -> None:
        self._memory, self._most_bytes, self._most_s = memory, most_bytes, most_s
        self._open: set[Outbox] = set()

    def make(self, tenant: str) -> Outbox:
        """An empty one.

        Args:
            tenant: whose it is.
        """
        return Outbox(self._memory, tenant)

    async def write(self, outbox: Outbox, work: Coroutine[Any, Any, None]) -> None:
        """Write an outbox to its client; it is closed then.

        Args:
            outbox: one of these.
            work: writes it.

        Raises:
            OverloadedError: the client does not read.
        """
        self._open.add(outbox)
        outbox.writer = asyncio.create_task(work)
        try:
            await outbox.writer
        except asyncio.CancelledError:
            if outbox.unread is None:
                raise
            raise outbox.unread from None
        finally:
            outbox.writer.cancel()
            self._open.discard(outbox)
            outbox.close()

    async def watch(self) -> None:
        """End calls that nobody reads, until cancelled."""
        await watch(lambda: list(self._open), self._memory, self._most_bytes, self._most_s)


async def watch(
    outboxes: Callable[[], Iterable[Outbox]], memory: Room, most_bytes: int, most_s: float
) -> None:
    """End calls whose clients do not read, until cancelled.

    Args:
        outboxes: outboxes of the open calls.
        memory: counts their bytes.
        most_bytes: bound on one tenant's outboxes together; above it the largest one ends.
        most_s: longest time that a client may leave an event unread.
    """
    while True:
        await asyncio.sleep(min(_LOOK_S, most_s / 4))
        now, largest = time.monotonic(), dict[str, Outbox]()
        for outbox in outboxes():
            if outbox.writing_since and now - outbox.writing_since > most_s:
                outbox.give_up(
                    OverloadedError(
                        f"the events of this call were not read for {most_s:g} s: call again, and "
                        "read them",
                        cause="outbox",
                    )
                )
            elif memory.of(outbox.tenant) > most_bytes:
                most = largest.setdefault(outbox.tenant, outbox)
                largest[outbox.tenant] = max(most, outbox, key=lambda one: one.bytes)
        for outbox in largest.values():
            outbox.give_up(
                OverloadedError(
                    "too many events of this tenant's calls wait to be read: call again, and read "
                    "them",
                    cause="outbox",
                )
            )
