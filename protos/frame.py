"""The bytes of a frame: header, bitmap, digest, limits; what is checked before it is believed.

Knows every byte that neuralbridge/v1/bridge.proto describes outside the payload's codec. Knows no
quantizer, no socket and no clock.

Edge, in order: `pack_header`, `seal`. Cloud, in order: `parse_infer_request`, `verify`,
`unpack_header`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from protos.errors import (
    BridgeError,
    EmptyFrameError,
    FrameCorruptError,
    FrameMalformedError,
    FrameTooLargeError,
    FrameTruncatedError,
    NonFiniteError,
    OverloadedError,
    QuestionError,
    QuestionTooLongError,
    from_code,
)
from protos.layout import read_json
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.wire import parse_exactly

PROTOCOL_VERSION = 1
SERVICE = "neuralbridge.v1.Bridge"
SESSION_METADATA_KEY = "nb-session-bin"
ERROR_METADATA_KEY = "nb-error-code"
RETRY_METADATA_KEY = "nb-retry-after-ms"
_NUMBER = re.compile("[0-9]{1,10}")  # whatever else a server writes there is none
EVENTS_APART = ("nb-events", "apart")
"""Metadata of an Infer call whose events go to the session's Events call."""

HEADER_VERSION = 3
FIXED = struct.Struct("<BB4B")
"""The part of a header at fixed offsets: version and flag, operating point, distortion figures."""
MAX_INLINE_TOKENS = 144
"""Grids of at most this many tokens have the kept bitmap in the header, so it is <= 40 bytes."""

DIGEST_BYTES = 8
CONSTANTS_BYTES = 32
SESSION_ID_BYTES = 16
REQUEST_ID_BYTES = (8, 16)

PICTURE_POINT = 254
RAW_KV_FP8_POINT = 253

_ALL_KEPT = 0x80
_DELTA = 0x40
_DIFFERENCES = 0x20
# The same bits of a picture's header: why the guard sends it in a frame's place.
_CAUSES = {
    "": 0,
    "distortion": _DELTA,
    "unfamiliar": _DIFFERENCES,
    "degenerate": _DELTA | _DIFFERENCES,
}
# A distortion figure's byte: 0 is 0, any other b is 10 ** ((b - _ONE) / _PER_DECADE).
_ONE, _PER_DECADE = 176, 64
_LENGTH = struct.Struct("<I")
# Tags and lengths of the nested messages; a request is longer than its bounded fields by less.
_FIELD_OVERHEAD_BYTES = 64
_ASK_OVERHEAD_BYTES = 256
"""Of an AskRequest beside its question, with room for numbers that are longer than they need be."""
_OPTIONAL = {"dead_zone", "quiet", "measured"}
_MAX_DEAD_ZONE = 0.5
_MAX_MEASURED = 1e9
_GRPC_BYTES = 5 + 9
"""A gRPC message's prefix and the header of the HTTP/2 DATA frame that carries it."""


@dataclass(frozen=True)
class Limits:
    """Bounds that are checked before anything is allocated; the cloud's travel in `Negotiate`.

    Attributes:
        max_payload_bytes: Payload, except at the picture point.
        max_header_bytes: Header.
        max_question_bytes: Question, as UTF-8.
        max_tokens: Image tokens of a grid.
        max_picture_bytes: Payload at the picture point.
        max_picture_px: Width and height of a picture.
        max_in_flight: Requests of one stream without a terminal event.
        max_new_tokens: Tokens that one answer may have.
    """

    max_payload_bytes: int = 1 << 20
    max_header_bytes: int = 64
    max_question_bytes: int = 512
    max_tokens: int = 4096
    max_picture_bytes: int = 4 << 20
    max_picture_px: int = 4096
    max_in_flight: int = 16
    max_new_tokens: int = 32

    @property
    def max_request_bytes(self) -> int:
        """A serialized InferRequest."""
        return (
            max(self.max_payload_bytes, self.max_picture_bytes)
            + self.max_header_bytes
            + self.max_question_bytes
            + _FIELD_OVERHEAD_BYTES
        )

    def to_proto(self) -> pb.Limits:
        """As the message."""
        return pb.Limits(**{entry.name: getattr(self, entry.name) for entry in fields(self)})

    @classmethod
    def from_proto(cls, message: pb.Limits) -> Limits:
        """From the message.

        Raises:
            FrameMalformedError: A limit is missing (0).
        """
        limits = {entry.name: int(getattr(message, entry.name)) for entry in fields(cls)}
        missing = [name for name, value in limits.items() if not value]
        if missing:
            raise FrameMalformedError(f"limits of the peer lack {', '.join(missing)}")
        return cls(**limits)


