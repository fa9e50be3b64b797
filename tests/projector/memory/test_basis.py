"""The basis: keys, its file, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from projector.memory import MemoryBasis
from projector.memory.basis import ReadSettings
from protos.errors import BundleFormatError, FactError
from tests.projector.memory.keys import FEATURES, RANK, basis


def test_a_key_is_the_projected_direction_within_its_rounding() -> None:
    made = basis()
    features = np.random.default_rng(1).normal(size=(7, FEATURES)).astype(np.float32)
    keys = made.key(features)
    exact = (features - made.mean) / made.scale @ made.projection
    assert keys.shape == (7, RANK)
    for part in made.slices:
        mine, theirs = keys[:, part].astype(float), exact[:, part]
        cosine = (mine * theirs).sum(axis=1)
        cosine /= np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
        assert cosine.min() > 0.9999
    assert (made.key(features[3]) == keys[3]).all()


@pytest.mark.parametrize("bad", [np.full(FEATURES, np.nan), np.zeros(FEATURES - 1), basis().mean])
def test_features_that_make_no_key_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(FactError):
        basis().key(bad)


def test_a_basis_is_read_back_to_the_byte() -> None:
    made = replace(basis(), reading=ReadSettings(0.7, 10.0, 0.2, 0.5))
    again = MemoryBasis.from_bytes(made.to_bytes())
    assert again.to_bytes() == made.to_bytes() and again.digest == made.digest
    assert again.reading == made.reading and again.layers == (1, 3)
    assert (again.projection == made.projection).all()


@pytest.mark.parametrize(
    "change",
    [
        {"layers": ()},
        {"source_fingerprint": ""},
        {"reading": ReadSettings(threshold=1.5)},
        {"reading": ReadSettings(sharpness=float("nan"))},
        {"mean": np.zeros(3, np.float32)},
        {"scale": np.zeros(FEATURES, np.float32)},
        {"projection": np.zeros((FEATURES, 0), np.float32)},
        {"projection": np.full((FEATURES, RANK), np.inf, np.float32)},
        {"mean": np.zeros(FEATURES)},
        {"parts": ()},
        {"parts": (RANK, 1)},
        {"parts": (RANK + 1, -1)},
    ],
)
def test_a_basis_that_does_not_fit_itself_is_refused(change: dict[str, object]) -> None:
    blob = replace(basis(), **change).to_bytes()  # type: ignore[arg-type]
    with pytest.raises(BundleFormatError):
        MemoryBasis.from_bytes(blob)


def test_no_cut_basis_is_accepted() -> None:
    blob = basis().to_bytes()
    for at in range(0, len(blob), 7):
        with pytest.raises(BundleFormatError):
            MemoryBasis.from_bytes(blob[:at])


def test_two_keys_are_as_similar_as_their_least_similar_part() -> None:
    made = basis()
    rows = made.unit(np.random.default_rng(3).integers(-127, 128, (5, RANK)).astype(np.int8))
    cosines = [rows[:, part] @ rows[:, part].T for part in made.slices]
    np.testing.assert_allclose(made.similarity(rows, rows), np.minimum(*cosines), atol=1e-6)
    np.testing.assert_allclose(np.diag(made.similarity(rows, rows)), 1, atol=1e-6)
