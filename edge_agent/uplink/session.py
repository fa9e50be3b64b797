"""Agreeing with a server: Negotiate, then the encoder, from disk or by FetchEncoder.

The edge's half of the way back comes likewise, once it is wanted (`reverse_decoder`).

Calls, in order: `Negotiate` (who am I) → the store (is the encoder here?) → `FetchEncoder` (if not)
→ `Session`. Knows the messages and the digests; knows nothing of frames in flight.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import grpc
import structlog

from edge_agent.metrics import Metrics
from edge_agent.uplink.budget import Rung
from edge_agent.uplink.store import EncoderStore
from projector.codec.deltas import Held
from projector.codec.encoder import Encoder
from projector.codec.feedback import FeedbackDecoder
from projector.codec.file_format import MAX_BYTES
from protos.calls import PROTOCOL_VERSION
from protos.digest import session_constants
from protos.errors import (
    BridgeError,
    BundleCorruptError,
    DiskFullError,
    EngineUnavailableError,
    FrameMalformedError,
    FrameTooLargeError,
    IncompatibleLayoutError,
    NoFeedbackError,
    OfflineError,
    OverloadedError,
    ProtocolVersionError,
)
from protos.layout import KVLayout
from protos.limits import Limits
from protos.neuralbridge.v1 import bridge_pb2, bridge_pb2_grpc
from protos.points import OperatingPoint, points_from_json
from protos.process import addresses
from protos.process.proxies import proxy_of
from protos.process.settings import installed_version
from protos.quantize import QUANTIZERS
from protos.refusals import error_in

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.use_local_subchannel_pool", 1),  # a fresh channel must not inherit an old back-off
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", -1),  # a session's own limit holds, `Session.check_message`
    ("grpc.http2.bdp_probe", 0),  # its pings cost a thin uplink more than they find out
]

_ABOVE_CAP = re.compile(r"larger than max \(\d+ vs\. (\d+)\)")
"""gRPC's own words (C++ and Go) when it ends a call because of a message above its cap."""
_LOOKS, _LOOK_S = 20, 0.01

Dial = Callable[[], grpc.aio.Channel]


@dataclass(frozen=True)
class InsecureDial:
    """A factory of plain-text channels to one server.

    Attributes:
        address: as `protos.process.addresses.target` returns it.
        proxy: the HTTP proxy on the way there; empty without one.
    """

    address: str
    proxy: str = ""

    def __call__(self) -> grpc.aio.Channel:
        """Make a channel; it connects when it is used."""
        direct = [("grpc.enable_http_proxy", 0)] if addresses.loopback(self.address) else []
        return grpc.aio.insecure_channel(self.address, options=[*CHANNEL_OPTIONS, *direct])


def dial_insecure(address: str, environ: Mapping[str, str] = os.environ) -> InsecureDial:
    """A factory of plain-text channels; only what leaves this machine goes through a proxy.

    Raises:
        ConfigError: it is no address.
    """
    target = addresses.target(address)
    return InsecureDial(target, proxy_of(target, environ))


_FARTHEST = (1 << 16) - 1024
"""How far a base may lie behind; the header takes 2^16 - 1, and frames may overtake each other."""


@dataclass(frozen=True)
class Base:
    """A frame that the service accepted, for delta frames to change."""

    frame_number: int
    held: Held


_LONGEST_DOUBT = 1000  # of the server's words, in characters


