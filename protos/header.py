"""A frame's header and its bitmap of kept tokens: the bytes under HEADER in bridge.proto.

The edge calls `pack_header`; the cloud calls `unpack_header`, which trusts nothing.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from protos.distortion import Distortion
from protos.errors import (
    BridgeError,
    EmptyFrameError,
    FrameMalformedError,
    FrameTooLargeError,
    FrameTruncatedError,
)
from protos.limits import DEFAULT_LIMITS, Limits
from protos.points import PICTURE_POINT

HEADER_VERSION = 3
FIXED = struct.Struct("<BB4B")
"""The part of a header at fixed offsets: version and flag, operating point, distortion figures."""
MAX_INLINE_TOKENS = 144
"""Grids of at most this many tokens have the kept bitmap in the header, so it is <= 40 bytes."""
_ALL_KEPT = 0x80
_DELTA = 0x40
_DIFFERENCES = 0x20
# The same bits in a picture's header say why the guard sends it instead of a frame.
_CAUSES = {
    "": 0,
    "distortion": _DELTA,
    "unfamiliar": _DIFFERENCES,
    "degenerate": _DELTA | _DIFFERENCES,
}
_COUNTS = (
    ("tokens", 0, 0xFFFF),
    ("frame_number", 0, 0xFFFFFFFF),
    ("capture_delta_ms", 0, 0xFFFFFFFF),
    ("base_distance", 1, 0xFFFF),
)
"""Name, least and most of each varint; the last only in delta frames."""


@dataclass(frozen=True, eq=False)
class Header:
    """The header of one frame, with the kept bitmap (which may travel in the payload).

    Attributes:
        operating_point: Index of the operating point, 0..255.
        frame_number: Unique within the session, 0..2**32-1.
        kept: Which grid tokens the payload holds, bool [N]; N is 0 at the picture point.
        capture_delta_ms: Since the session's previous frame was captured.
        distortion: Measured at the edge.
        base: The frame that a delta frame changes, of the same session and at most 65535 before
            it; `kept` then says which tokens are new. None for a key frame.
        differences: Whether the payload holds differences to the base's latents, not latents.
        cause: Why the guard sent a picture instead of a frame: distortion, unfamiliar or
            degenerate; empty for a frame.
        version: Version of the header's layout.
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


def split_header(header: bytes) -> tuple[bytes, list[int], bytes]:
    """The parts of a header: fixed part, counts and inline bitmap; nothing else is checked.

    Counts are tokens, frame number, capture delta and, in a delta frame, the distance of its base.

    Raises:
        FrameTruncatedError, FrameMalformedError: the counts cannot be read.
    """
    if len(header) < FIXED.size:
        raise FrameTruncatedError(f"header of {len(header)} bytes, at least {FIXED.size} expected")
    counts, size = _counts(header)
    return header[: FIXED.size], counts, header[size:]


def join_header(fixed: bytes, counts: Sequence[int], bitmap: bytes) -> bytes:
    """Inverse of `split_header`."""
    return fixed + b"".join(map(_varint, counts)) + bitmap


def frame_number_of(header: bytes) -> int | None:
    """The frame number of a header that may be damaged; None if it cannot be read."""
    try:
        return _counts(header)[0][1]
    except BridgeError:
        return None


def _kept(bitmap: bytes, tokens: int, everything: bool) -> npt.NDArray[np.bool_]:
    if everything:
        if not tokens:
            raise FrameMalformedError("every token is kept, of none")
        return _all(tokens)
    bits = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), bitorder="little").astype(np.bool_)
    kept = bits[:tokens]
    if bits[tokens:].any():
        raise FrameMalformedError(f"the kept bitmap has bits set beyond its {tokens} tokens")
    if tokens and not kept.any():
        raise EmptyFrameError("no token is kept: a frame needs at least one")
    if tokens and kept.all():
        raise FrameMalformedError("the kept bitmap is full; a full one is left out and flagged")
    return kept


@functools.lru_cache(maxsize=64)
def _all(tokens: int) -> npt.NDArray[np.bool_]:
    """Every token; shared, so it cannot be written to."""
    kept = np.ones(tokens, dtype=np.bool_)
    kept.setflags(write=False)
    return kept


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
        FrameMalformedError: One is out of bounds, or longer than needed.
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
