"""Parcels: several requests in one message, under one digest (PARCELS in bridge.proto).

The edge seals each request, then calls `pack`. The cloud calls `unpack`, which trusts nothing and
returns each request as if it had come alone, digest included. Both keep a `Course` for each stream:
what was told before need not be told again.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from protos.digest import PARCEL_DIGEST_BYTES, REQUEST_ID_BYTES, frame_digest, parcel_digest
from protos.errors import (
    FrameCorruptError,
    FrameMalformedError,
    FrameTooLargeError,
    FrameTruncatedError,
)
from protos.header import HEADER_VERSION, MAX_INLINE_TOKENS, join_header, split_header
from protos.limits import DEFAULT_LIMITS, Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.range_coder import Coder, Models, RangeReader, RangeWriter, number, signed
from protos.wire import parse_exactly

QUESTIONS = 16
"""Questions that a stream remembers."""
_TAG = bytes([8 << 3 | 2])
_ALL_KEPT, _DELTA = 0b100, 0b010
"""Flags in the three highest bits of a header's first byte."""
_NAMED, _HELD = 7, 9
"""Fields before the figures, and before the flags."""
_UINT32, _BYTE = 0xFFFFFFFF, 0xFF
_SIZES = 6
"""By how many kept tokens the sizes of payloads are told apart."""
_WIDE, _NARROW = 12, 4
# Where the models of each field begin, in the order of PARCELS.
_USUAL_COUNT = 0
_COUNT = _USUAL_COUNT + 1
_OTHER = _COUNT + 2 * _NARROW
_FIGURE = _OTHER + 1
_FIGURE_BY = _FIGURE + 4
_TIME = _FIGURE_BY + 2 * _NARROW
_TIME_IS = _TIME + 1
_CHANGED = _TIME_IS + 2 * _WIDE
_FLAGS = _CHANGED + 2
_FAR = _FLAGS + 8
_KEPT = _FAR + 1
_MOVED = _KEPT + 2
_SIZE = _MOVED + 8
_NOT_ZERO = _SIZE + 2 * _WIDE * _SIZES
_MODELS = _NOT_ZERO + 1


