"""Scenes: a frame that the server holds, the questions about it, and its state sent back.

If the server lost a scene, its frame is sent again under another id, then the question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import grpc

from edge_agent.uplink.delivery import Sent, Uplink
from edge_agent.uplink.outcome import Outcome, Returned
from edge_agent.uplink.request import Request
from edge_agent.uplink.retry import Refused
from edge_agent.uplink.session import Session
from edge_agent.uplink.stream import Stream, call_context
from protos.digest import session_constants
from protos.errors import (
    BridgeError,
    EngineUnavailableError,
    OfflineError,
    UnknownSceneError,
)
from protos.feedback import open_response, seal_feedback
from protos.neuralbridge.v1 import bridge_pb2, bridge_pb2_grpc
from protos.requests import seal_ask


@dataclass
class Scene:
    """A frame that the server holds for questions.

    Attributes:
        request: what it was sent with; kept until its last question has ended.
        session: where it is held.
        frame_number: its number there.
        outcome: how sending it ended.
    """

    request: Request
    session: Session
    frame_number: int
    outcome: Outcome
    renewing: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)


class Scenes:
    """Holds frames at the server of an uplink and asks about them.

    Args:
        uplink: the way to the server.
    """

    def __init__(self, uplink: Uplink) -> None:
        self._uplink = uplink
        self._connection = uplink.connection

    async def hold(self, request: Request) -> Scene | Outcome:
        """Send a frame without a question, for `ask`; hold `credit` around this.

        Returns:
            The scene; or, if it could not be held, the outcome with its error.
        """
        outcome = await self._uplink.deliver(request)
        if outcome.error is not None or outcome.sealed is None or outcome.session is None:
            return outcome
        return Scene(request, outcome.session, outcome.sealed.frame_number, outcome)

    async def ask(
        self, scene: Scene, request_id: bytes, question: str, max_new_tokens: int
    ) -> Outcome:
        """Ask about a held scene; if the server lost it, hold it again and ask again.

        Args:
            scene: from `hold`.
            request_id: of this question, 8 to 16 bytes.
            question: not blank.
            max_new_tokens: longest answer.

        Returns:
            The outcome; an error is in `Outcome.error`, never raised.
        """
        return await self._about(
            scene,
            request_id,
            lambda stream, held, sent: self._ask_once(
                stream, held, request_id, question, max_new_tokens, sent
            ),
        )

    async def feedback(self, scene: Scene, request_id: bytes, point: str = "") -> Outcome:
        """Have the server send back its own state of a held scene; retries like `ask`.

        Args:
            scene: from `hold`.
            request_id: of this request, 8 to 16 bytes.
            point: name of an operating point for feedback; empty for the bundle's default.

        Returns:
            The outcome, with `returned`; an error is in `Outcome.error`, never raised.
        """
        return await self._about(
            scene,
            request_id,
            lambda stream, held, sent: self._feedback_once(stream, held, request_id, point, sent),
        )

    async def _about(
        self,
        scene: Scene,
        request_id: bytes,
        call: Callable[[Stream, int, Sent], Awaitable[Outcome]],
    ) -> Outcome:
        """Call about a held scene; if the server lost it, hold it again and call again."""
        sent = Sent(request_id)

        async def once() -> Outcome:
            stream = await self._connection.open()
            if stream.session is not scene.session:
                await self._hold_again(scene, scene.frame_number, scene.session)
                stream = await self._connection.open()
            held = scene.frame_number
            stream.asked(self._uplink.clock())
            try:
                outcome = await call(stream, held, sent)
                stream.heard(self._uplink.clock())
                return outcome
            except OfflineError:
                raise  # nothing came down
            except (BridgeError, Refused) as error:
                stream.heard(self._uplink.clock())
                if not isinstance(error, UnknownSceneError):
                    raise
                await self._hold_again(scene, held, stream.session)
                raise Refused(error, retryable=True) from error

        return await self._uplink.until_ended(sent, once)

    async def _hold_again(self, scene: Scene, frame_number: int, session: Session) -> None:
        async with scene.renewing:
            if (scene.frame_number, scene.session) != (frame_number, session):
                return  # another question did it meanwhile
            held = await self.hold(scene.request.renew())
            if isinstance(held, Outcome):
                raise Refused(held.error or OfflineError("the scene is not held"), False)
            scene.request, scene.session = held.request, held.session
            scene.frame_number = held.frame_number

    async def _ask_once(
        self,
        stream: Stream,
        frame_number: int,
        request_id: bytes,
        question: str,
        max_new_tokens: int,
        sent: Sent,
    ) -> Outcome:
        session = stream.session
        request = seal_ask(
            session.constants,
            session.session_id,
            request_id,
            frame_number,
            question,
            min(max_new_tokens, session.limits.max_new_tokens),
        )
        sent.attempts += 1
        sent.message_bytes = request.ByteSize()
        sent.at = self._uplink.clock()
        self._uplink.metrics.sent_bytes.inc(sent.message_bytes)
        answer: bridge_pb2.Answer | None = None
        try:
            stub = bridge_pb2_grpc.BridgeStub(stream.channel)
            context = self._uplink.connection.context
            metadata = None if context is None else call_context(context, request.request_id)
            patience_s = self._uplink.policy.answer_timeout_s
            async for event in stub.Ask(request, timeout=patience_s, metadata=metadata):
                kind = event.WhichOneof("event")
                if kind == "refused":
                    raise self._uplink.refusal(event.refused, session, sent)
                if kind == "answer" and answer is None:
                    answer = event.answer
                elif kind == "answer":
                    self._uplink.metrics.duplicates.inc()
        except grpc.aio.AioRpcError as error:
            raise self._connection.failed(error, session) from error
        if answer is None:
            raise EngineUnavailableError("the server ended the call without an answer")
        return Outcome(request_id, answer=answer, session=session)

    async def _feedback_once(
        self, stream: Stream, frame_number: int, request_id: bytes, point: str, sent: Sent
    ) -> Outcome:
        session, policy = stream.session, self._uplink.policy
        sent.at = self._uplink.clock()
        decoder = await self._connection.feedback_decoder(stream)
        wanted = decoder.point(point).name
        request = seal_feedback(
            session.constants, session.session_id, request_id, frame_number, wanted
        )
        sent.attempts += 1
        sent.message_bytes = request.ByteSize()
        self._uplink.metrics.sent_bytes.inc(sent.message_bytes)
        try:
            response = await bridge_pb2_grpc.BridgeStub(stream.channel).Feedback(
                request, timeout=policy.answer_timeout_s
            )
        except grpc.aio.AioRpcError as error:
            raise self._connection.failed(error, session) from error
        header, body = open_response(
            response,
            session_constants(
                session.session_id, decoder.source_fingerprint, session.bundle_digest
            ),
            request_id,
            frame_number,
            replace(
                session.limits,
                max_payload_bytes=decoder.max_payload_bytes,
                max_tokens=decoder.tokens,
            ),
        )
        latents = await asyncio.to_thread(decoder.decode, body, header.kept, header.operating_point)
        size = len(response.frame.payload)
        self._uplink.metrics.received_back_bytes.labels(wanted).observe(size)
        returned = Returned(decoder, latents, wanted, size, header.distortion)
        return Outcome(request_id, session=session, returned=returned)
