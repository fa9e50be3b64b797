"""Fit a head's lens on a corpus, and project the corpus's pictures through it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from projector.heads.head import Head
from projector.heads.views import FrozenMap
from projector.training.corpus import Corpus

_LENS_PICTURES = 256


def fit_lens(
    head: Head, frozen: FrozenMap, corpus: Corpus, pictures: npt.NDArray[np.int64]
) -> None:
    """Fit a head's lens to at most 256 of the pictures it is trained on."""
    distinct = np.unique(pictures)
    chosen = distinct[:: -(-len(distinct) // _LENS_PICTURES)]
    head.fit_lens(np.concatenate(list(frozen.look(head.config.view, corpus, chosen))))


def through_lens(
    head: Head,
    frozen: FrozenMap,
    view: str,
    corpus: Corpus,
    told: Callable[[int], None] = lambda _: None,
) -> npt.NDArray[np.float32]:
    """Every picture of a corpus after the head's lens, `[n, N, p]`."""
    seen = []
    for part in frozen.look(view, corpus):
        seen.append(head.through_lens(part))
        told(len(part))
    return np.concatenate(seen)
