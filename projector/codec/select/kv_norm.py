"""Selection by the lengths of keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from projector.codec.select.base import Floats, Scores, Selector
from protos.state import KVState


@dataclass(frozen=True)
class KVNorm(Selector):
    """How much longer a token's key and value are than those of other tokens in the same head."""

    name: ClassVar[str] = "kv_norm"

    def score(self, state: KVState) -> Scores:
        """Mean z-score of the norms, over layers, heads, keys and values.

        Z-scores over the picture give each head equal weight. The lowest score is shifted to 0.
        Norms do not depend on RoPE.
        """
        norms = np.stack([_norms(state.keys), _norms(state.values)])
        spread = norms.std(axis=-1, keepdims=True)
        centred = norms - norms.mean(axis=-1, keepdims=True)
        z = np.divide(centred, spread, out=np.zeros_like(norms), where=spread > 0)
        mean = z.mean(axis=(0, 1, 2))
        above: Scores = (mean - mean.min()).astype(np.float32)
        return above


def _norms(heads: Floats) -> Floats:
    """Norms `[layers, kv_heads, tokens]` of `[layers, kv_heads, tokens, head_dim]`."""
    norms: Floats = np.sqrt(np.einsum("lhtd,lhtd->lht", heads, heads))
    return norms
