"""An adaptive binary range coder: bits that are likely take a fraction of a bit.

A `Models` holds the probabilities, which follow what is coded. `RangeWriter` and `RangeReader` have
the same methods, so one function describes a format in both directions: it gives each value to the
writer, and gets each value from the reader. Numbers are those under RANGE CODER in bridge.proto.
"""

from __future__ import annotations

from typing import Protocol

from protos.errors import FrameMalformedError, FrameTruncatedError

_ONE = 1 << 16
_MASK = (1 << 32) - 1
_LEAST = 1 << 24
_SLOWEST = 62
"""A probability has forgotten most of what was coded more than some 60 bits ago."""
_MOST = (1 << 32) - 1
_UNWRITTEN = "the parcel's fields are bits that no writer writes"


class Models:
    """Probabilities of 0 of some bits, in 65536ths, and how often each bit was coded.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self.zero, self.seen = [_ONE >> 1] * count, [0] * count

    def copy(self) -> Models:
        """One that learns by itself from now on."""
        other = Models(0)
        other.zero, other.seen = self.zero.copy(), self.seen.copy()
        return other


class Coder(Protocol):
    """What a format is written in: a writer takes the values given, a reader returns others."""

    def bit(self, models: Models, at: int, value: int) -> int:
        """A bit by the model `at`."""

    def plain(self, value: int, count: int) -> int:
        """A number of `count` bits, all equally likely."""


def number(coder: Coder, models: Models, at: int, width: int, value: int) -> int:
    """A number from 0 to 2^32 - 1; small ones are cheap, and the usual ones become so.

    Args:
        coder: a writer or reader.
        models: with `2 * width` of them from `at` on.
        at: the first.
        width: how many sizes have models of their own.
        value: as given to a writer.

    Raises:
        FrameMalformedError: what was read is larger.
    """
    more, size = (value + 1).bit_length() - 1, 0
    while coder.bit(models, at + min(size, width - 1), int(size < more)):
        size += 1
        if size > 32:
            raise FrameMalformedError("a number in the parcel needs more than 32 bits")
    if not size:
        return 0
    rest = value + 1 - (1 << size)
    high = coder.bit(models, at + width + min(size, width - 1), rest >> (size - 1) & 1)
    low = coder.plain(rest & (1 << size - 1) - 1, size - 1)
    found = (1 << size | high << size - 1 | low) - 1
    if found > _MOST:
        raise FrameMalformedError(f"a number in the parcel is {found}, at most {_MOST} fits")
    return found


def signed(coder: Coder, models: Models, at: int, width: int, value: int) -> int:
    """A number of either sign: 0, -1, 1, -2, 2 as `number`'s 0, 1, 2, 3, 4."""
    code = number(coder, models, at, width, 2 * value if value >= 0 else -2 * value - 1)
    return code // 2 if code % 2 == 0 else -(code + 1) // 2


class RangeWriter:
    """Writes bits."""

    def __init__(self) -> None:
        self._low, self._range = 0, _MASK
        self._out = bytearray()

    def bit(self, models: Models, at: int, value: int) -> int:
        """See `Coder.bit`."""
        zero, seen = models.zero[at], models.seen[at]
        bound = (self._range >> 16) * zero
        if value:
            self._low += bound
            self._range -= bound
            models.zero[at] = zero - 2 * zero // (2 * seen + 3)
        else:
            self._range = bound
            models.zero[at] = zero + 2 * (_ONE - zero) // (2 * seen + 3)
        if seen < _SLOWEST:
            models.seen[at] = seen + 1
        if self._range < _LEAST:
            self._shift()
        return value

    def plain(self, value: int, count: int) -> int:
        """See `Coder.plain`."""
        while count:
            part = min(count, 8)
            count -= part
            self._range >>= part
            self._low += self._range * (value >> count & (1 << part) - 1)
            if self._range < _LEAST:
                self._shift()
        return value

    def to_bytes(self) -> bytes:
        """All that was written; any bytes may follow."""
        value, count = _end(self._low, self._range)
        self._carry(value)
        return bytes(self._out) + (value & _MASK).to_bytes(4, "big")[:count]

    def _shift(self) -> None:
        self._carry(self._low)
        self._low &= _MASK
        while self._range < _LEAST:
            self._out.append(self._low >> 24)
            self._low = self._low << 8 & _MASK
            self._range <<= 8

    def _carry(self, low: int) -> None:
        if low <= _MASK:
            return
        at = len(self._out) - 1
        while self._out[at] == 0xFF:
            self._out[at] = 0
            at -= 1
        self._out[at] += 1


class RangeReader:
    """Reads what a `RangeWriter` wrote, trusting nothing.

    Args:
        raw: bytes that begin with what it wrote.

    Raises:
        FrameMalformedError: no writer writes such bytes.
    """

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 4
        self._low, self._range = 0, _MASK
        self._code = int.from_bytes(raw[:4].ljust(4, b"\0"), "big")
        if self._code == _MASK:
            raise FrameMalformedError(_UNWRITTEN)

    def bit(self, models: Models, at: int, value: int = 0) -> int:
        """See `Coder.bit`."""
        zero, seen = models.zero[at], models.seen[at]
        bound = (self._range >> 16) * zero
        if self._code < bound:
            found, self._range = 0, bound
            models.zero[at] = zero + 2 * (_ONE - zero) // (2 * seen + 3)
        else:
            found = 1
            self._low += bound
            self._code -= bound
            self._range -= bound
            models.zero[at] = zero - 2 * zero // (2 * seen + 3)
        if seen < _SLOWEST:
            models.seen[at] = seen + 1
        if self._range < _LEAST:
            self._shift()
        return found

    def plain(self, value: int, count: int) -> int:
        """See `Coder.plain`."""
        found = 0
        while count:
            part = min(count, 8)
            count -= part
            self._range >>= part
            here = self._code // self._range
            if here >> part:
                raise FrameMalformedError(_UNWRITTEN)
            self._low += self._range * here
            self._code -= self._range * here
            found = found << part | here
            if self._range < _LEAST:
                self._shift()
        return found

    def rest(self) -> bytes:
        """The bytes behind what was written.

        Raises:
            FrameTruncatedError: they end before.
            FrameMalformedError: a writer writes other bytes for the same values.
        """
        value, count = _end(self._low & _MASK, self._range)
        end = self._at - 4 + count
        if end > len(self._raw):
            raise FrameTruncatedError(f"the parcel's {len(self._raw)} bytes end within a field")
        if (self._low + self._code ^ value) >> 8 * (4 - count) & (1 << 8 * count) - 1:
            raise FrameMalformedError("the parcel's fields end with other bits than expected")
        return self._raw[end:]

    def _shift(self) -> None:
        while self._range < _LEAST:
            byte = self._raw[self._at] if self._at < len(self._raw) else 0
            self._at += 1
            self._low = self._low << 8 & _MASK
            self._code = self._code << 8 | byte
            self._range <<= 8


def _end(low: int, width: int) -> tuple[int, int]:
    """The first number that stays between low and low + width whatever follows its bytes."""
    for count in (1, 2):
        unit = 1 << 32 - 8 * count
        value = -(-low // unit) * unit
        if value + unit <= low + width:
            break
    return value, count