DEFAULT_LIMITS = Limits()


# --------------------------------------------------------------------------- operating points


@dataclass(frozen=True)
class Measured:
    """What calibration measured of an operating point: means over held-out pictures.

    Attributes:
        payload_bytes: `Frame.payload`, as sent (with a bitmap if it travels there).
        wire_bytes: An estimate for the uplink: the request without a question, and gRPC's and
            HTTP/2's framing of it (`wire_bytes`).
        accuracy: Share of questions answered right, 0..1.
        quantize: As headers carry it.
        dropped_attention: As headers carry it.

    Raises:
        FrameMalformedError: A figure is no number, or out of bounds.
    """

    payload_bytes: float
    wire_bytes: float
    accuracy: float
    quantize: float
    dropped_attention: float

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            most = 1.0 if entry.name in ("accuracy", "dropped_attention") else _MAX_MEASURED
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise FrameMalformedError(f"operating point: {entry.name} {value!r} is no number")
            if not 0 <= value <= most:
                raise FrameMalformedError(
                    f"operating point: {entry.name} {value!r} is not in 0..{most:g}"
                )


@dataclass(frozen=True)
class OperatingPoint:
    """One way to send a picture: how many tokens, how many latents, how coarse.

    Attributes:
        index: The header's byte; 253 and 254 are reserved.
        name: For people, metrics and `steps/<name>`.
        kind: "latent", "raw_kv" or "picture".
        quantizer: Name in `protos.quantize.QUANTIZERS`.
        tokens: Budget of kept tokens, 0 = all.
        rank: Latents per token, the first of the encoder's; 0 where the kind has none.
        steps: Name of the steps in the encoder; empty where none are needed.
        dead_zone: By how much of a step the edge rounds towards 0 more than it would, 0..0.5: a
            value of up to 0.5 + dead_zone steps becomes 0. The decoder need not know it.
        quiet: A token whose squared distance from the usual one at its place, in steps and summed
            over the latents that travel, is below this travels as that one: all zeros, which cost
            next to nothing. 0 for none. The decoder need not know it.
        measured: What calibration found; None where nothing was measured.

    Raises:
        FrameMalformedError: A field is out of bounds.
    """

    index: int
    name: str
    kind: str = "latent"
    quantizer: str = "fp8_e4m3"
    tokens: int = 0
    rank: int = 0
    steps: str = ""
    dead_zone: float = 0.0
    quiet: float = 0.0
    measured: Measured | None = None

    def __post_init__(self) -> None:
        for name, most in (("index", 255), ("tokens", 65535), ("rank", 65535)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
                raise FrameMalformedError(f"operating point: {name} {value!r} not in 0..{most}")
        for name in ("name", "kind", "quantizer", "steps"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > 64:
                raise FrameMalformedError(f"operating point: {name} must be a short text")
        if not self.name:
            raise FrameMalformedError("operating point: name is empty")
        if self.kind not in ("latent", "raw_kv", "picture"):
            raise FrameMalformedError(
                f"operating point {self.name!r}: kind {self.kind!r} is none of latent, raw_kv, "
                "picture"
            )
        if (self.kind == "picture") != (self.index == PICTURE_POINT):
            raise FrameMalformedError(
                f"operating point {self.name!r}: kind picture and index {PICTURE_POINT} "
                "belong together"
            )
        for name, limit in (("dead_zone", _MAX_DEAD_ZONE), ("quiet", _MAX_MEASURED)):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise FrameMalformedError(f"operating point: {name} {number!r} is no number")
            if not 0 <= number <= limit:
                raise FrameMalformedError(
                    f"operating point: {name} {number!r} is not in 0..{limit:g}"
                )

    def to_json(self) -> str:
        """Canonical JSON object."""
        return points_to_json([self])[1:-1]

    @classmethod
    def from_json(cls, text: str | bytes) -> OperatingPoint:
        """Read what `to_json` wrote.

        Raises:
            FrameMalformedError: Not exactly the fields of a valid point.
        """
        return cls._from_plain(read_json(text, 4096, "operating point"))

    @classmethod
    def _from_plain(cls, plain: Any) -> OperatingPoint:
        names = {entry.name for entry in fields(cls)}
        if not isinstance(plain, dict) or not names - _OPTIONAL <= set(plain) <= names:
            raise FrameMalformedError(
                f"operating point: expected the fields {sorted(names - _OPTIONAL)} "
                f"and at most {sorted(_OPTIONAL)} besides"
            )
        return cls(**{**plain, "measured": _measured(plain.get("measured"))})


def _measured(plain: Any) -> Measured | None:
    if plain is None:
        return None
    names = {entry.name for entry in fields(Measured)}
    if not isinstance(plain, dict) or set(plain) != names:
        raise FrameMalformedError(f"operating point: measured has the fields {sorted(names)}")
    return Measured(**plain)


PICTURE = OperatingPoint(PICTURE_POINT, "picture", kind="picture", quantizer="none")
RAW_KV_FP8 = OperatingPoint(
    RAW_KV_FP8_POINT, "raw_kv_fp8", kind="raw_kv", quantizer="fp8_e4m3", steps="raw_scale"
)


def points_to_json(points: Iterable[OperatingPoint]) -> str:
    """Canonical JSON array of operating points, as `Negotiate` and bundles carry it.

    Fields that a point need not have are left out where they say nothing.
    """
    plain = [
        {
            name: value
            for name, value in asdict(point).items()
            if name not in _OPTIONAL or value not in (None, 0.0)
        }
        for point in points
    ]
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def points_from_json(text: str | bytes) -> tuple[OperatingPoint, ...]:
    """Read what `points_to_json` wrote.

    Raises:
        FrameMalformedError: Not a list of valid points, or an index or name occurs twice.
    """
    plain = read_json(text, 1 << 18, "operating points")
    if not isinstance(plain, list) or len(plain) > 256:
        raise FrameMalformedError("operating points: expected a list of at most 256")
    points = tuple(OperatingPoint._from_plain(item) for item in plain)
    for unique in ({p.index for p in points}, {p.name for p in points}):
        if len(unique) != len(points):
            raise FrameMalformedError("operating points: an index or a name occurs twice")
    return points


# ----------------------------------------------------------------------------------- header


@dataclass(frozen=True)
class Distortion:
    """What the edge measured of a frame; `protos.distortion` defines the figures.

    On the wire each is one byte on a logarithmic scale: 0, or 0.0018 to 17.1 in steps of 3.7 %.
    """

    def to_bytes(self) -> bytes:
        """The figures' bytes, each rounded to the nearest of its scale; only 0 becomes 0.

        Raises:
            NonFiniteError: A figure is NaN or infinite.
            FrameMalformedError: A figure is negative.
        """
        out = bytearray()
        for entry in fields(self):
            figure = float(getattr(self, entry.name))
            if not math.isfinite(figure):
                raise NonFiniteError(f"distortion figure {entry.name} is {figure}")
            if figure < 0:
                raise FrameMalformedError(f"distortion figure {entry.name} is negative: {figure}")
            level = round(_ONE + _PER_DECADE * math.log10(figure)) if figure else 0
            out.append(min(max(level, 1), 255) if figure else 0)
        return bytes(out)

    @classmethod
    def from_bytes(cls, levels: Iterable[int]) -> Distortion:
        """Read what `to_bytes` wrote."""
        return cls(*(10 ** ((b - _ONE) / _PER_DECADE) if b else 0.0 for b in levels))

    quantize: float = 0.0
    dropped_attention: float = 0.0
    latent_residual: float = 0.0
    unfamiliarity: float = 0.0

    def to_proto(self, expected_error: float = 0.0, bound: float = 0.0) -> pb.DistortionReport:
        """As the message, with what the cloud adds."""
        return pb.DistortionReport(
            **{entry.name: getattr(self, entry.name) for entry in fields(self)},
            expected_error=expected_error,
            bound=bound,
        )


@dataclass(frozen=True, eq=False)
class Header:
    """The header of one frame, together with the kept bitmap wherever that travels.

    Attributes:
        operating_point: Index of the operating point, 0..255.
        frame_number: Unique within the session, 0..2**32-1.
        kept: Which grid tokens the payload holds, bool [N]; N is 0 at the picture point.
        capture_delta_ms: Since the session's previous frame was captured.
        distortion: Measured at the edge.
        base: Of a delta frame, the frame of the session that it changes, at most 65535 before it;
            `kept` then says which tokens are new. None for a key frame.
        differences: The payload holds differences to the base's latents, not latents.
        cause: Of a picture that the guard sends in a frame's place, why: distortion, unfamiliar or
            degenerate.
        version: Of this layout.
    """

    operating_point: int
    frame_number: int
    kept: npt.NDArray[np.bool_]
    capture_delta_ms: int = 0
    distortion: Distortion = field(default_factory=Distortion)
    base: int | None = None
    differences: bool = False
    cause: str = ""
    version: int = HEADER_VERSION

    @property
    def tokens(self) -> int:
        """N, the image tokens of the whole grid."""
        return len(self.kept)

    @property
    def kept_tokens(self) -> int:
        """How many tokens the payload holds."""
        return int(np.count_nonzero(self.kept))


def pack_header(header: Header, body: bytes = b"") -> tuple[bytes, bytes]:
    """Write a frame's header and put the bitmap where it belongs.

    Args:
        header: What to write. Distortion figures are rounded, see `Distortion`.
        body: The quantizer's output (or the picture's file).

    Returns:
        The fields `Frame.header` and `Frame.payload`.

    Raises:
        FrameMalformedError: A number does not fit its field, or `kept` is not bool [N].
        EmptyFrameError: No token is kept, or the body is empty.
        NonFiniteError: A distortion figure is NaN or infinite.
    """
    levels = header.distortion.to_bytes()
    kept = np.asarray(header.kept)
    if kept.ndim != 1 or (kept.dtype != np.bool_ and kept.size):
        raise FrameMalformedError(f"kept must be bool [tokens], not {kept.dtype} {kept.shape}")
    _check_tokens(header.operating_point, len(kept))
    delta = header.base is not None
    _check_delta(header.operating_point, delta, header.differences)
    if header.cause not in _CAUSES or (header.cause and header.operating_point != PICTURE_POINT):
        raise FrameMalformedError(f"{header.cause!r} is no cause of a picture in a frame's place")
    if not body:
        raise EmptyFrameError("the frame has no payload")
    everything = bool(kept.size and kept.all())
    try:
        fixed = FIXED.pack(
            header.version
            | (_ALL_KEPT if everything else 0)
            | (_DELTA if delta else 0)
            | (_DIFFERENCES if header.differences else 0)
            | _CAUSES[header.cause],
            header.operating_point,
            *levels,
        )
    except struct.error as error:
        raise FrameMalformedError(f"a header field does not fit: {error}") from error
    counts = [len(kept), header.frame_number, header.capture_delta_ms]
    if header.base is not None:
        counts.append((header.frame_number - header.base) & 0xFFFFFFFF)
    for (name, least, most), value in zip(_COUNTS, counts, strict=False):
        if not least <= value <= most:
            raise FrameMalformedError(f"{name} {value} is not in {least}..{most}")
        fixed += _varint(value)
    if header.operating_point == PICTURE_POINT or everything:
        return fixed, body
    if not kept.any():
        raise EmptyFrameError("no token is kept: a frame needs at least one")
    bitmap = np.packbits(kept, bitorder="little").tobytes()
    if len(kept) <= MAX_INLINE_TOKENS:
        return fixed + bitmap, body
    return fixed, bitmap + body


def unpack_header(
    header: bytes, payload: bytes, limits: Limits = DEFAULT_LIMITS
) -> tuple[Header, bytes]:
    """Read a frame's header and bitmap, trusting nothing.

    Args:
        header: The field `Frame.header`.
        payload: The field `Frame.payload`.
        limits: What this side accepts.

    Returns:
        The header, and the payload without the bitmap: what the quantizer decodes.

    Raises:
        FrameTruncatedError: Bytes end before the counts say so.
        FrameTooLargeError: A field or the grid is larger than the limits.
        FrameMalformedError: Unknown version, trailing bytes, unused bits set.
        EmptyFrameError: No token is kept, or nothing follows the bitmap.
    """
    if len(header) > limits.max_header_bytes:
        raise FrameTooLargeError(
            f"header of {len(header)} bytes, at most {limits.max_header_bytes} are accepted"
        )
    if len(header) < FIXED.size:
        raise FrameTruncatedError(f"header of {len(header)} bytes, at least {FIXED.size} expected")
    flagged, point, *levels = FIXED.unpack_from(header)
    everything, differences = bool(flagged & _ALL_KEPT), bool(flagged & _DIFFERENCES)
    cause = ""
    if point == PICTURE_POINT:
        cause, differences = _cause(flagged), False
    version = flagged & ~(_ALL_KEPT | _DELTA | _DIFFERENCES)
    if version != HEADER_VERSION:
        raise FrameMalformedError(f"header version {version}, this side reads {HEADER_VERSION}")
    (tokens, frame_number, delta_ms, *distance), size = _counts(header)
    _check_tokens(point, tokens)
    _check_delta(point, bool(distance), differences)
    if tokens > limits.max_tokens:
        raise FrameTooLargeError(f"grid of {tokens} tokens, at most {limits.max_tokens} accepted")
    most = limits.max_picture_bytes if point == PICTURE_POINT else limits.max_payload_bytes
    if len(payload) > most:
        raise FrameTooLargeError(f"payload of {len(payload)} bytes, at most {most} are accepted")

    bitmap_bytes = 0 if everything else (tokens + 7) // 8
    inline = tokens <= MAX_INLINE_TOKENS
    expected = size + (bitmap_bytes if inline else 0)
    if len(header) != expected:
        wrong = FrameTruncatedError if len(header) < expected else FrameMalformedError
        raise wrong(f"header of {len(header)} bytes, {tokens} tokens need {expected}")
    if inline:
        bitmap, body = header[size:], payload
    else:
        if len(payload) < bitmap_bytes:
            raise FrameTruncatedError(
                f"payload of {len(payload)} bytes ends within its bitmap of {bitmap_bytes}"
            )
        bitmap, body = payload[:bitmap_bytes], payload[bitmap_bytes:]
    kept = _kept(bitmap, tokens, everything)
    if not body:
        raise EmptyFrameError("the frame has no payload")
    distortion = Distortion.from_bytes(levels)
    base = (frame_number - distance[0]) & 0xFFFFFFFF if distance else None
    return (
        Header(point, frame_number, kept, delta_ms, distortion, base, differences, cause, version),
        body,
    )


def frame_number_of(header: bytes) -> int | None:
    """The frame number of a header that may be anything; None where none can be read."""
    try:
        return _counts(header)[0][1]
    except BridgeError:
        return None


def _kept(bitmap: bytes, tokens: int, everything: bool) -> npt.NDArray[np.bool_]:
    if everything:
        if not tokens:
            raise FrameMalformedError("every token is kept, of none")
        return np.ones(tokens, dtype=np.bool_)
    bits = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), bitorder="little").astype(np.bool_)
    kept = bits[:tokens]
    if bits[tokens:].any():
        raise FrameMalformedError(f"the kept bitmap has bits set beyond its {tokens} tokens")
    if tokens and not kept.any():
        raise EmptyFrameError("no token is kept: a frame needs at least one")
    if tokens and kept.all():
        raise FrameMalformedError("the kept bitmap is full; a full one is left out and flagged")
    return kept


