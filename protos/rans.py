"""A static range asymmetric numeral system: small integers to nearly as many bits as they hold.

Knows integers and frequency tables. Knows nothing of latents, tokens or frames.

The coder of Duda (arXiv:1311.2540) with 12-bit probabilities and byte-wise renormalisation. Two
choices keep the overhead of a stream at one or two bytes instead of five: the encoder's state
starts at 1, not at the lower bound (a decoder that runs out of bytes simply stops refilling), and
the final state is written without leading zeros (the first refill is an ordinary one). A stream
hence never begins with a zero byte, is never empty, and must leave the decoder at 1 with no byte
left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from protos.errors import BundleFormatError, FrameMalformedError

PRECISION_BITS = 12
TOTAL = 1 << PRECISION_BITS
MAX_SYMBOLS = 256

_LOWER = 1 << 23
_LIMIT_SHIFT = 31 - PRECISION_BITS
_MASK = TOTAL - 1
_BYTE_FREQUENCY = TOTAL >> 8


class StaticCoder:
    """Codes sequences in which each position names the table its symbol is drawn from.

    The last symbol of every table is the escape: it is followed by 16 raw bits.

    Args:
        frequency: [tables, S] integers, rows summing to 4096, 2 <= S <= 256. A symbol of frequency
            0 cannot be coded.

    Raises:
        BundleFormatError: The frequencies are not of that form.
    """

    def __init__(self, frequency: npt.ArrayLike) -> None:
        table = np.asarray(frequency)
        if (
            table.ndim != 2
            or table.shape[0] < 1
            or not 2 <= table.shape[1] <= MAX_SYMBOLS
            or table.dtype.kind not in "iu"
        ):
            raise BundleFormatError(
                f"entropy tables must be integers [tables, 2..{MAX_SYMBOLS}], "
                f"not {table.dtype} {table.shape}"
            )
        # Wide first: unsigned rows could wrap around to the right sum.
        table = table.astype(np.int64)
        if (table < 0).any() or (table > TOTAL).any() or (table.sum(axis=1) != TOTAL).any():
            raise BundleFormatError(f"every row of an entropy table must sum to {TOTAL}")
        self.tables, self.symbols = table.shape
        self.escape = self.symbols - 1
        self._frequency = table
        self._start = np.cumsum(table, axis=1) - table
        alphabet = np.arange(self.symbols, dtype=np.uint8)
        self._rows = [
            (np.repeat(alphabet, frequencies).tobytes(), frequencies.tolist(), starts.tolist())
            for frequencies, starts in zip(table, self._start, strict=True)
        ]

    def encode(
        self,
        symbols: npt.NDArray[np.integer],
        tables: npt.NDArray[np.integer],
        escaped: npt.NDArray[np.integer],
    ) -> bytes:
        """Code a sequence.

        Args:
            symbols: [n], each in 0..S-1.
            tables: [n], the table of each symbol.
            escaped: The 16 raw bits (0..65535) of each escape symbol, in order.

        Returns:
            The stream: at least one byte, the first not 0.

        Raises:
            FrameMalformedError: A symbol has frequency 0, or `escaped` does not have one value per
                escape.
        """
        frequency = self._frequency[tables, symbols]
        start = self._start[tables, symbols]
        if not frequency.all():
            raise FrameMalformedError("a symbol is coded that its table gives no probability")
        escapes = np.flatnonzero(symbols == self.escape)
        if len(escapes) != len(escaped):
            raise FrameMalformedError(f"{len(escapes)} escapes, {len(escaped)} escaped values")
        if len(escapes):
            raw = np.stack([escaped & 255, escaped >> 8], axis=1).reshape(-1) * _BYTE_FREQUENCY
            where = np.repeat(escapes + 1, 2)
            start = np.insert(start, where, raw)
            frequency = np.insert(frequency, where, _BYTE_FREQUENCY)

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
        self, stream: bytes, tables: Sequence[int]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Decode a sequence.

        Args:
            stream: What `encode` returned.
            tables: [n], the table of each symbol.

        Returns:
            symbols int64 [n], and the 16 raw bits of each escape, int64 [escapes].

        Raises:
            FrameMalformedError: The stream is not one that `encode` returns for n symbols of these
                tables.
        """
        if not stream or not stream[0]:
            raise FrameMalformedError("an entropy-coded stream does not begin with a zero byte")
        rows = self._rows
        escape = self.escape
        symbols: list[int] = []
        escaped: list[int] = []
        emit = symbols.append
        end = len(stream)
        x = at = 0
        while x < _LOWER and at < end:
            x = x << 8 | stream[at]
            at += 1
        for lookup, frequency, start in [rows[table] for table in tables]:
            slot = x & _MASK
            symbol = lookup[slot]
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
        return np.array(symbols, dtype=np.int64), np.array(escaped, dtype=np.int64)
