"""The message that brings a crop: every bit of it counts."""

from __future__ import annotations

import pytest

from protos.crop import Box, holds_crop, parse_crop, seal_crop
from protos.errors import (
    BridgeError,
    FrameCorruptError,
    FrameMalformedError,
    FrameTooLargeError,
)
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.requests import parse_infer_request

KEY, ID, FILE = bytes(range(32)), b"12345678", b"a picture's file"


def test_what_was_sealed_is_read_and_no_crop_is_one_too() -> None:
    for file in (FILE, b""):
        raw = seal_crop(KEY, ID, file).SerializeToString()
        assert holds_crop(raw)
        assert parse_crop(raw, KEY, 100) == (ID, file)


def test_a_flipped_bit_anywhere_is_found() -> None:
    raw = seal_crop(KEY, ID, FILE).SerializeToString()
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BridgeError):
            parse_crop(bytes(damaged), KEY, 100)


def test_another_session_a_long_file_and_other_fields_are_refused() -> None:
    made = seal_crop(KEY, ID, FILE)
    with pytest.raises(FrameCorruptError):
        parse_crop(made.SerializeToString(), bytes(32), 100)
    with pytest.raises(FrameTooLargeError):
        parse_crop(made.SerializeToString(), KEY, len(FILE) - 1)
    made.question = "what ?"
    with pytest.raises(FrameMalformedError, match="no other field"):
        parse_crop(made.SerializeToString(), KEY, 100)
    with pytest.raises(FrameMalformedError, match="request_id has 3 bytes"):
        parse_crop(seal_crop(KEY, b"123", FILE).SerializeToString(), KEY, 100)


def test_a_crop_is_no_request_of_a_frame() -> None:
    with pytest.raises(FrameMalformedError, match="answers CropWanted"):
        parse_infer_request(seal_crop(KEY, ID, FILE).SerializeToString())
    assert not holds_crop(pb.InferRequest(request_id=ID).SerializeToString())


def test_a_box_lies_at_the_nearest_pixels_and_is_never_empty() -> None:
    assert Box(0, 0, 1000, 1000).pixels(144, 96) == (0, 0, 144, 96)
    assert Box(167, 333, 667, 833).pixels(144, 144) == (24, 48, 96, 120)
    assert Box(999, 0, 1000, 1).pixels(3, 3) == (2, 0, 3, 1)
    for edges in ((5, 0, 5, 10), (0, 9, 10, 3), (0, 0, 1001, 10)):
        with pytest.raises(FrameMalformedError, match="no part of a picture"):
            Box(*edges)