_COUNTS = (
    ("tokens", 0, 0xFFFF),
    ("frame_number", 0, 0xFFFFFFFF),
    ("capture_delta_ms", 0, 0xFFFFFFFF),
    ("base_distance", 1, 0xFFFF),
)
"""Name, least and most of each varint; the last only in delta frames."""


def _varint(value: int) -> bytes:
    """Seven bits per byte, the lowest first, bit 7 set on all but the last (as protobuf's)."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _counts(header: bytes) -> tuple[list[int], int]:
    """The varints after the fixed part (three, of a delta frame four), and the offset behind them.

    Raises:
        FrameTruncatedError: The header ends within one.
        FrameMalformedError: One is out of bounds, or longer than it need be.
    """
    at, values = FIXED.size, []
    delta = len(header) > 1 and bool(header[0] & _DELTA) and header[1] != PICTURE_POINT
    for name, least, most in _COUNTS if delta else _COUNTS[:-1]:
        value, begun = 0, at
        while True:
            if at >= len(header):
                raise FrameTruncatedError(f"header of {len(header)} bytes ends within {name}")
            value |= (header[at] & 0x7F) << 7 * (at - begun)
            at += 1
            if not header[at - 1] & 0x80:
                break
            if at - begun >= 5:
                raise FrameMalformedError(f"{name} is longer than 5 bytes")
        if not least <= value <= most or (at - begun > 1 and not header[at - 1]):
            raise FrameMalformedError(f"{name} is not in {least}..{most} or longer than it need be")
        values.append(value)
    return values, at


def _check_tokens(point: int, tokens: int) -> None:
    if point == PICTURE_POINT and tokens:
        raise FrameMalformedError(f"a picture has no token grid, the header says {tokens} tokens")
    if point != PICTURE_POINT and not tokens:
        raise EmptyFrameError("the header says 0 tokens: a frame needs at least one")


def _cause(flagged: int) -> str:
    bits = flagged & (_DELTA | _DIFFERENCES)
    return next(name for name, bit in _CAUSES.items() if bit == bits)


def _check_delta(point: int, delta: bool, differences: bool) -> None:
    if delta and point == PICTURE_POINT:
        raise FrameMalformedError("a picture is no delta frame")
    if differences and not delta:
        raise FrameMalformedError("the payload holds differences, but to no frame")


# ----------------------------------------------------------------------------------- digest


def session_constants(session_id: bytes, source_fingerprint: str, bundle_digest: str) -> bytes:
    """What both sides agreed on once, as the key of every digest.

    Args:
        session_id: 16 bytes.
        source_fingerprint: `KVLayout.fingerprint` of the edge's model.
        bundle_digest: SHA-256 (hex) of the bundle, which covers the encoder, the target's layout
            and the operating points.

    Returns:
        32 bytes: SHA-256 of the canonical JSON of these and the protocol version.
    """
    plain = {
        "bundle_digest": bundle_digest,
        "protocol_version": PROTOCOL_VERSION,
        "session_id": session_id.hex(),
        "source_fingerprint": source_fingerprint,
    }
    return hashlib.sha256(
        json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    ).digest()


def derived_id(constants: bytes, frame_number: int) -> bytes:
    """The id of a request that carries none: 8 bytes that both sides can tell without sending them.

    Args:
        constants: `session_constants`.
        frame_number: Of its frame.
    """
    what = b"request" + _LENGTH.pack(frame_number)
    return hashlib.blake2b(what, key=constants, digest_size=REQUEST_ID_BYTES[0]).digest()


def id_of(request: pb.InferRequest, constants: bytes) -> bytes:
    """The id of a request that may be anything, as far as it can be told for certain.

    Returns:
        The one that it carries; the one that both sides derive, if its digest says that the frame
        number is the one that was sent; otherwise nothing.
    """
    if request.request_id:
        return request.request_id[: REQUEST_ID_BYTES[1]]
    number = frame_number_of(request.frame.header)
    try:
        verify(request, constants)
    except BridgeError:
        return b""
    return b"" if number is None else derived_id(constants, number)


def frame_digest(
    constants: bytes,
    request_id: bytes,
    header: bytes,
    payload: bytes,
    question: str,
    max_new_tokens: int,
) -> bytes:
    """The digest of a request: 8 bytes of BLAKE2b (RFC 7693) keyed with the session's constants.

    Each part is preceded by its length (uint32, little endian), so bytes cannot move between them.

    Raises:
        FrameMalformedError: The constants are not 32 bytes.
        QuestionError: The question cannot be written as UTF-8.
    """
    if len(constants) != CONSTANTS_BYTES:
        raise FrameMalformedError(
            f"session constants of {len(constants)} bytes, expected {CONSTANTS_BYTES}"
        )
    try:
        text = question.encode()
    except UnicodeEncodeError as error:
        raise QuestionError(f"the question is not valid Unicode: {error}") from error
    state = hashlib.blake2b(key=constants, digest_size=DIGEST_BYTES)
    number = _LENGTH.pack(max_new_tokens)
    for part in (request_id, header, payload, text, number):
        state.update(_LENGTH.pack(len(part)))
        state.update(part)
    return state.digest()


def ask_digest(
    constants: bytes, request_id: bytes, frame_number: int, question: str, max_new_tokens: int
) -> bytes:
    """The digest of an AskRequest: a frame's, with 4 bytes of frame number for a header."""
    header = _LENGTH.pack(frame_number)
    return frame_digest(constants, request_id, header, b"", question, max_new_tokens)


