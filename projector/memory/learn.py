"""Fits a basis from phrasings, and chooses its gate on phrasings and things left out of the fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from projector.codec.arrays import Floats
from projector.memory.base import unit
from projector.memory.basis import MemoryBasis, ReadSettings
from projector.memory.fit import discriminants
from protos.errors import FitError
from protos.layout import KVLayout

APART = 0.2
"""Share of the things that are not fitted on: half of these are told, half are asked for untold."""
OPENED = 0.05
"""Share of questions about untold things that may open the gate."""
_LEAST = 20


@dataclass(frozen=True)
class LearntBasis:
    """A basis, and how it does on what was left out.

    Attributes:
        basis: fitted on everything, with the gate that was chosen.
        found: share of questions about told things that find their own thing, gate open.
        answered: the same with the gate.
        opened: share of questions about untold things that open the gate.
        told: things that were told.
    """

    basis: MemoryBasis
    found: float
    answered: float
    opened: float
    told: int


def learn(
    features: Floats,
    things: Sequence[int],
    layers: Sequence[int],
    small: KVLayout,
    large: KVLayout,
    rank: int,
    reading: ReadSettings,
    seed: int = 0,
) -> LearntBasis:
    """Fit a basis of keys and choose its gate.

    Args:
        features: of every phrasing, from `text_features`, [n, F].
        things: which thing each phrasing is about, [n]; two phrasings or more of each.
        layers: the layers that the features are of.
        small: the small model's layout.
        large: the large model's.
        rank: entries of a key.
        reading: gain and softmax; its threshold is replaced by the one chosen.
        seed: of what is left out.

    Raises:
        FitError: too few things, or phrasings, for this rank.
    """
    labels = np.asarray(things)
    names = np.unique(labels)
    if len(names) < _LEAST:
        raise FitError(f"phrasings about {len(names)} things are too few: give {_LEAST} or more")
    apart = np.random.default_rng(seed).permutation(names)[: max(4, int(APART * len(names)))]
    kept = ~np.isin(labels, apart)
    trial = MemoryBasis(
        small.fingerprint,
        large.fingerprint,
        tuple(layers),
        *discriminants(features[kept], labels[kept].tolist(), rank),
        reading=reading,
    )
    keys = unit(trial.key(features))
    told, untold = apart[: len(apart) // 2], apart[len(apart) // 2 :]
    rows = {int(name): np.flatnonzero(labels == name) for name in apart}
    # of a told thing the last phrasing asks, the others are stored
    store = np.concatenate([rows[int(name)][:-1] for name in told])
    asking = np.array([rows[int(name)][-1] for name in told])
    others = np.concatenate([rows[int(name)] for name in untold])
    similar, strange = keys[asking] @ keys[store].T, (keys[others] @ keys[store].T).max(axis=1)
    found = labels[store][similar.argmax(axis=1)] == labels[asking]
    threshold = float(np.clip(np.quantile(strange, 1 - OPENED), 0.05, 0.99))
    opens = similar.max(axis=1) >= threshold
    whole = discriminants(features, labels.tolist(), rank)
    settings = ReadSettings(threshold, reading.sharpness, reading.gain, reading.same)
    basis = MemoryBasis(
        small.fingerprint, large.fingerprint, tuple(layers), *whole, reading=settings
    )
    return LearntBasis(
        basis,
        float(found.mean()),
        float((found & opens).mean()),
        float((strange >= threshold).mean()),
        len(told),
    )
