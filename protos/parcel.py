"""Parcels: several requests in one message, under one digest (PARCELS in bridge.proto).

The edge seals each request, then calls `pack`. The cloud calls `unpack`, which trusts nothing and
returns each request as if it had come alone, digest included.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class _Shared:
    """What a request has in common with the one before it, if nothing else is said.

    Attributes:
        flags: the three highest bits of the header's first byte.
        distance: of the base of a delta frame; 0 for other frames.
    """

    point: int = 0
    tokens: int = 0
    number: int = 0
    priority: int = 0
    question: str = ""
    max_new_tokens: int = 0
    request_id: bytes = b""
    flags: int = 0
    distance: int = 0

    @property
    def following(self) -> _Shared:
        """What the next request has, if nothing else is said."""
        return replace(self, number=self.number + 1 & 0xFFFFFFFF, request_id=b"")


class _Column:
    """A field of all frames, coded by its differences to what is expected.

    Args:
        order: of the code, before anything is known of the differences.
    """

    def __init__(self, order: int) -> None:
        self.expected, self._total, self._count = 0, 1 << order, 1

    def write(self, out: BitWriter, value: int) -> None:
        """Append the next value."""
        difference = value - self.expected
        out.signed(difference, self._order)
        self._learn(difference, value)

    def read(self, bits: BitReader) -> int:
        """The next value, which may be out of its field's bounds.

        Raises:
            FrameTruncatedError, FrameMalformedError: see `BitReader.signed`.
        """
        difference = bits.signed(self._order)
        value = self.expected + difference
        self._learn(difference, value)
        return value

    @property
    def _order(self) -> int:
        return max(1, self._total // self._count).bit_length() - 1

    def _learn(self, difference: int, value: int) -> None:
        self._total += 2 * abs(difference)
        self._count += 1
        self.expected = (self.expected + value + 1) // 2


class _Columns:
    """Those of one parcel."""

    def __init__(self) -> None:
        self.figures = [_Column(1) for _ in range(4)]
        self.delta_ms = _Column(2)
        self.size = _Column(2)


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
    out, columns = BitWriter(), _Columns()
    numbers, fresh = dict(known or {}), dict(new or {})
    out.number(len(requests) - 1, 0)
    before: _Shared | None = None
    for i, request in enumerate(requests):
        last = i + 1 == len(requests)
        before = _write(out, request, before, last, columns, numbers, fresh)
    digest = parcel_digest(constants, [request.frame.digest for request in requests])
    payloads = b"".join(request.frame.payload for request in requests)
    return pb.InferRequest(parcel=digest + out.to_bytes() + payloads)


def _write(
    out: BitWriter,
    request: pb.InferRequest,
    before: _Shared | None,
    last: bool,
    columns: _Columns,
    numbers: dict[str, int],
    fresh: dict[str, int],
) -> _Shared:
    fixed, counts, bitmap = split_header(request.frame.header)
    figures = fixed[2:]
    tokens, number, delta_ms, *distance = counts
    mine = _Shared(
        fixed[1],
        tokens,
        number,
        request.priority,
        request.question,
        request.max_new_tokens,
        request.request_id,
        fixed[0] >> 5,
        distance[0] if distance else 0,
    )
    _write_shared(out, mine, before, numbers, fresh)
    if before is None:
        for column, figure in zip(columns.figures, figures, strict=True):
            out.bits(figure, _FIGURE_BITS)
            column.expected = figure
        out.number(delta_ms, 9)
        columns.delta_ms.expected = delta_ms
    else:
        for column, figure in zip(columns.figures, figures, strict=True):
            column.write(out, figure)
        columns.delta_ms.write(out, delta_ms)
    if bitmap:
        _write_bitmap(out, bitmap, tokens, bool(mine.flags & _DELTA))
    size = len(request.frame.payload)
    if before is None and not last:
        out.number(size, 4)
        columns.size.expected = size
    elif not last:
        columns.size.write(out, size)
    return mine


def _write_shared(
    out: BitWriter,
    mine: _Shared,
    before: _Shared | None,
    numbers: dict[str, int],
    fresh: dict[str, int],
) -> None:
    if before is not None:
        out.bits(mine == before.following, 1)
        if mine == before.following:
            return
        frame = replace(before.following, flags=mine.flags, distance=mine.distance)
        out.bits(mine == frame, 1)
        if mine == frame:
            _write_kind(out, mine)
            return
    out.bits(mine.point, 8)
    out.number(mine.tokens, 5)
    out.number(mine.number, 7)
    out.bits(mine.priority, 2)
    out.bits(bool(mine.request_id), 1)
    if mine.request_id:
        out.bits(len(mine.request_id) - REQUEST_ID_BYTES[0], 4)
        out.bits(int.from_bytes(mine.request_id, "big"), 8 * len(mine.request_id))
    _write_question(out, mine.question, numbers, fresh)
    if mine.question:
        out.number(mine.max_new_tokens, 3)
    _write_kind(out, mine)


def _write_kind(out: BitWriter, mine: _Shared) -> None:
    out.bits(mine.flags, 3)
    if mine.distance:
        out.number(mine.distance - 1, 0)


def _write_question(
    out: BitWriter, question: str, numbers: dict[str, int], fresh: dict[str, int]
) -> None:
    if not question:
        out.bits(_NO_QUESTION, 2)
        return
    if question in numbers:
        out.bits(_BY_NUMBER, 2)
        out.bits(numbers[question], 4)
        return
    if question in fresh:
        numbers[question] = fresh[question]
        out.bits(_REMEMBERED, 2)
        out.bits(fresh[question], 4)
    else:
        out.bits(_TEXT, 2)
    text = question.encode()
    out.number(len(text), 5)
    out.bits(int.from_bytes(text, "big"), 8 * len(text))


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
    bits, columns = BitReader(packed), _Columns()
    read: list[tuple[_Shared, bytes, int]] = []
    count = bits.number(0) + 1
    if count > most:
        raise FrameTooLargeError(
            f"the parcel holds {count} requests, at most {most} are accepted: send fewer"
        )
    before: _Shared | None = None
    for i in range(count):
        before, header, size = _read_frame(bits, before, i + 1 == count, columns, numbers, limits)
        read.append((before, header, size))
    payloads, at = bits.rest(), 0
    for i, (shared, header, size) in enumerate(read):
        end = at + size if i + 1 < len(read) else len(payloads)
        if not at <= end <= len(payloads):
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
    bits: BitReader,
    before: _Shared | None,
    last: bool,
    columns: _Columns,
    numbers: dict[int, str],
    limits: Limits,
) -> tuple[_Shared, bytes, int]:
    """One request: what it shares, its header, and its payload's size unless it is the last."""
    mine = _read_shared(bits, before, numbers, limits)
    if before is None:
        for column in columns.figures:
            column.expected = bits.bits(_FIGURE_BITS)
        levels = [column.expected for column in columns.figures]
        delta_ms = columns.delta_ms.expected = bits.number(9)
    else:
        levels = [column.read(bits) for column in columns.figures]
        delta_ms = columns.delta_ms.read(bits)
    if not all(0 <= level <= 0xFF for level in levels) or not 0 <= delta_ms <= 0xFFFFFFFF:
        raise FrameMalformedError("a figure or capture_delta_ms in the parcel is out of its bounds")
    bitmap = b""
    if not mine.flags & _ALL_KEPT and 0 < mine.tokens <= MAX_INLINE_TOKENS:
        bitmap = _read_bitmap(bits, mine.tokens, bool(mine.distance))
    size = 0
    if before is None and not last:
        size = columns.size.expected = bits.number(4)
    elif not last:
        size = columns.size.read(bits)
    fixed = bytes([HEADER_VERSION | mine.flags << 5, mine.point, *levels])
    counts = [mine.tokens, mine.number, delta_ms, *([mine.distance] if mine.distance else [])]
    return mine, join_header(fixed, counts, bitmap), size


