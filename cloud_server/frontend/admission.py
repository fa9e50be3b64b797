"""Requests on their way to the engine: fair turns, bounded queues, places freed when callers leave.

    submit ─▶ queued ─▶ given to the engine ─▶ over
                │  ▲          │
          leave ▼  │ rejoin   │ leave: comes back unless it has begun
              left (served last, until its time is up)

Each caller has a queue of its own. The engine is given only what it can soon take up, one request
of each caller in turn, so a caller that fills the queue delays only itself. When all places are
taken, the caller that holds most of them loses its newest one to a caller that holds fewer.

A caller is a session. To group callers (by tenant, with quotas), put the group's name into
`Request.caller`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from cloud_server.engine.jobs import (
    Accepted,
    Answered,
    Cancel,
    Compressed,
    Dropped,
    Failed,
    Job,
    JobEvent,
)
from cloud_server.engine.link import Sink
from cloud_server.frontend.dispatch import Dispatch
from protos.errors import BridgeError, EngineUnavailableError, OverloadedError


@dataclass(eq=False)
class Request:
    """One request on its way.

    Attributes:
        job: what the engine is given.
        sink: gets its events, until it is withdrawn.
        dropped: called when it ends because nobody came back for it.
        caller: the caller whose turn and place it takes.
        picture: whether it is a picture; the engine takes fewer of these at a time.
    """

    job: Job
    sink: Sink
    dropped: Callable[[], None]
    caller: str
    picture: bool
    state: Literal["queued", "given", "over"] = "queued"
    left: bool = False
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)


@dataclass
class _Caller:
    """A caller's places: those of the queue in order of arrival, and how many there are in all."""

    queued: OrderedDict[Request, None] = field(default_factory=OrderedDict)
    places: int = 0


