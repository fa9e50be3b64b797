"""Which image tokens matter: a family of scores over one picture's state (NumPy).

Knows: `KVState`, and for `task_aware` the latents that scores are taken in. Does not know: bits,
the wire. To add a member: a class with `score`, a line in `SELECTORS`, a line in the contract
test's list.
"""

from __future__ import annotations

import difflib
import functools
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from protos.errors import ConfigError
from protos.state import KVState

Scores = npt.NDArray[np.float32]
Kept = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

DEFAULT = "key_diversity"
"""Of new encoders: most right answers at nearly every budget (`python -m benchmarks.selectors`)."""
_UNIFORM_STEPS = 64
"""Steps of the recurrence per token after which places still missing are taken in order."""


class Selector(ABC):
    """Scores image tokens; the higher the score, the later a token is dropped."""

    name: ClassVar[str]

    @abstractmethod
    def score(self, state: KVState) -> Scores:
        """Score every token: finite and not negative, `[tokens]`."""

    def mass(self, state: KVState) -> Scores:
        """What a threshold accumulates, `[tokens]`, sums to 1: by default the score's shares."""
        return _shares(self.score(state))

    def keep(
        self, state: KVState, budget: int | None = None, threshold: float | None = None
    ) -> Kept:
        """Choose tokens by falling score; ties go to the token that comes first.

        Args:
            state: one picture.
            budget: keep at most so many tokens; `None` or 0 for all.
            threshold: keep the fewest tokens whose mass reaches this share, in (0, 1]; with a
                budget too, whichever keeps fewer.

        Returns:
            Mask `[tokens]` with at least one token kept.

        Raises:
            ConfigError: a negative budget, or a threshold outside (0, 1].
        """
        if budget is not None and budget < 0:
            raise ConfigError(f"a token budget is 0 (all) or more, not {budget}")
        if threshold is not None and not 0 < threshold <= 1:
            raise ConfigError(f"a selection threshold lies in (0, 1], not {threshold}")
        count = min(budget or state.tokens, state.tokens)
        kept = np.zeros(state.tokens, dtype=np.bool_)
        if count == state.tokens and threshold is None:
            kept[:] = True
            return kept
        order = np.argsort(-self.score(state), kind="stable")
        if threshold is not None:
            reached = np.cumsum(self.mass(state)[order], dtype=np.float64)
            count = min(count, int(np.searchsorted(reached, threshold - 1e-6)) + 1)
        kept[order[:count]] = True
        return kept


@dataclass(frozen=True)
class SymmetricFocus(Selector):
    """The attention that a token receives, divided by the number of queries that can see it."""

    name: ClassVar[str] = "symmetric_focus"

    def score(self, state: KVState) -> Scores:
        """Received attention, as the model's prefill measured it."""
        return state.attention


@dataclass(frozen=True)
class RawFocus(Selector):
    """Plain column sums of the attention, as published (H2O, arXiv:2306.14048).

    Kept to compare with: under a causal mask early tokens are seen by more queries and win.
    """

    name: ClassVar[str] = "raw_focus"

    def score(self, state: KVState) -> Scores:
        """The mean per query times the picture's queries from the token itself on."""
        seen_by = np.arange(state.tokens, 0, -1, dtype=np.float32)
        raw: Scores = state.attention * seen_by
        return raw


@dataclass(frozen=True)
class KVNorm(Selector):
    """How much longer a token's key and value are than the other tokens' in the same head."""

    name: ClassVar[str] = "kv_norm"

    def score(self, state: KVState) -> Scores:
        """Mean over layers, heads, keys and values of norms in z-scores over the picture.

        In z-scores no head outweighs the others by its scale. From the lowest score up, so that
        none is negative; rotation does not change norms.
        """
        norms = np.stack([_norms(state.keys), _norms(state.values)])
        spread = norms.std(axis=-1, keepdims=True)
        centred = norms - norms.mean(axis=-1, keepdims=True)
        z = np.divide(centred, spread, out=np.zeros_like(norms), where=spread > 0)
        mean = z.mean(axis=(0, 1, 2))
        above: Scores = (mean - mean.min()).astype(np.float32)
        return above


@dataclass(frozen=True)
class ValueAware(Selector):
    """Received attention times the length of the value that it moves (VATP, arXiv:2406.12335)."""

    name: ClassVar[str] = "value_aware"

    def score(self, state: KVState) -> Scores:
        """Attention times the mean L1 norm of the token's values."""
        moved: Scores = state.attention * np.abs(state.values).sum(axis=-1).mean(axis=(0, 1))
        return moved


@dataclass(frozen=True)
class KeyDiversity(Selector):
    """Tokens whose keys point away from the picture's mean key (KeyDiff, arXiv:2504.15364)."""

    name: ClassVar[str] = "key_diversity"

    def score(self, state: KVState) -> Scores:
        """1 - cosine to the mean of the unit keys, mean over layers and heads: 0 to 2."""
        unit = _unit(state.keys)
        anchor = _unit(unit.mean(axis=2, keepdims=True))
        cosine = np.einsum("lhtd,lhd->lht", unit, anchor[:, :, 0])
        away: Scores = np.maximum(1 - cosine.mean(axis=(0, 1)), 0).astype(np.float32)
        return away


