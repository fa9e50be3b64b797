"""The coder of many states: exact, nearly as small as one state, and never fooled by bad bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.entropy.lanes import MAX_LANES, LaneCoder, lanes_for
from protos.entropy.tables import EntropyTables
from protos.errors import BridgeError, FrameMalformedError
from protos.quantize import UniformQuantizer

ROWS, RANK = 300, 40


def latents(rows: int, rank: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Some wide, most narrow, a few far out."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((rows, rank)) * np.geomspace(9, 0.2, rank)
    z[rng.integers(rows, size=5), rng.integers(rank, size=5)] *= 60
    return z.astype(np.float32)


def quantizer(classes: int = 1, rank: int = RANK) -> UniformQuantizer:
    """Fitted to other latents of the same kind."""
    sample = np.rint(latents(4000, rank, 1)).astype(np.int64)
    return UniformQuantizer(EntropyTables.fit(sample, classes=classes))


def ones(rank: int = RANK) -> npt.NDArray[np.float32]:
    """Steps of 1."""
    return np.ones(rank, dtype=np.float32)


@pytest.mark.parametrize("classes", [1, 9])
def test_large_payloads_are_coded_side_by_side_and_come_back(classes: int) -> None:
    made, z = quantizer(classes), latents(ROWS, RANK)
    payload = made.encode(z, ones())
    assert payload[:2] == bytes((0, 32))
    assert (made.decode(payload, ROWS, RANK, ones()) == np.rint(z)).all()


@pytest.mark.parametrize("classes", [1, 9])
def test_many_states_cost_three_bytes_each(classes: int) -> None:
    made = quantizer(classes)
    values = np.rint(latents(ROWS, RANK)).astype(np.int64)
    chosen, symbols, _ = made.tables.classify(values)
    escapes = int((symbols == made.tables.escape).sum())
    alone = made._coder.encode(chosen, symbols, np.zeros(escapes, dtype=np.int64))
    lanes = lanes_for(symbols.size)
    wide = LaneCoder(made.tables.frequency, made.tables.prior).encode(chosen, symbols, lanes)
    # One state writes its escapes' 16 bits itself.
    assert len(wide) + 2 * escapes == pytest.approx(len(alone) + 3 * lanes, rel=0.01)


@pytest.mark.slow
def test_few_symbols_or_many_tables_keep_the_one_state() -> None:
    assert lanes_for(8191) == 0 and lanes_for(8192) == 256
    assert lanes_for(10**8) == MAX_LANES
    made = quantizer()
    assert made.encode(latents(36, RANK), ones())[0] != 0
    many = quantizer(classes=30)  # 30 classes of 40 latents
    assert many.tables.classes * RANK > 1024
    payload, z = many.encode(latents(ROWS, RANK), ones()), latents(ROWS, RANK)
    assert payload[0] != 0
    assert (many.decode(payload, ROWS, RANK, ones()) == np.rint(z)).all()
    wide = quantizer().encode(z, ones())
    with pytest.raises(FrameMalformedError, match="side by side"):
        many.decode(wide, ROWS, RANK, ones())


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 200, 515, 700, -1])
def test_a_cut_payload_is_refused(cut: int) -> None:
    made = quantizer()
    payload = made.encode(latents(ROWS, RANK), ones())
    with pytest.raises(BridgeError):
        made.decode(payload[:cut], ROWS, RANK, ones())


def test_more_or_fewer_tokens_longer_payloads_and_other_lanes_are_refused() -> None:
    made = quantizer()
    payload = made.encode(latents(ROWS, RANK), ones())
    for tokens in (1, ROWS - 1, ROWS + 1, 2 * ROWS):
        with pytest.raises(BridgeError):
            made.decode(payload, tokens, RANK, ones())
    with pytest.raises(BridgeError):
        made.decode(payload + b"\0", ROWS, RANK, ones())
    for lanes in (0, 1, 65535):
        with pytest.raises(FrameMalformedError, match="side by side"):
            made.decode(payload[:2] + lanes.to_bytes(2, "little") + payload[4:], ROWS, RANK, ones())


def test_one_state_is_refused_where_many_are_due() -> None:
    with pytest.raises(FrameMalformedError, match="many states"):
        quantizer().decode(b"\1", ROWS, RANK, ones())


def test_no_lanes_are_refused_where_none_are_due() -> None:
    with pytest.raises(FrameMalformedError, match="need 1"):
        quantizer().decode(bytes((0, 32, 0, 0)) + bytes(64), 3, RANK, ones())


MADE = quantizer()
WHOLE = MADE.encode(latents(ROWS, RANK), ones())


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(WHOLE) * 8 - 1))
def test_a_flipped_bit_gives_other_numbers_or_a_typed_error(bit: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        decoded = MADE.decode(bytes(damaged), ROWS, RANK, ones())
    except BridgeError:
        return
    assert (decoded != np.rint(latents(ROWS, RANK))).any()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_give_numbers_or_a_typed_error(junk: bytes) -> None:
    lanes = lanes_for(ROWS * RANK).to_bytes(2, "little")
    for payload in (junk, bytes((0, 32)) + junk, bytes((0, 32)) + lanes + junk):
        try:
            assert MADE.decode(payload, ROWS, RANK, ones()).shape == (ROWS, RANK)
        except BridgeError:
            pass


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 30),
    st.integers(0, 200),
    st.integers(1, 70),
    st.integers(0, 9),
)
def test_any_grid_comes_back_from_any_number_of_lanes(
    classes: int, rank: int, rows: int, lanes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    table = np.floor(4080 * rng.dirichlet(np.ones(6), size=(classes, rank))).astype(np.int64) + 1
    table[..., 0] += 4096 - table.sum(axis=-1)
    prior = np.full(classes, 4096 // classes)
    prior[0] += 4096 - prior.sum()
    coder = LaneCoder(table, prior)
    chosen, symbols = rng.integers(classes, size=rows), rng.integers(6, size=(rows, rank))
    stream = coder.encode(chosen, symbols, lanes)
    read_classes, read, rest = coder.decode(stream + b"more", rows, lanes)
    assert (read_classes == chosen).all() and (read == symbols).all() and rest == b"more"