@dataclass
class Session:
    """What both sides hold constant while a session lasts.

    Attributes:
        points: operating points by name, the server's own.
        advised: the point that the server advised last, or its default.
        max_in_flight: the server's credit, changed by its advice.
        max_message_bytes: longest request; the server's limit, or the lower cap of a proxy.
        target_layout_json: the large model's cache layout, as the server sent it.
        reverse_decoder_digest: of the edge's half of the way back; empty where there is none.
        reverse_decoder: that half, once it was wanted.
        doubt: what the bundle's certificate does not vouch for, in the server's words.
    """

    session_id: bytes
    constants: bytes
    bundle_id: str
    bundle_version: str
    bundle_digest: str
    encoder_digest: str
    encoder: Encoder
    limits: Limits
    points: dict[str, OperatingPoint]
    default_point: str
    ladder: tuple[str, ...]
    advised: str
    max_in_flight: int
    max_message_bytes: int
    target_layout_json: str = ""
    reverse_decoder_digest: str = ""
    reverse_decoder: FeedbackDecoder | None = field(default=None, repr=False)
    doubt: str = ""
    _frames: int = field(default=0, repr=False)
    _captured_at: float | None = field(default=None, repr=False)
    _base: Base | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """What calibration measured of the points that send latents or the raw cache."""
        return tuple(
            Rung(
                name,
                point.measured.wire_bytes,
                point.measured.accuracy,
                math.hypot(point.measured.quantize, point.measured.dropped_attention),
            )
            for name, point in self.points.items()
            if point.measured is not None and point.kind != "picture"
        )

    def next_frame(self, captured_at: float) -> tuple[int, int]:
        """Return a frame's number and the milliseconds since the previous frame's capture."""
        with self._lock:
            number, before = self._frames, self._captured_at
            self._frames = (number + 1) % (1 << 32)
            self._captured_at = captured_at
        delta_ms = 0 if before is None else round((captured_at - before) * 1000)
        return number, min(max(delta_ms, 0), (1 << 32) - 1)

    @property
    def base(self) -> Base | None:
        """The newest accepted frame; None before there is one, or where it is too long ago."""
        with self._lock:
            if self._base is None or self._behind(self._base.frame_number) > _FARTHEST:
                return None
            return self._base

    def accepted(self, base: Base) -> None:
        """Delta frames may change this frame from now on, unless a newer one is accepted too."""
        with self._lock:
            before = self._base
            if before is None or self._behind(base.frame_number) < self._behind(
                before.frame_number
            ):
                self._base = base

    def lost(self, frame_number: int) -> None:
        """The service does not hold that frame any more."""
        with self._lock:
            if self._base is not None and self._base.frame_number == frame_number:
                self._base = None

    def forget_advice(self) -> None:
        """The server's default point and credit again."""
        self.advised, self.max_in_flight = self.default_point, self.limits.max_in_flight

    def _behind(self, frame_number: int) -> int:
        return (self._frames - frame_number) % (1 << 32)

    def require_tokenizer(self, digest: str) -> None:
        """Refuse a text aligned to other tokens than the large model's.

        Raises:
            IncompatibleLayoutError: the digest is of another tokenizer.
        """
        target = KVLayout.from_json(self.target_layout_json)
        if digest != target.tokenizer_digest:
            raise IncompatibleLayoutError(
                f"texts are aligned to the tokenizer {digest[:12]}…; the server's "
                f"{target.model_id} has {target.tokenizer_digest[:12]}…: give its tokenizer with "
                "--target-tokenizer"
            )

    def check_message(self, size_bytes: int) -> None:
        """Refuse a request that would end the stream, and with it everyone else's.

        Raises:
            FrameTooLargeError: it is longer than this session carries.
        """
        if size_bytes > self.max_message_bytes:
            raise FrameTooLargeError(
                f"the request has {size_bytes} bytes, the way to the server takes "
                f"{self.max_message_bytes}: choose a point of fewer bytes"
            )

    def learn_cap(self, error: FrameTooLargeError) -> None:
        """Remember the cap that gRPC named when it ended a stream, here or on the way."""
        named = _ABOVE_CAP.search(error.message)
        if named is not None:
            self.max_message_bytes = min(self.max_message_bytes, int(named[1]))


def error_of(error: grpc.aio.AioRpcError) -> BridgeError:
    """Turn a failed call into the typed error that it stands for.

    The trailer `nb-error-code` decides; without it (no server of ours answered) the status does.
    """
    text = error.details() or error.code().name
    trailer = error.trailing_metadata()
    typed = error_in(trailer if trailer is not None else (), text)
    if typed is not None:
        return typed
    status = error.code()
    if status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return OfflineError(f"the server cannot be reached: {text}")
    if status == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return FrameTooLargeError(text) if _ABOVE_CAP.search(text) else OverloadedError(text)
    if status in (
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DATA_LOSS,
    ):
        return EngineUnavailableError(f"the call broke ({status.name}): {text}")
    return BridgeError(f"the server refused the call ({status.name}): {text}")


async def open_events(channel: grpc.aio.Channel, session: Session, timeout_s: float) -> Any:
    """Call Events, for an Infer call on another connection, and wait until the server is ready.

    Raises:
        grpc.aio.AioRpcError: the server refused.
        OfflineError: it said nothing in time.
    """
    request = bridge_pb2.EventsRequest(session_id=session.session_id)
    call = bridge_pb2_grpc.BridgeStub(channel).Events(request)
    try:
        await asyncio.wait_for(call.initial_metadata(), timeout_s)
    except asyncio.TimeoutError as error:
        call.cancel()
        raise OfflineError(f"no word from the server within {timeout_s:g} s") from error
    if call.done():
        await call.read()  # raises what it ended with
        raise OfflineError("the server ended the call of events at once")
    return call