# ---------------------------------------------------------------------------------- requests


def seal(
    constants: bytes,
    request_id: bytes,
    header: bytes,
    payload: bytes,
    question: str = "",
    max_new_tokens: int = 0,
) -> pb.InferRequest:
    """Build the request of one frame, digest included.

    Args:
        constants: `session_constants`.
        request_id: 8 to 16 bytes; empty for `derived_id`, which need not travel.
        header: From `pack_header`.
        payload: From `pack_header`.
        question: Empty to just hold the scene.
        max_new_tokens: 0 for the server's maximum.
    """
    digest = frame_digest(constants, request_id, header, payload, question, max_new_tokens)
    return pb.InferRequest(
        request_id=request_id,
        frame=pb.Frame(header=header, payload=payload, digest=digest),
        question=question,
        max_new_tokens=max_new_tokens,
    )


def wire_bytes(header: Header, body: bytes) -> int:
    """About how many uplink bytes a frame without a question takes.

    The request with the shortest id, in gRPC's and HTTP/2's framing; what HTTP/2 sends beside data
    (window updates, pings) and the layers below it are left out.

    Args:
        header: As for `pack_header`.
        body: Likewise.

    Raises:
        BridgeError: As `pack_header`.
    """
    packed = pack_header(header, body)
    request = seal(bytes(CONSTANTS_BYTES), bytes(REQUEST_ID_BYTES[0]), *packed)
    return int(request.ByteSize()) + _GRPC_BYTES


