"""Parcels: what is packed comes out again, one by one; anything else gets a typed error."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.digest import verify
from protos.distortion import Distortion
from protos.errors import (
    BridgeError,
    FrameCorruptError,
    FrameMalformedError,
    FrameTooLargeError,
)
from protos.header import Header, pack_header
from protos.limits import Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.parcel import Course, is_parcel, pack, unpack
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


def raw_of(*requests: pb.InferRequest, course: Course | None = None) -> bytes:
    return pack(CONSTANTS, requests, course or Course()).SerializeToString()


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


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(REQUESTS, min_size=1, max_size=MOST))
def test_what_is_packed_comes_out_as_if_each_had_come_alone(
    requests: list[pb.InferRequest],
) -> None:
    raw = raw_of(*requests)
    assert is_parcel(raw)
    found = unpack(raw, CONSTANTS, Course(), MOST)
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
    assert unpack(raw_of(*sent), CONSTANTS, Course(), MOST) == sent


def test_frames_of_a_camera_cost_a_few_bytes_beside_their_payload() -> None:
    sent = [request(i + 300, quantize=0.1 + 0.005 * (i % 3)) for i in range(10)]
    payloads = sum(len(one.frame.payload) for one in sent)
    alone = sum(one.ByteSize() for one in sent)
    assert len(raw_of(*sent)) < payloads + 10 * 2 + 20 < alone / 2


def camera(count: int, first: int = 0) -> list[pb.InferRequest]:
    """Frames in which hardly anything moves."""
    still, moved = [i == 4 for i in range(9)], [i in (2, 3) for i in range(9)]
    return [
        request(i, moved, b"\x05\x81\x30", base=i - 1)
        if i % 9 == 5
        else request(i, still, b"\x01", base=i - 1)
        for i in range(first, first + count)
    ]


def test_a_stream_remembers_what_was_told_so_still_frames_cost_next_to_nothing() -> None:
    """A parcel of ten frames that change nothing: digest, tag and length, and a few bytes."""
    here, there = Course(), Course()
    sizes = []
    for at in range(9):
        sent = [request(0), *camera(9, 1)] if not at else camera(10, 10 * at)
        raw = raw_of(*sent, course=here)
        assert unpack(raw, CONSTANTS, there, MOST) == sent
        sizes.append(len(raw))
    assert sizes[-1] <= 4 + 2 + 6 < sizes[0] / 2


def test_a_parcel_that_goes_on_from_another_one_is_refused_without_it() -> None:
    here = Course()
    first, second, third = (raw_of(*camera(10, 10 * i + 1), course=here) for i in range(3))
    for known in ([], [first]):
        there = Course()
        for raw in known:
            unpack(raw, CONSTANTS, there, MOST)
        with pytest.raises(BridgeError):
            unpack(third, CONSTANTS, there, MOST)
        if known:
            assert unpack(second, CONSTANTS, there, MOST) == camera(10, 11), "nothing was taken"
    here.begin_anew()
    again = camera(10, 41)
    assert unpack(raw_of(*again, course=here), CONSTANTS, there, MOST) == again


def test_a_question_that_the_stream_remembers_travels_as_a_number() -> None:
    ask = "what is left of the red car ?"
    here, there = Course(), Course()
    questions = [ask, "what ?", ask, *(f"q {i}" for i in range(20)), ask, "q 19", "q 3"]
    sizes = []
    for i, question in enumerate(questions):
        sent = [request(i, question=question)]
        raw = raw_of(*sent, course=here)
        assert unpack(raw, CONSTANTS, there, MOST) == sent
        sizes.append(len(raw))
    assert sizes[2] + len(ask) <= sizes[0] and sizes[23] + len(ask) <= sizes[0]


def test_a_parcel_that_was_damaged_tells_nothing() -> None:
    here, there = Course(), Course()
    raw = bytearray(pack(CONSTANTS, [request(0, question="what ?")], here).parcel)
    raw[-1] ^= 1
    with pytest.raises(FrameCorruptError):
        unpack(pb.InferRequest(parcel=bytes(raw)).SerializeToString(), CONSTANTS, there, MOST)
    assert not there.begun and here.begun
    with pytest.raises(FrameMalformedError, match="begin anew"):
        unpack(raw_of(request(1, question="what ?"), course=here), CONSTANTS, there, MOST)


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
            unpack(bytes(damaged), CONSTANTS, Course(), MOST)


@pytest.mark.parametrize("size", range(40))
def test_a_parcel_that_ends_early_is_refused(size: int) -> None:
    whole = pack(CONSTANTS, [request(i) for i in range(4)], Course()).parcel
    raw = pb.InferRequest(parcel=whole[:size]).SerializeToString() or b"\x42\0"
    with pytest.raises(BridgeError):
        unpack(raw, CONSTANTS, Course(), MOST)


def test_a_parcel_of_another_session_is_refused() -> None:
    with pytest.raises(FrameCorruptError, match="another session"):
        unpack(raw_of(request(0)), bytes(32), Course(), MOST)


def test_more_requests_than_agreed_are_refused() -> None:
    raw = raw_of(*(request(i) for i in range(MOST + 1)))
    with pytest.raises(FrameTooLargeError, match="at most 16"):
        unpack(raw, CONSTANTS, Course(), MOST)
    many = raw_of(*(request(i) for i in range(5000)))
    with pytest.raises(FrameTooLargeError, match="at most 16"):
        unpack(many, CONSTANTS, Course(), MOST)


def test_a_parcel_beside_other_fields_is_refused_wherever_it_stands() -> None:
    message = pack(CONSTANTS, [request(0)], Course())
    alone = message.SerializeToString()
    other = request(1).SerializeToString()
    for raw in (alone + other, other + alone):
        with pytest.raises(FrameMalformedError, match=r"InferRequest\.parcel"):
            if is_parcel(raw):
                unpack(raw, CONSTANTS, Course(), MOST)
            parse_infer_request(raw)
    nested = pb.InferRequest(parcel=message.parcel + alone).SerializeToString()
    with pytest.raises(BridgeError):
        unpack(nested, CONSTANTS, Course(), MOST)


def test_a_small_parcel_never_takes_much_memory() -> None:
    """Whatever it claims to hold."""
    raws = [bytes(4) + bytes([first]) * 90 for first in (0x80, 0xA0, 0xC0, 0xE0, 0xFE)]
    tracemalloc.start()
    try:
        for raw in raws:
            message = pb.InferRequest(parcel=raw).SerializeToString()
            with pytest.raises(BridgeError):
                unpack(message, CONSTANTS, Course(), MOST, Limits(max_tokens=256))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(st.lists(REQUESTS, min_size=1, max_size=5), min_size=1, max_size=5), st.data())
def test_a_course_survives_anything_that_comes_between(
    parcels: list[list[pb.InferRequest]], data: st.DataObject
) -> None:
    here, there = Course(), Course()
    for sent in parcels:
        raw = raw_of(*sent, course=here)
        noise = data.draw(st.binary(min_size=5, max_size=40))
        with pytest.raises(BridgeError):
            unpack(pb.InferRequest(parcel=noise).SerializeToString(), CONSTANTS, there, MOST)
        assert unpack(raw, CONSTANTS, there, MOST) == sent


@settings(max_examples=200, deadline=None, database=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    raw = pb.InferRequest(parcel=data).SerializeToString() or b"\x42\0"
    with pytest.raises(BridgeError):
        unpack(raw, CONSTANTS, Course(), MOST)
