"""Numbers as bits, for messages in which a byte a field is too much.

Bits fill each byte from the most significant one. Exp-Golomb code of order k writes v as v + 2^k in
binary, after as many zeros as that has bits above k + 1.
"""

from __future__ import annotations

from protos.errors import FrameMalformedError, FrameTruncatedError

_MOST = (1 << 32) - 1


class BitWriter:
    """Collects bits."""

    def __init__(self) -> None:
        self._value = self.size = 0

    def bits(self, value: int, count: int) -> None:
        """Append the lowest `count` bits of a number."""
        self._value = self._value << count | (value & ((1 << count) - 1))
        self.size += count

    def number(self, value: int, order: int) -> None:
        """Append a number from 0 up in Exp-Golomb code of that order."""
        shifted = value + (1 << order)
        self.bits(shifted, 2 * shifted.bit_length() - order - 1)

    def signed(self, value: int, order: int) -> None:
        """Append a number of either sign: 0, -1, 1, -2, 2 as 0, 1, 2, 3, 4."""
        self.number(2 * value if value >= 0 else -2 * value - 1, order)

    def to_bytes(self) -> bytes:
        """All bits, with zeros up to a whole byte."""
        pad = -self.size % 8
        return (self._value << pad).to_bytes((self.size + pad) // 8, "big")


class BitReader:
    """Reads what a `BitWriter` wrote, trusting nothing.

    Args:
        raw: bytes that begin with the bits.
    """

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def bits(self, count: int) -> int:
        """The next `count` bits.

        Raises:
            FrameTruncatedError: there are fewer.
        """
        first, end = self._at, self._at + count
        if end > 8 * len(self._raw):
            raise FrameTruncatedError(f"the parcel's {len(self._raw)} bytes end within a field")
        self._at = end
        part = int.from_bytes(self._raw[first // 8 : (end + 7) // 8], "big")
        return part >> -end % 8 & ((1 << count) - 1)

    def number(self, order: int) -> int:
        """A number in Exp-Golomb code.

        Raises:
            FrameTruncatedError: the bits end within it.
            FrameMalformedError: it is above 2^32 - 1.
        """
        return self._number(order, _MOST)

    def signed(self, order: int) -> int:
        """A number of either sign, the difference of two; as `number`."""
        value = self._number(order, 2 * _MOST)
        return value // 2 if value % 2 == 0 else -(value + 1) // 2

    def _number(self, order: int, most: int) -> int:
        zeros = 0
        while not self.bits(1):
            zeros += 1
            if zeros + order > most.bit_length():
                raise FrameMalformedError("a number in the parcel needs more than 32 bits")
        value = (1 << zeros + order | self.bits(zeros + order)) - (1 << order)
        if value > most:
            raise FrameMalformedError(f"a number in the parcel is {value}, at most {most} fits")
        return value

    def rest(self) -> bytes:
        """The bytes behind the bits.

        Raises:
            FrameMalformedError: the last byte is not filled up with zeros.
        """
        pad = -self._at % 8
        if self.bits(pad):
            raise FrameMalformedError("the parcel's last bits are not zeros")
        return self._raw[self._at // 8 :]
