"""The range coder: what is written is read again, at about the length that its likelihood says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.errors import BridgeError, FrameMalformedError, FrameTruncatedError
from protos.range_coder import Models, RangeReader, RangeWriter, number, signed

BIT = st.tuples(st.just("bit"), st.integers(0, 3), st.integers(0, 1))
PLAIN = st.integers(1, 70).flatmap(
    lambda n: st.tuples(st.just("plain"), st.just(n), st.integers(0, 2**n - 1))
)
NUMBER = st.tuples(st.just("number"), st.just(4), st.integers(0, 2**32 - 1))
SIGNED = st.tuples(st.just("signed"), st.just(12), st.integers(-(2**31), 2**31 - 1))
STEP = st.one_of(BIT, BIT, PLAIN, NUMBER, SIGNED)


def code(coder: RangeWriter | RangeReader, steps: list[tuple[str, int, int]]) -> list[int]:
    models, found = Models(36), []
    for kind, which, value in steps:
        given_value = value if isinstance(coder, RangeWriter) else 0
        if kind == "bit":
            found.append(coder.bit(models, which, given_value))
        elif kind == "plain":
            found.append(coder.plain(given_value, which))
        elif kind == "number":
            found.append(number(coder, models, 4, which, given_value))
        else:
            found.append(signed(coder, models, 12, which, given_value))
    return found


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(STEP, max_size=60), st.binary(max_size=9))
def test_what_is_written_is_read_again_whatever_follows(
    steps: list[tuple[str, int, int]], behind: bytes
) -> None:
    writer = RangeWriter()
    values = code(writer, steps)
    assert values == [value for _, _, value in steps]
    reader = RangeReader(writer.to_bytes() + behind)
    assert code(reader, steps) == values
    assert reader.rest() == behind


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(STEP, min_size=1, max_size=20), st.integers(0, 2**16))
def test_no_flipped_bit_reads_as_the_same_values(
    steps: list[tuple[str, int, int]], at: int
) -> None:
    writer = RangeWriter()
    values = code(writer, steps)
    raw = bytearray(writer.to_bytes())
    raw[at % len(raw)] ^= 1 << at // len(raw) % 8
    reader = RangeReader(bytes(raw))
    try:
        assert code(reader, steps) != values or reader.rest()
    except BridgeError:
        return


def test_bits_cost_about_their_entropy() -> None:
    rng, models, writer = np.random.default_rng(0), Models(1), RangeWriter()
    bits = rng.random(5_000) < 0.05
    for bit in bits:
        writer.bit(models, 0, int(bit))
    share = bits.mean()
    entropy = -(share * math.log2(share) + (1 - share) * math.log2(1 - share)) * len(bits) / 8
    assert entropy < len(writer.to_bytes()) < 1.08 * entropy + 8


def test_a_carry_runs_through_bytes_that_are_full() -> None:
    """Plain bits that keep low just under a full word until the last one."""
    for count in range(8, 200, 7):
        writer = RangeWriter()
        writer.plain((1 << count) - 1, count)
        writer.plain((1 << 16) - 1, 16)
        reader = RangeReader(writer.to_bytes())
        assert reader.plain(0, count) == (1 << count) - 1
        assert reader.plain(0, 16) == (1 << 16) - 1 and not reader.rest()


def test_bytes_that_end_early_are_refused() -> None:
    writer = RangeWriter()
    writer.plain(0x123456789ABC, 48)
    raw = writer.to_bytes()
    for size in range(len(raw)):
        reader = RangeReader(raw[:size])
        with pytest.raises((FrameTruncatedError, FrameMalformedError)):
            reader.plain(0, 48)
            reader.rest()


def test_a_number_above_32_bits_is_refused() -> None:
    writer, models = RangeWriter(), Models(24)
    for _ in range(40):
        writer.bit(models, 0, 1)
    with pytest.raises(FrameMalformedError, match="32 bits"):
        number(RangeReader(writer.to_bytes()), Models(24), 0, 1, 0)
