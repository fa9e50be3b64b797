"""Parcels: several requests in one message, under one digest (PARCELS in bridge.proto).

The edge seals each request, then calls `pack`. The cloud calls `unpack`, which trusts nothing and
returns each request as if it had come alone, digest included.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from protos.bits import BitReader, BitWriter
from protos.digest import PARCEL_DIGEST_BYTES, REQUEST_ID_BYTES, frame_digest, parcel_digest
from protos.errors import FrameCorruptError, FrameMalformedError, FrameTooLargeError
from protos.header import HEADER_VERSION, MAX_INLINE_TOKENS, join_header, split_header
from protos.limits import DEFAULT_LIMITS, Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.wire import parse_exactly

QUESTION_NUMBERS = 16
"""Questions that a stream remembers by number."""
_TAG = bytes([8 << 3 | 2])
_NO_QUESTION, _BY_NUMBER, _TEXT, _REMEMBERED = range(4)
_ALL_KEPT, _DELTA = 0b100, 0b010
"""Flags in the three highest bits of a header's first byte."""
_FIGURE_BITS = 8


@dataclass
class _Shared:
    """What a frame has in common with the one before it in the parcel, if nothing else is said."""

    point: int = 0
    tokens: int = 0
    number: int = 0
    priority: int = 0
    question: str = ""
    max_new_tokens: int = 0
    request_id: bytes = b""


@dataclass
class _Before:
    """The frame before, from which the next one is predicted."""

    shared: _Shared = field(default_factory=_Shared)
    flags: int = 0
    figures: bytes = bytes(4)
    delta_ms: int = 0
    size: int = 0


def is_parcel(raw: bytes) -> bool:
    """Whether a serialized InferRequest begins with a parcel."""
    return raw[:1] == _TAG


# ---------------------------------------------------------------------------------- the edge packs


def pack(
    constants: bytes,
    requests: Sequence[pb.InferRequest],
    known: Mapping[str, int] | None = None,
    new: Mapping[str, int] | None = None,
) -> pb.InferRequest:
    """Put sealed requests into one message.

    Args:
        constants: `session_constants`.
        requests: from `seal`, at least one, in the order of their frame numbers.
        known: numbers of questions that the other side remembers on this stream.
        new: numbers under which it is to remember further ones.

    Raises:
        BridgeError: a header cannot be read.
    """
    out, before = BitWriter(), _Before()
    numbers, fresh = dict(known or {}), dict(new or {})
    for i, request in enumerate(requests):
        before = _write(out, request, before, i == 0, i + 1 == len(requests), numbers, fresh)
    digest = parcel_digest(constants, [request.frame.digest for request in requests])
    payloads = b"".join(request.frame.payload for request in requests)
    return pb.InferRequest(parcel=digest + out.to_bytes() + payloads)


def _write(
    out: BitWriter,
    request: pb.InferRequest,
    before: _Before,
    first: bool,
    last: bool,
    numbers: dict[str, int],
    fresh: dict[str, int],
) -> _Before:
    fixed, counts, bitmap = split_header(request.frame.header)
    flags, (point, *figures) = fixed[0] >> 5, fixed[1:]
    tokens, number, delta_ms, *distance = counts
    mine = _Shared(
        point,
        tokens,
        number,
        request.priority,
        request.question,
        request.max_new_tokens,
        request.request_id,
    )
    if not first:
        same = mine == _following(before.shared)
        out.bits(same, 1)
    if first or not same:
        _write_shared(out, mine, numbers, fresh)
    out.bits(flags, 3) if first else _write_flags(out, flags, before.flags)
    if distance:
        out.number(distance[0] - 1, 0)
    for figure, past in zip(figures, before.figures, strict=True):
        if first:
            out.bits(figure, _FIGURE_BITS)
        else:
            out.signed(figure - past, 2)
    if first:
        out.number(delta_ms, 9)
    else:
        out.signed(delta_ms - before.delta_ms, 2)
    if bitmap:
        _write_bitmap(out, bitmap, tokens, bool(flags & _DELTA))
    size = len(request.frame.payload)
    out.bits(last, 1)
    if not last:
        if first:
            out.number(size, 4)
        else:
            out.signed(size - before.size, 2)
    return _Before(mine, flags, bytes(figures), delta_ms, size)


def _following(before: _Shared) -> _Shared:
    """What the next frame has if it says nothing else."""
    return _Shared(
        before.point,
        before.tokens,
        before.number + 1 & 0xFFFFFFFF,
        before.priority,
        before.question,
        before.max_new_tokens,
    )


