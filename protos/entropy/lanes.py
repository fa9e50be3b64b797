"""The entropy coder of large payloads: many rANS states side by side, all stepped together.

`protos.entropy.rans` has one state and makes fewer bytes of few symbols. The interleaving is
Giesen's (arXiv:1402.3392): 32-bit states, 16-bit words, one stream.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from protos.entropy.rans import MAX_SYMBOLS, PRECISION_BITS, TOTAL
from protos.errors import FrameMalformedError

MAX_LANES = 4096
MAX_CONTEXTS = 1024
"""Most tables of one coder: decoding keeps all their 4096 slots for look-up, 16 KiB each."""

_LEAST = 8192
_PER_LANE = 32
_LOWER = 1 << 16
_STATE_BYTES, _WORD_BYTES = 4, 2
_MASK = TOTAL - 1
_Integers = npt.NDArray[np.integer]
_States = npt.NDArray[np.uint32]


def lanes_for(symbols: int) -> int:
    """How many lanes to use for that many symbols; 0 if a single state is better.

    A lane costs about three bytes. A step takes about the same time for any number of lanes.
    """
    return 0 if symbols < _LEAST else min(symbols // _PER_LANE, MAX_LANES)


class LaneCoder:
    """Codes a grid of symbols, each with the table of its row's class and its column.

    Symbol i of a part goes to lane `i mod lanes`. The first part is the classes, if there are
    several; the second is the symbols in row-major order.

    Args:
        frequency: `[C, r, S]` integers, each table summing to 4096, C · r at most `MAX_CONTEXTS`.
        prior: `[C]` integers that sum to 4096.
    """

    def __init__(self, frequency: npt.ArrayLike, prior: npt.ArrayLike) -> None:
        table = np.asarray(frequency).astype(np.uint32)
        classes = np.asarray(prior).astype(np.uint32)
        self.columns = table.shape[1]
        self._parts = [_Part(classes[None])] if len(classes) > 1 else []
        self._parts.append(_Part(table.reshape(-1, table.shape[2])))

    def encode(self, classes: _Integers, symbols: _Integers, lanes: int) -> bytes:
        """Code some rows.

        Args:
            classes: `[n]`, each in 0..C-1.
            symbols: `[n, r]`, each in 0..S-1.
            lanes: 1 to `MAX_LANES`.

        Returns:
            The lanes' final states (uint32 each, little endian), then the words (uint16) in the
            order in which they are read.

        Raises:
            FrameMalformedError: a symbol has frequency 0.
        """
        state: _States = np.full(lanes, _LOWER, dtype=np.uint32)
        written: list[npt.NDArray[np.uint16]] = []
        told = [symbols.reshape(-1), classes][: len(self._parts)]
        contexts = [self._contexts(classes), np.zeros(len(classes), dtype=np.int64)]
        for part, values, context in zip(self._parts[::-1], told, contexts, strict=False):
            entries = context * part.frequency.shape[1] + values
            frequency = part.frequency.take(entries)
            start = part.start.take(entries)
            if not frequency.all():
                raise FrameMalformedError("a symbol is coded that its table gives no probability")
            for at in range((len(values) - 1) // lanes * lanes, -1, -lanes):
                f, s = frequency[at : at + lanes], start[at : at + lanes]
                x = state[: len(f)]
                full = np.flatnonzero(x >> (32 - PRECISION_BITS) >= f)
                high = x[full]
                written.append(high.astype(np.uint16))
                x[full] = high >> 16
                # (x // f) * TOTAL + x % f + s, with one division.
                x += x // f * (TOTAL - f) + s
        words = np.concatenate(written[::-1]) if written else np.zeros(0, dtype=np.uint16)
        return state.astype("<u4").tobytes() + words.astype("<u2").tobytes()

    def decode(
        self, stream: bytes, rows: int, lanes: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], bytes]:
        """Decode some rows.

        Args:
            stream: what `encode` returned; more may follow it.
            rows: n, how many it holds.
            lanes: as for `encode`.

        Returns:
            Classes int64 `[n]`, symbols int64 `[n, r]`, and the bytes that follow.

        Raises:
            FrameMalformedError: `encode` does not return such a stream for n rows.
        """
        if len(stream) < _STATE_BYTES * lanes:
            raise FrameMalformedError(f"{len(stream)} bytes do not hold {lanes} states")
        state: _States = np.frombuffer(stream, dtype="<u4", count=lanes).astype(np.uint32)
        if (state < _LOWER).any():
            raise FrameMalformedError("a state of the entropy coder is below its least")
        rest = stream[_STATE_BYTES * lanes :]
        words = np.frombuffer(rest, dtype="<u2", count=len(rest) // 2).astype(np.uint32)
        classes, read = np.zeros(rows, dtype=np.int64), 0
        if len(self._parts) > 1:
            classes, read = _read(self._parts[0], classes, state, words, read)
        flat, read = _read(self._parts[-1], self._contexts(classes), state, words, read)
        if (state != _LOWER).any():
            raise FrameMalformedError(
                f"the entropy-coded stream does not end where its {len(flat)} symbols do"
            )
        return classes, flat.reshape(rows, self.columns), rest[_WORD_BYTES * read :]

    def _contexts(self, classes: _Integers) -> npt.NDArray[np.int64]:
        """The table of every symbol, `[n r]`."""
        grid: npt.NDArray[np.int64] = classes[:, None] * self.columns + np.arange(self.columns)
        return grid.reshape(-1)


class _Part:
    """Tables `[contexts, S]` of one kind of symbol."""

    def __init__(self, frequency: _States) -> None:
        assert len(frequency) <= MAX_CONTEXTS and frequency.shape[1] <= MAX_SYMBOLS
        self.frequency = frequency
        self.start: _States = np.cumsum(frequency, axis=1, dtype=np.uint32) - frequency
        self._slots: _States | None = None

    @property
    def slots(self) -> _States:
        """Symbol, frequency - 1 and place (8, 12 and 12 bits) of each slot of each table."""
        if self._slots is None:
            many, alphabet = self.frequency.shape
            flat = self.frequency.reshape(-1)
            symbol = np.tile(np.arange(alphabet, dtype=np.uint32), many)
            entry = (symbol << 24) | ((flat - 1) << PRECISION_BITS & 0xFFF000)
            start = np.repeat(self.start.reshape(-1), flat)
            place = np.tile(np.arange(TOTAL, dtype=np.uint32), many) - start
            self._slots = np.repeat(entry, flat) | place
        return self._slots


def _read(
    part: _Part,
    contexts: npt.NDArray[np.int64],
    state: _States,
    words: _States,
    read: int,
) -> tuple[npt.NDArray[np.int64], int]:
    """Read one symbol per context; advances `state`, returns symbols and the words read so far."""
    slots, lanes = part.slots, len(state)
    base = contexts << PRECISION_BITS
    found = np.empty(len(contexts), dtype=np.uint32)
    for at in range(0, len(contexts), lanes):
        here = base[at : at + lanes]
        x = state[: len(here)]
        entry = slots.take(here + (x & _MASK))
        found[at : at + lanes] = entry
        x = ((entry >> PRECISION_BITS & _MASK) + 1) * (x >> PRECISION_BITS) + (entry & _MASK)
        low = np.flatnonzero(x < _LOWER)
        if read + len(low) > len(words):
            raise FrameMalformedError("the entropy-coded stream ends before its symbols do")
        x[low] = x[low] << 16 | words[read : read + len(low)]
        read += len(low)
        state[: len(here)] = x
    return (found >> 24).astype(np.int64), read
