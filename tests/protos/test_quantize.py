"""One contract over every quantizer, and each against an independent reference."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos import quantize
from protos.entropy.tables import EntropyTables
from protos.errors import (
    BridgeError,
    ConfigError,
    FrameMalformedError,
    FrameTruncatedError,
    NonFiniteError,
    UnknownQuantizerError,
)
from protos.quantize import QUANTIZERS, Quantizer, UniformQuantizer
from protos.quantize.fp8_e4m3 import VALUES, to_fp8

RANK = 16
RNG = np.random.default_rng(0)
SAMPLE = np.rint(RNG.standard_normal((5000, RANK)) * np.linspace(0.5, 3, RANK)).astype(np.int64)
TABLES = EntropyTables.fit(SAMPLE)
ALL = [quantize.get(name, TABLES) for name in QUANTIZERS]
every = pytest.mark.parametrize("quantizer", ALL, ids=lambda q: q.name)


def latents(tokens: int = 40, seed: int = 1) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((tokens, RANK)) * np.linspace(0.5, 3, RANK)).astype(np.float32)


def steps_of(quantizer: Quantizer) -> npt.NDArray[np.float32]:
    scale = {"int8": 1 / 30, "int4": 1 / 2, "fp8_e4m3": 1 / 50}.get(quantizer.name, 1.0)
    return (scale * np.linspace(0.8, 1.2, RANK)).astype(np.float32)


@every
@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_latents_come_back_within_half_a_step(quantizer: Quantizer, tokens: int) -> None:
    z, steps = latents(tokens), steps_of(quantizer)
    again = quantizer.decode(quantizer.encode(z, steps), tokens, RANK, steps)
    assert again.dtype == np.float32 and again.shape == z.shape
    if quantizer.name == "none":
        np.testing.assert_array_equal(again, z)
    elif quantizer.name == "fp8_e4m3":
        assert (np.abs(again - z) <= np.maximum(np.abs(z) / 16, steps * 2.0**-10) * 1.0001).all()
    else:
        largest = {"int8": 127, "int4": 7}.get(quantizer.name, 32767) * steps
        inside = np.abs(z) <= largest
        assert (np.abs(again - z) <= steps * 0.50001)[inside].all()
        np.testing.assert_allclose(
            again[~inside], (np.sign(z) * largest)[~inside], rtol=1e-6, err_msg="must clip"
        )


@every
def test_decoding_what_was_decoded_gives_the_same_bytes(quantizer: Quantizer) -> None:
    z, steps = latents(), np.ones(RANK, dtype=np.float32)
    payload = quantizer.encode(z, steps)
    assert quantizer.encode(quantizer.decode(payload, 40, RANK, steps), steps) == payload


@every
def test_sizes_are_what_the_protocol_says(quantizer: Quantizer) -> None:
    expected = {"none": 4 * 3 * RANK, "fp8_e4m3": 3 * RANK, "int8": 3 * RANK, "int4": 3 * RANK // 2}
    size = len(quantizer.encode(latents(3), steps_of(quantizer)))
    assert size == expected.get(quantizer.name, size)
    assert size <= 4 * 3 * RANK


@every
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_latent_that_is_no_number_is_refused(quantizer: Quantizer, bad: float) -> None:
    z = latents()
    z[3, 5] = bad
    with pytest.raises(NonFiniteError):
        quantizer.encode(z, np.ones(RANK))


@every
@pytest.mark.parametrize(
    ("steps", "error"),
    [
        (np.full(RANK, np.nan), NonFiniteError),
        (np.full(RANK, np.inf), NonFiniteError),
        (np.zeros(RANK), FrameMalformedError),
        (-np.ones(RANK), FrameMalformedError),
        (np.ones(RANK - 1), FrameMalformedError),
        (np.ones((1, RANK)), FrameMalformedError),
    ],
)
def test_unusable_steps_are_refused_on_both_sides(
    quantizer: Quantizer, steps: npt.NDArray[np.float64], error: type[BridgeError]
) -> None:
    payload = quantizer.encode(latents(2), np.ones(RANK))
    with pytest.raises(error):
        quantizer.encode(latents(2), steps)
    with pytest.raises(error):
        quantizer.decode(payload, 2, RANK, steps)


@every
def test_a_cut_or_lengthened_payload_never_passes_for_the_whole(quantizer: Quantizer) -> None:
    steps = np.ones(RANK)
    payload = quantizer.encode(latents(5), steps)
    before = quantizer.decode(payload, 5, RANK, steps).tolist()
    for wrong in [payload[:n] for n in range(len(payload))] + [payload + b"\0"]:
        try:
            after = quantizer.decode(wrong, 5, RANK, steps)
        except (FrameTruncatedError, FrameMalformedError):
            continue
        # Only a coded stream can, by chance, be the stream of other latents.
        assert quantizer.name == "uniform"
        assert after.tolist() != before


@every
@pytest.mark.parametrize(("tokens", "rank"), [(0, RANK), (-1, RANK), (5, 0), (1 << 30, RANK)])
def test_absurd_counts_are_refused_before_anything_is_allocated(
    quantizer: Quantizer, tokens: int, rank: int
) -> None:
    with pytest.raises(FrameMalformedError):
        quantizer.decode(b"\x01" * 64, tokens, rank, np.ones(max(rank, 0)))


@pytest.mark.quick(1)
@every
@settings(max_examples=100, deadline=None, database=None)
@given(data=st.data(), tokens=st.integers(1, 6))
def test_any_bytes_decode_to_finite_numbers_or_a_typed_error(
    quantizer: Quantizer, data: st.DataObject, tokens: int
) -> None:
    right = {"none": 4 * RANK, "int4": RANK // 2}.get(quantizer.name, RANK) * tokens
    size = data.draw(st.sampled_from([right, right, right + 1, 0, 1, 5]))
    payload = data.draw(st.binary(min_size=size, max_size=size))
    try:
        z = quantizer.decode(payload, tokens, RANK, np.ones(RANK))
    except BridgeError:
        return
    assert z.shape == (tokens, RANK)
    assert np.isfinite(z).all()


@every
def test_flipping_any_bit_gives_other_numbers_or_a_typed_error(quantizer: Quantizer) -> None:
    steps = steps_of(quantizer)
    payload = quantizer.encode(latents(4), steps)
    before = quantizer.decode(payload, 4, RANK, steps)
    for bit in range(8 * len(payload)):
        wrong = bytearray(payload)
        wrong[bit // 8] ^= 1 << bit % 8
        try:
            after = quantizer.decode(bytes(wrong), 4, RANK, steps)
        except BridgeError:
            continue
        # -0.0 and 0.0 are equal but not the same bits: the only flip that may not show.
        assert before.tobytes() != after.tobytes()


def test_steps_so_large_that_a_decoded_latent_overflows_are_refused() -> None:
    steps = np.full(RANK, 3e38)
    with pytest.raises(NonFiniteError):
        quantize.get("int8").decode(b"\x7f" * RANK, 1, RANK, steps)


def test_an_unknown_quantizer_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownQuantizerError, match="'fp8_e4m3fn'.*nearest is 'fp8_e4m3'"):
        quantize.get("fp8_e4m3fn")
    with pytest.raises(UnknownQuantizerError):
        quantize.get("")


def test_uniform_without_tables_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="entropy tables"):
        quantize.get("uniform")


def test_names_are_the_registry_keys() -> None:
    assert list(QUANTIZERS) == [
        "none",
        "fp8_e4m3",
        "fp8_e4m3_token",
        "int8",
        "int4",
        "uniform",
    ]
    assert all(cls.name == name for name, cls in QUANTIZERS.items())


def test_fp8_rounds_every_bfloat16_number_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    bits = np.arange(1 << 16, dtype=np.uint32) << 16
    x = bits.view(np.float32)
    x = x[np.isfinite(x)]
    expected = torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(to_fp8(x), expected)


def test_fp8_rounds_ties_to_even_and_their_neighbours_away_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    levels = VALUES[:127].astype(np.float64)
    ties = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    assert (ties == (levels[1:] + levels[:-1]) / 2).all()
    near = np.concatenate([ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, ties * 2)])
    x = np.concatenate([near, -near]).astype(np.float32)
    expected = torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(to_fp8(x), expected)


def test_fp8_saturates_where_torch_does() -> None:
    torch = pytest.importorskip("torch")
    x = np.array([447.9, 448, 449, 464, 465, 480, 1e9, 3e38, -463, -1e20], dtype=np.float32)
    expected = torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(to_fp8(x), expected)


def test_fp8_bytes_mean_what_they_mean_to_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    expected = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(VALUES.view(np.uint32)[:127], expected.view(np.uint32)[:127])
    np.testing.assert_array_equal(VALUES, expected)


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_fp8_nan_in_a_payload_is_refused(code: int) -> None:
    with pytest.raises(NonFiniteError, match="NaN"):
        quantize.get("fp8_e4m3").decode(bytes([1, code]), 1, 2, np.ones(2))


def test_fp8_saturates_when_the_step_is_far_too_small() -> None:
    fp8 = quantize.get("fp8_e4m3")
    steps = np.full(2, 1e-38, dtype=np.float32)
    again = fp8.decode(fp8.encode([[3e38, -1.0]], steps), 1, 2, steps)
    np.testing.assert_allclose(again, [[448e-38, -448e-38]], rtol=1e-5)


def test_a_scale_per_token_holds_tokens_of_any_size_that_a_static_one_cannot() -> None:
    rng = np.random.default_rng(3)
    sizes = np.array([[1e-3], [1.0], [1e4]])
    z = (rng.standard_normal((3, 64)) * sizes).astype(np.float32)
    steps = np.ones(64, dtype=np.float32)
    errors = {}
    for name in ("fp8_e4m3", "fp8_e4m3_token"):
        fp8 = quantize.get(name)
        again = fp8.decode(fp8.encode(z, steps), 3, 64, steps)
        errors[name] = np.linalg.norm(again - z, axis=1) / np.linalg.norm(z, axis=1)
    assert (errors["fp8_e4m3_token"] < 0.035).all()
    assert errors["fp8_e4m3"][0] > 0.5 and errors["fp8_e4m3"][2] > 0.5


def test_a_tokens_largest_latent_never_saturates() -> None:
    fp8 = quantize.get("fp8_e4m3_token")
    largest = np.geomspace(0.03, 1e6, 500).astype(np.float32)[:, None]
    z = largest * np.array([[1, -0.5]], dtype=np.float32)
    again = fp8.decode(fp8.encode(z, np.ones(2)), 500, 2, np.ones(2))
    np.testing.assert_allclose(again, z, rtol=2**-4 + 1e-3)


def test_a_token_scale_that_no_encoder_writes_is_refused() -> None:
    fp8 = quantize.get("fp8_e4m3_token")
    for scale, error in (
        (np.nan, NonFiniteError),
        (np.inf, NonFiniteError),
        (0.0, FrameMalformedError),
        (-1.0, FrameMalformedError),
        (2.0**-15, FrameMalformedError),
    ):
        payload = np.array([scale], dtype="<f2").tobytes() + b"\x38\x38"
        with pytest.raises(error):
            fp8.decode(payload, 1, 2, np.ones(2))


def test_int8_and_int4_have_the_bytes_that_the_protocol_describes() -> None:
    z, steps = [[1.0, -2.0, 300.0]], np.array([0.5, 1.0, 1.0])
    assert quantize.get("int8").encode(z, steps) == bytes([2, 254, 127])
    assert quantize.get("int4").encode(z, steps) == bytes([0xE2, 0x07])


def test_codes_that_no_encoder_writes_are_refused() -> None:
    with pytest.raises(FrameMalformedError, match="-128"):
        quantize.get("int8").decode(b"\x80", 1, 1, np.ones(1))
    with pytest.raises(FrameMalformedError, match="-8"):
        quantize.get("int4").decode(b"\x08", 1, 1, np.ones(1))
    with pytest.raises(FrameMalformedError, match="last nibble"):
        quantize.get("int4").decode(b"\x10", 1, 1, np.ones(1))


def decode_as_the_protocol_says(
    payload: bytes, tokens: int, tables: EntropyTables
) -> list[list[int]]:
    """A second decoder, written from bridge.proto alone; the payload must be coded, not raw."""
    low, total, at, x = 1 << 23, 1 << 12, 0, 0

    def refill() -> None:
        nonlocal x, at
        while x < low and at < len(payload):
            x = x * 256 + payload[at]
            at += 1

    def take(frequencies: list[int]) -> int:
        nonlocal x
        slot, start = x % total, 0
        for symbol, frequency in enumerate(frequencies):
            if start <= slot < start + frequency:
                x = frequency * (x // total) + slot - start
                refill()
                return symbol
            start += frequency
        raise AssertionError("the frequencies do not sum to 4096")

    refill()
    out = []
    for _ in range(tokens):
        token: list[int] = []
        token_class = take(tables.prior.tolist())
        for j, offset in enumerate(tables.offset.tolist()):
            row = tables.frequency[token_class, j].tolist()
            symbol = take(row)
            if symbol == len(row) - 1:
                code = take([16] * 256)
                code += 256 * take([16] * 256)
                token.append(code >> 1 if code % 2 == 0 else -(code >> 1) - 1)
            else:
                token.append(symbol + offset)
        out.append(token)
    assert (x, at) == (1, len(payload))
    return out


def test_a_decoder_written_from_the_protocols_text_reads_uniform_payloads() -> None:
    z = np.rint(latents())
    z[0, 0], z[7, 3], z[39, 15] = 20000, -32768, 32767
    payload = UniformQuantizer(TABLES).encode(z, np.ones(RANK))
    assert payload[0] != 0
    assert decode_as_the_protocol_says(payload, 40, TABLES) == z.astype(int).tolist()


def test_uniform_is_within_four_bytes_of_the_information_it_carries() -> None:
    z = latents()
    payload = UniformQuantizer(TABLES).encode(z, np.ones(RANK))
    symbols = np.rint(z).astype(int) - TABLES.offset
    p = TABLES.frequency[:, np.arange(RANK), symbols].astype(float) / 4096
    with np.errstate(divide="ignore"):
        bits = -np.log2(p).sum(axis=2) - np.log2(TABLES.prior / 4096)[:, None]
    # Each token in the class that is cheapest for it.
    assert len(payload) <= bits.min(axis=0).sum() / 8 + 4


def test_uniform_reaches_the_entropy_of_gaussian_latents_rounded_at_one_sigma() -> None:
    rng = np.random.default_rng(5)
    tables = EntropyTables.fit(np.rint(rng.standard_normal((20000, 16))).astype(np.int64))
    frames = [rng.standard_normal((40, 16)) for _ in range(20)]
    sizes = [len(UniformQuantizer(tables).encode(z, np.ones(16))) for z in frames]
    # 2.105 bits per latent is the entropy of round(N(0, 1)), by numerical integration.
    assert np.mean(sizes) <= 40 * 16 * 2.105 / 8 * 1.02 + 2


def test_uniform_never_clips() -> None:
    z = np.zeros((3, RANK))
    z[1, 2], z[2, 15] = 32767, -32768
    steps = np.full(RANK, 0.5)
    quantizer = UniformQuantizer(TABLES)
    again = quantizer.decode(quantizer.encode(z * 0.5, steps), 3, RANK, steps)
    np.testing.assert_array_equal(again, z * 0.5)


@pytest.mark.parametrize("value", [32768.0, -32769.0, 1e30])
def test_uniform_refuses_what_16_bits_cannot_say(value: float) -> None:
    z = latents(2)
    z[1, 1] = value
    with pytest.raises(FrameMalformedError, match="32767"):
        UniformQuantizer(TABLES).encode(z, np.ones(RANK))


def test_uniform_falls_back_to_raw_bits_where_the_tables_are_wrong() -> None:
    z = np.rint(np.random.default_rng(6).uniform(-500, 500, (20, RANK)))
    payload = UniformQuantizer(TABLES).encode(z, np.ones(RANK))
    # A zero byte, the width, 10 bits per latent.
    assert payload[:2] == b"\x00\x0a"
    assert len(payload) == 2 + 20 * RANK * 10 // 8
    bits = int.from_bytes(payload[2:], "little")
    codes = [bits >> 10 * i & 1023 for i in range(20 * RANK)]
    values = [code >> 1 if code % 2 == 0 else -(code >> 1) - 1 for code in codes]
    assert values == z.astype(int).ravel().tolist()
    again = UniformQuantizer(TABLES).decode(payload, 20, RANK, np.ones(RANK))
    np.testing.assert_array_equal(again, z)


@pytest.mark.parametrize("payload", [b"\0", b"\0\0", b"\0\x11" + b"x" * 34])
def test_uniform_refuses_raw_payloads_that_no_encoder_writes(payload: bytes) -> None:
    with pytest.raises((FrameMalformedError, FrameTruncatedError)):
        UniformQuantizer(TABLES).decode(payload, 1, RANK, np.ones(RANK))


def test_uniform_refuses_unused_raw_bits() -> None:
    tables = EntropyTables.fit(np.zeros((10, 3), dtype=np.int64))
    good, bad = b"\0\x01\x05", b"\0\x01\x0d"
    decoded = UniformQuantizer(tables).decode(good, 1, 3, np.ones(3))
    np.testing.assert_array_equal(decoded, [[-1, 0, -1]])
    with pytest.raises(FrameMalformedError, match="unused last bits"):
        UniformQuantizer(tables).decode(bad, 1, 3, np.ones(3))


def test_uniform_refuses_another_rank_than_its_tables() -> None:
    with pytest.raises(FrameMalformedError, match="16"):
        UniformQuantizer(TABLES).encode(np.zeros((2, 8)), np.ones(8))
    with pytest.raises(FrameMalformedError, match="16"):
        UniformQuantizer(TABLES).decode(b"\x01", 2, 8, np.ones(8))


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(st.lists(st.integers(-32768, 32767), min_size=3, max_size=3), min_size=1))
def test_uniform_with_tables_of_anything_brings_anything_back(rows: list[list[int]]) -> None:
    tables = EntropyTables.fit(np.array(rows[: max(1, len(rows) // 2)]))
    z = np.array(rows, dtype=np.float32)
    quantizer = UniformQuantizer(tables)
    again = quantizer.decode(quantizer.encode(z, np.ones(3)), len(rows), 3, np.ones(3))
    np.testing.assert_array_equal(again, z)


def test_none_is_little_endian_floats() -> None:
    assert quantize.get("none").encode([[1.5, -2.0]], np.ones(2)) == struct.pack("<2f", 1.5, -2.0)
