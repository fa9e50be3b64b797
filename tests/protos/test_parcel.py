"""Parcels: what is packed comes out again, one by one; anything else gets a typed error."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.bits import BitReader, BitWriter
from protos.digest import verify
from protos.distortion import Distortion
from protos.errors import (
    BridgeError,
    FrameCorruptError,
    FrameMalformedError,
    FrameTooLargeError,
    FrameTruncatedError,
)
from protos.header import Header, pack_header
from protos.limits import Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.parcel import is_parcel, pack, unpack
from protos.points import PICTURE_POINT
from protos.requests import parse_infer_request, seal

CONSTANTS = bytes(range(32))
MOST = 16


def request(
    number: int,
    kept: list[bool] | None = None,
    body: bytes = b"payload",
    question: str = "",
    base: int | None = None,
    request_id: bytes = b"",
    priority: int = 0,
    delta_ms: int = 1000,
    quantize: float = 0.1,
) -> pb.InferRequest:
    mask = np.array([True] * 9 if kept is None else kept)
    header = Header(10, number, mask, delta_ms, Distortion(quantize, 0.0, 0.2, 1.0), base)
    packed = pack_header(header, body)
    limit = 8 if question else 0
    return seal(CONSTANTS, request_id, *packed, question, limit, priority)


def raw_of(*requests: pb.InferRequest) -> bytes:
    return pack(CONSTANTS, requests).SerializeToString()


REQUESTS = st.builds(
    request,
    st.integers(0, 2**32 - 1),
    st.lists(st.booleans(), min_size=1, max_size=150).filter(any),
    st.binary(min_size=1, max_size=40),
    st.sampled_from(["", "what ?", "wo ist das rote Auto – links?"]),
    st.just(None),
    st.sampled_from([b"", b"12345678", bytes(16)]),
    st.integers(0, 2),
    st.integers(0, 2**32 - 1),
    st.floats(0.0, 10.0),
)


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(REQUESTS, min_size=1, max_size=MOST))
def test_what_is_packed_comes_out_as_if_each_had_come_alone(
    requests: list[pb.InferRequest],
) -> None:
    raw = raw_of(*requests)
    assert is_parcel(raw)
    found = unpack(raw, CONSTANTS, {}, MOST)
    assert found == requests
    for one in found:
        verify(one, CONSTANTS)
        parse_infer_request(one.SerializeToString())


def test_delta_frames_pictures_and_wide_grids_come_out_too() -> None:
    moved = [i in (2, 7) for i in range(9)]
    picture = Header(PICTURE_POINT, 4, np.zeros(0, dtype=np.bool_), 7, cause="unfamiliar")
    sent = [
        request(0),
        request(1, moved, b"ab", base=0),
        request(2, moved, b"abc", base=0),
        seal(CONSTANTS, b"", *pack_header(picture, b"a picture's file")),
        request(5, [i % 7 == 0 for i in range(300)]),
        request(0xFFFFFFFF),
        request(0, moved, base=0xFFFFFFFF),
    ]
    assert unpack(raw_of(*sent), CONSTANTS, {}, MOST) == sent


def test_frames_of_a_camera_cost_a_few_bytes_beside_their_payload() -> None:
    sent = [request(i + 300, quantize=0.1 + 0.005 * (i % 3)) for i in range(10)]
    payloads = sum(len(one.frame.payload) for one in sent)
    alone = sum(one.ByteSize() for one in sent)
    assert len(raw_of(*sent)) < payloads + 10 * 4 + 20 < alone / 2


def test_a_question_that_the_stream_remembers_travels_as_a_number() -> None:
    ask = "what is left of the red car ?"
    known: dict[int, str] = {}
    first = pack(CONSTANTS, [request(0, question=ask)], {}, {ask: 3}).SerializeToString()
    assert unpack(first, CONSTANTS, known, MOST)[0].question == ask and known == {3: ask}
    second = pack(CONSTANTS, [request(1, question=ask)], {ask: 3}).SerializeToString()
    assert len(second) + len(ask) <= len(first)
    assert unpack(second, CONSTANTS, known, MOST)[0].question == ask
    with pytest.raises(FrameMalformedError, match="question 3"):
        unpack(second, CONSTANTS, {}, MOST)


def test_a_question_is_remembered_only_from_an_undamaged_parcel() -> None:
    raw = bytearray(pack(CONSTANTS, [request(0, question="what ?")], {}, {"what ?": 0}).parcel)
    raw[-1] ^= 1
    known: dict[int, str] = {}
    with pytest.raises(FrameCorruptError):
        unpack(pb.InferRequest(parcel=bytes(raw)).SerializeToString(), CONSTANTS, known, MOST)
    assert not known


def test_any_flipped_bit_is_noticed() -> None:
    sent = [request(i, question="what ?", body=b"abc") for i in range(3)]
    raw = raw_of(*sent)
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        if not is_parcel(bytes(damaged)):
            with pytest.raises(BridgeError):
                parse_infer_request(bytes(damaged))
            continue
        with pytest.raises(BridgeError):
            unpack(bytes(damaged), CONSTANTS, {}, MOST)


@pytest.mark.parametrize("size", range(40))
def test_a_parcel_that_ends_early_is_refused(size: int) -> None:
    whole = pack(CONSTANTS, [request(i) for i in range(4)]).parcel
    raw = pb.InferRequest(parcel=whole[:size]).SerializeToString() or b"\x42\0"
    with pytest.raises(BridgeError):
        unpack(raw, CONSTANTS, {}, MOST)


def test_a_parcel_of_another_session_is_refused() -> None:
    with pytest.raises(FrameCorruptError, match="another session"):
        unpack(raw_of(request(0)), bytes(32), {}, MOST)


def test_more_requests_than_agreed_are_refused() -> None:
    raw = raw_of(*(request(i) for i in range(MOST + 1)))
    with pytest.raises(FrameTooLargeError, match="at most 16"):
        unpack(raw, CONSTANTS, {}, MOST)
    many = raw_of(*(request(i) for i in range(5000)))
    with pytest.raises(FrameTooLargeError, match="at most 16"):
        unpack(many, CONSTANTS, {}, MOST)


def test_a_parcel_beside_other_fields_is_refused_wherever_it_stands() -> None:
    message = pack(CONSTANTS, [request(0)])
    alone = message.SerializeToString()
    other = request(1).SerializeToString()
    for raw in (alone + other, other + alone):
        with pytest.raises(FrameMalformedError, match=r"InferRequest\.parcel"):
            if is_parcel(raw):
                unpack(raw, CONSTANTS, {}, MOST)
            parse_infer_request(raw)
    nested = pb.InferRequest(parcel=message.parcel + alone).SerializeToString()
    with pytest.raises(BridgeError):
        unpack(nested, CONSTANTS, {}, MOST)


def test_a_small_parcel_never_takes_much_memory() -> None:
    """Whatever it claims to hold."""
    claims = BitWriter()
    claims.bits(10, 8)
    claims.number(0xFFFFFFF0, 5)
    claims.number(1, 7)
    claims.bits(0, 32)
    raw = pb.InferRequest(parcel=bytes(4) + claims.to_bytes() + b"\xff" * 64).SerializeToString()
    tracemalloc.start()
    try:
        with pytest.raises(BridgeError):
            for one in unpack(raw, CONSTANTS, {}, MOST, Limits(max_tokens=256)):
                parse_infer_request(one.SerializeToString())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@settings(max_examples=500, deadline=None, database=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    raw = pb.InferRequest(parcel=data).SerializeToString() or b"\x42\0"
    with pytest.raises(BridgeError):
        unpack(raw, CONSTANTS, {}, MOST)


@given(st.lists(st.tuples(st.integers(-(2**31) + 1, 2**31 - 1), st.integers(0, 9)), max_size=20))
def test_numbers_come_back_from_their_bits(numbers: list[tuple[int, int]]) -> None:
    out = BitWriter()
    for value, order in numbers:
        out.signed(value, order)
    back = BitReader(out.to_bytes() + b"rest")
    assert [back.signed(order) for _, order in numbers] == [value for value, _ in numbers]
    assert back.rest() == b"rest"


def test_bits_that_end_or_do_not_end_are_refused() -> None:
    with pytest.raises(FrameTruncatedError):
        BitReader(b"\0\0").number(0)
    with pytest.raises(FrameMalformedError, match="32 bits"):
        BitReader(bytes(9)).number(0)
    with pytest.raises(FrameMalformedError, match="zeros"):
        reader = BitReader(b"\x81")
        reader.bits(1)
        reader.rest()
