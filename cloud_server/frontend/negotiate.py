"""Negotiate: open a session on the bundle that serves an edge model, and send its edge half."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError

from cloud_server.frontend.access.gate import Gate
from cloud_server.frontend.admission.openings import Openings
from cloud_server.frontend.peers import address_of
from cloud_server.frontend.refuse import Refusals
from cloud_server.frontend.sessions import Session, Sessions
from cloud_server.metrics import Metrics
from cloud_server.settings import Settings
from cloud_server.throttle import Throttle
from protos.calls import PROTOCOL_VERSION
from protos.errors import (
    BridgeError,
    EngineUnavailableError,
    FrameMalformedError,
    ProtocolVersionError,
)
from protos.identity import NAME, NAME_RULE
from protos.layout import KVLayout
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.points import points_to_json
from protos.process.logs import Logger

_CHUNK_BYTES = 4 * 1024
"""A device waits 10 s for the next one: at 20 kbit/s it takes two. A break loses one."""
_NEGOTIATE_BYTES = 128 * 1024
_DIGEST_CHARS = 64


class Negotiator:
    """The RPCs Negotiate and FetchEncoder.

    Args:
        settings: limits.
        sessions: where sessions are opened.
        metrics: what is counted.
        refusals: where refusals are counted.
        log: a bound logger.
        few: lets the first log lines of a kind pass.
        gate: checks callers.
        openings: counts their calls.

    Attributes:
        leaving: whether the service stops and opens no more sessions.
    """

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        metrics: Metrics,
        refusals: Refusals,
        log: Logger,
        few: Throttle,
        gate: Gate,
        openings: Openings,
    ) -> None:
        self._gate, self._openings, self._limits = gate, openings, settings.limits
        self._sessions, self._metrics, self._refusals = sessions, metrics, refusals
        self._log, self._few = log, few
        self.leaving = False

    async def negotiate(self, raw: bytes, context: Any) -> pb.NegotiateResponse:
        """Open a session on the bundle that serves the edge's model."""
        peer = address_of(context.peer())
        try:
            if self.leaving:
                raise EngineUnavailableError("this service is going down; negotiate elsewhere")
            caller = self._gate.device(context)
            self._openings.session(caller, context)
            request = _read_negotiate(raw)
            anyone = caller.kind == "anyone"
            if anyone and request.device and not NAME.fullmatch(request.device):
                raise FrameMalformedError(f"device {request.device[:80]!r}: {NAME_RULE}")
            source = KVLayout.from_json(request.source_layout_json)
            if request.source_settings_digest:
                source = replace(source, settings_digest=request.source_settings_digest)
            known = request.bundle_digest
            if len(known) > _DIGEST_CHARS:
                raise FrameMalformedError(
                    f"bundle_digest has {len(known)} characters; SHA-256 in hex has {_DIGEST_CHARS}"
                )
            session = self._sessions.open(
                source,
                list(request.codecs),
                known,
                peer,
                caller,
                request.device,
                request.keep_bundle,
            )
        except BridgeError as error:
            await self._refusals.abort(context, error, "Negotiate")
        offer = session.offer
        self._metrics.negotiations.labels(offer.bundle_id).inc()
        if self._few.passes("session opened"):
            self._log.info(
                "session opened",
                session=session.id.hex(),
                peer=peer,
                tenant=session.owner[0],
                device=session.owner[1],
                bundle=offer.bundle_id,
                bundle_version=offer.bundle_version,
                model=source.model_id,
                agent=request.agent_version[:64],
                **({"doubt": offer.doubt} if offer.doubt else {}),
            )
        return self._response(session)

    def _response(self, session: Session) -> pb.NegotiateResponse:
        offer, terms = session.offer, session.terms
        return pb.NegotiateResponse(
            session_id=session.id,
            session_constants=session.constants,
            bundle_id=offer.bundle_id,
            bundle_version=offer.bundle_version,
            bundle_digest=offer.bundle_digest,
            encoder_digest=offer.encoder_digest,
            target_layout_json=offer.target_layout_json,
            limits=self._limits.to_proto(),
            operating_points_json=points_to_json(terms.points.values()),
            default_point=terms.default_point,
            ladder=terms.ladder,
            reverse_decoder_digest=offer.feedback_decoder_digest if terms.feedback else "",
            bundle_doubt=offer.doubt,
            parcel_requests=self._limits.max_in_flight,
        )

    async def fetch_encoder(self, raw: bytes, context: Any) -> AsyncIterator[pb.Chunk]:
        """Send the edge half of the session's bundle, or of its feedback, from an offset on."""
        try:
            try:
                request = pb.FetchEncoderRequest.FromString(raw)
            except DecodeError as error:
                raise FrameMalformedError(f"not a FetchEncoderRequest: {error}") from error
            caller = self._gate.device(context)
            self._openings.call(caller, context)
            session = self._sessions.get(request.session_id, caller)
            offer = session.offer
            halves = {offer.encoder_digest: offer.encoder}
            if offer.feedback_decoder:
                halves[offer.feedback_decoder_digest] = offer.feedback_decoder
            if request.encoder_digest not in halves:
                raise FrameMalformedError(
                    f"no encoder {request.encoder_digest[:64]!r} in this session; Negotiate named "
                    f"{' and '.join(map(repr, halves))}"
                )
            blob = halves[request.encoder_digest]
            if request.offset >= len(blob):
                raise FrameMalformedError(
                    f"offset {request.offset} is not in the encoder, which has {len(blob)} bytes: "
                    "fetch it from 0"
                )
        except BridgeError as error:
            await self._refusals.abort(context, error, "FetchEncoder")
        for start in range(request.offset, len(blob), _CHUNK_BYTES):
            piece = blob[start : start + _CHUNK_BYTES]
            yield pb.Chunk(data=piece, total_bytes=len(blob), offset=start)


def _read_negotiate(raw: bytes) -> pb.NegotiateRequest:
    if len(raw) > _NEGOTIATE_BYTES:
        raise FrameMalformedError(f"a NegotiateRequest of {len(raw)} bytes")
    try:
        request: pb.NegotiateRequest = pb.NegotiateRequest.FromString(raw)
    except DecodeError as error:
        raise FrameMalformedError(f"not a NegotiateRequest: {error}") from error
    if request.protocol_version != PROTOCOL_VERSION:
        raise ProtocolVersionError(
            f"the edge speaks protocol version {request.protocol_version}, this service "
            f"speaks {PROTOCOL_VERSION}: update the older side"
        )
    return request
