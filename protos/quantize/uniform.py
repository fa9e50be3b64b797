"""Unclipped uniform rounding, entropy coded by context: the low-rate points.

Knows the statistics of each latent's rounded values. Knows no frame and no bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from protos.errors import BundleFormatError, FrameMalformedError
from protos.quantize.base import Floats, Quantizer, exact_size, in_steps
from protos.rans import MAX_CONTEXTS, MAX_SYMBOLS, TOTAL, ContextCoder, contexts_of

_RAW_MARK = 0
_RAW_HEADER_BYTES = 2
_PRIOR = 4.0


@dataclass(frozen=True, eq=False)
class EntropyTables:
    """How often each latent takes each rounded value.

    Attributes:
        offset: The value that is symbol 0 of each latent, int16 [r].
        frequency: uint16 [C, r, S], tables sum to 4096; the last symbol is the escape, which stands
            for every value whose own symbol is absent or has frequency 0. Which of the C contexts a
            value is coded in depends on the token's values before it (`protos.rans.ContextCoder`).

    Raises:
        BundleFormatError: The arrays are not of that form.
    """

    offset: npt.NDArray[np.int16]
    frequency: npt.NDArray[np.uint16]

    def __post_init__(self) -> None:
        offset, frequency = np.asarray(self.offset), np.asarray(self.frequency)
        if offset.dtype != np.int16 or frequency.dtype != np.uint16:
            raise BundleFormatError(
                f"entropy tables must be int16 offsets and uint16 frequencies, "
                f"not {offset.dtype} and {frequency.dtype}"
            )
        if frequency.ndim != 3 or offset.shape != frequency.shape[1:2]:
            raise BundleFormatError(
                f"entropy tables must be [r] offsets and [contexts, r, S] frequencies, "
                f"not {offset.shape} and {frequency.shape}"
            )
        if not 1 <= frequency.shape[0] <= MAX_CONTEXTS:
            raise BundleFormatError(f"entropy tables must have 1..{MAX_CONTEXTS} contexts")
        if not 2 <= frequency.shape[2] <= MAX_SYMBOLS:
            raise BundleFormatError(f"entropy tables must have 2..{MAX_SYMBOLS} symbols")
        if (frequency.sum(axis=2, dtype=np.int64) != TOTAL).any():
            raise BundleFormatError(f"every row of an entropy table must sum to {TOTAL}")
        if not frequency[..., -1].all():
            raise BundleFormatError("every latent's escape needs a frequency above 0")

    @property
    def rank(self) -> int:
        """Latents, r."""
        return len(self.offset)

    @property
    def magnitude(self) -> npt.NDArray[np.int64]:
        """How far from 0 each symbol's value is, [r, S]; the escape counts as the next value up."""
        symbols = np.arange(self.frequency.shape[2], dtype=np.int64)
        distance: npt.NDArray[np.int64] = np.abs(self.offset[:, None] + symbols)
        return distance

    @classmethod
    def fit(cls, symbols: npt.ArrayLike, contexts: int = MAX_CONTEXTS) -> EntropyTables:
        """Count a sample of rounded latents.

        Every value seen, and one more on each side, gets a symbol (a window of 255 around the
        median if there are more). A latent's counts are smoothed by one half (Krichevsky-Trofimov),
        those of each context by a few observations spread as the latent's are.

        Args:
            symbols: `round(z / step)`, integers [n, r], a token per row.
            contexts: C.

        Raises:
            BundleFormatError: The sample is empty, or not integers of 16 bits.
        """
        sample = np.asarray(symbols)
        if sample.ndim != 2 or not sample.size or sample.dtype.kind not in "iu":
            raise BundleFormatError(
                f"entropy tables are fitted to integers [n, r], not {sample.dtype} {sample.shape}"
            )
        sample = sample.astype(np.int64)
        if sample.min() < -32768 or sample.max() > 32767:
            raise BundleFormatError("rounded latents beyond 16 bits: the steps are too small")
        widest = MAX_SYMBOLS - 1
        low, high = sample.min(axis=0) - 1, sample.max(axis=0) + 1
        middle = np.median(sample, axis=0).astype(np.int64) - widest // 2
        low = np.where(high - low < widest, low, middle).clip(-32768, 32767)
        width = np.minimum(high - low + 1, widest)

        rank, escape = sample.shape[1], int(width.max())
        shifted = sample - low
        shifted[(shifted < 0) | (shifted >= width)] = escape
        context = contexts_of(np.abs(low + shifted), contexts)
        flat = (context * rank + np.arange(rank)) * (escape + 1) + shifted
        counts = np.bincount(flat.reshape(-1), minlength=contexts * rank * (escape + 1))
        counts = counts.reshape(contexts, rank, escape + 1).astype(np.float64)
        overall = counts.sum(axis=0) + 0.5
        overall[:, :escape][np.arange(escape) >= width[:, None]] = 0
        overall /= overall.sum(axis=1, keepdims=True)
        frequency = np.zeros(counts.shape, dtype=np.uint16)
        for place in np.ndindex(contexts, rank):
            frequency[place] = _normalise(counts[place] + _PRIOR * overall[place[1]])
        return cls(low.astype(np.int16), frequency)

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """As named arrays: `offset`, `frequency`."""
        return {"offset": self.offset, "frequency": self.frequency}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> EntropyTables:
        """Read what `to_arrays` wrote.

        Raises:
            BundleFormatError: An array is missing or not of the right form.
        """
        missing = {"offset", "frequency"} - set(arrays)
        if missing:
            raise BundleFormatError(f"entropy tables lack {sorted(missing)}")
        return cls(arrays["offset"], arrays["frequency"])  # type: ignore[arg-type]