def seal_ask(
    constants: bytes,
    session_id: bytes,
    request_id: bytes,
    frame_number: int,
    question: str,
    max_new_tokens: int = 0,
) -> pb.AskRequest:
    """Build the request of a further question, digest included."""
    return pb.AskRequest(
        session_id=session_id,
        frame_number=frame_number,
        request_id=request_id,
        question=question,
        max_new_tokens=max_new_tokens,
        digest=ask_digest(constants, request_id, frame_number, question, max_new_tokens),
    )


def parse_infer_request(raw: bytes, limits: Limits = DEFAULT_LIMITS) -> pb.InferRequest:
    """Read a serialized InferRequest exactly: every bit is known and every field bounded.

    How a client's protobuf library wrote the fields does not matter (`protos.wire`).

    The digest is not checked here (that needs the session): call `verify` next.

    Args:
        raw: The message as received.
        limits: What this side accepts.

    Returns:
        The message; its header has been unpacked once, so `unpack_header` will succeed.

    Raises:
        FrameTooLargeError: The message or a field of it is too long.
        FrameMalformedError: Not a request; an unknown field or one twice; a field missing or of the
            wrong length; more new tokens than allowed.
        QuestionTooLongError: The question is too long.
        QuestionError: The question is blank but not empty.
        BridgeError: Whatever `unpack_header` raises.
    """
    message: pb.InferRequest = parse_exactly(raw, limits.max_request_bytes, pb.InferRequest)
    _check_request(message, limits)
    if message.question and not message.question.strip():
        raise QuestionError("the question is blank: leave it empty to just hold the scene")
    unpack_header(message.frame.header, message.frame.payload, limits)
    return message