def _write_shared(
    out: BitWriter, mine: _Shared, numbers: dict[str, int], fresh: dict[str, int]
) -> None:
    out.bits(mine.point, 8)
    out.number(mine.tokens, 5)
    out.number(mine.number, 7)
    out.bits(mine.priority, 2)
    out.bits(bool(mine.request_id), 1)
    if mine.request_id:
        out.bits(len(mine.request_id) - REQUEST_ID_BYTES[0], 4)
        out.bits(int.from_bytes(mine.request_id, "big"), 8 * len(mine.request_id))
    text = mine.question.encode()
    if not text:
        out.bits(_NO_QUESTION, 2)
    elif mine.question in numbers:
        out.bits(_BY_NUMBER, 2)
        out.bits(numbers[mine.question], 4)
    else:
        if mine.question in fresh:
            numbers[mine.question] = fresh[mine.question]
            out.bits(_REMEMBERED, 2)
            out.bits(fresh[mine.question], 4)
        else:
            out.bits(_TEXT, 2)
        out.number(len(text), 5)
        out.bits(int.from_bytes(text, "big"), 8 * len(text))
    if text:
        out.number(mine.max_new_tokens, 3)


def _write_flags(out: BitWriter, flags: int, before: int) -> None:
    out.bits(flags == before, 1)
    if flags != before:
        out.bits(flags, 3)


def _write_bitmap(out: BitWriter, bitmap: bytes, tokens: int, sparse: bool) -> None:
    kept = int.from_bytes(bitmap, "little")
    if not sparse:
        out.bits(kept, tokens)
        return
    places = [i for i in range(tokens) if kept >> i & 1]
    out.number(len(places) - 1, 0)
    order, past = _gap_order(tokens, len(places)), -1
    for place in places:
        out.number(place - past - 1, order)
        past = place


