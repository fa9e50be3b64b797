"""The confidence: the probability that the small model's own answer is right (NumPy).

A logistic regression over the question's words and the distribution of the answer's first token.
`projector calibrate-edge` learns it; an edge export carries it (`export.json`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from projector.codec.risk import WORDS, certainty_of, words_of
from protos.errors import ModelError

FEATURES = WORDS + 4


@dataclass(frozen=True, eq=False)
class Confidence:
    """`P(right) = 1 / (1 + exp(-(bias + weights . features)))`.

    Attributes:
        weights: `[132]`.
        bias: intercept.
    """

    weights: npt.NDArray[np.float64]
    bias: float

    @classmethod
    def of(cls, weights: Sequence[float], bias: float) -> Confidence:
        """From plain numbers.

        Raises:
            ModelError: not as many as there are features.
        """
        if len(weights) != FEATURES:
            raise ModelError(f"a confidence has {FEATURES} weights, not {len(weights)}")
        return cls(np.asarray(weights, np.float64), bias)

    def of_answer(self, question: str, first_token: npt.NDArray[np.float32]) -> float:
        """The confidence in an answer.

        Args:
            question: not empty.
            first_token: distribution of the answer's first token, `[V]`.
        """
        return float(self.of_features(features(question, first_token)))

    def of_features(self, found: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """The same for features `[..., 132]`."""
        score = np.clip(found.astype(np.float64) @ self.weights + self.bias, -50.0, 50.0)
        chance: npt.NDArray[np.float64] = 1.0 / (1.0 + np.exp(-score))
        return chance


def features(question: str, first_token: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The features, `[132]`: words of the question, then the first token's distribution."""
    found: npt.NDArray[np.float64] = np.concatenate([words_of(question), certainty_of(first_token)])
    return found