class _Told(NamedTuple):
    """What one request says.

    Attributes:
        flags: the three highest bits of the header's first byte.
        distance: of the base of a delta frame; 0 for other frames.
        kept: the header's bitmap as a number, token 0 the lowest bit.
    """

    point: int = 0
    tokens: int = 0
    number: int = 0
    priority: int = 0
    question: str = ""
    max_new_tokens: int = 0
    request_id: bytes = b""
    figures: tuple[int, ...] = (0, 0, 0, 0)
    delta_ms: int = 0
    flags: int = 0
    distance: int = 0
    kept: int = 0
    payload: bytes = b""

    @classmethod
    def of(cls, request: pb.InferRequest) -> _Told:
        """A sealed request's.

        Raises:
            BridgeError: its header cannot be read.
        """
        fixed, (tokens, number, delta_ms, *distance), bitmap = split_header(request.frame.header)
        return cls(
            fixed[1],
            tokens,
            number,
            request.priority,
            request.question,
            request.max_new_tokens,
            request.request_id,
            tuple(fixed[2:]),
            delta_ms,
            fixed[0] >> 5,
            distance[0] if distance else 0,
            int.from_bytes(bitmap, "little"),
            request.frame.payload,
        )

    @property
    def inline(self) -> bool:
        """Whether the header has the bitmap."""
        return not self.flags & _ALL_KEPT and 0 < self.tokens <= MAX_INLINE_TOKENS

    @property
    def delta(self) -> bool:
        """Whether it is a delta frame: a picture has the flag for another reason, and no tokens."""
        return bool(self.flags & _DELTA and self.tokens)

    def named(self, other: _Told) -> bool:
        """Whether all fields are the same that stand before the figures."""
        return self[:_NAMED] == other[:_NAMED]

    def held(self, other: _Told) -> bool:
        """Whether both hold the same tokens and payload, each to the frame before it."""
        return self[_HELD:] == other[_HELD:]

    def holding(self, other: _Told) -> _Told:
        """This one with what the other holds."""
        return self._replace(
            flags=other.flags, distance=other.distance, kept=other.kept, payload=other.payload
        )

    def request(self) -> pb.InferRequest:
        """The request without its digest."""
        fixed = bytes([HEADER_VERSION | self.flags << 5, self.point, *self.figures])
        counts = [self.tokens, self.number, self.delta_ms, *([self.distance] * self.delta)]
        bitmap = self.kept.to_bytes((self.tokens + 7) // 8, "little") if self.inline else b""
        return pb.InferRequest(
            request_id=self.request_id,
            frame=pb.Frame(header=join_header(fixed, counts, bitmap), payload=self.payload),
            question=self.question,
            max_new_tokens=self.max_new_tokens,
            priority=self.priority,
        )


@dataclass
class Course:
    """What the parcels of one stream have told so far; each side keeps one.

    Attributes:
        begun: whether there was a parcel.
    """

    begun: bool = False
    _models: Models = field(default_factory=lambda: Models(_MODELS), repr=False)
    _last: _Told = _Told()
    _still: _Told | None = None
    _short: _Told | None = None
    _was_still: int = 0
    _moved: tuple[int, int] = (0, 0)
    _count: int = 1
    _questions: tuple[str, ...] = ()

    def begin_anew(self) -> None:
        """Forget everything: the other side may not know it."""
        self._become(Course())

    def _become(self, other: Course) -> None:
        self.__dict__.update(other.__dict__)

    def _copy(self) -> Course:
        return replace(self, _models=self._models.copy())

    # Each method below codes a part of a parcel in both directions: a writer writes what is given
    # and returns it; a reader returns what it read, whatever is given.

    def _begin(self, coder: Coder, anew: bool, count: int) -> Course:
        """Whether the parcel goes on from the one before, and how many requests it has."""
        anew = bool(coder.plain(int(anew), 1))
        if not anew and not self.begun:
            raise FrameMalformedError(
                "the parcel goes on from another one that this stream does not know: begin anew"
            )
        course = Course() if anew else self._copy()
        course.begun = True
        if coder.bit(course._models, _USUAL_COUNT, int(count != course._count)):
            course._count = number(coder, course._models, _COUNT, _NARROW, count - 1) + 1
        return course

    def _request(self, coder: Coder, given: _Told, limits: Limits) -> tuple[_Told, int]:
        """A request with the payload's first byte, and how many bytes of it are left."""
        models, last = self._models, self._last
        told = last._replace(number=last.number + 1 & _UINT32, request_id=b"")
        if coder.bit(models, _OTHER, int(not given.named(told))):
            told = self._names(coder, given, limits)
        told = told._replace(
            figures=self._figures(coder, given.figures), delta_ms=self._time(coder, given)
        )
        still = self._still
        if still is not None and told.tokens == still.tokens:
            changed = int(not given.held(still))
            if not coder.bit(models, _CHANGED + self._was_still, changed):
                self._was_still, self._last = 1, told
                return told.holding(still), 0
        self._was_still = 0
        told = self._held(coder, given, told)
        self._last = told
        told, left = self._payload(coder, given, told)
        if told.delta and told.inline and not left and told.payload:
            if self._still is None or (self._short is not None and told.held(self._short)):
                self._still = told
            self._short = told
        return told, left

    def _names(self, coder: Coder, given: _Told, limits: Limits) -> _Told:
        request_id, question, max_new_tokens = b"", "", 0
        point, tokens = coder.plain(given.point, 8), coder.plain(given.tokens, 16)
        own, priority = coder.plain(given.number, 32), coder.plain(given.priority, 2)
        if coder.plain(int(bool(given.request_id)), 1):
            size = coder.plain(len(given.request_id) - REQUEST_ID_BYTES[0], 4) + REQUEST_ID_BYTES[0]
            request_id = coder.plain(int.from_bytes(given.request_id, "big"), 8 * size).to_bytes(
                size, "big"
            )
        if coder.plain(int(bool(given.question)), 1):
            question = self._question(coder, given.question, limits)
            max_new_tokens = coder.plain(given.max_new_tokens, 32)
        return _Told(point, tokens, own, priority, question, max_new_tokens, request_id)

    def _question(self, coder: Coder, given: str, limits: Limits) -> str:
        known = given in self._questions
        if coder.plain(int(known), 1):
            at = coder.plain(self._questions.index(given) if known else 0, 4)
            if at >= len(self._questions):
                raise FrameMalformedError(
                    f"the parcel names question {at}, which this stream does not know: begin anew"
                )
            return self._questions[at]
        text = given.encode()
        size = coder.plain(len(text), 32)
        if not 0 < size <= limits.max_question_bytes:
            raise FrameTooLargeError(
                f"a question of {size} bytes in the parcel, 1 to {limits.max_question_bytes} are "
                "accepted"
            )
        text = coder.plain(int.from_bytes(text, "big"), 8 * size).to_bytes(size, "big")
        try:
            question = text.decode()
        except UnicodeDecodeError as error:
            raise FrameMalformedError(f"a question in the parcel is not UTF-8: {error}") from error
        if len(self._questions) < QUESTIONS:
            self._questions += (question,)
        return question

    def _figures(self, coder: Coder, given: tuple[int, ...]) -> tuple[int, ...]:
        models, found = self._models, []
        for i, (figure, before) in enumerate(zip(given, self._last.figures, strict=True)):
            now = before
            if coder.bit(models, _FIGURE + i, int(figure != before)):
                now += signed(coder, models, _FIGURE_BY, _NARROW, figure - before)
            if not 0 <= now <= _BYTE:
                raise FrameMalformedError(f"a figure in the parcel is {now}, not in 0..{_BYTE}")
            found.append(now)
        return tuple(found)

    def _time(self, coder: Coder, given: _Told) -> int:
        before = self._last.delta_ms
        if not coder.bit(self._models, _TIME, int(given.delta_ms != before)):
            return before
        return number(coder, self._models, _TIME_IS, _WIDE, given.delta_ms)

    def _held(self, coder: Coder, given: _Told, told: _Told) -> _Told:
        """Flags, distance and bitmap."""
        models, flags = self._models, 1
        for place in (2, 1, 0):
            flags = flags << 1 | coder.bit(models, _FLAGS + flags, given.flags >> place & 1)
        told = told._replace(flags=flags & 0b111, distance=0, kept=0)
        if told.delta:
            distance = 1
            if coder.bit(models, _FAR, int(given.distance != 1)):
                distance = coder.plain(given.distance, 16)
            if not distance:
                raise FrameMalformedError("a delta frame in the parcel changes itself")
            told = told._replace(distance=distance)
        return told._replace(kept=self._bitmap(coder, given, told)) if told.inline else told

    def _bitmap(self, coder: Coder, given: _Told, told: _Told) -> int:
        kept = one = 0
        once, before = self._moved
        for i in range(told.tokens):
            at = _KEPT + one
            if told.delta:
                at = _MOVED + (one << 2 | (once >> i & 1) << 1 | before >> i & 1)
            one = coder.bit(self._models, at, given.kept >> i & 1)
            kept |= one << i
        if told.delta:
            self._moved = kept, once
        return kept

    def _payload(self, coder: Coder, given: _Told, told: _Told) -> tuple[_Told, int]:
        """The first byte, and how many follow."""
        models, kept = self._models, told.kept.bit_count()
        at = _SIZE + 2 * _WIDE * min(kept, _SIZES - 1)
        size = number(coder, models, at, _WIDE, len(given.payload))
        if not size:
            return told._replace(payload=b""), 0
        first = given.payload[0] if given.payload else 0
        bits = 0
        if coder.bit(models, _NOT_ZERO, int(first > 0)):
            bits = coder.plain(first.bit_length() - 1, 3) + 1
            low = (1 << bits - 1) - 1
            first = 1 << bits - 1 | coder.plain(first & low, bits - 1)
        else:
            first = 0
        return told._replace(payload=bytes([first])), size - 1


def is_parcel(raw: bytes) -> bool:
    """Whether a serialized InferRequest begins with a parcel."""
    return raw[:1] == _TAG


def pack(constants: bytes, requests: Sequence[pb.InferRequest], course: Course) -> pb.InferRequest:
    """Put sealed requests into one message.

    Args:
        constants: `session_constants`.
        requests: from `seal`, at least one, in the order of their frame numbers.
        course: of the stream; it goes on from here.

    Raises:
        BridgeError: a header cannot be read.
    """
    coder = RangeWriter()
    now = course._begin(coder, not course.begun, len(requests))
    behind = []
    for request in requests:
        _, left = now._request(coder, _Told.of(request), DEFAULT_LIMITS)
        behind.append(request.frame.payload[len(request.frame.payload) - left :])
    course._become(now)
    digest = parcel_digest(constants, [request.frame.digest for request in requests])
    return pb.InferRequest(parcel=digest + coder.to_bytes() + b"".join(behind))


def unpack(
    raw: bytes, constants: bytes, course: Course, most: int, limits: Limits = DEFAULT_LIMITS
) -> list[pb.InferRequest]:
    """Take a parcel apart.

    Args:
        raw: a serialized InferRequest for which `is_parcel` holds.
        constants: `session_constants`.
        course: of the stream; it goes on from here unless the parcel is refused.
        most: requests that one parcel may hold.
        limits: what this side accepts.

    Returns:
        The requests as if each had come alone. Their fields are not checked yet.

    Raises:
        FrameTooLargeError: the message is too long, or holds too many requests.
        FrameTruncatedError, FrameMalformedError: not a parcel, or it goes on from another one.
        FrameCorruptError: the digest does not match.
    """
    given, requests, now = take_apart(raw, course, most, limits)
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
            "sealed for another session, model or bundle, or goes on from another parcel"
        )
    course._become(now)
    return requests


def take_apart(
    raw: bytes, course: Course, most: int, limits: Limits = DEFAULT_LIMITS
) -> tuple[bytes, list[pb.InferRequest], Course]:
    """The digest of a parcel, its requests, which lack theirs, and the course after it.

    As `unpack`, unverified; `course` stays as it is.
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
    coder = RangeReader(packed)
    now = course._begin(coder, False, 1)
    if now._count > most:
        raise FrameTooLargeError(
            f"the parcel holds {now._count} requests, at most {most} are accepted: send fewer"
        )
    read = [now._request(coder, _Told(), limits) for _ in range(now._count)]
    payloads, at, requests = coder.rest(), 0, []
    for told, left in read:
        rest = payloads[at : at + left]
        at += left
        requests.append(told._replace(payload=told.payload + rest).request())
    if at > len(payloads):
        raise FrameTruncatedError(
            f"the parcel has {len(payloads)} bytes of payloads, its sizes say {at}"
        )
    if at < len(payloads):
        raise FrameMalformedError(
            f"the parcel has {len(payloads)} bytes of payloads, its sizes say {at}"
        )
    return given, requests, now
