"""The base class of selectors: a score for each image token, and the choice by that score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from protos.errors import ConfigError
from protos.state import KVState

Scores = npt.NDArray[np.float32]
Kept = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


class Selector(ABC):
    """Scores image tokens; tokens with high scores are dropped last."""

    name: ClassVar[str]

    @abstractmethod
    def score(self, state: KVState) -> Scores:
        """Score every token, `[tokens]`: finite and not negative."""

    def mass(self, state: KVState) -> Scores:
        """Each token's share for `threshold`, `[tokens]`, sums to 1; by default from the score."""
        return _shares(self.score(state))

    def keep(
        self, state: KVState, budget: int | None = None, threshold: float | None = None
    ) -> Kept:
        """Choose the tokens with the highest scores; at a tie, the earlier token.

        Args:
            state: one picture.
            budget: keep at most this many tokens; `None` or 0 keeps all.
            threshold: keep the fewest tokens whose mass reaches this share, in (0, 1]. With a
                budget too, the stricter of the two counts.

        Returns:
            Mask `[tokens]` with at least one token kept.

        Raises:
            ConfigError: the budget is negative, or the threshold is outside (0, 1].
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


def _shares(score: Scores) -> Scores:
    total = score.sum(dtype=np.float64)
    if not total > 0:
        return even(len(score))
    shares: Scores = (score / total).astype(np.float32)
    return shares


def even(tokens: int) -> Scores:
    """The same share for every token, `[tokens]`."""
    return np.full(tokens, 1 / tokens, dtype=np.float32)
