"""Which image tokens matter: a family of scores over one picture's state (NumPy).

Knows: `KVState`. Does not know: latents, bits, the wire. To add a member: a class with `score`, a
line in `SELECTORS`, a line in the contract test's list.
"""

from __future__ import annotations

import difflib
import math
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from protos.errors import ConfigError
from protos.layout import KVState

Scores = npt.NDArray[np.float32]
Kept = npt.NDArray[np.bool_]


class Selector(ABC):
    """Scores image tokens; the higher the score, the later a token is dropped."""

    name: ClassVar[str]

    @abstractmethod
    def score(self, state: KVState) -> Scores:
        """Score every token: finite and not negative, `[tokens]`."""

    def mass(self, state: KVState) -> Scores:
        """What a threshold accumulates, `[tokens]`, sums to 1: by default the score's shares."""
        score = self.score(state).astype(np.float64)
        total = score.sum()
        if not total > 0:
            return np.full(state.tokens, 1 / state.tokens, dtype=np.float32)
        shares: Scores = (score / total).astype(np.float32)
        return shares

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
    """The attention that a token receives, corrected for how many queries can see it."""

    name: ClassVar[str] = "symmetric_focus"

    def score(self, state: KVState) -> Scores:
        """Received attention, as the model's prefill measured it."""
        return state.attention


@dataclass(frozen=True)
class KVNorm(Selector):
    """The length of a token's key and value, averaged over layers and heads."""

    name: ClassVar[str] = "kv_norm"

    def score(self, state: KVState) -> Scores:
        """Mean norm; rotation does not change it."""
        squares = np.einsum("lhtd,lhtd->lht", state.keys, state.keys)
        squares += np.einsum("lhtd,lhtd->lht", state.values, state.values)
        norms: Scores = np.sqrt(squares).mean(axis=(0, 1))
        return norms


@dataclass(frozen=True)
class Uniform(Selector):
    """Control: an even spread over the grid, the same for every picture."""

    name: ClassVar[str] = "uniform"

    def score(self, state: KVState) -> Scores:
        """Additive recurrence over rows and columns (R2 sequence): every budget is spread out."""
        rows, columns = state.grid
        root = 1.32471795724474602596  # of x**3 = x + 1; M. Roberts, 2018
        order: dict[int, int] = {}
        step = 0
        while len(order) < state.tokens and step < 64 * state.tokens:
            row = int(rows * math.modf(0.5 + step / root)[0])
            column = int(columns * math.modf(0.5 + step / root**2)[0])
            order.setdefault(row * columns + column, len(order))
            step += 1
        for token in range(state.tokens):
            order.setdefault(token, len(order))
        ranks = np.array([order[token] for token in range(state.tokens)])
        return (state.tokens - ranks).astype(np.float32)

    def mass(self, state: KVState) -> Scores:
        """Every token counts the same."""
        return np.full(state.tokens, 1 / state.tokens, dtype=np.float32)


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
        return np.full(state.tokens, 1 / state.tokens, dtype=np.float32)


SELECTORS: dict[str, type[Selector]] = {
    member.name: member for member in (SymmetricFocus, KVNorm, Uniform, Random)
}


def get(name: str) -> Selector:
    """The selector of that name, with its default settings.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name not in SELECTORS:
        near = difflib.get_close_matches(name, SELECTORS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(
            f"there is no selector '{name}' (there are {', '.join(sorted(SELECTORS))}){hint}"
        )
    return SELECTORS[name]()
