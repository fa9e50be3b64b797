"""Feedback: send the large model's own state of a scene that is held, compressed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from cloud_server.engine.jobs import Compressed, Job
from cloud_server.frontend.access.gate import Gate
from cloud_server.frontend.admission.quotas import Quotas
from cloud_server.frontend.refuse import Refusals
from cloud_server.frontend.sessions import Session, Sessions
from cloud_server.frontend.telemetry import Telemetry
from cloud_server.frontend.under_way import UnderWay
from projector.codec.feedback import point_of
from protos.distortion import Distortion
from protos.errors import BridgeError, EngineUnavailableError, FrameTooLargeError
from protos.feedback import parse_feedback_request, seal_response
from protos.header import Header
from protos.limits import Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.points import OperatingPoint
from protos.process.logs import Logger


class FeedbackSender:
    """The RPC Feedback.

    Args:
        limits: what may be sent.
        sessions: the sessions held.
        under_way: takes the request.
        telemetry: counts what goes back.
        refusals: where refusals are counted.
        log: a bound logger.
        gate: checks callers.
        quotas: counts requests against quotas.
    """

    def __init__(
        self,
        limits: Limits,
        sessions: Sessions,
        under_way: UnderWay,
        telemetry: Telemetry,
        refusals: Refusals,
        log: Logger,
        gate: Gate,
        quotas: Quotas,
    ) -> None:
        self._gate, self._quotas = gate, quotas
        self._limits, self._sessions, self._under_way = limits, sessions, under_way
        self._telemetry, self._refusals, self._log = telemetry, refusals, log

    async def feedback(self, raw: bytes, context: Any) -> pb.FeedbackResponse:
        """The state of one scene."""
        received_ns = time.monotonic_ns()
        self._telemetry.metrics.received_bytes.labels("feedback").inc(len(raw))
        try:
            caller = self._gate.device(context)
            request = parse_feedback_request(raw)
            session = self._sessions.get(request.session_id, caller)
            self._quotas.charge(*session.owner, len(raw))
            self._sessions.check(request, session)
            constants = session.feedback_constants
            point = point_of(session.terms.feedback, request.point)
            job = Job(
                id=self._under_way.next_id(),
                session=session.id.hex(),
                frame_number=request.frame_number,
                request_id=request.request_id.hex(),
                question="",
                max_new_tokens=1,
                received_ns=received_ns,
                bundle=session.offer.bundle_digest,
                feedback=point.index,
                owner="/".join(session.owner),
            )
            said = await self._under_way.wait_for(job, session.owner)
            if not isinstance(said, Compressed):
                raise EngineUnavailableError("the engine sent something else back; ask again")
            response = self._response(said, session, request, point, constants)
        except BridgeError as error:
            await self._refusals.abort(context, error, "Feedback")
        self._log.info(
            "sent back",
            request_id=job.request_id,
            session=job.session,
            frame=job.frame_number,
            point=point.name,
            payload_bytes=len(response.frame.payload),
            total_ms=round((time.monotonic_ns() - received_ns) / 1e6, 3),
        )
        return response

    def _response(
        self,
        said: Compressed,
        session: Session,
        request: pb.FeedbackRequest,
        point: OperatingPoint,
        constants: bytes,
    ) -> pb.FeedbackResponse:
        """The frame that carries a compressed state; its size is bounded as a frame's is."""
        if len(said.body) > self._limits.max_payload_bytes:
            raise FrameTooLargeError(
                f"the state takes {len(said.body)} bytes at point '{point.name}', "
                f"{self._limits.max_payload_bytes} may be sent: ask for a coarser point"
            )
        target = session.terms.target
        tokens = target.tokens if target is not None else 0
        distortion = Distortion(said.quantize, 0.0, said.latent_residual, said.unfamiliarity)
        header = Header(point.index, request.frame_number, np.ones(tokens, np.bool_), 0, distortion)
        sealed = seal_response(constants, request.request_id, header, said.body)
        self._telemetry.fed_back(request.request_id, point.name, said)
        return sealed
