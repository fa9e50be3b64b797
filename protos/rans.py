"""A range asymmetric numeral system: small integers to nearly as many bits as they hold.

Knows integers, frequency tables and which table comes next. Knows nothing of latents or frames.

The coder of Duda (arXiv:1311.2540) with 12-bit probabilities and byte-wise renormalisation. Two
choices keep the overhead of a stream at one or two bytes instead of five: the encoder's state
starts at 1, not at the lower bound (a decoder that runs out of bytes simply stops refilling), and
the final state is written without leading zeros (the first refill is an ordinary one). A stream
hence never begins with a zero byte, is never empty, and must leave the decoder at 1 with no byte
left.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from protos.errors import BundleFormatError, FrameMalformedError

PRECISION_BITS = 12
TOTAL = 1 << PRECISION_BITS
MAX_SYMBOLS = 256
MAX_CONTEXTS = 8

_LOWER = 1 << 23
_LIMIT_SHIFT = 31 - PRECISION_BITS
_MASK = TOTAL - 1
_BYTE_FREQUENCY = TOTAL >> 8


class ContextCoder:
    """Codes rows of r symbols; what a row has shown so far chooses the table of its next symbol.

    A row's running sum starts at 0, and each symbol adds its magnitude. Column j of a row is coded
    with `frequency[c, j]`, c = min(C - 1, bit length of the sum): rows with nothing to tell and
    rows full of detail have statistics of their own. (Context modelling as in image coders, Said
    and Pearlman 1996; with one context this is a static coder.)

    The last symbol of every table is the escape: it is followed by 16 raw bits.

    Args:
        frequency: [C, r, S] integers, each table summing to 4096, 2 <= S <= 256. A symbol of
            frequency 0 cannot be coded.
        magnitude: [r, S] integers of at least 0.

    Raises:
        BundleFormatError: The arrays are not of that form.
    """

    def __init__(self, frequency: npt.ArrayLike, magnitude: npt.ArrayLike) -> None:
        table, weight = np.asarray(frequency), np.asarray(magnitude)
        if (
            table.ndim != 3
            or not 1 <= table.shape[0] <= MAX_CONTEXTS
            or table.shape[1] < 1
            or not 2 <= table.shape[2] <= MAX_SYMBOLS
            or table.dtype.kind not in "iu"
        ):
            raise BundleFormatError(
                f"entropy tables must be integers [1..{MAX_CONTEXTS}, latents, 2..{MAX_SYMBOLS}], "
                f"not {table.dtype} {table.shape}"
            )
        if weight.shape != table.shape[1:] or weight.dtype.kind not in "iu" or (weight < 0).any():
            raise BundleFormatError("magnitudes must be integers [latents, symbols], at least 0")
        # Wide first: unsigned rows could wrap around to the right sum.
        table = table.astype(np.int64)
        if (table < 0).any() or (table > TOTAL).any() or (table.sum(axis=2) != TOTAL).any():
            raise BundleFormatError(f"every row of an entropy table must sum to {TOTAL}")
        self.contexts, self.columns, self.symbols = table.shape
        self.escape = self.symbols - 1
        self._frequency = table
        self._magnitude = weight.astype(np.int64)
        self._start = np.cumsum(table, axis=2) - table
        alphabet = np.arange(self.symbols, dtype=np.uint8)
        self._rows = [
            [
                (
                    np.repeat(alphabet, table[context, column]).tobytes(),
                    table[context, column].tolist(),
                    self._start[context, column].tolist(),
                    self._magnitude[column].tolist(),
                )
                for context in range(self.contexts)
            ]
            for column in range(self.columns)
        ]

    def context(self, symbols: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """The context that each of `symbols [n, r]` is coded in, [n, r]."""
        return contexts_of(self._magnitude[np.arange(self.columns), symbols], self.contexts)

    def encode(self, symbols: npt.NDArray[np.integer], escaped: npt.NDArray[np.integer]) -> bytes:
        """Code some rows.

        Args:
            symbols: [n, r], each in 0..S-1.
            escaped: The 16 raw bits (0..65535) of each escape symbol, in row-major order.

        Returns:
            The stream: at least one byte, the first not 0.

        Raises:
            FrameMalformedError: A symbol has frequency 0, or `escaped` does not have one value per
                escape.
        """
        where = (self.context(symbols), np.arange(self.columns), symbols)
        frequency, start = self._frequency[where].reshape(-1), self._start[where].reshape(-1)
        if not frequency.all():
            raise FrameMalformedError("a symbol is coded that its table gives no probability")
        escapes = np.flatnonzero(symbols == self.escape)
        if len(escapes) != len(escaped):
            raise FrameMalformedError(f"{len(escapes)} escapes, {len(escaped)} escaped values")
        if len(escapes):
            raw = np.stack([escaped & 255, escaped >> 8], axis=1).reshape(-1) * _BYTE_FREQUENCY
            after = np.repeat(escapes + 1, 2)
            start = np.insert(start, after, raw)
            frequency = np.insert(frequency, after, _BYTE_FREQUENCY)

        backwards = slice(None, None, -1)
        out = bytearray()
        write = out.append
        x = 1
        for f, s, limit in zip(
            frequency[backwards].tolist(),
            start[backwards].tolist(),
            (frequency[backwards] << _LIMIT_SHIFT).tolist(),
            strict=True,
        ):
            while x >= limit:
                write(x & 255)
                x >>= 8
            # (x // f) * TOTAL + x % f + s, with one division.
            x += x // f * (TOTAL - f) + s
        while x:
            write(x & 255)
            x >>= 8
        out.reverse()
        return bytes(out)

    def decode(
        self, stream: bytes, rows: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Decode some rows.

        Args:
            stream: What `encode` returned.
            rows: n, how many it holds.

        Returns:
            symbols int64 [n, r], and the 16 raw bits of each escape, int64 [escapes].

        Raises:
            FrameMalformedError: The stream is not one that `encode` returns for n rows of these
                tables.
        """
        if not stream or not stream[0]:
            raise FrameMalformedError("an entropy-coded stream does not begin with a zero byte")
        columns, escape, last = self._rows, self.escape, self.contexts - 1
        symbols: list[int] = []
        escaped: list[int] = []
        emit = symbols.append
        end = len(stream)
        x = at = 0
        while x < _LOWER and at < end:
            x = x << 8 | stream[at]
            at += 1
        for _ in range(rows):
            total = 0
            for tables in columns:
                context = total.bit_length()
                lookup, frequency, start, magnitude = tables[context if context < last else last]
                slot = x & _MASK
                symbol = lookup[slot]
                x = frequency[symbol] * (x >> PRECISION_BITS) + slot - start[symbol]
                emit(symbol)
                total += magnitude[symbol]
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
        decoded = np.array(symbols, dtype=np.int64).reshape(rows, self.columns)
        return decoded, np.array(escaped, dtype=np.int64)


def contexts_of(magnitudes: npt.NDArray[np.int64], contexts: int) -> npt.NDArray[np.int64]:
    """The context of each place of `magnitudes [n, r]`, [n, r]; see `ContextCoder`."""
    before = np.cumsum(magnitudes, axis=1) - magnitudes
    # The bit length of n is how many powers of two are at most n.
    powers = 1 << np.arange(contexts - 1, dtype=np.int64)
    result: npt.NDArray[np.int64] = np.searchsorted(powers, before, side="right")
    return result
