"""Entropy tables: fitted to counts, in classes where they pay, checked where they are read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from protos.entropy.tables import EntropyTables
from protos.errors import BundleFormatError
from protos.quantize import UniformQuantizer

RANK = 16
RNG = np.random.default_rng(0)
SAMPLE = np.rint(RNG.standard_normal((5000, RANK)) * np.linspace(0.5, 3, RANK)).astype(np.int64)
TABLES = EntropyTables.fit(SAMPLE)


def latents(tokens: int = 40, seed: int = 1) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((tokens, RANK)) * np.linspace(0.5, 3, RANK)).astype(np.float32)


def test_tables_follow_the_counts() -> None:
    sample = np.repeat([[-1], [0], [1], [2]], [100, 1000, 700, 200], axis=0)
    tables = EntropyTables.fit(sample)
    assert tables.offset.tolist() == [-2]
    p = tables.frequency[0, 0] / 4096
    np.testing.assert_allclose(p[1:5], [0.05, 0.5, 0.35, 0.1], atol=2e-3)
    assert p[0] < 1e-3 and 0 < p[-1] < 1e-3


def test_tables_tell_kinds_of_tokens_apart() -> None:
    """Latents that are independent within a kind, and tell which kind it is."""
    rng = np.random.default_rng(11)
    kinds = rng.integers(-4, 5, (12, 16))
    sample = kinds[rng.integers(0, 12, 6000)] + (rng.random((6000, 16)) < 0.1)
    static, aware = (EntropyTables.fit(sample, classes=c) for c in (1, 32))
    sizes = [len(UniformQuantizer(t).encode(sample[:400], np.ones(16))) for t in (static, aware)]
    # Which of 12 kinds it is (3.6 bits), and 16 times an event of probability 0.1 (0.47 bits).
    ideal = 400 * (np.log2(12) + 16 * 0.469) / 8
    assert ideal * 0.97 <= sizes[1] <= ideal * 1.1
    assert sizes[1] < 0.3 * sizes[0]


def test_the_classes_are_chosen_in_whole_numbers() -> None:
    """No floating point decides what is sent, so that every machine sends the same bytes."""
    values = np.rint(latents()).astype(np.int64)
    classes, symbols, lengths = TABLES.classify(values)
    assert lengths.dtype.kind == "i"
    p = TABLES.frequency[classes[:, None], np.arange(RANK), symbols] / 4096
    exact = -np.log2(p).sum(axis=1) - np.log2(TABLES.prior[classes] / 4096)
    exact += 16 * (symbols == TABLES.escape).sum(axis=1)
    np.testing.assert_allclose(lengths / 16, exact, atol=(RANK + 1) / 16)


def test_tables_have_classes_only_where_they_pay() -> None:
    rng = np.random.default_rng(12)
    alike = rng.integers(-2, 3, (4000, 8))
    kinds = rng.integers(-3, 4, (12, 8))[rng.integers(0, 12, 4000)]
    assert EntropyTables.fit(alike).classes == 1
    assert EntropyTables.fit(kinds).classes > 12


def test_tables_of_wide_latents_keep_a_window_around_the_median() -> None:
    rng = np.random.default_rng(7)
    sample = np.rint(rng.standard_cauchy((4000, 2)) * 20).clip(-32768, 32767).astype(np.int64)
    tables = EntropyTables.fit(sample)
    tables = EntropyTables.fit(sample, classes=1)
    assert tables.frequency.shape == (1, 2, 256)
    inside = (sample >= tables.offset) & (sample < tables.offset + 255)
    escape = tables.frequency[0, :, -1] / 4096
    np.testing.assert_allclose(escape, 1 - inside.mean(axis=0), atol=0.02)


def test_tables_survive_as_arrays() -> None:
    again = EntropyTables.from_arrays(TABLES.to_arrays())
    np.testing.assert_array_equal(again.offset, TABLES.offset)
    np.testing.assert_array_equal(again.frequency, TABLES.frequency)
    with pytest.raises(BundleFormatError, match="frequency"):
        EntropyTables.from_arrays({"offset": TABLES.offset})


@pytest.mark.parametrize(
    ("offset", "frequency"),
    [
        (np.zeros(1, "i4"), np.array([[[4000, 96]]], "u2")),
        (np.zeros(1, "i2"), np.array([[[4000, 96]]], "i8")),
        (np.zeros(2, "i2"), np.array([[[4000, 96]]], "u2")),
        (np.zeros(1, "i2"), np.array([[[4000, 95]]], "u2")),
        (np.zeros(1, "i2"), np.array([[[4096, 0]]], "u2")),
        (np.zeros(1, "i2"), np.array([[[4096]]], "u2")),
        (np.zeros(1, "i2"), np.array([[4000, 96]], "u2")),
        (np.zeros(1, "i2"), np.array([[[4000, 96]]] * 9, "u2")),
        (np.zeros(0, "i2"), np.zeros((1, 0, 257), "u2")),
    ],
)
def test_tables_of_another_form_are_refused(
    offset: npt.NDArray[np.int16], frequency: npt.NDArray[np.uint16]
) -> None:
    with pytest.raises(BundleFormatError):
        EntropyTables(offset, frequency, np.array([4096], "u2"))


@pytest.mark.parametrize(
    "prior", [np.array([4095], "u2"), np.array([4096], "i4"), np.array([2048, 2048], "u2")]
)
def test_class_tables_of_another_form_are_refused(prior: npt.NDArray[np.uint16]) -> None:
    with pytest.raises(BundleFormatError):
        EntropyTables(np.zeros(1, "i2"), np.array([[[4000, 96]]], "u2"), prior)


@pytest.mark.parametrize(
    "sample", [np.zeros((0, 3), int), np.zeros(3, int), np.zeros((2, 2)), np.full((1, 1), 40000)]
)
def test_tables_are_not_fitted_to_nonsense(sample: npt.NDArray[np.int64]) -> None:
    with pytest.raises(BundleFormatError):
        EntropyTables.fit(sample)