async def unhidden(call: Any, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
    """What a stream ended with, where a write into its end has put INTERNAL in front of it."""
    for _ in range(_LOOKS):
        if error.code() != grpc.StatusCode.INTERNAL:
            break
        await asyncio.sleep(_LOOK_S)
        error = grpc.aio.AioRpcError(
            await call.code(),
            grpc.aio.Metadata(),
            await call.trailing_metadata(),
            await call.details(),
        )
    return error


async def negotiate(
    channel: grpc.aio.Channel,
    layout: KVLayout,
    store: EncoderStore,
    metrics: Metrics,
    timeout_s: float = 10.0,
    before: Session | None = None,
) -> Session:
    """Open a session and see to it that its encoder is at hand.

    Args:
        channel: an open channel to the server.
        layout: the small model's cache layout.
        store: where encoders are kept on disk.
        metrics: counts negotiations and fetches.
        timeout_s: for each of the two calls, seconds.
        before: the session before, if any; its encoder is used again where it is the same.

    Raises:
        BridgeError: the server's refusal, typed; OfflineError where nobody answers;
            BundleCorruptError where the encoder does not match its digest.
    """
    stub = bridge_pb2_grpc.BridgeStub(channel)
    request = bridge_pb2.NegotiateRequest(
        protocol_version=PROTOCOL_VERSION,
        source_layout_json=layout.versions[-1].to_json(),  # any service reads version 1
        source_settings_digest=layout.settings_digest,
        codecs=sorted(QUANTIZERS),
        agent_version=installed_version()[:64],
        bundle_digest=before.bundle_digest if before else "",
    )
    try:
        reply = await stub.Negotiate(request, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error
    meant = None
    for version in layout.versions:  # the service has a bundle for one of them
        made = session_constants(reply.session_id, version.fingerprint, reply.bundle_digest)
        if hmac.compare_digest(made, reply.session_constants):
            meant = version.fingerprint
            break
    if meant is None:
        raise ProtocolVersionError(
            "the server's session constants are not the ones this agent derives: the two sides "
            "speak different versions of the protocol; update the older one"
        )
    if before is not None and before.encoder_digest == reply.encoder_digest:
        encoder = before.encoder
    else:
        encoder = Encoder.from_bytes(
            await _blob(stub, reply.session_id, reply.encoder_digest, store, metrics, timeout_s)
        )
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
    metrics.negotiations.inc()
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
        reverse_decoder_digest=reply.reverse_decoder_digest,
        doubt=reply.bundle_doubt[:_LONGEST_DOUBT],
    )


async def reverse_decoder(
    channel: grpc.aio.Channel,
    session: Session,
    layout: KVLayout,
    store: EncoderStore,
    metrics: Metrics,
    timeout_s: float = 10.0,
) -> FeedbackDecoder:
    """The edge's half of the session's way back, fetched once.

    Args:
        channel: an open channel to the server.
        session: keeps it for the next time.
        layout: the small model's cache layout.
        store: where it is kept on disk.
        metrics: counts fetches.
        timeout_s: for the call, seconds.

    Raises:
        NoFeedbackError: the session's bundle has no way back.
        IncompatibleLayoutError: it is for another pair of models.
        BundleCorruptError, BundleFormatError: it is not what its digest names, or no such half.
        BridgeError: the server's refusal, typed; OfflineError where nobody answers.
    """
    if session.reverse_decoder is not None:
        return session.reverse_decoder
    if not session.reverse_decoder_digest:
        raise NoFeedbackError(
            f"bundle {session.bundle_id!r} of the server has no way back: its map goes from the "
            "edge to the cloud only"
        )
    stub = bridge_pb2_grpc.BridgeStub(channel)
    blob = await _blob(
        stub, session.session_id, session.reverse_decoder_digest, store, metrics, timeout_s
    )
    made = FeedbackDecoder.from_bytes(blob)
    target = KVLayout.from_json(session.target_layout_json)
    wanted = (target.fingerprint, layout.fingerprint)
    fits = made.target_fingerprint in layout.fingerprints
    if made.source_fingerprint != target.fingerprint or not fits:
        raise IncompatibleLayoutError(
            f"the server's way back leads from the layout {made.source_fingerprint[:12]}… to "
            f"{made.target_fingerprint[:12]}…; its model has {wanted[0][:12]}…, this agent's model "
            f"{layout.model_id!r} has {wanted[1][:12]}…"
        )
    session.reverse_decoder = made
    return made


async def _blob(
    stub: Any,
    session_id: bytes,
    digest: str,
    store: EncoderStore,
    metrics: Metrics,
    timeout_s: float,
) -> bytes:
    """A half of the bundle by its digest, from disk or else from the server."""
    blob = store.get(digest)
    if blob is None:
        metrics.encoder_fetches.inc()
        blob = await _fetch(stub, session_id, digest, timeout_s)
        try:
            store.put(digest, blob)
        except DiskFullError as error:  # it is at hand all the same
            structlog.get_logger(component="edge_agent").warning("not_kept", cause=str(error))
    return blob


async def _fetch(stub: Any, session_id: bytes, digest: str, timeout_s: float) -> bytes:
    request = bridge_pb2.FetchEncoderRequest(session_id=session_id, encoder_digest=digest)
    blob = bytearray()
    total = 0
    try:
        async for chunk in stub.FetchEncoder(request, timeout=timeout_s):
            total = chunk.total_bytes
            if total > MAX_BYTES or len(blob) + len(chunk.data) > total:
                raise BundleCorruptError(
                    f"the encoder is announced with {total} bytes and brings more, or exceeds "
                    f"{MAX_BYTES} bytes"
                )
            blob += chunk.data
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error
    if len(blob) != total:
        raise OfflineError(f"the encoder's stream ended after {len(blob)} of {total} bytes")
    return bytes(blob)


def _limits(message: bridge_pb2.Limits) -> Limits:
    limits = Limits.from_proto(message)
    if min(getattr(limits, entry.name) for entry in fields(limits)) <= 0:
        raise FrameMalformedError(f"the server announces a limit of nothing: {limits}")
    return limits