def _read_shared(
    bits: BitReader, before: _Shared | None, numbers: dict[int, str], limits: Limits
) -> _Shared:
    if before is not None:
        if bits.bits(1):
            return before.following
        if bits.bits(1):
            flags, distance = _read_kind(bits, before.tokens)
            return replace(before.following, flags=flags, distance=distance)
    point, tokens, number, priority = bits.bits(8), bits.number(5), bits.number(7), bits.bits(2)
    request_id = b""
    if bits.bits(1):
        size = bits.bits(4) + REQUEST_ID_BYTES[0]
        request_id = bits.bits(8 * size).to_bytes(size, "big")
    question = _read_question(bits, numbers, limits)
    max_new_tokens = bits.number(3) if question else 0
    flags, distance = _read_kind(bits, tokens)
    return _Shared(
        point, tokens, number, priority, question, max_new_tokens, request_id, flags, distance
    )


def _read_kind(bits: BitReader, tokens: int) -> tuple[int, int]:
    """Flags, and the distance of a delta frame's base."""
    flags = bits.bits(3)
    return flags, bits.number(0) + 1 if flags & _DELTA and tokens else 0


def _read_question(bits: BitReader, numbers: dict[int, str], limits: Limits) -> str:
    kind = bits.bits(2)
    if kind == _NO_QUESTION:
        return ""
    number = bits.bits(4) if kind != _TEXT else 0
    if kind == _BY_NUMBER:
        if number not in numbers:
            raise FrameMalformedError(
                f"the parcel names question {number}, which this stream does not know: send its "
                "text"
            )
        return numbers[number]
    size = bits.number(5)
    if not 0 < size <= limits.max_question_bytes:
        raise FrameTooLargeError(
            f"a question of {size} bytes in the parcel, 1 to {limits.max_question_bytes} are "
            "accepted"
        )
    try:
        question = bits.bits(8 * size).to_bytes(size, "big").decode()
    except UnicodeDecodeError as error:
        raise FrameMalformedError(f"a question in the parcel is not UTF-8: {error}") from error
    if kind == _REMEMBERED:
        numbers[number] = question
    return question


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
