"""Both parts of a key find what texts have in common, however loud the rest is."""

from __future__ import annotations

import numpy as np
import pytest

from projector.memory import MemoryBasis
from projector.memory.basis import ReadSettings
from projector.memory.fit import discriminants, key_parts
from projector.memory.learn import learn
from protos.errors import FitError
from tests.projector.maps.test_moments import layout

WHOM, KINDS, FORMS, SIZE = 40, 6, 4, 48


def lesson(seed: int = 0) -> tuple[np.ndarray, list[int], list[int]]:
    """Features in which wordings are louder than what texts are about."""
    rng = np.random.default_rng(seed)
    names, kinds = rng.normal(size=(WHOM, SIZE)), rng.normal(size=(KINDS, SIZE))
    wordings = 4 * rng.normal(size=(KINDS, FORMS, SIZE)) * (np.arange(SIZE) < 16)
    rows, about, asks = [], [], []
    for whom in range(WHOM):
        for kind in range(KINDS):
            for form in range(FORMS):
                noise = 0.05 * rng.normal(size=SIZE)
                rows.append(names[whom] + kinds[kind] + wordings[kind, form] + noise)
                about.append(whom)
                asks.append(kind)
    return np.stack(rows).astype(np.float32), about, asks


def test_the_same_fact_in_other_words_is_nearer_than_any_other() -> None:
    rows, about, asks = lesson()
    mean, scale, projection, parts = key_parts(rows, about, asks, 24)
    assert parts == (19, 5) and projection.shape == (SIZE, 24)
    basis = MemoryBasis("a", "b", (0,), mean, scale, projection, parts)
    keys = basis.unit(basis.key(rows)).reshape(WHOM * KINDS, FORMS, -1)
    similar = basis.similarity(keys[:, 0], keys[:, 1])
    assert (similar.argmax(axis=1) == np.arange(WHOM * KINDS)).mean() > 0.98


def test_where_all_ask_the_same_a_key_has_one_part() -> None:
    rows, about, _ = lesson()
    *_, parts = key_parts(rows, about, [0] * len(rows), 24)
    assert parts == (24,)


def test_the_gate_that_is_learnt_opens_for_told_things_and_for_few_others() -> None:
    rows, about, asks = lesson()
    model = layout(4, 2, 6, (1, 4))
    made = learn(rows, about, asks, (1,), model, model, 24, ReadSettings())
    assert made.found > 0.95 and made.answered > 0.9 and made.opened <= 0.06
    assert 0 < made.basis.reading.threshold < 1 and made.told > 10


@pytest.mark.parametrize(
    ("classes", "rank", "said"),
    [
        ([0] * 8, 1, "two or more"),
        ([0, 0, 0, 0, 1, 1, 1, 2], 1, "one text only"),
        ([0, 0, 0, 0, 1, 1, 1, 1], 2, "allow 1 to 1"),
    ],
)
def test_what_cannot_be_fitted_is_said(classes: list[int], rank: int, said: str) -> None:
    rows = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    with pytest.raises(FitError, match=said):
        discriminants(rows, classes, rank)
    with pytest.raises(FitError, match="NaN"):
        discriminants(rows * np.nan, [0, 0, 0, 0, 1, 1, 1, 1], 1)