def parse_ask_request(raw: bytes, limits: Limits = DEFAULT_LIMITS) -> pb.AskRequest:
    """Read a serialized AskRequest exactly, as `parse_infer_request` does.

    Raises:
        FrameTooLargeError: The message is too long.
        FrameMalformedError: Not exactly a request.
        QuestionTooLongError: The question is too long.
        QuestionError: The question is blank.
    """
    most = limits.max_question_bytes + _ASK_OVERHEAD_BYTES
    message: pb.AskRequest = parse_exactly(raw, most, pb.AskRequest)
    _check_request(message, limits)
    if not message.question.strip():
        raise QuestionError("the question is blank")
    return message


def verify(request: pb.InferRequest | pb.AskRequest | pb.FeedbackRequest, constants: bytes) -> None:
    """Check a request's digest against the session's constants.

    That tells damage and mix-ups, not strangers: whoever knows the session's id can make the key.

    Raises:
        FrameCorruptError: They do not match: bytes changed on the way, or the frame was sealed for
            another session, model or bundle.
    """
    if isinstance(request, pb.InferRequest):
        given = request.frame.digest
        digest = frame_digest(
            constants,
            request.request_id,
            request.frame.header,
            request.frame.payload,
            request.question,
            request.max_new_tokens,
        )
    else:
        given = request.digest
        asked, limit = (
            (request.question, request.max_new_tokens)
            if isinstance(request, pb.AskRequest)
            else (request.point, 0)
        )
        digest = ask_digest(constants, request.request_id, request.frame_number, asked, limit)
    if not hmac.compare_digest(given, digest):
        raise FrameCorruptError(
            f"digest {given.hex()} does not match the request: bytes changed on the way, or it was "
            "sealed for another session, model or bundle"
        )