class Admission:
    """Between the front end's calls and `Dispatch`.

    Args:
        link: the way to the engines.
        places: requests held at once, in the queue and in the engine.
        share: most of those places that one caller may hold.
        given: requests that one engine is given at once.
        pictures: most of those that may be pictures.
        window_s: how long a request whose caller is gone is kept for the caller to come back.
    """

    def __init__(
        self,
        link: Dispatch,
        places: int,
        share: int,
        given: int,
        pictures: int,
        window_s: float,
    ) -> None:
        self._link, self._places, self._share = link, places, share
        self._most_given, self._most_pictures, self._window_s = given, pictures, window_s
        self._callers: dict[str, _Caller] = {}
        self._turns: deque[str] = deque()  # callers that have something in the queue
        self._left: OrderedDict[Request, None] = OrderedDict()
        self._given: dict[int, Request] = {}
        self._pictures = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._told: set[asyncio.Task[None]] = set()
        self.depth = 0
        """Places taken, without those of callers that are gone: these are free to be taken."""

    @property
    def waiting_for_nobody(self) -> int:
        """Requests whose callers are gone and that the engine has not been given."""
        return len(self._left)

    def start(self) -> None:
        """Begin to give requests to the engine."""
        self._task = asyncio.create_task(self._run())

    def forget_left(self) -> None:
        """Wait no longer for callers that are gone."""
        for request in list(self._left):
            self._forget(request)

    async def stop(self) -> None:
        """Give the engine nothing more."""
        self.forget_left()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def submit(
        self, job: Job, caller: str, sink: Sink, dropped: Callable[[], None], picture: bool = False
    ) -> Request:
        """Take a request into its caller's queue.

        Raises:
            OverloadedError: its caller has no place left, or all are taken fairly.
        """
        mine = self._callers.get(caller) or _Caller()
        if mine.places >= self._share:
            raise OverloadedError(
                f"{mine.places} requests of this session wait for the engine, {self._share} may: "
                "send the frame again when one has ended",
                cause="share",
            )
        if self.depth + len(self._left) >= self._places:
            self._make_room(mine.places)
        request = Request(job, sink, dropped, caller, picture)
        self._enqueue(request)
        return request

    def leave(self, request: Request) -> None:
        """The caller is gone and may come back: serve the request last, drop it after a while."""
        if request.left or request.state == "over":
            return
        self._vacate(request)
        request.left = True
        request.timer = asyncio.get_running_loop().call_later(self._window_s, self._expire, request)
        if request.state == "given":
            self._tell(Cancel(request.job.id, begun=0))
        else:
            self._left[request] = None

    def rejoin(self, request: Request) -> None:
        """Its caller is back."""
        if not request.left or request.state == "over":
            return
        request.left = False
        self._stop_timer(request)
        if request.state == "given":
            self._callers.setdefault(request.caller, _Caller()).places += 1
            self.depth += 1
        else:
            del self._left[request]
            self._enqueue(request, first=True)

    def withdraw(self, request: Request) -> None:
        """Nobody wants the request any more: free its place at once, in the engine too."""
        if request.state == "over":
            return
        was, request.state = request.state, "over"
        self._stop_timer(request)
        if request.left:
            self._left.pop(request, None)
        else:
            self._vacate(request)
        if was == "given":
            self._tell(Cancel(request.job.id, begun=1))
        self._wake.set()

    def end(self, caller: str, error: BridgeError) -> None:
        """End all requests of a caller with an error."""
        held = [*self._given.values(), *self._left]
        if caller in self._callers:
            held += self._callers[caller].queued
        for request in held:
            if request.caller == caller and request.state != "over":
                self.withdraw(request)
                if request.left:
                    request.dropped()
                else:
                    request.sink(error)

    # ------------------------------------------------------------------ places

    def _enqueue(self, request: Request, first: bool = False) -> None:
        caller = self._callers.setdefault(request.caller, _Caller())
        if not caller.queued:
            self._turns.append(request.caller)
        request.state = "queued"
        caller.queued[request] = None
        if first:
            caller.queued.move_to_end(request, last=False)
        caller.places += 1
        self.depth += 1
        self._wake.set()

    def _vacate(self, request: Request) -> None:
        """Free its place, and take it out of the queue if it is in it."""
        caller = self._callers[request.caller]
        caller.places -= 1
        self.depth -= 1
        if caller.queued.pop(request, False) is None and not caller.queued:
            self._turns.remove(request.caller)
        if not caller.places:
            del self._callers[request.caller]

    def _make_room(self, places: int) -> None:
        """Free a place for a caller that holds `places`.

        Raises:
            OverloadedError: no other caller holds at least two more.
        """
        if self._left:
            self._forget(next(iter(self._left)))
            return
        most = max(
            (self._callers[name] for name in self._turns), key=lambda c: c.places, default=None
        )
        if most is None or most.places <= places + 1:
            raise OverloadedError(
                f"{self.depth} requests wait for the engine; send the frame again later",
                cause="queue",
            )
        newest = next(reversed(most.queued))
        held = most.places
        self.withdraw(newest)
        newest.sink(
            OverloadedError(
                f"{self.depth + 1} requests wait for the engine, {held} of them of this session, "
                "and others came: send the frame again later, and fewer at once",
                cause="pushed_out",
            )
        )

    def _expire(self, request: Request) -> None:
        if request.state == "given":
            self.withdraw(request)
            request.dropped()
        elif request.state == "queued":
            self._forget(request)

    def _forget(self, request: Request) -> None:
        self.withdraw(request)
        request.dropped()

    def _stop_timer(self, request: Request) -> None:
        if request.timer is not None:
            request.timer.cancel()
            request.timer = None

    # ------------------------------------------------------------------ the engine

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (request := self._next()) is not None:
                try:
                    await self._link.submit(request.job, partial(self._heard, request))
                except EngineUnavailableError as error:
                    self._heard(request, error)

    def _next(self) -> Request | None:
        """The request whose turn it is; it counts as given from now on."""
        if len(self._given) >= self._most_given * max(1, self._link.engines_up):
            return None
        for _ in range(len(self._turns)):
            name = self._turns[0]
            caller = self._callers[name]
            self._turns.rotate(-1)
            request = next((r for r in caller.queued if self._may_go(r)), None)
            if request is not None:
                del caller.queued[request]
                if not caller.queued:
                    self._turns.remove(name)
                return self._give(request)
        request = next((r for r in self._left if self._may_go(r)), None)
        if request is None:
            return None
        del self._left[request]
        return self._give(request)

    def _may_go(self, request: Request) -> bool:
        most = self._most_pictures * max(1, self._link.engines_up)
        return not request.picture or self._pictures < most

    def _give(self, request: Request) -> Request:
        request.state = "given"
        self._given[request.job.id] = request
        self._pictures += request.picture
        return request

    def _heard(self, request: Request, said: JobEvent | BridgeError) -> None:
        ended = isinstance(said, BridgeError | Answered | Compressed | Failed | Dropped)
        ended = ended or (isinstance(said, Accepted) and not request.job.question)
        if ended:
            if self._given.pop(request.job.id, None) is not None:
                self._pictures -= request.picture
            self._wake.set()
        if request.state == "over":
            return  # nobody wants to hear of it
        if isinstance(said, Dropped):
            self._came_back(request)
            return
        if ended:
            self._stop_timer(request)
            request.state = "over"
            if not request.left:
                self._vacate(request)
        request.sink(said)

    def _came_back(self, request: Request) -> None:
        """The engine gave it back without having begun it."""
        request.state = "queued"
        if request.left:
            self._left[request] = None
        else:  # its caller came back meanwhile
            self._vacate(request)
            self._enqueue(request, first=True)

    def _tell(self, message: Cancel) -> None:
        task = asyncio.get_running_loop().create_task(self._link.tell(message))
        self._told.add(task)
        task.add_done_callback(self._told.discard)
