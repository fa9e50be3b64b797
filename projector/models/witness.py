"""A self-check's inputs, its figures, and how much rounding may change them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from projector.models.cache import LayerCache


@dataclass(frozen=True)
class Tolerance:
    """The most that two computations of one answer may differ.

    Attributes:
        variation: total variation between two distributions over the vocabulary.
        logit: largest difference of a logit, in standard deviations of the logits.
        cache: largest difference of a token's keys or values in a layer, in median norms.
        rotation: largest relative difference of a layer's un-rotated keys between two positions.
    """

    variation: float
    logit: float
    cache: float
    rotation: float


TOLERANCES: Mapping[str, Tolerance] = {
    "float32": Tolerance(variation=0.001, logit=0.005, cache=0.005, rotation=0.005),
    "float16": Tolerance(variation=0.02, logit=0.05, cache=0.1, rotation=0.02),
    "bfloat16": Tolerance(variation=0.15, logit=0.4, cache=0.3, rotation=0.1),
}
"""By the model's dtype. Sums run in another order, so this much is rounding."""


@dataclass(frozen=True)
class Witness:
    """One input of a check.

    Attributes:
        name: for messages.
        about: name of the picture or text; questions about different ones are compared.
        inputs: inputs of the stock forward, one row.
        layers: the rebuilt cache of the picture or text after the constant prefix.
        question: ids that follow it.
        whole: last hidden state `[1, E]` when the model sees or reads the input itself.
    """

    name: str
    about: str
    inputs: Mapping[str, Tensor]
    layers: Sequence[LayerCache]
    question: Sequence[int]
    whole: Callable[[], Tensor]


@dataclass(frozen=True)
class Figures:
    """What a check found, the worst over all witnesses.

    Attributes:
        dtype: dtype that the model runs in.
        variation: total variation of a token's distribution, the first token's or a later one's.
        logit: largest difference of a logit, in standard deviations of the logits.
        cache: largest difference of a token's keys or values in a layer, in median norms.
        rotation: largest relative difference of a layer's un-rotated keys between two positions.
        greedy: greedy tokens that agree with the stock forward.
        tokens: greedy tokens compared.
        apart: total variation between two pictures or texts; 0 means that the check could not
            tell a wrong cache from a right one.
        worst: name of the witness that differs most.
    """

    dtype: str
    variation: float
    logit: float
    cache: float
    rotation: float
    greedy: int
    tokens: int
    apart: float
    worst: str

    @property
    def good(self) -> bool:
        """Whether all figures are within rounding (NaN is not)."""
        allowed = TOLERANCES[self.dtype]
        return (
            self.variation <= allowed.variation
            and self.logit <= allowed.logit
            and self.cache <= allowed.cache
            and self.rotation <= allowed.rotation
        )

    @property
    def telling(self) -> bool:
        """Whether the check could tell another picture's cache from the right one."""
        return self.apart > TOLERANCES[self.dtype].variation

    def __str__(self) -> str:
        allowed = TOLERANCES[self.dtype]
        return (
            f"distributions of the first tokens differ by {self.variation:.2g} (total variation; "
            f"rounding in {self.dtype} explains {allowed.variation:g}), logits by {self.logit:.2g} "
            f"standard deviations ({allowed.logit:g}), a token's cache by {self.cache:.2g} of a "
            f"usual one ({allowed.cache:g}), un-rotated keys by {self.rotation:.2g} of themselves "
            f"({allowed.rotation:g}), {self.greedy} of {self.tokens} greedy tokens are the same; "
            f"worst: {self.worst}"
        )
