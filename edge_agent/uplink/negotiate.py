"""Agree with a server: Negotiate, then the encoder, from disk or by FetchEncoder.

Calls, in order: `Negotiate` (who am I) → the store (is the encoder here?) → `FetchEncoder` (if not)
→ `Session`. The decoder for feedback is fetched by the same call, once it is needed.
"""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import fields
from time import monotonic
from typing import Any

import grpc
import structlog

from edge_agent.metrics import Metrics
from edge_agent.uplink.call_errors import error_of
from edge_agent.uplink.encoder_part import EncoderPart, require_digest
from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.session import Session
from projector.codec.encoder import Encoder
from projector.codec.feedback import FeedbackDecoder
from projector.codec.file_format import MAX_BYTES
from protos.calls import PROTOCOL_VERSION
from protos.digest import session_constants
from protos.errors import (
    BundleCorruptError,
    DiskFullError,
    FrameMalformedError,
    IncompatibleLayoutError,
    NoFeedbackError,
    OfflineError,
    ProtocolVersionError,
)
from protos.layout import KVLayout
from protos.limits import Limits
from protos.neuralbridge.v1 import bridge_pb2, bridge_pb2_grpc
from protos.points import points_from_json
from protos.process.settings import installed_version
from protos.quantize import QUANTIZERS

TELL_S = 30.0
"""Seconds between words in the log while an encoder arrives."""
_LONGEST_DOUBT = 1000  # most characters kept of the server's `doubt`


