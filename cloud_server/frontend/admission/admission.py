"""Requests on their way to the engine: fair turns, bounded queues, places freed when callers leave.

    submit ─▶ queued ─▶ given to the engine ─▶ over
                │  ▲          │
          leave ▼  │ rejoin   │ leave: comes back unless it has begun
              left (served last, until its time is up)

`turns` decides whose turn it is. The engine gets only what it can start soon. A request that would
wait too long is refused at once, with a time to retry (`pace`). When all places or bytes are taken,
a new request replaces the newest one of the caller that holds most, if that holds more.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from msgspec.structs import replace

from cloud_server.engine.jobs import Cancel, Dropped, Job, JobEvent, ends
from cloud_server.engine.link import Sink
from cloud_server.frontend.admission.memory import Room
from cloud_server.frontend.admission.pace import Pace
from cloud_server.frontend.admission.quotas import QuotaOf
from cloud_server.frontend.admission.turns import NORMAL, Item, Lane, Turns
from cloud_server.frontend.engines.dispatch import Dispatch
from protos.errors import BridgeError, EngineUnavailableError, OverloadedError

_REQUEST_BYTES = 4096
"""Memory of a request beside its frame and question, with its share of tables."""


@dataclass(eq=False)
class Request(Item):
    """One request on its way.

    Attributes:
        job: the engine's job for it.
        sink: gets its events until it is withdrawn.
        dropped: called when it ends because its caller did not come back.
        picture: whether it is a picture; the engine takes fewer pictures at a time.
    """

    job: Job
    sink: Sink
    dropped: Callable[[], None]
    picture: bool
    state: Literal["queued", "given", "over"] = "queued"
    left: bool = False
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)


@dataclass(frozen=True)
class QueueBounds:
    """Bounds on the requests held.

    Attributes:
        places: requests held at once, in the queue and in the engine.
        bytes: memory of all requests held.
        share: places that one session may hold.
        batch: requests that one engine works on together.
        given: requests that one engine has at once.
        pictures: pictures among those.
        window_s: how long a request is kept after its caller has gone.
        queue_s: longest wait for a turn.
        active_s: how long a caller counts as active after a request.
    """

    places: int
    bytes: int
    share: int
    batch: int
    given: int
    pictures: int
    window_s: float
    queue_s: float
    active_s: float


class Admission:
    """Queues requests of the front end's calls for `Dispatch`.

    Args:
        link: sends jobs to the engines.
        bounds: bounds on the requests held.
        quota_of: current quotas of tenants and devices.
        memory: counts the bytes of requests.
    """

    def __init__(
        self, link: Dispatch, bounds: QueueBounds, quota_of: QuotaOf, memory: Room
    ) -> None:
        self._link, self._bounds, self._quota_of, self._memory = link, bounds, quota_of, memory
        self._turns: Turns[Request] = Turns(
            lambda tenant, device: quota_of(tenant, device).weight, bounds.active_s, time.monotonic
        )
        self.pace = Pace(time.monotonic)
        self._left: OrderedDict[Request, None] = OrderedDict()
        self._given: dict[int, Request] = {}
        self._of_session: dict[str, set[Request]] = {}
        self._pictures = 0
        self._sends = False  # to engines
        self._due = False  # whether `_send` is about to be called

    @property
    def depth(self) -> int:
        """Places taken, without those of callers that have gone: new requests may take these."""
        return self._turns.places

    @property
    def waiting_for_nobody(self) -> int:
        """Requests whose callers have gone and that no engine has."""
        return len(self._left)

    @property
    def wait_s(self) -> float:
        """Estimated time until the engine has all requests that wait now, seconds."""
        return self.pace.wait_s(self._turns.waiting)

    def start(self) -> None:
        """Begin to send requests to the engine."""
        self._sends = True
        self._wake()

    def forget_left(self) -> None:
        """Drop requests whose callers have gone."""
        for request in list(self._left):
            self._forget(request)

    async def stop(self) -> None:
        """Send the engine nothing more."""
        self.forget_left()
        self._sends = False

    def submit(
        self,
        job: Job,
        lane: Lane,
        sink: Sink,
        dropped: Callable[[], None],
        picture: bool = False,
        rank: int = NORMAL,
        wait_s: float | None = None,
    ) -> Request:
        """Put a request into its session's queue.

        Args:
            job: the engine's job for it.
            lane: its tenant, device and session.
            sink: see `Request`.
            dropped: see `Request`.
            picture: see `Request`.
            rank: its class (see `turns`).
            wait_s: time until its deadline, seconds; None for none.

        Raises:
            OverloadedError: a quota is used up, no place is left, or it would wait too long.
        """
        self._check_quotas(lane)
        self._check_wait(lane, rank, wait_s)
        size = len(job.body) + len(job.kept) + len(job.question) + _REQUEST_BYTES
        request = Request(lane, rank, size, job, sink, dropped, picture)
        self._make_room(request)
        of_session = self._of_session.get(job.session)
        if of_session is None:
            of_session = self._of_session[job.session] = set()
        of_session.add(request)
        self._memory.add(lane.tenant, size)
        self._enqueue(request)
        return request

    def leave(self, request: Request) -> None:
        """The caller has gone: serve the request last, and drop it if the caller stays away."""
        if request.left or request.state == "over":
            return
        self._turns.remove(request)
        request.left = True
        loop = asyncio.get_running_loop()
        request.timer = loop.call_later(self._bounds.window_s, self._expire, request)
        if request.state == "given":
            self._link.tell(Cancel(request.job.id, begun=0))
        else:
            self._left[request] = None

    def rejoin(self, request: Request) -> None:
        """The request's caller is back."""
        if not request.left or request.state == "over":
            return
        request.left = False
        self._stop_timer(request)
        if request.state == "given":
            self._turns.back(request)
        else:
            del self._left[request]
            self._enqueue(request, first=True)

    def withdraw(self, request: Request) -> None:
        """Drop a request that nobody waits for; its place is free at once, in the engine too."""
        if request.state == "over":
            return
        was = request.state
        self._over(request)
        self._left.pop(request, None)
        if was == "given":
            self._link.tell(Cancel(request.job.id, begun=1))
        self._wake()

    def end(self, session: str, error: BridgeError) -> None:
        """End all requests of a session (its id, hex) with an error."""
        for request in list(self._of_session.get(session, ())):
            self.withdraw(request)
            if request.left:
                request.dropped()
            else:
                request.sink(error)

    # ------------------------------------------------------------------ places

    def _check_quotas(self, lane: Lane) -> None:
        of_tenant, of_device, of_session = self._turns.taken(lane)
        if of_session >= self._bounds.share:
            raise self._refused(
                f"{of_session} requests of this session wait for the engine, at most "
                f"{self._bounds.share} may: send it again when one has ended",
                "share",
            )
        for whose, held, device in (
            ("device", of_device, lane.device),
            ("tenant", of_tenant, None),
        ):
            most = self._quota_of(lane.tenant, device).concurrent
            if most and held >= most:
                raise self._refused(
                    f"{held} requests of this {whose} are under way, at most {most} may be: send "
                    "it again when one has ended",
                    "concurrent",
                )

    def _check_wait(self, lane: Lane, rank: int, wait_s: float | None) -> None:
        if not self._turns.waiting:
            return
        most_s = self._bounds.queue_s
        if wait_s is not None:
            most_s = min(most_s, wait_s)
        expected_s = self.pace.wait_s(self._turns.ahead_of(lane, rank))
        if expected_s > most_s:
            raise self._refused(
                "the request would wait too long for its turn: send it again later",
                "wait",
                expected_s - most_s,
            )

    def _refused(self, message: str, cause: str, over_s: float = 0.0) -> OverloadedError:
        return OverloadedError(message, round(self.pace.come_back_s(over_s), 3), cause)

    def _enqueue(self, request: Request, first: bool = False) -> None:
        request.state = "queued"
        self._turns.add(request, first)
        self._wake()

    def _make_room(self, request: Request) -> None:
        """Free a place and bytes for a new request.

        Raises:
            OverloadedError: no other caller holds more than this one.
        """
        places, most = self._bounds.places, self._bounds.bytes
        while self.depth + len(self._left) >= places or self._memory.total + request.bytes > most:
            if self._left:
                self._forget(next(iter(self._left)))
                continue
            loser = self._turns.gives_way(request, places, most)
            if loser is None:
                raise self._refused("no place is left for requests: send it again later", "queue")
            self.withdraw(loser)
            loser.sink(
                self._refused(
                    "others with fewer requests came and no place was left: send it again "
                    "later, and fewer at once",
                    "pushed_out",
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

    def _over(self, request: Request) -> None:
        """Free the request's place."""
        request.state = "over"
        self._stop_timer(request)
        if not request.left:
            self._turns.remove(request)
        self._memory.add(request.lane.tenant, -request.bytes)
        of_session = self._of_session[request.job.session]
        of_session.discard(request)
        if not of_session:
            del self._of_session[request.job.session]

    def _stop_timer(self, request: Request) -> None:
        if request.timer is not None:
            request.timer.cancel()
            request.timer = None

    # ------------------------------------------------------------------ the engine

    def _wake(self) -> None:
        """Send requests soon: whoever has just come or ended may change whose turn it is."""
        if self._sends and not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._due = False
        engines = max(1, self._link.engines_up)
        while self._sends and (request := self._next(engines)) is not None:
            try:
                self._link.submit(request.job, partial(self._heard, request))
            except EngineUnavailableError as error:
                self._heard(request, error)

    def _next(self, engines: int) -> Request | None:
        """The request whose turn it is; from now on it counts as sent to the engine.

        Args:
            engines: how many are up.
        """
        bounds = self._bounds
        if len(self._given) >= bounds.given * engines:
            return None
        self._turns.step, self._turns.batch = bounds.batch, bounds.batch * engines
        self._turns.ahead = max(0, bounds.given - bounds.batch) * engines
        request = self._turns.next(self._may_go)
        if request is None:
            if self._turns.waiting:
                return None
            request = next((r for r in self._left if self._may_go(r)), None)
            if request is None:
                return None
            del self._left[request]
        if request.step_rows != request.job.step_rows:
            request.job = replace(request.job, step_rows=request.step_rows)
        request.state = "given"
        self._given[request.job.id] = request
        self._pictures += request.picture
        return request

    def _may_go(self, request: Request) -> bool:
        if not request.picture:
            return True
        return self._pictures < self._bounds.pictures * max(1, self._link.engines_up)

    def _heard(self, request: Request, said: JobEvent | BridgeError) -> None:
        ended = isinstance(said, BridgeError) or ends(said, request.job)
        if ended:
            if self._given.pop(request.job.id, None) is not None:
                self._pictures -= request.picture
            self._wake()
        if request.state == "over":
            return  # nobody waits for it
        if ended:
            if isinstance(said, Dropped):
                self._came_back(request)
                return
            self._over(request)
            if not isinstance(said, BridgeError):
                self.pace.ended(self._turns.waiting > 0)
        request.sink(said)

    def _came_back(self, request: Request) -> None:
        """The engine returned the request without having begun it."""
        request.state = "queued"
        if request.left:
            self._left[request] = None
        else:  # its caller came back meanwhile
            self._turns.remove(request)
            self._enqueue(request, first=True)
