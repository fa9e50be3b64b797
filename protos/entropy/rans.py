"""A range asymmetric numeral system (rANS): codes small integers close to their entropy.

The coder of Duda (arXiv:1311.2540) with 12-bit probabilities and byte-wise renormalisation. Two
choices keep the overhead of a stream at one or two bytes instead of five: the encoder's state
starts at 1, not at the lower bound (a decoder that runs out of bytes simply stops refilling), and
the final state is written without leading zeros (the first refill is an ordinary one). A stream
hence never begins with a zero byte, is never empty, and must leave the decoder at 1 with no byte
left.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import numpy.typing as npt

from protos.errors import BundleFormatError, FrameMalformedError

PRECISION_BITS = 12
TOTAL = 1 << PRECISION_BITS
MAX_SYMBOLS = 256
MAX_CLASSES = 256

_LOWER = 1 << 23
_LIMIT_SHIFT = 31 - PRECISION_BITS
_MASK = TOTAL - 1
_BYTE_FREQUENCY = TOTAL >> 8

Table = tuple[list[int], list[int]]
"""Start and frequency of each symbol."""


class ClassCoder:
    """Codes rows of r symbols; a class, itself coded first, chooses the tables of its whole row.

    The class is coded with `prior`, column j of a row of class c with `frequency[c, j]`. Rows that
    show the same kind of thing share statistics, and within a class one column tells little about
    the others (a mixture of products; the component is sent). With one class this is a static
    coder. The encoder chooses each row's class; any choice can be decoded.

    The last symbol of every table, except that of the classes, is the escape: 16 raw bits follow.

    Args:
        frequency: [C, r, S] integers, each table summing to 4096, C <= 256, 2 <= S <= 256. A symbol
            of frequency 0 cannot be coded.
        prior: [C] integers that sum to 4096. A class of frequency 0 cannot be coded.

    Raises:
        BundleFormatError: The arrays are not of that form.
    """

    def __init__(self, frequency: npt.ArrayLike, prior: npt.ArrayLike) -> None:
        table, classes = np.asarray(frequency), np.asarray(prior)
        if (
            table.ndim != 3
            or not 1 <= table.shape[0] <= MAX_CLASSES
            or table.shape[1] < 1
            or not 2 <= table.shape[2] <= MAX_SYMBOLS
            or table.dtype.kind not in "iu"
        ):
            raise BundleFormatError(
                f"entropy tables must be integers [1..{MAX_CLASSES}, latents, 2..{MAX_SYMBOLS}], "
                f"not {table.dtype} {table.shape}"
            )
        if classes.shape != table.shape[:1] or classes.dtype.kind not in "iu":
            raise BundleFormatError(
                f"the table of {len(table)} classes must be as many integers, "
                f"not {classes.dtype} {classes.shape}"
            )
        # Wide first: unsigned rows could wrap around to the right sum.
        table, classes = table.astype(np.int64), classes.astype(np.int64)
        for rows in (table, classes):
            if (rows < 0).any() or (rows > TOTAL).any() or (rows.sum(axis=-1) != TOTAL).any():
                raise BundleFormatError(f"every row of an entropy table must sum to {TOTAL}")
        self.classes, self.columns, self.symbols = table.shape
        self.escape = self.symbols - 1
        self._packed = _pack(table)
        self._class_packed = _pack(classes)
        self._class_table = _table(self._class_packed)
        self._row_tables: dict[int, list[Table]] = {}

    def encode(
        self,
        classes: npt.NDArray[np.integer],
        symbols: npt.NDArray[np.integer],
        escaped: npt.NDArray[np.integer],
    ) -> bytes:
        """Code some rows.

        Args:
            classes: [n], each in 0..C-1.
            symbols: [n, r], each in 0..S-1.
            escaped: The 16 raw bits (0..65535) of each escape symbol, in row-major order.

        Returns:
            The stream: at least one byte, the first not 0.

        Raises:
            FrameMalformedError: A class or symbol has frequency 0, or `escaped` does not have one
                value per escape.
        """
        packed = np.empty((len(classes), 1 + self.columns), dtype=np.uint32)
        packed[:, 0] = self._class_packed[classes]
        packed[:, 1:] = self._packed[classes[:, None], np.arange(self.columns), symbols]
        start, frequency = _unpack(packed.reshape(-1))
        if not frequency.all():
            raise FrameMalformedError("a symbol is coded that its table gives no probability")
        rows, columns = np.nonzero(symbols == self.escape)
        if len(rows) != len(escaped):
            raise FrameMalformedError(f"{len(rows)} escapes, {len(escaped)} escaped values")
        if len(rows):
            raw = np.stack([escaped & 255, escaped >> 8], axis=1).reshape(-1) * _BYTE_FREQUENCY
            after = np.repeat(rows * (self.columns + 1) + columns + 2, 2)
            start = np.insert(start, after, raw)
            frequency = np.insert(frequency, after, _BYTE_FREQUENCY)
        told = frequency < TOTAL  # a certain symbol would change nothing
        frequency, start = frequency[told][::-1], start[told][::-1]
        others, limits = TOTAL - frequency, frequency << _LIMIT_SHIFT

        out = bytearray()
        write = out.append
        x = 1
        for f, other, s, limit in zip(
            *map(np.ndarray.tolist, (frequency, others, start, limits)), strict=True
        ):
            while x >= limit:
                write(x & 255)
                x >>= 8
            # (x // f) * TOTAL + x % f + s, with one division.
            x += x // f * other + s
        while x:
            write(x & 255)
            x >>= 8
        out.reverse()
        return bytes(out)

    def decode(
        self, stream: bytes, rows: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Decode some rows.

        Args:
            stream: What `encode` returned.
            rows: n, how many it holds.

        Returns:
            classes int64 [n], symbols int64 [n, r], and the 16 raw bits of each escape, int64
            [escapes].

        Raises:
            FrameMalformedError: `encode` does not return such a stream for n rows of these tables.
        """
        if not stream or not stream[0]:
            raise FrameMalformedError("an entropy-coded stream does not begin with a zero byte")
        escape, end = self.escape, len(stream)
        class_starts, class_frequencies = self._class_table
        classes: list[int] = []
        symbols: list[int] = []
        escaped: list[int] = []
        emit = symbols.append
        x = at = 0
        while x < _LOWER and at < end:
            x = x << 8 | stream[at]
            at += 1
        for _ in range(rows):
            slot = x & _MASK
            row_class = bisect_right(class_starts, slot) - 1
            x = (
                class_frequencies[row_class] * (x >> PRECISION_BITS)
                + slot
                - class_starts[row_class]
            )
            classes.append(row_class)
            while x < _LOWER and at < end:
                x = x << 8 | stream[at]
                at += 1
            for start, frequency in self._tables(row_class):
                slot = x & _MASK
                symbol = bisect_right(start, slot) - 1
                x = frequency[symbol] * (x >> PRECISION_BITS) + slot - start[symbol]
                emit(symbol)
                while x < _LOWER and at < end:
                    x = x << 8 | stream[at]
                    at += 1
                if symbol == escape:
                    value = 0
                    for shift in (0, 8):
                        slot = x & _MASK
                        value |= slot // _BYTE_FREQUENCY << shift
                        x = _BYTE_FREQUENCY * (x >> PRECISION_BITS) + slot % _BYTE_FREQUENCY
                        while x < _LOWER and at < end:
                            x = x << 8 | stream[at]
                            at += 1
                    escaped.append(value)
        if x != 1 or at != end:
            raise FrameMalformedError(
                f"the entropy-coded stream does not end where its {len(symbols)} symbols do"
            )
        return (
            np.array(classes, dtype=np.int64),
            np.array(symbols, dtype=np.int64).reshape(rows, self.columns),
            np.array(escaped, dtype=np.int64),
        )

    def _tables(self, row_class: int) -> list[Table]:
        """The tables for a row of that class, made when the first such row comes."""
        tables = self._row_tables.get(row_class)
        if tables is None:
            tables = [_table(packed) for packed in self._packed[row_class]]
            self._row_tables[row_class] = tables
        return tables


def _pack(frequency: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Start and frequency of each symbol of tables [..., S] in one number, for one look-up."""
    start = np.cumsum(frequency, axis=-1) - frequency
    return (start << 16 | frequency).astype(np.uint32)


def _unpack(
    packed: npt.NDArray[np.uint32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The starts and frequencies that `_pack` packed."""
    wide = packed.astype(np.int64)
    return wide >> 16, wide & 0xFFFF


def _table(packed: npt.NDArray[np.uint32]) -> Table:
    """One table as lists, which decode faster."""
    start, frequency = _unpack(packed)
    return start.tolist(), frequency.tolist()
