"""Requests under way, from taken to ended: gives them to the engine, drops unwanted ones."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

from cloud_server.engine.jobs import Accepted, Failed, Forget, Job, JobEvent, TokenMade
from cloud_server.engine.link import Sink
from cloud_server.frontend.admission.admission import Admission, QueueBounds
from cloud_server.frontend.admission.memory import Memory
from cloud_server.frontend.admission.quotas import QuotaOf
from cloud_server.frontend.admission.turns import NORMAL, Lane
from cloud_server.frontend.answers import Answers, Computation, Owner
from cloud_server.frontend.engines.dispatch import Dispatch
from cloud_server.frontend.peers import Connections
from cloud_server.metrics import Metrics
from cloud_server.settings import Settings
from protos.errors import BridgeError, EngineUnavailableError, UnknownSessionError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.points import PICTURE_POINT

LEAVING = "this service is going down; send the frame elsewhere"


class UnderWay:
    """Gives requests to the engine, and drops those that nobody wants any more.

    Args:
        settings: limits and sizes.
        link: sends jobs to the engines.
        metrics: what is counted.
        quota_of: quotas of tenants and devices.
        memory: counts the bytes of requests and answers.

    Attributes:
        answers: running computations and remembered answers.
        on_question: called with the job of each question that is taken.
        engine_ready: whether an engine takes requests.
        draining: whether new requests are refused, because the service ends.
    """

    def __init__(
        self,
        settings: Settings,
        link: Dispatch,
        metrics: Metrics,
        quota_of: QuotaOf,
        memory: Memory,
    ) -> None:
        self._link, self._metrics = link, metrics
        self._connections = Connections()
        self._admission = Admission(
            link,
            QueueBounds(
                places=settings.queue_requests,
                bytes=settings.queue_memory_bytes,
                share=settings.session_requests,
                batch=settings.batch_size,
                given=settings.engine_requests or 2 * settings.batch_size,
                pictures=settings.batch_size,
                window_s=settings.resend_window_s,
                queue_s=settings.queue_s,
                active_s=settings.active_s,
            ),
            quota_of,
            memory.room("requests"),
        )
        self.answers = Answers(
            settings.answer_memory, settings.answer_memory_bytes, memory.room("answers")
        )
        self._ids = itertools.count(1)
        self._awaited = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_question: Callable[[Job], None] = lambda _: None
        self.engine_ready = False
        self.draining = False
        metrics.queue_depth.set_function(lambda: self._admission.depth)
        metrics.left_queue.set_function(lambda: self._admission.waiting_for_nobody)
        metrics.queue_wait.set_function(lambda: self._admission.wait_s)
        metrics.pace.set_function(lambda: self._admission.pace.per_s)

    # ------------------------------------------------------------------ taken

    @property
    def depth(self) -> int:
        """Requests held for the engine, unanswered."""
        return self._admission.depth

    def start(self) -> None:
        """Begin to give requests to the engine."""
        self._admission.start()

    def next_id(self) -> int:
        """An id for a new job."""
        return next(self._ids)

    def submit(self, session: bytes, computation: Computation, job: Job, sink: Sink) -> None:
        """Take a request; all who listen to its computation get its events.

        Args:
            session: the session's id.
            computation: the computation to begin.
            job: the engine's job for it.
            sink: gets the engine's events.

        Raises:
            EngineUnavailableError: there is no engine, or the service is going down.
            OverloadedError: there is no place for it.
        """
        self._require_engine()

        def dropped() -> None:
            self._metrics.left.labels("never_back").inc()
            self.end(session, computation, None)

        computation.request = self._admission.submit(
            job,
            Lane(*computation.owner, job.session),
            sink,
            dropped,
            job.point == PICTURE_POINT,
            computation.rank,
            computation.wait_s,
        )
        self.answers.begin(session, computation)
        if job.question:
            self.on_question(job)
        self._idle.clear()

    async def wait_for(
        self, job: Job, owner: Owner, picture: bool = False, rank: int = NORMAL
    ) -> JobEvent:
        """Take a request of the service itself, and wait for its last event.

        Args:
            job: the engine's job for it.
            owner: who asks.
            picture: whether a picture has to be read for it.
            rank: its class (see `turns`).

        Raises:
            BridgeError: the engine refused it; or as `submit`.
        """
        self._require_engine()
        done: asyncio.Future[JobEvent | BridgeError] = asyncio.get_running_loop().create_future()

        def hear(said: JobEvent | BridgeError) -> None:
            if isinstance(said, Accepted | TokenMade):
                return
            if not done.done():  # the client may be gone
                done.set_result(said)

        lane = Lane(*owner, job.session)
        request = self._admission.submit(job, lane, hear, lambda: None, picture, rank)
        self._awaited += 1
        self._idle.clear()
        try:
            said = await done
        finally:
            self._admission.withdraw(request)
            self._awaited -= 1
            self._rest()
        if isinstance(said, Failed):
            said = said.error
        if isinstance(said, BridgeError):
            raise said
        return said

    def join(self, computation: Computation) -> None:
        """A request that is being computed has come again: its caller is back."""
        self._metrics.joined.inc()
        if computation.request is not None:
            self._admission.rejoin(computation.request)

    def require_staying(self) -> None:
        """Refuse a new request while the service stops.

        Raises:
            EngineUnavailableError: the service stops.
        """
        if self.draining:
            raise EngineUnavailableError(LEAVING)

    def _require_engine(self) -> None:
        self.require_staying()
        if not self.engine_ready:
            raise EngineUnavailableError("the engine is starting; send it again")

    # ------------------------------------------------------------------ left and ended

    def leave(self, computations: list[Computation], context: Any, cancelled: bool = True) -> None:
        """Drop, or serve last, computations whose last listener is gone.

        After an exceeded deadline or a cancellation nobody wants them. After a broken connection
        the client will send them again: until then they go last. gRPC does not tell the two apart,
        the system's table of connections does.
        """
        if not computations:
            return
        remaining_s = context.time_remaining()
        if remaining_s is not None and remaining_s <= 0:
            self._withdraw(computations, "deadline")
            return
        for computation in computations:
            if computation.request is not None:
                self._admission.leave(computation.request)
        if not cancelled:
            self._metrics.left.labels("lost").inc(len(computations))
            return

        async def look(peer: str) -> None:
            if await self._connections.gone(peer):
                self._metrics.left.labels("lost").inc(len(computations))
            else:
                self._withdraw([c for c in computations if not c.heard], "cancelled")

        self._later(look(context.peer()))

    def drop(self, computations: list[Computation], how: str) -> None:
        """Cancel computations that nobody waits for, at once, in the engine too.

        Args:
            computations: computations with a remaining listener go on.
            how: `cancelled`, or `stopped` if the answer is long enough.
        """
        self._withdraw([one for one in computations if not one.heard], how)

    def _withdraw(self, computations: list[Computation], how: str) -> None:
        for computation in computations:
            if computation.request is not None and computation.request.state != "over":
                self._metrics.left.labels(how).inc()
                self._admission.withdraw(computation.request)
                self.answers.end(bytes.fromhex(computation.request.job.session), computation, None)
                computation.request = None
        self._rest()

    def end(self, session: bytes, computation: Computation, answer: pb.Answer | None) -> None:
        """A computation is over; an answer, if there is one, is remembered."""
        self.answers.end(session, computation, answer)
        computation.request = None  # they refer to each other: the collector would have to find out
        self._rest()

    def forget(self, session: bytes, owner: Owner) -> None:
        """A session is no longer held: refuse what it waits for, so that it negotiates again."""
        self._admission.end(
            session.hex(),
            UnknownSessionError("this service no longer holds that session: negotiate again"),
        )
        self.answers.forget(session, owner)
        self._link.tell(Forget(session.hex()))

    def _rest(self) -> None:
        """Something is over; perhaps it was the last."""
        if not self.answers.running and not self._awaited:
            self._idle.set()

    # ------------------------------------------------------------------ the end

    async def drain(self) -> None:
        """Refuse new requests, and wait for those under way."""
        self.draining = True
        self._admission.forget_left()
        await self._idle.wait()

    async def stop(self) -> None:
        """Give the engine nothing more."""
        await self._admission.stop()

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
