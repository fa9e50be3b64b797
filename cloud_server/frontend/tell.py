"""Tell: turn the engine's events for a request into the events that its client reads.

engine event → `Teller.hear` → `Computation.emit` → `Stream.follow` → `Outbox` → `Teller.write`
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from cloud_server.engine.jobs import Accepted, Answered, Failed, Job, JobEvent, TokenMade
from cloud_server.frontend.answers import Computation
from cloud_server.frontend.crops import Crops
from cloud_server.frontend.outbox import Outbox
from cloud_server.frontend.refuse import Refusals
from cloud_server.frontend.risk import risk_of
from cloud_server.frontend.scenes import HeldScene, HeldScenes
from cloud_server.frontend.sessions import Session, Sessions
from cloud_server.frontend.telemetry import Telemetry
from cloud_server.frontend.under_way import UnderWay
from projector.codec.risk import RiskModel
from protos.errors import BridgeError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.parcel import Course
from protos.process import logs
from protos.process.logs import Logger
from protos.process.trace import Context
from protos.refusals import refused


class Asked(Protocol):
    """The asker of a question: a session, or an application over HTTP."""

    @property
    def id(self) -> bytes:
        """Id of the session whose scene it is about."""

    @property
    def bundle_id(self) -> str:
        """Id of the bundle that maps the scene; empty for a picture."""

    @property
    def risk(self) -> RiskModel | None:
        """The service's guard in that bundle, if it has one."""


class Stream:
    """One Infer stream: its outbox and the requests that have no terminal event yet.

    Args:
        outbox: its own outbox, or that of the session's Events call.

    Attributes:
        apart: whether the client reads its events from the session's Events call.
        whole: whether the client wants no Accepted and no Token of a request with a question.
        course: of its parcels.
        crop_bytes: longest crop that its device would send; 0 for none.
        context: its W3C trace context; None if its device makes no traces.
    """

    def __init__(self, outbox: Outbox | None = None) -> None:
        self.outbox = outbox or Outbox()
        self.apart = self.whole = False
        self.waiting: dict[bytes, tuple[Computation, Any]] = {}
        self.half_closed = False
        self.advised_less = False
        self.course = Course()
        self.crop_bytes = 0
        self.context: Context | None = None
        self.ended = asyncio.Event()

    def follow(self, computation: Computation) -> None:
        """Pass a computation's events on, until its terminal one."""

        def pass_on(event: pb.InferEvent, kind: str) -> None:
            held = kind == "accepted" and not computation.question
            if self.whole and not held and (kind == "accepted" or kind == "token"):
                if kind == "token":
                    computation.left(event, kind)
                return
            put = self.outbox.put_aside if held else self.outbox.put
            put(event, kind, computation)
            if held or kind == "answer" or kind == "refused":
                self.waiting.pop(computation.request_id, None)
                computation.leave(pass_on)
                self.end_if_done()
                self.outbox.expect(-1)

        self.waiting[computation.request_id] = (computation, pass_on)
        self.outbox.expect(1)
        computation.listen(pass_on)

    def end_if_done(self) -> None:
        """Close the outbox once nothing can come any more; one that stays sends what waits."""
        if self.half_closed and not self.waiting:
            self.ended.set()
            if self.apart:
                self.outbox.bring()
            else:
                self.outbox.put(None)

    def abandon(self) -> list[Computation]:
        """The client is gone; returns the computations that nobody listens to any more."""
        waiting, self.waiting = self.waiting, {}
        self.outbox.expect(-len(waiting))
        for computation, listener in waiting.values():
            computation.leave(listener)
        return [computation for computation, _ in waiting.values() if not computation.heard]


End: TypeAlias = "pb.Answer | BridgeError | None"
"""How a request ended: its answer, why it was refused, or None for a frame that is held."""


