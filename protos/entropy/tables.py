"""Frequency tables of rounded latents, by class of token: the coders' tables.

The encoder file carries them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from protos.entropy.lanes import MAX_CONTEXTS, lanes_for
from protos.entropy.rans import MAX_CLASSES, MAX_SYMBOLS, PRECISION_BITS, TOTAL
from protos.errors import BundleFormatError

Floats = npt.NDArray[np.float32]

_PRIOR = 2.0
_CLASSIFIED = 16384
_ROUNDS = 10
_MEASURED = 1024
_AT_ONCE = 1 << 22
_ROWS_PER_CLASS = 64
_BITS_SCALE = 16
_UNCODABLE = 1 << 20
CLASSES = 128
"""Classes of tokens that tables are fitted with, if that makes shorter codes."""
# Whole 16ths of a bit, so that every machine chooses the same classes.
_LENGTHS = np.array(
    [_UNCODABLE]
    + [
        (PRECISION_BITS * _BITS_SCALE + 1) - (f**_BITS_SCALE).bit_length()
        for f in range(1, TOTAL + 1)
    ],
    dtype=np.int32,
)
"""Length of the code of each frequency, in 16ths of a bit, rounded up."""
_LONGEST = int(_LENGTHS[1]) + 16 * _BITS_SCALE
"""Length of the rarest escape and its raw bits, in 16ths of a bit."""


@dataclass(frozen=True, eq=False)
class EntropyTables:
    """How often each latent takes each rounded value, in each class of tokens.

    Attributes:
        offset: The value that is symbol 0 of each latent, int16 [r].
        frequency: uint16 [C, r, S], tables sum to 4096; the last symbol is the escape, which stands
            for every value whose own symbol is absent or has frequency 0. Each token names its
            class (`protos.entropy.rans.ClassCoder`).
        prior: How often each class comes, uint16 [C], summing to 4096.

    Raises:
        BundleFormatError: The arrays are not of that form.
    """

    offset: npt.NDArray[np.int16]
    frequency: npt.NDArray[np.uint16]
    prior: npt.NDArray[np.uint16]

    def __post_init__(self) -> None:
        offset, frequency = np.asarray(self.offset), np.asarray(self.frequency)
        prior = np.asarray(self.prior)
        kinds = (offset.dtype.str[1:], frequency.dtype.str[1:], prior.dtype.str[1:])
        if kinds != ("i2", "u2", "u2"):
            raise BundleFormatError(
                f"entropy tables must be int16 offsets, uint16 frequencies and uint16 classes, "
                f"not {offset.dtype}, {frequency.dtype} and {prior.dtype}"
            )
        if (
            frequency.ndim != 3
            or offset.shape != frequency.shape[1:2]
            or prior.shape != frequency.shape[:1]
        ):
            raise BundleFormatError(
                f"entropy tables must be [r] offsets, [classes, r, S] frequencies and [classes], "
                f"not {offset.shape}, {frequency.shape} and {prior.shape}"
            )
        if not 1 <= frequency.shape[0] <= MAX_CLASSES:
            raise BundleFormatError(f"entropy tables must have 1..{MAX_CLASSES} classes")
        if not 2 <= frequency.shape[2] <= MAX_SYMBOLS:
            raise BundleFormatError(f"entropy tables must have 2..{MAX_SYMBOLS} symbols")
        for rows in (frequency, prior):
            if (rows.sum(axis=-1, dtype=np.int64) != TOTAL).any():
                raise BundleFormatError(f"every row of an entropy table must sum to {TOTAL}")
        if not frequency[..., -1].all():
            raise BundleFormatError("every latent's escape needs a frequency above 0")

    @property
    def rank(self) -> int:
        """Latents, r."""
        return len(self.offset)

    @property
    def classes(self) -> int:
        """C."""
        return len(self.prior)

    @property
    def escape(self) -> int:
        """The symbol for all values without one of their own."""
        return int(self.frequency.shape[2]) - 1

    @cached_property
    def _lengths(self) -> npt.NDArray[np.uint16]:
        """Length of each symbol's code in 16ths of a bit, [r * S, C]."""
        lengths = _LENGTHS[self.frequency]
        escaped = lengths[..., -1:] + 16 * _BITS_SCALE
        lengths = np.where(self.frequency == 0, escaped, lengths)
        lengths[..., -1:] = escaped
        return lengths.transpose(1, 2, 0).reshape(-1, self.classes).astype(np.uint16)

    def classify(
        self, values: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """The class that codes each token of `values [T, r]` shortest.

        Returns:
            Classes [T], symbols [T, r], and the length of each token's code in 16ths of a bit [T].
        """
        symbols = self._symbols(values)
        step = max(1, _AT_ONCE // (self.rank * self.classes))
        rows = symbols + np.arange(self.rank) * (self.escape + 1)
        # 16-bit integers if the sums fit: twice as many at a time.
        wide = np.uint16 if self.rank * _LONGEST < 1 << 16 else np.int32
        parts = [
            self._lengths.take(rows[at : at + step], axis=0).sum(axis=1, dtype=wide)
            for at in range(0, max(1, len(symbols)), step)
        ]
        lengths = np.concatenate(parts) + _LENGTHS[self.prior]
        classes = lengths.argmin(axis=1)
        return classes, self._with_escapes(classes, symbols), lengths.min(axis=1)

    def coded(
        self, values: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """`classify` without the lengths, which one class does not need."""
        if self.classes > 1:
            return self.classify(values)[:2]
        classes = np.zeros(len(values), dtype=np.int64)
        return classes, self._with_escapes(classes, self._symbols(values))

    def _symbols(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The values' symbols, as if every symbol had a frequency above 0."""
        wrapped = (values - self.offset).view(np.uint64)  # a negative number wraps to a large one
        return np.minimum(wrapped, np.uint64(self.escape)).view(np.int64)

    def _with_escapes(
        self, classes: npt.NDArray[np.int64], symbols: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        row = (classes * self.rank)[:, None] + np.arange(self.rank)
        given = self.frequency.take(row * (self.escape + 1) + symbols)
        return np.where(given, symbols, self.escape)

    @classmethod
    def fit(
        cls, symbols: npt.ArrayLike, classes: int | None = None, tokens: int = 0
    ) -> EntropyTables:
        """Count a sample of rounded latents.

        Every value seen, and one more on each side, gets a symbol (a window of 255 around the
        median if there are more). A latent's counts are smoothed by one half (Krichevsky-Trofimov),
        those of each class by a few observations spread as the latent's are.

        Args:
            symbols: `round(z / step)`, integers [n, r], a token per row.
            classes: C at most; fewer if the sample is small. By default, 1 or 128, whichever codes
                one half of the sample shorter when fitted to the other.
            tokens: Tokens of a frame, 0 if unknown. If a frame has enough symbols for many coder
                states side by side, the default is no more classes than that coder allows.

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
        if classes is None:
            half, rank = sample[::2], sample.shape[1]
            most = max(1, MAX_CONTEXTS // rank) if lanes_for(tokens * rank) else CLASSES
            halves = [cls.fit(half, c) for c in (1, min(most, CLASSES))]
            classes = min(halves, key=lambda tables: tables.bits(sample[1::2])).classes
        widest = MAX_SYMBOLS - 1
        low, high = sample.min(axis=0) - 1, sample.max(axis=0) + 1
        middle = np.median(sample, axis=0).astype(np.int64) - widest // 2
        low = np.where(high - low < widest, low, middle).clip(-32768, 32767)
        width = np.minimum(high - low + 1, widest)

        rank, escape = sample.shape[1], int(width.max())
        shifted = sample - low
        shifted[(shifted < 0) | (shifted >= width)] = escape
        usual = _count(np.zeros(len(shifted), dtype=np.int64), shifted, 1, escape + 1)[0] + 0.5
        usual[:, :escape][np.arange(escape) >= width[:, None]] = 0
        usual /= usual.sum(axis=1, keepdims=True)
        classes = min(classes, 1 + len(shifted) // _ROWS_PER_CLASS)
        chosen = np.zeros(len(shifted), dtype=np.int64)
        if classes > 1:
            chosen = _classify(shifted, usual, classes)
        counts = _count(chosen, shifted, classes, escape + 1) + _PRIOR * usual
        frequency = np.zeros(counts.shape, dtype=np.uint16)
        for place in np.ndindex(classes, rank):
            frequency[place] = _normalise(counts[place])
        prior = _normalise(np.bincount(chosen, minlength=classes).astype(np.float64) + 0.5)
        return cls(low.astype(np.int16), frequency, prior.astype(np.uint16))

    def bits(self, values: npt.NDArray[np.int64]) -> float:
        """About how many bits `values [T, r]` take."""
        parts = range(0, len(values), _MEASURED)
        lengths = (self.classify(values[at : at + _MEASURED])[2].sum() for at in parts)
        return float(sum(lengths)) / _BITS_SCALE

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """As named arrays: `offset`, `frequency`, `prior`."""
        return {"offset": self.offset, "frequency": self.frequency, "prior": self.prior}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> EntropyTables:
        """Read what `to_arrays` wrote.

        Raises:
            BundleFormatError: An array is missing or not of the right form.
        """
        missing = {"offset", "frequency", "prior"} - set(arrays)
        if missing:
            raise BundleFormatError(f"entropy tables lack {sorted(missing)}")
        return cls(arrays["offset"], arrays["frequency"], arrays["prior"])  # type: ignore[arg-type]

    def first(self, rank: int) -> EntropyTables:
        """The tables of the first `rank` latents."""
        return EntropyTables(self.offset[:rank], self.frequency[:, :rank], self.prior)


def _classify(symbols: npt.NDArray[np.int64], usual: Floats, classes: int) -> npt.NDArray[np.int64]:
    """Which of `classes` mixture components each row of `symbols [n, r]` belongs to, [n].

    Expectation-maximisation of a mixture of products of categorical distributions (Dempster, Laird
    and Rubin 1977) on a part of the rows, then each row to the component that codes it shortest.

    Args:
        symbols: In 0..S-1.
        usual: Share of each symbol over all rows, [r, S].
        classes: C.
    """
    rank, alphabet = usual.shape
    floor = np.maximum(usual, 1e-6).astype(np.float32)

    def one_hot(rows: npt.NDArray[np.int64]) -> Floats:
        return np.eye(alphabet, dtype=np.float32)[rows].reshape(len(rows), -1)

    rng = np.random.default_rng(0)
    part = one_hot(symbols[rng.permutation(len(symbols))[:_CLASSIFIED]])
    surprise = 1e-3 - (part @ np.log(floor).reshape(-1)).astype(np.float64)
    seeds = rng.choice(len(part), classes, replace=False, p=surprise / surprise.sum())
    code = np.log(0.5 * part[seeds] + 0.5 * floor.reshape(-1))
    share = np.full(classes, 1 / classes, dtype=np.float32)
    for _ in range(_ROUNDS):
        weight = part @ code.T + np.log(share)
        weight = np.exp(weight - weight.max(axis=1, keepdims=True))
        weight /= weight.sum(axis=1, keepdims=True)
        counts = (weight.T @ part).reshape(classes, rank, alphabet) + _PRIOR * floor
        code = np.log(counts / counts.sum(axis=2, keepdims=True)).reshape(classes, -1)
        share = (weight.sum(axis=0) + 1) / (len(part) + classes)
    return np.concatenate(
        [
            (one_hot(symbols[at : at + _CLASSIFIED]) @ code.T + np.log(share)).argmax(axis=1)
            for at in range(0, len(symbols), _CLASSIFIED)
        ]
    )


def _normalise(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Integers that sum to 4096, close to proportional.

    A symbol whose share is below one half gets 0 and is escaped: dozens of symbols that never come
    would make every likely one dearer. The last symbol, the escape, gets at least 1.
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


def _count(
    classes: npt.NDArray[np.int64], symbols: npt.NDArray[np.int64], many: int, alphabet: int
) -> npt.NDArray[np.float64]:
    """How often each latent has each symbol in each class, [many, r, alphabet]."""
    rank = symbols.shape[1]
    flat = (classes[:, None] * rank + np.arange(rank)) * alphabet + symbols
    counts = np.bincount(flat.reshape(-1), minlength=many * rank * alphabet)
    return counts.reshape(many, rank, alphabet).astype(np.float64)