async def negotiate(
    channel: grpc.aio.Channel,
    layout: KVLayout,
    store: EncoderStore,
    metrics: Metrics,
    timeout_s: float = 10.0,
    before: Session | None = None,
    device: str = "",
    keep: str = "",
) -> Session:
    """Open a session and get its encoder.

    Args:
        channel: an open channel to the server.
        layout: the small model's cache layout.
        store: where encoders are kept on disk.
        metrics: counts negotiations and fetches.
        timeout_s: for Negotiate, and for each piece of the encoder, seconds.
        before: the previous session, if any; its encoder is reused if it is the same.
        device: this device's name, for a service without identities.
        keep: digest of the bundle that waiting frames were made with: the server is asked for that
            one, and gives another one if it has it no more.

    Raises:
        BridgeError: the server's refusal, typed; OfflineError if nobody answers;
            BundleCorruptError if the encoder does not match its digest.
    """
    stub = bridge_pb2_grpc.BridgeStub(channel)
    request = bridge_pb2.NegotiateRequest(
        protocol_version=PROTOCOL_VERSION,
        source_layout_json=layout.versions[-1].to_json(),  # any service reads version 1
        source_settings_digest=layout.settings_digest,
        codecs=sorted(QUANTIZERS),
        agent_version=installed_version()[:64],
        bundle_digest=keep or (before.bundle_digest if before else ""),
        device=device,
        keep_bundle=bool(keep),
    )
    try:
        reply = await stub.Negotiate(request, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error
    meant = meant_layout(reply, layout)
    if before is not None and before.encoder_digest == reply.encoder_digest:
        encoder = before.encoder
    else:
        encoder = Encoder.from_bytes(
            await _blob(stub, reply.session_id, reply.encoder_digest, store, metrics, timeout_s)
        )
    session = session_of(reply, layout, meant, encoder)
    metrics.negotiations.inc()
    return session


def meant_layout(reply: bridge_pb2.NegotiateResponse, layout: KVLayout) -> str:
    """Fingerprint of the version of the layout that the server's bundle is for.

    Raises:
        ProtocolVersionError: the server derives other session constants.
    """
    for version in layout.versions:
        made = session_constants(reply.session_id, version.fingerprint, reply.bundle_digest)
        if hmac.compare_digest(made, reply.session_constants):
            return version.fingerprint
    raise ProtocolVersionError(
        "the server's session constants are not the ones this agent derives: the two sides "
        "speak different versions of the protocol; update the older one"
    )


def session_of(
    reply: bridge_pb2.NegotiateResponse, layout: KVLayout, meant: str, encoder: Encoder
) -> Session:
    """The session that a server's reply opens.

    Args:
        reply: as received.
        layout: the small model's cache layout.
        meant: from `meant_layout`.
        encoder: the one that the reply names.

    Raises:
        IncompatibleLayoutError: the encoder is for another model.
        FrameMalformedError: the reply makes no sense.
    """
    if encoder.source_fingerprint != meant:
        raise IncompatibleLayoutError(
            f"the server's encoder is for the layout {encoder.source_fingerprint[:12]}…, this "
            f"agent's model {layout.model_id!r} has {meant[:12]}…"
        )
    points = {point.name: point for point in points_from_json(reply.operating_points_json)}
    if reply.default_point not in points:
        raise FrameMalformedError(
            f"the server's default point {reply.default_point!r} is not among its operating points"
        )
    limits = _limits(reply.limits)
    return Session(
        session_id=reply.session_id,
        constants=reply.session_constants,
        bundle_id=reply.bundle_id,
        bundle_version=reply.bundle_version,
        bundle_digest=reply.bundle_digest,
        encoder_digest=reply.encoder_digest,
        encoder=encoder,
        limits=limits,
        points=points,
        default_point=reply.default_point,
        ladder=tuple(reply.ladder),
        advised=reply.default_point,
        max_in_flight=limits.max_in_flight,
        max_message_bytes=limits.max_request_bytes,
        target_layout_json=reply.target_layout_json,
        feedback_decoder_digest=reply.reverse_decoder_digest,
        doubt=reply.bundle_doubt[:_LONGEST_DOUBT],
        reply=reply.SerializeToString(),
        max_parcel=reply.parcel_requests,
    )


async def feedback_decoder(
    channel: grpc.aio.Channel,
    session: Session,
    layout: KVLayout,
    store: EncoderStore,
    metrics: Metrics,
    timeout_s: float = 10.0,
) -> FeedbackDecoder:
    """The decoder for the session's feedback, fetched once.

    Args:
        channel: an open channel to the server.
        session: keeps it for the next time.
        layout: the small model's cache layout.
        store: where it is kept on disk.
        metrics: counts fetches.
        timeout_s: for each piece of it, seconds.

    Raises:
        NoFeedbackError: the session's bundle has no feedback.
        IncompatibleLayoutError: it is for another pair of models.
        BundleCorruptError, BundleFormatError: its bytes do not match its digest, or are no decoder.
        BridgeError: the server's refusal, typed; OfflineError if nobody answers.
    """
    if session.feedback_decoder is not None:
        return session.feedback_decoder
    if not session.feedback_decoder_digest:
        raise NoFeedbackError(
            f"bundle {session.bundle_id!r} of the server has no feedback: its map goes from the "
            "edge to the cloud only"
        )
    stub = bridge_pb2_grpc.BridgeStub(channel)
    blob = await _blob(
        stub, session.session_id, session.feedback_decoder_digest, store, metrics, timeout_s
    )
    made = FeedbackDecoder.from_bytes(blob)
    target = KVLayout.from_json(session.target_layout_json)
    wanted = (target.fingerprint, layout.fingerprint)
    fits = made.target_fingerprint in layout.fingerprints
    if made.source_fingerprint != target.fingerprint or not fits:
        raise IncompatibleLayoutError(
            f"the server's feedback leads from the layout {made.source_fingerprint[:12]}… to "
            f"{made.target_fingerprint[:12]}…; its model has {wanted[0][:12]}…, this agent's model "
            f"{layout.model_id!r} has {wanted[1][:12]}…"
        )
    session.feedback_decoder = made
    return made


async def _blob(
    stub: Any,
    session_id: bytes,
    digest: str,
    store: EncoderStore,
    metrics: Metrics,
    timeout_s: float,
) -> bytes:
    """A file of the bundle by its digest, from disk or else from the server."""
    blob = store.get(digest)
    if blob is not None:
        return blob
    log = _log()
    metrics.encoder_fetches.inc()
    with store.part(digest) as part:
        if part.resumed:
            log.info("encoder_resumed", digest=digest[:12], bytes=len(part.data))
        while not part.whole:
            try:
                await _fetch(stub, session_id, part, timeout_s)
            except (BundleCorruptError, FrameMalformedError) as error:
                resumed = part.resumed
                part.clear()
                if not resumed:
                    raise
                log.warning("encoder_fetched_anew", digest=digest[:12], cause=str(error))
            else:
                break
        try:
            store.keep(part)
        except DiskFullError as error:  # it is in memory, so the run goes on
            log.warning("not_kept", cause=str(error))
        return bytes(part.data)


async def _fetch(stub: Any, session_id: bytes, part: EncoderPart, timeout_s: float) -> None:
    """Fetch what a part lacks.

    Raises:
        BundleCorruptError: the whole does not match its digest, or is not as long as announced.
        BridgeError: the server's refusal, typed; OfflineError if the link breaks.
    """
    offset, total = len(part.data), 0
    request = bridge_pb2.FetchEncoderRequest(
        session_id=session_id, encoder_digest=part.digest, offset=offset
    )
    began_s = told_s = monotonic()
    call = stub.FetchEncoder(request)  # a narrow link may take hours for it: no deadline
    try:
        while (chunk := await asyncio.wait_for(call.read(), timeout_s)) is not grpc.aio.EOF:
            if not total and chunk.offset != offset:
                if chunk.offset:
                    raise BundleCorruptError(
                        f"the encoder was asked for from byte {offset} on, the server sends it "
                        f"from {chunk.offset}"
                    )
                part.clear()  # an older service, which knows no offset
            total = chunk.total_bytes
            if total > MAX_BYTES or not 0 < len(chunk.data) <= total - len(part.data):
                raise BundleCorruptError(
                    f"the encoder is announced with {total} bytes and brings more or an empty "
                    f"piece, or exceeds {MAX_BYTES} bytes"
                )
            part.add(chunk.data)
            now_s = monotonic()
            if now_s - told_s >= TELL_S:
                told_s, left = now_s, total - len(part.data)
                came = max(1, len(part.data) - (offset if part.resumed else 0))
                _log().info(
                    "encoder_arrives",
                    bytes=len(part.data),
                    of=total,
                    eta_s=round(left * (now_s - began_s) / came),
                )
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error
    except asyncio.TimeoutError as error:
        raise OfflineError(
            f"nothing more of the encoder came for {timeout_s:g} s, after {len(part.data)} bytes"
        ) from error
    finally:
        call.cancel()
    if len(part.data) != total:
        raise OfflineError(f"the encoder's stream ended after {len(part.data)} of {total} bytes")
    require_digest(part.digest, part.data)


def _log() -> Any:
    return structlog.get_logger(component="edge_agent")


def _limits(message: bridge_pb2.Limits) -> Limits:
    limits = Limits.from_proto(message)
    if min(getattr(limits, entry.name) for entry in fields(limits)) <= 0:
        raise FrameMalformedError(f"the server announces a limit of 0: {limits}")
    return limits