class Teller:
    """Turns the engine's events into the client's.

    Args:
        telemetry: counts and times requests.
        sessions: where scenes' reports are kept.
        scenes: holds accepted frames.
        under_way: where computations end.
        refusals: where refusals are counted.
        log: a bound logger.
        crops: asks for crops.

    Attributes:
        ends: called with each request that has ended.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        sessions: Sessions,
        scenes: HeldScenes,
        under_way: UnderWay,
        refusals: Refusals,
        log: Logger,
        crops: Crops,
    ) -> None:
        self._telemetry, self._sessions, self._under_way = telemetry, sessions, under_way
        self._scenes, self._crops = scenes, crops
        self._refusals, self._log = refusals, log
        self.ends: list[Callable[[Asked, Computation, Job, End], None]] = []

    def hear(
        self, asked: Asked, computation: Computation, job: Job, said: JobEvent | BridgeError
    ) -> None:
        """Take an event of a computation's job, or the error that ended it."""
        if isinstance(said, TokenMade):
            computation.prompt_tokens = said.prompt_tokens
            if computation.crop is None:  # else the answer may become another one
                computation.emit("token", pb.Token(text=said.text, index=said.index))
        elif isinstance(said, Accepted):
            self._accepted(asked, computation, job, said)
        elif isinstance(said, Answered):
            self._answered(asked, computation, job, said)
        elif isinstance(said, Failed | BridgeError):
            said = said.error if isinstance(said, Failed) else said
            self._refusals.note(
                said, computation.request_id, computation.frame_number, computation.owner
            )
            self._telemetry.failed(computation, said)
            self._sessions.refused(job.bundle, computation.owner, said)
            self._under_way.end(asked.id, computation, None)
            computation.emit("refused", refused(said))
            self._ended(asked, computation, job, said)

    def _accepted(self, asked: Asked, computation: Computation, job: Job, said: Accepted) -> None:
        computation.accepted = said
        self._telemetry.accepted(computation, said)
        computation.warnings = said.warnings
        computation.moments_score = said.moments_score
        for name in said.warnings:
            self._log.warning(
                name, request_id=job.request_id, session=job.session, frame=job.frame_number
            )
        if isinstance(asked, Session):
            self._sessions.worked(asked)
            if job.has_frame:
                self._scenes.hold(_scene_of(asked, computation, job), job)
        if not computation.question:
            self._under_way.end(asked.id, computation, None)
        computation.emit("accepted", pb.Accepted(distortion=computation.distortion))
        if not computation.question:
            self._ended(asked, computation, job, None)
        if isinstance(asked, Session) and job.has_frame:
            risk = self._risk(asked, computation)
            if risk is not None:
                self._crops.begin(asked, computation, job, risk)

    def describe(self, computation: Computation, session: str) -> None:
        """Give a question about a held scene what is known of the scene.

        Args:
            computation: the question.
            session: id of the scene's session, hex.
        """
        scene = self._scenes.named((session, computation.frame_number))
        if scene is not None:
            computation.distortion, computation.fallback = scene.distortion, scene.fallback
            computation.warnings = list(scene.warnings)
            computation.moments_score = scene.moments_score

    def _risk(self, asked: Asked, computation: Computation) -> float | None:
        return risk_of(
            asked.risk,
            computation.distortion,
            computation.moments_score,
            computation.question,
        )

    def _answered(self, asked: Asked, computation: Computation, job: Job, said: Answered) -> None:
        timings = _timings_of(computation.accepted, said)
        late = isinstance(asked, Session) and not job.has_frame
        if late and not computation.distortion.ByteSize():
            self.describe(computation, job.session)  # asked before its frame was accepted
        self._telemetry.answered(computation, asked.bundle_id, said, job.has_frame)
        computation.prompt_tokens = said.prompt_tokens
        answer = pb.Answer(
            text=said.text,
            tokens=said.tokens,
            timings=timings,
            distortion=computation.distortion,
            fallback=computation.fallback,
            warnings=computation.warnings,
            risk=self._risk(asked, computation),
        )

        def finish(final: pb.Answer) -> None:
            self._finish(asked, computation, job, final)

        if not self._crops.keep(computation, answer, finish):
            finish(answer)

    def _finish(self, asked: Asked, computation: Computation, job: Job, answer: pb.Answer) -> None:
        """Send the answer, the last event of its computation."""
        self._telemetry.risky(computation, answer.risk if answer.HasField("risk") else None)
        self._under_way.end(asked.id, computation, answer)
        if logs.level_is(logging.INFO):
            self._log.info(
                "answered",
                request_id=job.request_id,
                session=job.session,
                frame=job.frame_number,
                point=job.point,
                tokens=answer.tokens,
                fallback=answer.fallback,
                total_ms=round((time.monotonic_ns() - computation.received_ns) / 1e6, 3),
            )
        computation.emit("answer", answer)
        self._ended(asked, computation, job, answer)

    def _ended(self, asked: Asked, computation: Computation, job: Job, end: End) -> None:
        for told in self.ends:
            told(asked, computation, job, end)

    async def write(self, outbox: Outbox, context: Any) -> None:
        """Write a stream's events until it ends, and take the time when each leaves."""
        while True:
            if outbox.empty:
                await outbox.filled()
            event, kind, of = outbox.take()
            if event is None:
                return
            together = [(event, kind, of)]
            if outbox.wait_s:
                together += outbox.more()
            for one, kind, of in together:
                if kind == "answer" and of is not None:
                    of.left(one, kind)
            if len(together) > 1:
                event = pb.InferEvent(events=[one for one, *_ in together])
            outbox.writing_since = time.monotonic()
            await context.write(event)
            outbox.writing_since = 0.0
            for one, kind, of in together:
                if kind == "token" and of is not None:
                    of.left(one, kind)
                elif kind == "answer" and of is not None:
                    self._telemetry.sent(of, one.answer)

    def sent(self, computation: Computation, answer: pb.Answer) -> None:
        """Count the times of an answer that has left."""
        self._telemetry.sent(computation, answer)


