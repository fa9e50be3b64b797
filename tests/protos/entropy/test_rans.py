"""The entropy coder: exact, as small as a reference coder, and never fooled by bad bytes."""

from __future__ import annotations

import constriction
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.entropy.rans import TOTAL, ClassCoder
from protos.errors import BundleFormatError, FrameMalformedError

NONE = np.zeros(0, dtype=np.int64)


def random_tables(
    rng: np.random.Generator, tables: int, symbols: int, skew: float
) -> npt.NDArray[np.int64]:
    """Rows that sum to 4096, every symbol at least once; a larger skew is less even."""
    p = rng.dirichlet(np.full(symbols, 1 / skew), size=tables)
    rows = np.floor(p * (TOTAL - symbols)).astype(np.int64) + 1
    rows[:, 0] += TOTAL - rows.sum(axis=1)
    return rows


def draw(
    rng: np.random.Generator, frequency: npt.NDArray[np.int64], tokens: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Symbols from their own tables, never the escape; token by token, table by table."""
    tables = np.tile(np.arange(len(frequency)), tokens)
    p = frequency[:, :-1] / frequency[:, :-1].sum(axis=1, keepdims=True)
    symbols = np.array([rng.choice(p.shape[1], p=p[table]) for table in tables])
    return symbols, tables


def reference_bytes(
    symbols: npt.NDArray[np.int64],
    tables: npt.NDArray[np.int64],
    frequency: npt.NDArray[np.int64],
) -> int:
    """Size of the same sequence under constriction's ANS coder with the same probabilities."""
    coder = constriction.stream.stack.AnsCoder()
    family = constriction.stream.model.Categorical(perfect=True)
    p = (frequency / TOTAL)[tables].astype(np.float64)
    coder.encode_reverse(symbols.astype(np.int32), family, p)
    return (coder.num_valid_bits() + 7) // 8


def even(classes: int) -> npt.NDArray[np.int64]:
    """As likely as can be."""
    table = np.full(classes, TOTAL // classes)
    table[0] += TOTAL - table.sum()
    return table


def alone(frequency: npt.NDArray[np.int64]) -> ClassCoder:
    """A coder of one class."""
    return ClassCoder(frequency[None], [TOTAL])


def first(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Class 0 for each row."""
    return np.zeros(len(rows), dtype=np.int64)


@pytest.mark.quick(8)
@pytest.mark.parametrize("symbols", [2, 11, 64, 256])
@pytest.mark.parametrize("tokens", [1, 6, 40, 200])
@pytest.mark.parametrize("skew", [0.2, 5.0])
def test_streams_are_as_small_as_the_reference_coders(
    symbols: int, tokens: int, skew: float
) -> None:
    rng = np.random.default_rng([symbols, tokens])
    frequency = random_tables(rng, 16, symbols, skew)
    sequence, tables = draw(rng, frequency, tokens)
    coder = alone(frequency)
    stream = coder.encode(np.zeros(tokens, dtype=int), sequence.reshape(tokens, 16), NONE)
    expected = reference_bytes(sequence, tables, frequency)
    information = -np.log2(frequency[tables, sequence] / TOTAL).sum() / 8
    assert len(stream) <= 1.01 * expected + 3
    assert len(stream) <= 1.005 * information + 3
    _, decoded, escaped = coder.decode(stream, tokens)
    np.testing.assert_array_equal(decoded.ravel(), sequence)
    assert not escaped.size


@pytest.mark.parametrize("classes", [2, 30, 256])
def test_streams_of_classes_are_as_small_as_the_reference_coders(classes: int) -> None:
    rng = np.random.default_rng(classes)
    frequency = random_tables(rng, classes * 16, 12, 3.0).reshape(classes, 16, 12)
    prior = random_tables(rng, 1, classes, 2.0)[0]
    chosen = rng.choice(classes, p=prior / TOTAL, size=80)
    tables = frequency[chosen].reshape(-1, 12)
    symbols, _ = draw(rng, tables, 1)
    stream = ClassCoder(frequency, prior).encode(chosen, symbols.reshape(80, 16), NONE)
    # constriction codes one alphabet: classes and symbols apart, each rounded up to a byte.
    expected = reference_bytes(chosen, np.zeros(80, dtype=int), prior[None])
    expected += reference_bytes(symbols, np.arange(len(tables)), tables)
    assert len(stream) <= 1.01 * expected + 3


def test_a_stream_has_the_bytes_that_the_protocol_describes() -> None:
    # By hand, from x = 1 and backwards through 0, 0, 1:
    # 1 (f 2048, start 1024): x = (1 // 2048) * 4096 + 1 % 2048 + 1024 = 1025
    # 0 (f 1024, start 0):    x = (1025 // 1024) * 4096 + 1025 % 1024 + 0 = 4097
    # 0 again:                x = (4097 // 1024) * 4096 + 4097 % 1024 + 0 = 16385 = 0x4001
    coder = ClassCoder([[[1024, 2048, 1024]]], [4096])
    assert coder.encode(np.zeros(3, dtype=int), np.array([[0], [0], [1]]), NONE) == b"\x40\x01"
    # The class of a row goes before it: 1 (f 1024, start 3072) takes 0x4001 to
    # 16385 // 1024 * 4096 + 16385 % 1024 + 3072 = 68609 = 0x010c01.
    two = ClassCoder([[[1024, 2048, 1024]]] * 2, [3072, 1024])
    stream = two.encode(np.array([1, 0, 0]), np.array([[0], [0], [1]]), NONE)
    classes, symbols, _ = two.decode(stream, 3)
    assert (classes.tolist(), symbols.ravel().tolist()) == ([1, 0, 0], [0, 0, 1])
    assert two.encode(np.array([1]), np.array([[1]]), NONE) == (4097 + 3072).to_bytes(2, "big")


def test_classes_save_bytes_where_rows_differ() -> None:
    """Rows are all still or all lively; one table for both must pay for its doubt."""
    rng = np.random.default_rng(9)
    lively = rng.random(300) < 0.2
    rows = np.where(lively[:, None], rng.integers(0, 3, (300, 24)), 0)
    mixed = np.array([[3500, 270, 270, 56]] * 24)
    quiet, loud = np.array([[4000, 20, 20, 56]] * 24), np.array([[1346, 1346, 1348, 56]] * 24)
    one = alone(mixed).encode(first(rows), rows, NONE)
    two = ClassCoder(np.stack([quiet, loud]), [3277, 819])
    assert len(two.encode(lively.astype(int), rows, NONE)) < 0.8 * len(one)


def test_certain_symbols_cost_nothing() -> None:
    coder = ClassCoder([[[0, 4096]], [[4096, 0]]], [4096, 0])
    stream = coder.encode(np.zeros(0, dtype=int), np.zeros((0, 1), dtype=int), NONE)
    assert stream == b"\x01"
    silent = ClassCoder([[[4096, 0]] * 40], [4096])
    assert (
        silent.encode(np.zeros(1000, dtype=int), np.zeros((1000, 40), dtype=int), NONE) == b"\x01"
    )
    assert not silent.decode(b"\x01", 1000)[1].any()


@settings(max_examples=150, deadline=None, database=None)
@given(st.data())
def test_every_sequence_comes_back(data: st.DataObject) -> None:
    classes, count = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 5))
    symbols = data.draw(st.integers(2, 40))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    frequency = random_tables(rng, classes * count, symbols, 2.0)
    rows = data.draw(st.integers(0, 30))
    chosen = rng.integers(0, classes, rows)
    sequence = rng.integers(0, symbols, (rows, count))
    escaped = rng.integers(0, 65536, int((sequence == symbols - 1).sum()))
    coder = ClassCoder(frequency.reshape(classes, count, symbols), even(classes))
    stream = coder.encode(chosen, sequence, escaped)
    assert stream and stream[0]
    for expected, decoded in zip(
        (chosen, sequence, escaped), coder.decode(stream, rows), strict=True
    ):
        np.testing.assert_array_equal(decoded, expected)


@settings(max_examples=300, deadline=None, database=None)
@given(st.binary(max_size=64), st.integers(0, 30))
def test_any_bytes_decode_to_what_encodes_to_them_or_are_refused(data: bytes, rows: int) -> None:
    table = [[1000, 3000, 90, 6], [1, 1, 4093, 1]]
    coder = ClassCoder([table, table[::-1]], [4000, 96])
    try:
        decoded = coder.decode(data, rows)
    except FrameMalformedError:
        return
    assert coder.encode(*decoded) == data


def test_no_other_bytes_decode_to_the_same_symbols() -> None:
    """A wrong stream can, by chance, be the stream of other symbols; never of the same ones."""
    rng = np.random.default_rng(3)
    frequency = random_tables(rng, 4, 9, 1.0)
    sequence, _ = draw(rng, frequency, 20)
    coder = alone(frequency)
    stream = coder.encode(np.zeros(20, dtype=int), sequence.reshape(20, 4), NONE)
    flipped = [bytearray(stream) for _ in range(8 * len(stream))]
    for bit, wrong in enumerate(flipped):
        wrong[bit // 8] ^= 1 << bit % 8
    cut = [stream[:n] for n in range(len(stream))]
    longer = [stream + bytes((b,)) for b in range(256)]
    accepted = 0
    for wrong in [*map(bytes, flipped), *cut, *longer]:
        try:
            _, symbols, _ = coder.decode(wrong, 20)
        except FrameMalformedError:
            continue
        accepted += 1
        assert symbols.ravel().tolist() != sequence.tolist()
    assert accepted < 0.05 * (len(flipped) + len(cut) + len(longer))


def test_a_symbol_without_probability_is_refused() -> None:
    coder = ClassCoder([[[4000, 0, 96]]] * 2, [4096, 0])
    zero = np.zeros(1, dtype=int)
    with pytest.raises(FrameMalformedError, match="no probability"):
        coder.encode(zero, np.array([[1]]), NONE)
    with pytest.raises(FrameMalformedError, match="no probability"):
        coder.encode(zero + 1, np.array([[0]]), NONE)
    with pytest.raises(FrameMalformedError, match="1 escapes, 0"):
        coder.encode(zero, np.array([[2]]), NONE)


@pytest.mark.parametrize(
    "frequency",
    [
        [[4096]],
        [[[4096]]],
        [[[4000, 95]]],
        [[[4097, -1]]],
        [[[2048.0, 2048.0]]],
        np.zeros((1, 0, 4), dtype=int),
        np.zeros((0, 1, 4), dtype=int),
        np.full((257, 1, 16), 256),
        np.full((1, 1, 257), 16),
        np.array([[[2**63, 2**63 + 4096]]], dtype=np.uint64),
    ],
)
def test_tables_that_are_not_distributions_are_refused(frequency: npt.ArrayLike) -> None:
    with pytest.raises(BundleFormatError):
        ClassCoder(frequency, even(max(1, len(np.asarray(frequency)))))


@pytest.mark.parametrize("prior", [[4096], [4096, 1], [4097, -1], [2048.0, 2048.0], [[2048, 2048]]])
def test_class_tables_that_are_not_distributions_are_refused(prior: npt.ArrayLike) -> None:
    with pytest.raises(BundleFormatError):
        ClassCoder([[[4000, 96]]] * 2, prior)
