"""Cache layouts with every kind of rotation, and a state of one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from protos.layout import KVLayout, RopeSpec
from protos.state import KVState

HALF = RopeSpec(1e4, 8, False, "default", 1.0, tuple(1e4 ** (-i / 4) for i in range(4)))
PAIRS = replace(HALF, interleaved=True)
PARTIAL = RopeSpec(1e6, 4, False, "yarn", 1.25, (1.0, 1e-3))
LAYOUT = KVLayout("tiny", 3, 2, 8, HALF, "float32", (2, 5), "aa", "bb")


def random_state(layout: KVLayout = LAYOUT, seed: int = 0) -> KVState:
    rng = np.random.default_rng(seed)
    shape = (layout.layers, layout.kv_heads, layout.tokens, layout.head_dim)
    attention = rng.random(layout.tokens)
    return KVState(
        rng.standard_normal(shape, dtype=np.float32),
        rng.standard_normal(shape, dtype=np.float32),
        np.arange(layout.tokens) + 7,
        layout.grid,
        attention / attention.sum(),
    )


LOCAL = replace(HALF, theta=1e6, inv_freq=tuple(1e6 ** (-i / 4) for i in range(4)))
LAYERED = replace(
    LAYOUT, more_ropes=(LOCAL,), layer_ropes=(0, 1, 0), windows=(512, 0, 512), qk_norm=True
)
