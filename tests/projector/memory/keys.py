"""A small basis, and facts with random keys."""

from __future__ import annotations

import numpy as np

from projector.memory import Fact, MemoryBasis
from projector.memory.base import Key

RANK, FEATURES = 32, 40


def basis(seed: int = 0, rank: int = RANK) -> MemoryBasis:
    rng = np.random.default_rng(seed)
    return MemoryBasis(
        source_fingerprint="small",
        target_fingerprint="large",
        layers=(1, 3),
        mean=rng.normal(size=FEATURES).astype(np.float32),
        scale=rng.uniform(0.5, 2, FEATURES).astype(np.float32),
        projection=rng.normal(size=(FEATURES, rank)).astype(np.float32),
        parts=(rank - 8, 8),
    )


def key(seed: int, rank: int = RANK) -> Key:
    made: Key = np.random.default_rng(seed).integers(-127, 128, rank).astype(np.int8)
    return made


def fact(seed: int, value: str = "", when: int | None = None, rank: int = RANK) -> Fact:
    keys = np.stack([key(2 * seed, rank), key(2 * seed + 1, rank)])
    told = value or f"value {seed}"
    return Fact(keys, told, 1000 + seed if when is None else when, seed.to_bytes(8, "big"))
