"""The RPC Shadow: the picture of a frame comes, and an engine measures what the map lost.

In order: the parts of the file (`protos/shadow.py`) → digest, session, scene → the questions →
one picture at a time waits for an engine (`engine/shadow.py`) → the record of its device and
bundle (`record.py`) → metrics, log, comparison of versions. Live requests go first everywhere; a
picture that finds no time is dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from cloud_server.engine.jobs import Job, Measured
from cloud_server.frontend.access.gate import Gate
from cloud_server.frontend.admission.memory import Room
from cloud_server.frontend.admission.quotas import Quotas
from cloud_server.frontend.admission.turns import BACKGROUND
from cloud_server.frontend.answers import Owner
from cloud_server.frontend.refuse import Refusals
from cloud_server.frontend.scenes import HeldScene, HeldScenes
from cloud_server.frontend.sessions import Session, Sessions
from cloud_server.frontend.shadowing.asked import AskedLately
from cloud_server.frontend.shadowing.expected import Expected
from cloud_server.frontend.shadowing.ledger import Added, ShadowLedger
from cloud_server.frontend.shadowing.pictures import ShadowPicture, ShadowPictures
from cloud_server.frontend.shadowing.record import differing
from cloud_server.frontend.under_way import UnderWay
from cloud_server.metrics import Metrics
from cloud_server.settings import Settings
from cloud_server.state.store import Store
from projector.codec.answers import same_answer
from protos.errors import (
    BridgeError,
    EngineUnavailableError,
    FrameMalformedError,
    OverloadedError,
    QuestionError,
    UnknownSceneError,
)
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.points import PICTURE_POINT
from protos.process.logs import Logger
from protos.shadow import Gathering, Shadowed

_ASKED_BYTES = 4 << 20
_PICTURE_S = 600.0
"""Longest time in which a picture may arrive."""
_LOOK_S = 15.0
_EASE = 0.02
"""Weight of one frame in the moving averages of /metrics."""


class Shadows:
    """Takes pictures and has them measured.

    Args:
        settings: limits and sizes.
        store: the database; None on a service without one.
        sessions: the sessions held.
        scenes: the scenes held.
        under_way: gives the engine its jobs.
        metrics: what is counted.
        refusals: where refusals are counted.
        log: a bound logger.
        gate: checks callers.
        quotas: counts requests against quotas.
        room: counts the bytes of pictures.

    Attributes:
        ledger: the records.
        pictures: those that viewers may see.
        on_measured: called with the bundle's digest, the device and the share of answers that
            differ, after each picture.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store | None,
        sessions: Sessions,
        scenes: HeldScenes,
        under_way: UnderWay,
        metrics: Metrics,
        refusals: Refusals,
        log: Logger,
        gate: Gate,
        quotas: Quotas,
        room: Room,
    ) -> None:
        self._limits, self._most = settings.limits, settings.shadow_memory_bytes
        self._questions, self._wait_s = settings.shadow_questions, settings.shadow_wait_s
        self._tokens, self._places = settings.max_new_tokens, settings.queue_requests
        self._sessions, self._scenes, self._under_way = sessions, scenes, under_way
        self._metrics, self._refusals, self._log = metrics, refusals, log
        self._gate, self._quotas, self._room = gate, quotas, room
        self._asked = AskedLately(_ASKED_BYTES)
        self._expected = Expected(settings.shadow_margin)
        self._turn = asyncio.Semaphore(1)
        self._layers: dict[str, list[float]] = {}
        self.ledger = ShadowLedger(store, settings.shadow_false_alarms)
        self.pictures = ShadowPictures(settings.shadow_pictures_bytes, settings.shadow_pictures_of)
        self.on_measured: Callable[[str, Owner, float], None] = lambda *_: None
        under_way.on_question = self._asked.note
        scenes.gone(lambda name, _: self.pictures.drop(*name))

    async def shadow(self, requests: AsyncIterator[bytes], context: Any) -> pb.ShadowResponse:
        """Measure the pictures of one call."""
        measured = 0
        try:
            caller = self._gate.device(context)
            if not self._most:
                await anext(aiter(requests), b"")  # a late write would mask the status
                await context.abort(
                    grpc.StatusCode.UNIMPLEMENTED, "this service measures no shadowed pictures"
                )
            with contextlib.ExitStack() as held:
                parts = aiter(requests)
                while (picture := await self._gather(parts, caller.tenant, held)) is not None:
                    session = self._sessions.get(picture.session_id, caller)
                    picture.verify(session.constants)
                    await self._measure(session, picture)
                    measured += 1
                    held.close()
        except BridgeError as error:
            late = isinstance(error, OverloadedError) and error.cause == "shadows"
            self._metrics.shadows.labels("late" if late else "refused").inc()
            await self._refusals.abort(context, error, "Shadow")
        return pb.ShadowResponse(measured=measured)

    async def run(self) -> None:
        """Show the figures of all front ends, and those from before a restart."""
        while True:
            try:
                summary = await asyncio.to_thread(self.ledger.summary)
            except BridgeError as error:
                self._log.warning("shadows not read", cause=error.message)
            else:
                for bundle in summary:
                    self._metrics.shadow_last.labels(bundle.bundle_id).set(bundle.last_s)
                    self._metrics.drift_devices.labels(bundle.bundle_id).set(bundle.drifting)
            await asyncio.sleep(_LOOK_S)

    # ------------------------------------------------------------------ a picture comes

    async def _gather(
        self, parts: AsyncIterator[bytes], tenant: str, held: contextlib.ExitStack
    ) -> Shadowed | None:
        """The next picture of a call; None at its end.

        Raises:
            OverloadedError: the pictures here take all of their memory.
            BridgeError: a part is malformed or too large; the call ends within a picture.
        """
        gathering = Gathering(self._limits.max_picture_bytes)
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            return await asyncio.wait_for(self._parts(parts, tenant, held, gathering), _PICTURE_S)
        raise FrameMalformedError(f"a shadowed picture took more than {_PICTURE_S:g} s to arrive")

    async def _parts(
        self,
        parts: AsyncIterator[bytes],
        tenant: str,
        held: contextlib.ExitStack,
        gathering: Gathering,
    ) -> Shadowed | None:
        async for raw in parts:
            self._metrics.received_bytes.labels("shadow").inc(len(raw))
            if self._room.total + len(raw) > self._most:
                raise OverloadedError(
                    "the shadowed pictures that wait take all of their memory", cause="shadows"
                )
            self._room.add(tenant, len(raw))
            held.callback(self._room.add, tenant, -len(raw))
            picture = gathering.add(raw)
            if picture is not None:
                return picture
        if gathering.bytes:
            raise FrameMalformedError("the call ends within a shadowed picture")
        return None

    async def _measure(self, session: Session, picture: Shadowed) -> None:
        """Have a picture measured, and add it to its record.

        Raises:
            UnknownSceneError: its scene is not held (any more).
            FrameMalformedError: the frame was no frame of latents.
            QuestionError: there is no question to ask.
            OverloadedError: a quota is used up, or no engine had time for it.
            BridgeError: the engine refused it.
        """
        self._quotas.charge(*session.owner, len(picture.picture))
        name = session.id.hex(), picture.frame_number
        scene = self._scenes.named(name)
        if scene is None:
            raise UnknownSceneError(
                f"frame {picture.frame_number} of this session is not held (any more), so its "
                "picture was not measured; later pictures are, nothing needs to be done"
            )
        if not scene.kept:
            raise FrameMalformedError(
                f"frame {picture.frame_number} was a picture itself: there is nothing to measure"
            )
        asked = self._asked.about(*name, self._questions)
        own = self._expected.questions(session.offer, self._questions)
        questions = list(dict.fromkeys(asked + own))[: self._questions]
        if not questions:
            raise QuestionError(
                "nothing was asked in this session, and the bundle has no canary set to ask from"
            )
        job = Job(
            id=self._under_way.next_id(),
            session=name[0],
            frame_number=picture.frame_number,
            # not its frame's: a picture that ends an engine must not take the frame along
            request_id=hashlib.sha256(b"shadow" + picture.picture).hexdigest()[:16],
            question="",
            max_new_tokens=self._tokens,
            received_ns=time.monotonic_ns(),
            point=PICTURE_POINT,
            body=picture.picture,
            hold=0,
            owner="/".join(session.owner),
            rank=BACKGROUND,
            shadow=questions,
        )
        measured = await self._in_turn(job, session.owner)
        await self._add(session, scene, picture, measured)

    async def _in_turn(self, job: Job, owner: Owner) -> Measured:
        """Give the engine a picture when it is its turn.

        Raises:
            OverloadedError: no engine had time for it.
            BridgeError: the engine refused it.
        """
        if self._under_way.depth >= self._places:
            raise OverloadedError("every place is taken by live requests", cause="shadows")

        async def ask() -> Measured:
            async with self._turn:
                said = await self._under_way.wait_for(job, owner, picture=True, rank=BACKGROUND)
            if not isinstance(said, Measured):
                raise EngineUnavailableError("the engine said something else than figures")
            return said

        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            return await asyncio.wait_for(ask(), self._wait_s)
        raise OverloadedError(
            f"no engine had time for a shadowed picture in {self._wait_s:g} s", cause="shadows"
        )

    # ------------------------------------------------------------------ a picture was measured

    async def _add(
        self, session: Session, scene: HeldScene, picture: Shadowed, measured: Measured
    ) -> None:
        limit = self._expected.limit(session.offer, scene.point)
        self._show(session.bundle_id, measured)
        self.pictures.keep(
            ShadowPicture(
                *session.owner, session.id.hex(), picture.frame_number, picture.picture, time.time()
            )
        )
        outcome = differing(measured)
        self.on_measured(scene.bundle, session.owner, outcome)
        self._log.debug(
            "shadow measured",
            session=session.id.hex(),
            frame=picture.frame_number,
            questions=len(measured.questions),
            differ=outcome,
        )
        added = await asyncio.to_thread(
            self.ledger.add,
            session.owner,
            scene.bundle,
            session.bundle_id,
            measured,
            limit,
            time.time(),
        )
        if added.turned:
            self._turned(session.owner, added)

    def _show(self, bundle: str, measured: Measured) -> None:
        metrics, errors = self._metrics, measured.errors
        metrics.shadows.labels("measured").inc()
        for given, seen, kl in zip(measured.given, measured.seen, measured.kl, strict=True):
            same = "yes" if same_answer(given, seen) else "no"
            metrics.shadow_answers.labels(bundle, same).inc()
            metrics.shadow_kl.labels(bundle).observe(kl)
        metrics.shadow_error.labels(bundle).observe(sum(errors) / len(errors))
        metrics.shadow_last.labels(bundle).set(time.time())
        before = self._layers.get(bundle, errors)
        if len(before) != len(errors):
            before = errors
        means = [old + _EASE * (new - old) for old, new in zip(before, errors, strict=True)]
        self._layers[bundle] = means
        for layer, mean in enumerate(means):
            metrics.shadow_layer_error.labels(bundle, layer).set(mean)

    def _turned(self, owner: Owner, added: Added) -> None:
        """An alarm begins or ends."""
        fit, (tenant, device) = added.fit, owner
        figures = {
            "tenant": tenant,
            "device": device,
            "bundle": fit.bundle,
            "measured": fit.measured,
            "differ": round(fit.differ.mean, 4) if fit.differ else None,
            "limit": fit.limit,
        }
        if fit.drifting_since_s is None:
            self._log.info("the map fits what this camera sees again", **figures)
            return
        self._metrics.drift_alarms.labels(fit.bundle).inc()
        self._log.error("the map no longer fits what this camera sees", cause=fit.cause, **figures)