def _normalise(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Integers that sum to 4096, close to proportional.

    What would get less than half of one gets none, and is escaped: dozens of symbols that never
    come would cost every likely one. The last, the escape, gets at least one.
    """
    ideal = weights / weights.sum() * TOTAL
    whole: npt.NDArray[np.int64] = np.rint(ideal).astype(np.int64)
    whole[-1] = max(1, whole[-1])
    while (excess := int(whole.sum()) - TOTAL) != 0:
        change = -1 if excess > 0 else 1
        # The change in code length, in nats: where it costs least (or gains most).
        with np.errstate(divide="ignore", invalid="ignore"):
            cost = np.where(
                (whole >= 1) & (whole + change >= 1),
                -ideal * (np.log(whole + change) - np.log(whole)),
                np.inf,
            )
        whole[np.argmin(cost)] += change
    return whole


@dataclass(frozen=True)
class UniformQuantizer(Quantizer):
    """`round(z / step)`, rANS coded token by token; raw where that is shorter.

    Args:
        tables: Of the operating point, from the encoder.
    """

    tables: EntropyTables
    name: ClassVar[str] = "uniform"
    _coder: ContextCoder = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        coder = ContextCoder(self.tables.frequency, self.tables.magnitude)
        object.__setattr__(self, "_coder", coder)

    def _encode(self, z: Floats, steps: Floats) -> bytes:
        self._check_rank(z.shape[1])
        rounded = np.rint(in_steps(z, steps))
        if rounded.size and (rounded.min() < -32768 or rounded.max() > 32767):
            raise FrameMalformedError("a latent is more than 32767 steps from 0")
        values = rounded.astype(np.int64)
        stream = self._coder.encode(*self._symbols(values))
        codes = _zigzag(values.reshape(-1))
        width = max(1, int(codes.max(initial=0)).bit_length())
        if len(stream) <= _RAW_HEADER_BYTES + (codes.size * width + 7) // 8:
            return stream
        bits = (codes[:, None] >> np.arange(width) & 1).astype(np.uint8)
        return bytes((_RAW_MARK, width)) + np.packbits(bits, bitorder="little").tobytes()

    def _decode(self, payload: bytes, tokens: int, rank: int, steps: Floats) -> Floats:
        self._check_rank(rank)
        if payload and payload[0] == _RAW_MARK:
            values = _unpack(payload, tokens * rank).reshape(tokens, rank)
        else:
            symbols, escaped = self._coder.decode(payload, tokens)
            values = symbols + self.tables.offset
            values[symbols == self._coder.escape] = _unzigzag(escaped)
        decoded: Floats = values.astype(np.float32) * steps
        return decoded

    def _symbols(
        self, values: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Symbols [T, r] of `values [T, r]`, and the zigzag codes of those that are escaped."""
        escape, latents = self._coder.escape, np.arange(values.shape[1])
        symbols = values - self.tables.offset
        symbols[(symbols < 0) | (symbols >= escape)] = escape
        # Escaping one symbol may change the contexts, hence the tables, of those after it.
        while True:
            frequency = self.tables.frequency[self._coder.context(symbols), latents, symbols]
            if frequency.all():
                return symbols, _zigzag(values[symbols == escape])
            first = np.argmax(frequency == 0, axis=1)
            rows = np.flatnonzero(~frequency.all(axis=1))
            symbols[rows, first[rows]] = escape

    def _check_rank(self, rank: int) -> None:
        if rank != self.tables.rank:
            raise FrameMalformedError(
                f"{rank} latents per token, the entropy tables are for {self.tables.rank}"
            )


def _zigzag(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    code: npt.NDArray[np.int64] = (values << 1) ^ (values >> 63)
    return code


def _unzigzag(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    values: npt.NDArray[np.int64] = (codes >> 1) ^ -(codes & 1)
    return values


def _unpack(payload: bytes, numbers: int) -> npt.NDArray[np.int64]:
    width = payload[1] if len(payload) > 1 else 0
    if not 1 <= width <= 16:
        raise FrameMalformedError(f"raw latents of {width} bits, expected 1 to 16")
    exact_size(payload, _RAW_HEADER_BYTES + (numbers * width + 7) // 8)
    packed = np.frombuffer(payload, dtype=np.uint8, offset=_RAW_HEADER_BYTES)
    bits = np.unpackbits(packed, bitorder="little")
    if bits[numbers * width :].any():
        raise FrameMalformedError("the unused last bits of the payload are not 0")
    weights = 1 << np.arange(width, dtype=np.int64)
    return _unzigzag(bits[: numbers * width].reshape(numbers, width) @ weights)
