"""Headers: every byte known, one way to write each, no changed bit accepted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.distortion import Distortion
from protos.errors import (
    BridgeError,
    EmptyFrameError,
    FrameMalformedError,
    FrameTruncatedError,
    NonFiniteError,
)
from protos.header import FIXED, Header, frame_number_of, pack_header, unpack_header
from protos.points import PICTURE_POINT
from tests.protos.frames import mask


def test_the_header_has_the_bytes_that_the_protocol_describes() -> None:
    kept = np.zeros(10, dtype=bool)
    kept[[0, 3, 9]] = True
    header, payload = pack_header(
        Header(7, 0x01020304, kept, 500, Distortion(1.0, 0.5, 0.25, 2.0)), b"body"
    )
    assert header == bytes.fromhex(
        # 0x01020304 is 8 * 2^21 + 8 * 2^14 + 6 * 2^7 + 4, and 500 is 3 * 2^7 + 116.
        "03 07 b09d89c3 0a 84868808 f403".replace(" ", "")
    ) + bytes([0b00001001, 0b00000010])
    assert payload == b"body"
    header, payload = pack_header(Header(7, 5, np.ones(10, dtype=bool)), b"body")
    assert header == bytes.fromhex("83 07 00000000 0a 05 00") and payload == b"body"


@pytest.mark.parametrize("tokens", [2, 7, 8, 9, 40, 64, 127, 128, 143, 144])
def test_up_to_144_tokens_the_bitmap_is_in_a_header_of_at_most_36_bytes(tokens: int) -> None:
    most = 2**32 - 1
    header, payload = pack_header(Header(1, most, mask(tokens), most), b"x")
    assert len(header) == 16 + (1 + (tokens > 127)) + (tokens + 7) // 8 <= 36
    assert payload == b"x"


@pytest.mark.parametrize("tokens", [145, 256, 1024, 4096])
def test_beyond_144_tokens_the_bitmap_opens_the_payload(tokens: int) -> None:
    header, payload = pack_header(Header(1, 2, mask(tokens)), b"body")
    assert len(header) == 10
    assert payload[-4:] == b"body" and len(payload) == (tokens + 7) // 8 + 4
    again, body = unpack_header(header, payload)
    assert body == b"body"
    np.testing.assert_array_equal(again.kept, mask(tokens))


@settings(max_examples=200, deadline=None, database=None)
@given(
    point=st.integers(0, 253),
    number=st.integers(0, 2**32 - 1),
    delta=st.integers(0, 2**32 - 1),
    kept=st.lists(st.booleans(), min_size=1, max_size=400).filter(any),
    levels=st.binary(min_size=4, max_size=4),
    body=st.binary(min_size=1, max_size=50),
)
def test_every_header_comes_back(
    point: int,
    number: int,
    delta: int,
    kept: list[bool],
    levels: bytes,
    body: bytes,
) -> None:
    before = Header(point, number, np.array(kept), delta, Distortion.from_bytes(levels))
    after, rest = unpack_header(*pack_header(before, body))
    assert rest == body
    assert (after.operating_point, after.frame_number) == (point, number)
    assert (after.capture_delta_ms, after.version) == (delta, 3)
    assert after.distortion == before.distortion
    assert after.kept.tolist() == kept
    assert (after.tokens, after.kept_tokens) == (len(kept), sum(kept))


@settings(max_examples=400, deadline=None, database=None)
@given(st.binary(max_size=48), st.binary(max_size=80))
def test_any_bytes_are_a_header_or_a_typed_error(header: bytes, payload: bytes) -> None:
    try:
        found, body = unpack_header(header, payload)
    except BridgeError:
        return
    assert pack_header(found, body) == (header, payload)


@settings(max_examples=400, deadline=None, database=None)
@given(st.integers(0, 30), st.integers(0, 255))
def test_changing_a_byte_of_a_header_gives_another_header_or_a_typed_error(
    at: int, value: int
) -> None:
    header, payload = pack_header(Header(3, 9, mask(40), 40, Distortion(0.1, 0.2, 0.3, 0.4)), b"p")
    wrong = bytearray(header)
    wrong[at % len(header)] = value
    try:
        found, body = unpack_header(bytes(wrong), payload)
    except BridgeError:
        return
    assert pack_header(found, body) == (bytes(wrong), payload)


@pytest.mark.parametrize("cause", ["", "distortion", "unfamiliar", "degenerate"])
def test_a_picture_says_why_it_is_in_a_frames_place(cause: str) -> None:
    made = Header(PICTURE_POINT, 300, np.zeros(0, dtype=bool), 70, cause=cause)
    found, _ = unpack_header(*pack_header(made, b"x"))
    assert (found.cause, found.base, found.differences) == (cause, None, False)
    assert (found.frame_number, found.capture_delta_ms) == (300, 70)


def test_a_cause_that_cannot_be_is_refused() -> None:
    none = np.zeros(0, dtype=bool)
    for wrong in (
        Header(PICTURE_POINT, 1, none, cause="late"),
        Header(1, 1, mask(4), cause="late"),
    ):
        with pytest.raises(FrameMalformedError, match="no cause"):
            pack_header(wrong, b"x")
    with pytest.raises(FrameMalformedError, match="no cause"):
        pack_header(Header(1, 1, mask(4), cause="distortion"), b"x")


def test_a_picture_has_no_grid_and_no_bitmap() -> None:
    none = np.zeros(0, dtype=bool)
    header, payload = pack_header(Header(PICTURE_POINT, 5, none), b"\x89PNG")
    assert len(header) == 9 and payload == b"\x89PNG"
    found, body = unpack_header(header, payload)
    assert (found.tokens, found.kept_tokens, body) == (0, 0, b"\x89PNG")
    with pytest.raises(FrameMalformedError, match="no token grid"):
        pack_header(Header(PICTURE_POINT, 5, mask(4)), b"\x89PNG")
    wrong = header[:6] + b"\x04" + header[7:] + b"\x01"
    with pytest.raises(FrameMalformedError, match="no token grid"):
        unpack_header(wrong, payload)


def test_a_distortion_off_the_scale_is_at_its_ends_and_only_zero_is_zero() -> None:
    header = Header(1, 1, mask(4), 0, Distortion(-0.0, 1e-12, 0.0018, 1e300))
    found, _ = unpack_header(*pack_header(header, b"x"))
    assert found.distortion == Distortion.from_bytes([0, 1, 1, 255])


@pytest.mark.parametrize("figure", ["quantize", "dropped_attention", "unfamiliarity"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), NonFiniteError),
        (float("inf"), NonFiniteError),
        (-0.5, FrameMalformedError),
    ],
)
def test_impossible_distortion_is_not_written(
    figure: str, value: float, error: type[BridgeError]
) -> None:
    with pytest.raises(error, match=figure):
        pack_header(Header(1, 1, mask(4), 0, Distortion(**{figure: value})), b"x")


@pytest.mark.parametrize(
    "change",
    [
        {"operating_point": 256},
        {"operating_point": -1},
        {"frame_number": 2**32},
        {"capture_delta_ms": -1},
        {"kept": np.ones(70000, dtype=bool)},
        {"kept": np.ones(4)},
        {"kept": np.ones((2, 2), dtype=bool)},
    ],
)
def test_a_header_that_does_not_fit_its_fields_is_not_written(change: dict[str, Any]) -> None:
    with pytest.raises(FrameMalformedError):
        pack_header(replace(Header(1, 1, mask(4)), **change), b"x")


def test_empty_frames_are_refused_on_both_sides() -> None:
    for kept, body in [(np.zeros(4, bool), b"x"), (np.zeros(0, bool), b"x"), (mask(4), b"")]:
        with pytest.raises(EmptyFrameError):
            pack_header(Header(1, 1, kept), body)
    header, payload = pack_header(Header(1, 1, mask(4)), b"x")
    with pytest.raises(EmptyFrameError, match="payload"):
        unpack_header(header, b"")
    with pytest.raises(EmptyFrameError, match="no token"):
        unpack_header(header[:-1] + b"\0", payload)
    with pytest.raises(EmptyFrameError, match="0 tokens"):
        unpack_header(header[:6] + b"\0" + header[7:-1], payload)
    header, payload = pack_header(Header(1, 1, mask(200)), b"x")
    with pytest.raises(EmptyFrameError, match="payload"):
        unpack_header(header, payload[:-1])


def test_headers_of_the_wrong_size_are_refused_by_which_way_they_are_wrong() -> None:
    header, payload = pack_header(Header(1, 1, mask(40)), b"x")
    for n in range(len(header)):
        with pytest.raises(FrameTruncatedError):
            unpack_header(header[:n], payload)
    with pytest.raises(FrameMalformedError):
        unpack_header(header + b"\0", payload)
    header, payload = pack_header(Header(1, 1, mask(200)), b"x")
    with pytest.raises(FrameTruncatedError):
        unpack_header(header, payload[:20])


def test_unused_bits_of_the_bitmap_must_be_zero() -> None:
    header, payload = pack_header(Header(1, 1, mask(10)), b"x")
    for bit in range(2, 8):
        wrong = header[:-1] + bytes([header[-1] | 1 << bit])
        with pytest.raises(FrameMalformedError, match="beyond its 10 tokens"):
            unpack_header(wrong, payload)


@pytest.mark.parametrize("version", [0, 2, 31])
def test_another_header_version_is_refused(version: int) -> None:
    header, payload = pack_header(Header(1, 1, mask(10)), b"x")
    with pytest.raises(FrameMalformedError, match=f"version {version}"):
        unpack_header(bytes([version]) + header[1:], payload)


def test_a_header_can_be_written_in_one_way_only() -> None:
    header, payload = pack_header(Header(1, 5, mask(8)), b"x")
    with pytest.raises(FrameMalformedError, match="full"):
        unpack_header(header[:-1] + b"\xff", payload)
    longer = header[:7] + b"\x85\0" + header[8:]
    with pytest.raises(FrameMalformedError, match="frame_number .* longer than it need be"):
        unpack_header(longer, payload)
    with pytest.raises(FrameMalformedError, match="frame_number"):
        unpack_header(header[:7] + b"\xff\xff\xff\xff\x10" + header[8:], payload)
    with pytest.raises(FrameMalformedError, match="5 bytes"):
        unpack_header(header[:7] + b"\x80\x80\x80\x80\x80\x01" + header[8:], payload)
    with pytest.raises(FrameMalformedError, match="of none"):
        empty, _ = pack_header(Header(PICTURE_POINT, 5, np.zeros(0, bool)), b"x")
        unpack_header(b"\x83" + empty[1:], payload)


def test_the_frame_number_of_a_bad_header_is_read_if_it_can_be() -> None:
    header, _ = pack_header(Header(1, 70000, mask(8)), b"x")
    assert frame_number_of(b"\0" + header[1:]) == 70000
    assert frame_number_of(header[:8]) is frame_number_of(b"") is None


@pytest.mark.parametrize("differences", [False, True])
@pytest.mark.parametrize(("number", "base"), [(7, 6), (65540, 5), (3, 2**32 - 1)])
def test_a_delta_frame_names_its_base(number: int, base: int, differences: bool) -> None:
    written = Header(1, number, mask(10), 5, base=base, differences=differences)
    header, payload = pack_header(written, b"x")
    read, _ = unpack_header(header, payload)
    assert (read.base, read.differences, read.frame_number) == (base, differences, number)
    key = pack_header(Header(1, number, mask(10), 5), b"x")[0]
    assert len(key) + 1 <= len(header) <= len(key) + 3
    assert unpack_header(key, payload)[0].base is None
    assert frame_number_of(header) == number


def test_deltas_that_no_edge_writes_are_refused() -> None:
    for distance in (0, 65536):
        with pytest.raises(FrameMalformedError, match="base_distance"):
            pack_header(Header(1, 70000, mask(10), base=70000 - distance), b"x")
    with pytest.raises(FrameMalformedError, match="no frame"):
        pack_header(Header(1, 7, mask(10), differences=True), b"x")
    picture = Header(PICTURE_POINT, 7, np.zeros(0, dtype=np.bool_), base=6)
    with pytest.raises(FrameMalformedError, match="no delta"):
        pack_header(picture, b"x")
    header, payload = pack_header(Header(1, 7, mask(10), base=6), b"x")
    wrong = bytearray(header)
    wrong[FIXED.size + 3] = 0
    with pytest.raises(FrameMalformedError, match="base_distance"):
        unpack_header(bytes(wrong), payload)
    wrong = bytearray(pack_header(Header(1, 7, mask(10)), b"x")[0])
    wrong[0] |= 32
    with pytest.raises(FrameMalformedError, match="no frame"):
        unpack_header(bytes(wrong), payload)