@dataclass(frozen=True, eq=False)
class TaskAware(Selector):
    """How much dropping a token raises the large model's loss, as calibration learnt it.

    The loss is taken as a sum over dropped tokens of a weighted square of what is lost with each:
    how far its latents are from those that stand in for it. (A diagonal second-order model of the
    loss, as in LeCun et al. 1989, in latents instead of weights.)

    Attributes:
        normal_mean: `[d_s]` of the states.
        normal_scale: `[d_s]`.
        projection: `[d_s, r]` on normalised states.
        empty: what a dropped token is read as, `[N, r]`.
        weights: of each latent's square, `[r]`, not negative.
    """

    normal_mean: Floats
    normal_scale: Floats
    projection: Floats
    empty: Floats
    weights: Floats
    name: ClassVar[str] = "task_aware"

    def score(self, state: KVState) -> Scores:
        """The loss that dropping each token adds, in nats."""
        latents = (state.flat() - self.normal_mean) / self.normal_scale @ self.projection
        lost: Scores = np.square(latents - self.empty) @ self.weights
        return lost


@dataclass(frozen=True)
class Uniform(Selector):
    """Control: an even spread over the grid, the same for every picture."""

    name: ClassVar[str] = "uniform"

    def score(self, state: KVState) -> Scores:
        """Additive recurrence over rows and columns (R2 sequence): every budget is spread out."""
        return _spread(state.grid)

    def mass(self, state: KVState) -> Scores:
        """Every token counts the same."""
        return _even(state.tokens)


@dataclass(frozen=True)
class Random(Selector):
    """Control: a different draw for every picture, the same for the same picture and seed."""

    seed: int = 0
    name: ClassVar[str] = "random"

    def score(self, state: KVState) -> Scores:
        """Uniform random numbers."""
        content = zlib.crc32(np.ascontiguousarray(state.values).tobytes())
        return np.random.default_rng([self.seed, content]).random(state.tokens, dtype=np.float32)

    def mass(self, state: KVState) -> Scores:
        """Every token counts the same."""
        return _even(state.tokens)


SELECTORS: dict[str, type[Selector]] = {
    member.name: member
    for member in (
        SymmetricFocus,
        RawFocus,
        KVNorm,
        ValueAware,
        KeyDiversity,
        TaskAware,
        Uniform,
        Random,
    )
}
"""Name to class; `task_aware` alone takes something of a bundle (see `Encoder.selecting`)."""


def require(name: str) -> type[Selector]:
    """The class of that name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name not in SELECTORS:
        near = difflib.get_close_matches(name, SELECTORS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(
            f"there is no selector '{name}' (there are {', '.join(sorted(SELECTORS))}){hint}"
        )
    return SELECTORS[name]


def get(name: str) -> Selector:
    """The selector of that name, with its default settings.

    Raises:
        ConfigError: there is none, or it is made of a bundle's weights.
    """
    member = require(name)
    if member is TaskAware:
        raise ConfigError(
            f"the selector '{name}' takes its weights from a bundle: ask the bundle's encoder"
        )
    return member()


def _shares(score: Scores) -> Scores:
    total = score.sum(dtype=np.float64)
    if not total > 0:
        return _even(len(score))
    shares: Scores = (score / total).astype(np.float32)
    return shares


def _even(tokens: int) -> Scores:
    return np.full(tokens, 1 / tokens, dtype=np.float32)


def _norms(heads: Floats) -> Floats:
    """Norms `[layers, kv_heads, tokens]` of `[layers, kv_heads, tokens, head_dim]`."""
    norms: Floats = np.sqrt(np.einsum("lhtd,lhtd->lht", heads, heads))
    return norms


def _unit(vectors: Floats) -> Floats:
    """Vectors of length 1 along the last axis; zeros stay zeros."""
    size = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Floats = np.divide(vectors, size, out=np.zeros_like(vectors), where=size > 0)
    return unit


@functools.lru_cache(maxsize=8)
def _spread(grid: tuple[int, int]) -> Scores:
    rows, columns = grid
    tokens = rows * columns
    root = 1.32471795724474602596  # of x**3 = x + 1; M. Roberts, 2018
    step = np.arange(_UNIFORM_STEPS * tokens)
    row = (rows * ((0.5 + step / root) % 1)).astype(np.int64)
    column = (columns * ((0.5 + step / root**2) % 1)).astype(np.int64)
    place = np.concatenate([row * columns + column, np.arange(tokens)])  # whatever was not met
    _, first = np.unique(place, return_index=True)
    score = np.empty(tokens, dtype=np.float32)
    score[np.argsort(first)] = np.arange(tokens, 0, -1)
    score.flags.writeable = False
    return score
