"""What a self-check runs a model on, what it found, and how far rounding may take it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from projector.models.cache import LayerCache

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Tolerance:
    """How far two computations of the same answer may be apart.

    Attributes:
        variation: total variation between two distributions over the vocabulary.
        logit: largest difference of a logit, in standard deviations of the logits.
        cache: largest difference of a token's keys or values in a layer, of a usual token's.
        rotation: largest difference of a layer's un-rotated keys that another position makes,
            relative.
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
"""By the type that a model runs in. Products are summed in another order: that much is rounding."""


@dataclass(frozen=True)
class Witness:
    """One input of a check.

    Attributes:
        name: for the message.
        about: name of the picture or text; witnesses of the same question tell them apart.
        inputs: what the stock forward is given, one row.
        layers: the rebuilt cache of the picture or text behind the constant prefix.
        question: ids that follow it.
        whole: last hidden state `[1, E]` of the model's other arm, which sees or reads it itself.
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
        dtype: the type that the model runs in.
        variation: total variation of a token's distribution, the first's or a later one's.
        logit: largest difference of a logit, in standard deviations of the logits.
        cache: largest difference of a token's keys or values in a layer, of a usual token's.
        rotation: largest difference of a layer's un-rotated keys that another position makes.
        greedy: greedy tokens that are the stock forward's too.
        tokens: of so many.
        apart: total variation that another picture or text makes; where it is 0, wrong caches
            could not have been told from right ones.
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
        """Whether they are within what rounding explains (NaN is not)."""
        allowed = TOLERANCES[self.dtype]
        return (
            self.variation <= allowed.variation
            and self.logit <= allowed.logit
            and self.cache <= allowed.cache
            and self.rotation <= allowed.rotation
        )

    @property
    def telling(self) -> bool:
        """Whether another picture's cache would have been told from the right one."""
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
