"""Fits a basis from phrasings, and chooses its gate on phrasings and things left out of the fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from projector.codec.arrays import Floats
from projector.memory.basis import MemoryBasis, ReadSettings
from projector.memory.fit import key_parts
from protos.errors import FitError
from protos.layout import KVLayout

APART = 0.2
"""Share of those spoken about that the trial fit leaves out: half of their facts are told."""
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
    about: Sequence[int],
    asks: Sequence[int],
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
        about: whom or what each phrasing is about, [n].
        asks: what it asks or states of it, [n].
        layers: the layers that the features are of.
        small: the small model's layout.
        large: the large model's.
        rank: entries of a key, at most.
        reading: gain and softmax; its threshold is replaced by the one chosen.
        seed: of what is left out.

    Raises:
        FitError: too few things, or phrasings.
    """
    whom, asked = np.asarray(about), np.asarray(asks)
    _, labels = np.unique(np.stack([whom, asked], axis=1), axis=0, return_inverse=True)
    names = np.unique(whom)
    if len(names) < _LEAST:
        raise FitError(f"phrasings about {len(names)} are too few: give {_LEAST} or more")
    # everything about some is left out
    out = np.random.default_rng(seed).permutation(names)[: max(4, int(APART * len(names)))]
    kept = ~np.isin(whom, out)
    apart = np.unique(labels[~kept])

    def fitted(chosen: npt.NDArray[np.bool_], settings: ReadSettings) -> MemoryBasis:
        rows = (features[chosen], whom[chosen].tolist(), asked[chosen].tolist())
        mean, scale, projection, parts = key_parts(*rows, rank)
        return MemoryBasis(
            small.fingerprint,
            large.fingerprint,
            tuple(layers),
            mean,
            scale,
            projection,
            parts,
            settings,
        )

    trial = fitted(kept, reading)
    keys = trial.unit(trial.key(features))
    apart = np.random.default_rng(seed).permutation(apart)
    told, untold = apart[: len(apart) // 2], apart[len(apart) // 2 :]
    rows = {int(name): np.flatnonzero(labels == name) for name in apart}
    # of a told thing the last phrasing asks, the others are stored
    store = np.concatenate([rows[int(name)][:-1] for name in told])
    asking = np.array([rows[int(name)][-1] for name in told])
    others = np.concatenate([rows[int(name)] for name in untold])
    similar = trial.similarity(keys[asking], keys[store])
    strange = trial.similarity(keys[others], keys[store]).max(axis=1)
    found = labels[store][similar.argmax(axis=1)] == labels[asking]
    threshold = float(np.clip(np.quantile(strange, 1 - OPENED), 0.05, 0.99))
    opens = similar.max(axis=1) >= threshold
    settings = ReadSettings(threshold, reading.sharpness, reading.gain, reading.same)
    return LearntBasis(
        fitted(np.ones(len(whom), dtype=np.bool_), settings),
        float(found.mean()),
        float((found & opens).mean()),
        float((strange >= threshold).mean()),
        len(told),
    )
