"""Crops: where the guard finds a risk too high, ask the device for a part of its picture.

In order: `begin` (the frame is accepted, its risk is over the limit) → the engine says which part
(`PartWanted`) → CropWanted goes down, if the question looks at that part enough → `take` → the
engine answers from scene and crop → the guard judges that answer → one Answer. Whatever fails on
the way, the frame's own answer goes out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from google.protobuf.message import DecodeError

from cloud_server.engine.jobs import Answered, Job, PartWanted
from cloud_server.frontend.admission.quotas import Quotas
from cloud_server.frontend.answers import Computation, Crop
from cloud_server.frontend.sessions import Session
from cloud_server.frontend.under_way import UnderWay
from cloud_server.metrics import Metrics
from cloud_server.settings import Settings
from cloud_server.throttle import Throttle
from protos.crop import MOST_CROP_BYTES, holds_crop, parse_crop
from protos.errors import BridgeError, EngineUnavailableError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.points import PICTURE_POINT
from protos.process.logs import Logger

CROP = "crop"
"""`Answer.fallback` of an answer from frame and crop."""


class Crops:
    """Asks for crops, and answers from those that come.

    Args:
        settings: the limits.
        under_way: gives the engine its jobs.
        metrics: what is counted.
        log: a bound logger.
        quotas: counts requests against quotas.
        few: lets the first log lines of a kind pass.
    """

    def __init__(
        self,
        settings: Settings,
        under_way: UnderWay,
        metrics: Metrics,
        log: Logger,
        quotas: Quotas,
        few: Throttle,
    ) -> None:
        self._limit, self._gain = settings.crop_limit, settings.crop_gain
        self._attention, self._most_share = settings.crop_attention, settings.crop_share
        self._most_bytes, self._wait_s = settings.crop_bytes, settings.crop_wait_s
        self._under_way, self._metrics, self._log = under_way, metrics, log
        self._quotas, self._few = quotas, few
        self._tasks: set[asyncio.Task[None]] = set()

    def allowed(self, told: object) -> int:
        """Longest crop that a stream may be asked for, by its metadata; 0 for none.

        Args:
            told: value of `nb-crop`; None if the device did not send it.
        """
        if self._limit is None or not isinstance(told, str) or not told.isdecimal():
            return 0
        return min(int(told[:9]), self._most_bytes, MOST_CROP_BYTES)

    def begin(self, session: Session, computation: Computation, job: Job, risk: float) -> None:
        """Ask for a crop if the risk of a question's answer is over the limit.

        Args:
            session: of the frame.
            computation: of a question that came with it.
            job: holds a frame of latents.
            risk: of its answer.
        """
        wanted = computation.question and computation.crop_bytes and job.point != PICTURE_POINT
        text = session.source.of_text
        if self._limit is None or risk <= self._limit or not wanted or text:
            return
        crop = Crop(risk, asyncio.get_running_loop().create_future())
        computation.crop = crop
        task = asyncio.create_task(self._ask(session, computation, job, crop))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def keep(
        self, computation: Computation, answer: pb.Answer, finish: Callable[[pb.Answer], None]
    ) -> bool:
        """Keep the frame's answer back as long as a crop is waited for; returns whether it is.

        Args:
            computation: of the question.
            answer: from the frame alone.
            finish: gets the answer that goes out.
        """
        crop = computation.crop
        if crop is None:
            return False
        crop.frame_answer, crop.finish = answer, finish
        self._finish(computation, crop)
        return True

    def take(self, raw: bytes, session: Session) -> bool:
        """Take a crop; returns whether the message is one. One that nobody waits for is dropped.

        Args:
            raw: a message of a stream whose device allows crops.
            session: of the stream.
        """
        try:
            if not holds_crop(raw):
                return False
        except DecodeError:
            return False
        try:
            self._quotas.charge(*session.owner, len(raw))
            request_id, picture = parse_crop(raw, session.constants, self._most_bytes)
        except BridgeError as error:
            self._metrics.crops.labels("refused").inc()
            if self._few.passes("crops"):
                self._log.warning("crop refused", session=session.id.hex(), cause=str(error))
            return True
        computation = self._under_way.answers.under_way(session.owner, session.id, request_id)
        crop = computation.crop if computation is not None else None
        if crop is None or crop.picture.done():
            self._metrics.crops.labels("unasked").inc()
        else:
            crop.picture.set_result(picture)
        return True

    async def _ask(self, session: Session, computation: Computation, job: Job, crop: Crop) -> None:
        how = "failed"
        try:
            how = await self._answer(session, computation, job, crop)
        except BridgeError as error:
            if self._few.passes("crops"):
                self._log.warning("crop failed", request_id=job.request_id, cause=str(error))
        finally:
            self._metrics.crops.labels(how).inc()
            crop.ended = True
            self._finish(computation, crop)

    async def _answer(
        self, session: Session, computation: Computation, job: Job, crop: Crop
    ) -> str:
        """Get the crop and the answer from it; returns what came of it, for the metric."""
        look = self._job(job, look=self._attention, most_share=self._most_share)
        part = await self._under_way.wait_for(look, session.owner)
        if not isinstance(part, PartWanted):
            raise EngineUnavailableError("the engine said something else than which part")
        if part.attention < self._attention:
            return "spread"
        left, top, right, bottom = part.box
        wanted = pb.CropWanted(
            left=left, top=top, right=right, bottom=bottom, max_bytes=computation.crop_bytes
        )
        computation.emit("crop_wanted", wanted)
        try:
            picture = await asyncio.wait_for(crop.picture, self._wait_s)
        except asyncio.TimeoutError:
            return "late"
        if not picture:
            return "none"
        self._metrics.crop_bytes.observe(len(picture))
        again = self._job(job, point=PICTURE_POINT, body=picture, box=part.box)
        said = await self._under_way.wait_for(again, session.owner, picture=True)
        if not isinstance(said, Answered):
            raise EngineUnavailableError("the engine said something else than an answer")
        risk = judged(crop.risk, part.attention, self._gain)
        if risk >= crop.risk:
            return "not_better"
        crop.answer = said.text, said.tokens, risk
        return "used"

    def _job(self, first: Job, **more: object) -> Job:
        """Another job about a frame's question, beside the first."""
        return Job(
            **{
                "id": self._under_way.next_id(),
                "session": first.session,
                "frame_number": first.frame_number,
                "request_id": first.request_id,
                "question": first.question,
                "max_new_tokens": first.max_new_tokens,
                "received_ns": time.monotonic_ns(),
                "hold": 0,
                "owner": first.owner,
                "rank": first.rank,
                **more,
            }  # type: ignore[arg-type]
        )

    def _finish(self, computation: Computation, crop: Crop) -> None:
        """Let the answer go once both sides are there."""
        answer = crop.frame_answer
        if answer is None or not crop.ended or computation.crop is not crop:
            return
        computation.crop = None
        if crop.answer is not None:
            text, tokens, risk = crop.answer
            answer.text, answer.tokens, answer.risk, answer.fallback = text, tokens, risk, CROP
        crop.finish(answer)


def judged(risk: float, attention: float, gain: float) -> float:
    """The risk of an answer from frame and crop.

    Args:
        risk: of the answer from the frame alone.
        attention: share of the question's attention to the scene that falls into the crop.
        gain: share of the risk that a crop with all of the attention takes away, as measured.
    """
    return risk * (1.0 - gain * attention)