def refused(error: BridgeError) -> pb.Refused:
    """The event that tells the edge of an error (back: `refusal_of`)."""
    return pb.Refused(
        code=error.code,
        name=error.name,
        message=error.message,
        retryable=error.retryable,
        grpc_status=error.grpc_status,
        retry_after_ms=_retry_after_ms(error),
    )


def refusal_of(refused: pb.Refused) -> BridgeError:
    """The error that `refused` told of."""
    return _told(refused.code, refused.message, refused.retry_after_ms)


def trailer_of(error: BridgeError) -> tuple[tuple[str, str], ...]:
    """The trailing metadata of a call that ends with an error (back: `error_in`)."""
    told = [(ERROR_METADATA_KEY, str(error.code))]
    if retry_after_ms := _retry_after_ms(error):
        told.append((RETRY_METADATA_KEY, str(retry_after_ms)))
    return tuple(told)


def error_in(trailer: Iterable[tuple[str, str | bytes]], message: str) -> BridgeError | None:
    """The error of which a call's trailing metadata tell; None if they tell of none."""
    told = {
        key: int(value)
        for key, value in trailer
        if key in (ERROR_METADATA_KEY, RETRY_METADATA_KEY) and _NUMBER.fullmatch(str(value))
    }
    if ERROR_METADATA_KEY not in told:
        return None
    return _told(told[ERROR_METADATA_KEY], message, told.get(RETRY_METADATA_KEY, 0))