def _timings_of(accepted: Accepted | None, said: Answered) -> pb.Timings:
    """Where the engine's time went; the front end's is added when the answer leaves."""
    if accepted is None:
        return pb.Timings(
            queue_ms=said.queue_s * 1e3,
            prefill_ms=said.prefill_s * 1e3,
            generate_ms=said.generate_s * 1e3,
        )
    return pb.Timings(
        queue_ms=accepted.queue_s * 1e3,
        decode_ms=accepted.decode_s * 1e3,
        project_ms=accepted.project_s * 1e3,
        inject_ms=accepted.inject_s * 1e3,
        prefill_ms=said.prefill_s * 1e3,
        generate_ms=said.generate_s * 1e3,
    )


def _scene_of(session: Session, computation: Computation, job: Job) -> HeldScene:
    """The scene of a frame that was just accepted."""
    text, offer = session.source.of_text, session.offer
    return HeldScene(
        tenant=session.owner[0],
        device=session.owner[1],
        session_id=job.session,
        frame_number=job.frame_number,
        scene_id=secrets.token_hex(16),
        bundle=job.bundle,
        bundle_id=offer.bundle_id,
        bundle_version=offer.bundle_version,
        point=session.terms.points[job.point].name,
        kept=job.kept,
        grid=(1, len(job.kept)) if text else session.source.grid,
        delta=job.base >= 0,
        payload_bytes=len(job.body),
        distortion=computation.distortion,
        moments_score=computation.moments_score,
        risk_model=session.terms.risk,
        fallback=computation.fallback,
        warnings=tuple(computation.warnings),
        accepted_at=time.time(),
        far=_far_of(computation, job),
    )


def _far_of(computation: Computation, job: Job) -> bytes:
    """As the engine said, if that is one byte a token."""
    said = b"" if computation.accepted is None else computation.accepted.far
    return said if len(said) == len(job.kept) else b""