def _gap_order(tokens: int, kept: int) -> int:
    """Order of the code for the gaps between the tokens of a delta frame."""
    return max(0, (tokens // (kept + 1)).bit_length() - 1)


# ------------------------------------------------------------------------------- the cloud unpacks


def unpack(
    raw: bytes,
    constants: bytes,
    known: dict[int, str],
    most: int,
    limits: Limits = DEFAULT_LIMITS,
) -> list[pb.InferRequest]:
    """Take a parcel apart.

    Args:
        raw: a serialized InferRequest for which `is_parcel` holds.
        constants: `session_constants`.
        known: questions that this stream remembers, by number; new ones are added.
        most: requests that one parcel may hold.
        limits: what this side accepts.

    Returns:
        The requests as if each had come alone. Their fields are not checked yet.

    Raises:
        FrameTooLargeError: the message is too long, or holds too many requests.
        FrameTruncatedError, FrameMalformedError: not a parcel.
        FrameCorruptError: the digest does not match.
    """
    numbers = dict(known)
    given, requests = take_apart(raw, numbers, most, limits)
    for request in requests:
        request.frame.digest = frame_digest(
            constants,
            request.request_id,
            request.frame.header,
            request.frame.payload,
            request.question,
            request.max_new_tokens,
            request.priority,
        )
    if not hmac.compare_digest(
        given, parcel_digest(constants, [request.frame.digest for request in requests])
    ):
        raise FrameCorruptError(
            f"digest {given.hex()} does not match the parcel: bytes changed on the way, or it was "
            "sealed for another session, model or bundle"
        )
    known.update(numbers)
    return requests


def take_apart(
    raw: bytes, numbers: dict[int, str], most: int, limits: Limits = DEFAULT_LIMITS
) -> tuple[bytes, list[pb.InferRequest]]:
    """The digest of a parcel, and its requests, which lack theirs; as `unpack`, unverified.

    Args:
        raw: as for `unpack`.
        numbers: as `known` for `unpack`; new ones are added.
        most: as for `unpack`.
        limits: as for `unpack`.
    """
    message: pb.InferRequest = parse_exactly(raw, limits.max_request_bytes, pb.InferRequest)
    if message.ListFields()[1:]:
        raise FrameMalformedError(
            "InferRequest.parcel stands beside other fields: leave them out, the parcel holds its "
            "requests' own"
        )
    given, packed = message.parcel[:PARCEL_DIGEST_BYTES], message.parcel[PARCEL_DIGEST_BYTES:]
    if len(given) < PARCEL_DIGEST_BYTES:
        raise FrameMalformedError("InferRequest.parcel is shorter than its digest: see PARCELS")
    return given, list(_read(packed, numbers, most, limits))


def _read(
    packed: bytes, numbers: dict[int, str], most: int, limits: Limits
) -> Iterator[pb.InferRequest]:
    bits, read = BitReader(packed), list[tuple[_Shared, bytes, int]]()
    before, last = _Before(), False
    while not last:
        if len(read) >= most:
            raise FrameTooLargeError(f"the parcel holds more than {most} requests: send fewer")
        before, header, last = _read_frame(bits, before, not read, numbers, limits)
        read.append((before.shared, header, before.size))
    payloads, at = bits.rest(), 0
    for i, (shared, header, size) in enumerate(read):
        end = at + size if i + 1 < len(read) else len(payloads)
        if end > len(payloads):
            raise FrameMalformedError("the parcel ends within a payload")
        yield pb.InferRequest(
            request_id=shared.request_id,
            frame=pb.Frame(header=header, payload=payloads[at:end]),
            question=shared.question,
            max_new_tokens=shared.max_new_tokens,
            priority=shared.priority,
        )
        at = end


def _read_frame(
    bits: BitReader, before: _Before, first: bool, numbers: dict[int, str], limits: Limits
) -> tuple[_Before, bytes, bool]:
    """One frame: what the next is predicted from, its header, and whether it is the last."""
    if not first and bits.bits(1):
        shared = _following(before.shared)
    else:
        shared = _read_shared(bits, numbers, limits)
    flags = before.flags if not first and bits.bits(1) else bits.bits(3)
    delta = bool(flags & _DELTA) and shared.tokens > 0
    counts = [shared.tokens, shared.number]
    distance = [bits.number(0) + 1] if delta else []
    if first:
        figures = bytes(bits.bits(_FIGURE_BITS) for _ in before.figures)
        delta_ms = bits.number(9)
    else:
        figures = bytes(past + bits.signed(2) & 0xFF for past in before.figures)
        delta_ms = before.delta_ms + bits.signed(2) & 0xFFFFFFFF
    bitmap = b""
    if not flags & _ALL_KEPT and 0 < shared.tokens <= MAX_INLINE_TOKENS:
        bitmap = _read_bitmap(bits, shared.tokens, delta)
    last = bool(bits.bits(1))
    size = 0
    if not last:
        size = bits.number(4) if first else before.size + bits.signed(2)
        if size < 0:
            raise FrameMalformedError("a payload in the parcel has a size below 0")
    fixed = bytes([HEADER_VERSION | flags << 5, shared.point]) + figures
    header = join_header(fixed, [*counts, delta_ms, *distance], bitmap)
    return _Before(shared, flags, figures, delta_ms, size), header, last


def _read_shared(bits: BitReader, numbers: dict[int, str], limits: Limits) -> _Shared:
    point, tokens, number, priority = bits.bits(8), bits.number(5), bits.number(7), bits.bits(2)
    request_id = b""
    if bits.bits(1):
        size = bits.bits(4) + REQUEST_ID_BYTES[0]
        request_id = bits.bits(8 * size).to_bytes(size, "big")
    kind, question, max_new_tokens = bits.bits(2), "", 0
    if kind == _BY_NUMBER:
        at = bits.bits(4)
        if at not in numbers:
            raise FrameMalformedError(
                f"the parcel names question {at}, which this stream does not know: send its text"
            )
        question = numbers[at]
    elif kind != _NO_QUESTION:
        told = bits.bits(4) if kind == _REMEMBERED else None
        size = bits.number(5)
        if size > limits.max_question_bytes:
            raise FrameTooLargeError(
                f"a question of {size} bytes in the parcel, at most {limits.max_question_bytes} "
                "are accepted"
            )
        try:
            question = bits.bits(8 * size).to_bytes(size, "big").decode()
        except UnicodeDecodeError as error:
            raise FrameMalformedError(f"a question in the parcel is not UTF-8: {error}") from error
        if told is not None:
            numbers[told] = question
    if kind != _NO_QUESTION:
        max_new_tokens = bits.number(3)
    return _Shared(point, tokens, number, priority, question, max_new_tokens, request_id)


def _read_bitmap(bits: BitReader, tokens: int, sparse: bool) -> bytes:
    if not sparse:
        kept = bits.bits(tokens)
    else:
        count, kept, place = bits.number(0) + 1, 0, -1
        order = _gap_order(tokens, count)
        for _ in range(min(count, tokens)):
            place += bits.number(order) + 1
            if place >= tokens:
                raise FrameMalformedError("a bitmap in the parcel has tokens beyond its grid")
            kept |= 1 << place
    return kept.to_bytes((tokens + 7) // 8, "little")
