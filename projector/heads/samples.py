"""Labelled samples of a head, joined to the states that they are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from projector.heads.labels import Labels
from protos.errors import FitError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """Labelled samples with the states that they are about.

    Attributes:
        states: `[n, N, p]` of all pictures, through the head's lens; samples point into them.
        labels: S samples.
        targets: `[S]`, class of each.
    """

    states: Floats
    labels: Labels
    targets: Ints

    @classmethod
    def of(cls, states: Floats, labels: Labels, classes: Sequence[str]) -> Samples:
        """Join labels to states.

        Raises:
            FitError: a label is not one of the head's classes.
        """
        place = {name: index for index, name in enumerate(classes)}
        unknown = sorted(set(labels.labels) - set(place))
        if unknown:
            raise FitError(
                f"label '{unknown[0]}' of '{labels.task}' is no class of this head "
                f"({', '.join(list(place)[:20])})"
            )
        targets = np.array([place[label] for label in labels.labels], dtype=np.int64)
        return cls(states, labels, targets)

    def __len__(self) -> int:
        """The number of samples, S."""
        return len(self.targets)
