"""Requests: no flipped bit, no moved byte, no missing field is accepted."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.digest import derived_id, session_constants, verify
from protos.errors import (
    BridgeError,
    EmptyFrameError,
    FrameCorruptError,
    FrameMalformedError,
    FrameTooLargeError,
    FrameTruncatedError,
    QuestionError,
    QuestionTooLongError,
)
from protos.header import Header, pack_header, unpack_header
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.requests import (
    id_of,
    parse_ask_request,
    parse_infer_request,
    seal,
    seal_ask,
    wire_bytes,
)
from tests.protos.frames import BARE, CONSTANTS, REAL, REQUEST, SESSION, accept, real_request


def test_a_real_request_is_accepted_and_means_what_was_sent() -> None:
    request = accept(REAL)
    header, body = unpack_header(request.frame.header, request.frame.payload)
    assert request.request_id == REQUEST
    assert request.question == "What is left of the red crate?"
    assert request.max_new_tokens == 8
    assert header.frame_number == 1000 and header.kept_tokens == 14
    assert body == request.frame.payload


@pytest.mark.parametrize("raw", [REAL, BARE], ids=["with an id", "without"])
def test_no_flipped_bit_of_a_request_is_accepted(raw: bytes) -> None:
    accepted = []
    for bit in range(8 * len(raw)):
        wrong = bytearray(raw)
        wrong[bit // 8] ^= 1 << bit % 8
        try:
            accept(bytes(wrong))
        except BridgeError:
            continue
        accepted.append(bit)
    assert not accepted


def test_no_truncated_request_is_accepted() -> None:
    for n in range(len(REAL)):
        with pytest.raises(BridgeError):
            accept(REAL[:n])


def test_no_inserted_dropped_or_doubled_byte_is_accepted() -> None:
    for at in range(len(REAL)):
        for wrong in (
            REAL[:at] + b"\0" + REAL[at:],
            REAL[:at] + REAL[at : at + 1] + REAL[at:],
            REAL[:at] + REAL[at + 1 :],
        ):
            if wrong != REAL:
                with pytest.raises(BridgeError):
                    accept(wrong)


def changed(**change: Any) -> bytes:
    request = pb.InferRequest.FromString(REAL)
    for name, value in change.items():
        target = request.frame if name in ("header", "payload", "digest") else request
        if value is None:
            target.ClearField(name)
        else:
            setattr(target, name, value)
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"request_id": b"1234567"}, FrameMalformedError),
        ({"request_id": b"1" * 17}, FrameMalformedError),
        ({"frame": None}, FrameMalformedError),
        ({"header": None}, FrameTruncatedError),
        ({"payload": None}, EmptyFrameError),
        ({"digest": None}, FrameMalformedError),
        ({"digest": b"1234567"}, FrameMalformedError),
        ({"digest": b"123456789"}, FrameMalformedError),
        ({"question": " \n\t"}, QuestionError),
        ({"question": "q" * 513}, QuestionTooLongError),
        ({"max_new_tokens": 33}, FrameMalformedError),
    ],
)
def test_requests_that_lack_or_overstate_something_are_refused(
    change: dict[str, Any], error: type[BridgeError]
) -> None:
    with pytest.raises(error):
        parse_infer_request(changed(**change))


@pytest.mark.parametrize("raw", [b"", b"\0", b"\xff" * 50, b"\x0a\x05abc"])
def test_bytes_that_are_no_request_are_refused(raw: bytes) -> None:
    with pytest.raises(FrameMalformedError):
        parse_infer_request(raw)


@settings(max_examples=300, deadline=None, database=None)
@given(st.binary(max_size=120))
def test_any_bytes_are_refused_with_a_typed_error(raw: bytes) -> None:
    with pytest.raises(BridgeError):
        accept(raw)
    with pytest.raises(BridgeError):
        verify(parse_ask_request(raw), CONSTANTS)


def test_an_id_that_does_not_travel_is_told_by_both_sides() -> None:
    bare = accept(BARE)
    assert not bare.request_id and len(BARE) == len(REAL) - 2 - len(REQUEST)
    told = derived_id(CONSTANTS, 1000)
    expected = hashlib.blake2b(b"request" + struct.pack("<I", 1000), key=CONSTANTS, digest_size=8)
    assert id_of(bare, CONSTANTS) == told == expected.digest()
    # For authors of clients in other languages: a fixed example.
    assert told.hex() == "126b784c1505eacc"
    assert id_of(accept(REAL), CONSTANTS) == REQUEST


def test_a_damaged_request_without_an_id_is_not_taken_for_another() -> None:
    for bit in range(8 * len(BARE)):
        wrong = bytearray(BARE)
        wrong[bit // 8] ^= 1 << bit % 8
        try:
            request = pb.InferRequest.FromString(bytes(wrong))
        except DecodeError:
            continue
        # Whatever stands there now, it is no other derived id: it is nothing, the request's own
        # (where the known fields are whole), or bytes that a flip has made an id field of.
        found = id_of(request, CONSTANTS)
        assert found in (b"", id_of(accept(BARE), CONSTANTS)) or request.request_id
    truncated = pb.InferRequest.FromString(BARE)
    truncated.frame.header = b"\x03"
    assert id_of(truncated, CONSTANTS) == b""


def test_an_id_cannot_be_put_in_or_taken_out_on_the_way() -> None:
    request = pb.InferRequest.FromString(BARE)
    request.request_id = id_of(request, CONSTANTS)
    with pytest.raises(FrameCorruptError):
        verify(request, CONSTANTS)
    request = pb.InferRequest.FromString(REAL)
    request.ClearField("request_id")
    with pytest.raises(FrameCorruptError):
        verify(request, CONSTANTS)


def test_a_question_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(FrameMalformedError):
        parse_infer_request(REAL.replace(b"What", b"\xff\xfe\xfd\xfc"))
    with pytest.raises(QuestionError):
        seal(CONSTANTS, REQUEST, b"h", b"p", "\ud800")


def test_a_frame_without_a_question_just_holds_the_scene() -> None:
    assert accept(real_request("")).question == ""


ASK = seal_ask(CONSTANTS, SESSION, REQUEST, 1000, "And behind it?", 4).SerializeToString()


def test_an_ask_is_accepted_and_means_what_was_sent() -> None:
    request = parse_ask_request(ASK)
    verify(request, CONSTANTS)
    assert (request.session_id, request.frame_number) == (SESSION, 1000)
    assert (request.question, request.max_new_tokens) == ("And behind it?", 4)


def test_no_flipped_bit_of_an_ask_is_accepted() -> None:
    for bit in range(8 * len(ASK)):
        wrong = bytearray(ASK)
        wrong[bit // 8] ^= 1 << bit % 8
        try:
            request = parse_ask_request(bytes(wrong))
            # The server looks the constants up by session id, so another id is another key.
            known = request.session_id == SESSION
            verify(request, CONSTANTS if known else session_constants(bytes(16), "f", "b"))
        except BridgeError:
            continue
        pytest.fail(f"bit {bit} was accepted")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"session_id": b"short"}, FrameMalformedError),
        ({"request_id": b""}, FrameMalformedError),
        ({"question": ""}, QuestionError),
        ({"question": "  "}, QuestionError),
        ({"question": "q" * 513}, QuestionTooLongError),
        ({"max_new_tokens": 33}, FrameMalformedError),
        ({"digest": b""}, FrameMalformedError),
    ],
)
def test_asks_that_lack_or_overstate_something_are_refused(
    change: dict[str, Any], error: type[BridgeError]
) -> None:
    request = pb.AskRequest.FromString(ASK)
    for name, value in change.items():
        setattr(request, name, value)
    with pytest.raises(error):
        parse_ask_request(request.SerializeToString())


def test_a_far_too_long_ask_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(FrameTooLargeError):
        parse_ask_request(b"\xff" * 2000)


def test_the_wire_estimate_is_the_serialized_request_and_its_framing() -> None:
    kept = np.arange(36) % 3 > 0
    header = Header(operating_point=1, frame_number=7, kept=kept)
    packed = pack_header(header, b"x" * 40)
    request = seal(bytes(32), bytes(8), *packed)
    assert wire_bytes(header, b"x" * 40) == len(request.SerializeToString()) + 5 + 9