def _retry_after_ms(error: BridgeError) -> int:
    if not isinstance(error, OverloadedError):
        return 0
    return min(math.ceil(error.retry_after_s * 1000), (1 << 32) - 1)


def _told(code: int, message: str, retry_after_ms: int) -> BridgeError:
    error = from_code(code, message)
    if isinstance(error, OverloadedError):
        error.retry_after_s = retry_after_ms / 1000
    return error


def _check_request(message: pb.InferRequest | pb.AskRequest, limits: Limits) -> None:
    check_lengths(message)
    question_bytes = len(message.question.encode())
    if question_bytes > limits.max_question_bytes:
        raise QuestionTooLongError(
            f"question of {question_bytes} bytes, at most {limits.max_question_bytes} are accepted"
        )
    if message.max_new_tokens > limits.max_new_tokens:
        raise FrameMalformedError(
            f"max_new_tokens is {message.max_new_tokens}, at most {limits.max_new_tokens} are "
            "accepted: write 0 for that"
        )


def check_lengths(message: pb.InferRequest | pb.AskRequest | pb.FeedbackRequest) -> None:
    """Check the lengths of what identifies a request.

    Raises:
        FrameMalformedError: One of them is not as it should be.
    """
    name = message.DESCRIPTOR.name
    least, most = REQUEST_ID_BYTES
    derived = isinstance(message, pb.InferRequest) and not message.request_id
    if not derived and not least <= len(message.request_id) <= most:
        raise FrameMalformedError(
            f"{name}.request_id has {len(message.request_id)} bytes, expected {least} to {most}"
        )
    if isinstance(message, pb.InferRequest):
        digest, where = message.frame.digest, "frame.digest"
    else:
        digest, where = message.digest, "digest"
        if len(message.session_id) != SESSION_ID_BYTES:
            raise FrameMalformedError(
                f"{name}.session_id has {len(message.session_id)} bytes, expected "
                f"{SESSION_ID_BYTES}: write NegotiateResponse.session_id"
            )
    if len(digest) != DIGEST_BYTES:
        raise FrameMalformedError(
            f"{name}.{where} has {len(digest)} bytes, expected {DIGEST_BYTES}: see DIGEST in "
            "bridge.proto"
        )
