"""Frames: every byte known, every limit held, no changed bit accepted."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from protos import frame, quantize
from protos.errors import (
    BridgeError,
    EmptyFrameError,
    FrameCorruptError,
    FrameMalformedError,
    FrameTooLargeError,
    FrameTruncatedError,
    NonFiniteError,
    QuestionError,
    QuestionTooLongError,
)
from protos.frame import (
    DEFAULT_LIMITS,
    FIXED,
    PICTURE,
    PICTURE_POINT,
    RAW_KV_FP8,
    Distortion,
    Header,
    Limits,
    Measured,
    OperatingPoint,
    frame_number_of,
    pack_header,
    parse_ask_request,
    parse_infer_request,
    points_from_json,
    points_to_json,
    seal,
    seal_ask,
    session_constants,
    unpack_header,
    verify,
    wire_bytes,
)
from protos.neuralbridge.v1 import bridge_pb2 as pb

SESSION = bytes(range(16))
REQUEST = b"request-"
CONSTANTS = session_constants(SESSION, "f" * 64, "b" * 64)


def mask(tokens: int, every: int = 3) -> npt.NDArray[np.bool_]:
    return np.arange(tokens) % every == 0


def real_request(
    question: str = "What is left of the red crate?", request_id: bytes = REQUEST
) -> bytes:
    """40 grid tokens, 14 kept, 16 latents each, entropy coded: what an edge really sends."""
    rng = np.random.default_rng(0)
    sample = np.rint(rng.standard_normal((2000, 16))).astype(np.int64)
    coder = quantize.UniformQuantizer(quantize.EntropyTables.fit(sample))
    kept = mask(40)
    body = coder.encode(rng.standard_normal((int(kept.sum()), 16)), np.ones(16))
    distortion = Distortion(0.25, 0.1, 0.3, 1.1)
    header, payload = pack_header(Header(3, 1000, kept, 40, distortion), body)
    request = seal(CONSTANTS, request_id, header, payload, question, 8)
    return request.SerializeToString(deterministic=True)


REAL = real_request()
BARE = real_request(request_id=b"")


def accept(raw: bytes, limits: Limits = DEFAULT_LIMITS) -> pb.InferRequest:
    request = parse_infer_request(raw, limits)
    verify(request, CONSTANTS)
    return request


# --------------------------------------------------------------------------------- header


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


def test_the_scale_of_a_distortion_figure_is_the_one_that_the_protocol_describes() -> None:
    for byte in range(1, 256):
        (figure,) = {*vars(Distortion.from_bytes([byte] * 4)).values()}
        assert math.isclose(figure, 10.0 ** ((byte - 176) / 64), rel_tol=1e-12)
        assert Distortion(figure, figure, figure, figure).to_bytes() == bytes([byte] * 4)
    assert Distortion.from_bytes([176, 0, 240, 48]) == Distortion(1.0, 0.0, 10.0, 0.01)


@settings(max_examples=300, deadline=None, database=None)
@given(st.floats(0.00184, 17.1))
def test_a_distortion_figure_is_wrong_by_half_a_step_at_most(figure: float) -> None:
    found = Distortion.from_bytes(Distortion(quantize=figure).to_bytes())
    assert abs(math.log10(found.quantize / figure)) <= 0.5 / 64 + 1e-9
    assert abs(found.quantize / figure - 1) < 0.0184


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


# --------------------------------------------------------------------------------- limits


def test_each_limit_is_held_exactly() -> None:
    limits = Limits(100, 64, 20, 24, 200, 8, 1, 5)
    header, payload = pack_header(Header(1, 1, mask(24)), b"x" * 100)
    request = seal(CONSTANTS, REQUEST, header, payload, "q" * 20, 5)
    accept(request.SerializeToString(), limits)

    def refused(error: type[BridgeError], smaller: Limits) -> None:
        with pytest.raises(error):
            accept(request.SerializeToString(), smaller)

    refused(FrameTooLargeError, replace(limits, max_payload_bytes=99))
    refused(FrameTooLargeError, replace(limits, max_header_bytes=11))
    refused(FrameTooLargeError, replace(limits, max_tokens=23))
    refused(QuestionTooLongError, replace(limits, max_question_bytes=19))
    refused(FrameMalformedError, replace(limits, max_new_tokens=4))


def test_a_picture_has_a_limit_of_its_own() -> None:
    limits = Limits(max_payload_bytes=10, max_picture_bytes=100)
    header, payload = pack_header(Header(PICTURE_POINT, 1, np.zeros(0, bool)), b"x" * 100)
    accept(seal(CONSTANTS, REQUEST, header, payload).SerializeToString(), limits)
    with pytest.raises(FrameTooLargeError):
        unpack_header(header, payload + b"x", limits)


def test_question_limit_counts_bytes_not_letters() -> None:
    limits = Limits(max_question_bytes=10)
    accept(real_request("ü" * 5), limits)
    with pytest.raises(QuestionTooLongError, match="12 bytes"):
        accept(real_request("ü" * 6), limits)


def test_a_message_beyond_all_limits_is_refused_before_it_is_parsed() -> None:
    raw = b"\xff" * (DEFAULT_LIMITS.max_request_bytes + 1)
    with pytest.raises(FrameTooLargeError):
        parse_infer_request(raw)


def test_the_largest_request_within_the_limits_passes() -> None:
    most = DEFAULT_LIMITS
    header, payload = pack_header(
        Header(PICTURE_POINT, 2**32 - 1, np.zeros(0, bool)), b"x" * most.max_picture_bytes
    )
    question = "q" * most.max_question_bytes
    request = seal(CONSTANTS, b"r" * 16, header, payload, question, most.max_new_tokens)
    accept(request.SerializeToString())


# -------------------------------------------------------------------------------- requests


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
    told = frame.derived_id(CONSTANTS, 1000)
    expected = hashlib.blake2b(b"request" + struct.pack("<I", 1000), key=CONSTANTS, digest_size=8)
    assert frame.id_of(bare, CONSTANTS) == told == expected.digest()
    # For authors of clients in other languages: a fixed example.
    assert told.hex() == "126b784c1505eacc"
    assert frame.id_of(accept(REAL), CONSTANTS) == REQUEST


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
        found = frame.id_of(request, CONSTANTS)
        assert found in (b"", frame.id_of(accept(BARE), CONSTANTS)) or request.request_id
    truncated = pb.InferRequest.FromString(BARE)
    truncated.frame.header = b"\x03"
    assert frame.id_of(truncated, CONSTANTS) == b""


def test_an_id_cannot_be_put_in_or_taken_out_on_the_way() -> None:
    request = pb.InferRequest.FromString(BARE)
    request.request_id = frame.id_of(request, CONSTANTS)
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


# ---------------------------------------------------------------------------------- digest


def test_the_digest_is_keyed_blake2b_over_length_prefixed_parts() -> None:
    parts = [REQUEST, b"header", b"payload", "Wo?ü".encode(), struct.pack("<I", 8)]
    data = b"".join(struct.pack("<I", len(part)) + part for part in parts)
    expected = hashlib.blake2b(data, digest_size=8, key=CONSTANTS).digest()
    assert frame.frame_digest(CONSTANTS, REQUEST, b"header", b"payload", "Wo?ü", 8) == expected
    # For authors of clients in other languages: a fixed example.
    assert expected.hex() == "f302b2704fab82b7"


def test_session_constants_are_the_sha256_of_the_documented_json() -> None:
    plain = {
        "bundle_digest": "b" * 64,
        "protocol_version": 1,
        "session_id": SESSION.hex(),
        "source_fingerprint": "f" * 64,
    }
    text = json.dumps(plain, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).digest() == CONSTANTS
    assert CONSTANTS.hex() == "7365d37bd34c807c3dc3dd21b9ca450467d0bd518ea674bb06ecd575481b462f"


@pytest.mark.parametrize(
    "other",
    [
        session_constants(bytes(16), "f" * 64, "b" * 64),
        session_constants(SESSION, "e" * 64, "b" * 64),
        session_constants(SESSION, "f" * 64, "c" * 64),
    ],
)
def test_a_frame_of_another_session_model_or_bundle_is_corrupt(other: bytes) -> None:
    with pytest.raises(FrameCorruptError, match="another session"):
        verify(parse_infer_request(REAL), other)


def test_a_wrong_digest_is_refused_without_telling_the_right_one() -> None:
    ask = seal_ask(CONSTANTS, SESSION, REQUEST, 3, "And now?")
    for request, right in (
        (pb.InferRequest.FromString(REAL), pb.InferRequest.FromString(REAL).frame.digest),
        (ask, ask.digest),
    ):
        if isinstance(request, pb.InferRequest):
            request.frame.digest = bytes(8)
        else:
            request.digest = bytes(8)
        with pytest.raises(FrameCorruptError) as caught:
            verify(request, CONSTANTS)
        assert right.hex() not in caught.value.message and "00" * 8 in caught.value.message


def test_bytes_cannot_move_between_the_parts_of_a_digest() -> None:
    a = frame.frame_digest(CONSTANTS, REQUEST, b"ab", b"c", "", 0)
    b = frame.frame_digest(CONSTANTS, REQUEST, b"a", b"bc", "", 0)
    assert a != b


def test_constants_of_the_wrong_length_are_refused() -> None:
    for size in (0, 31, 33, 65):
        with pytest.raises(FrameMalformedError, match=f"{size} bytes"):
            frame.frame_digest(bytes(size), REQUEST, b"h", b"p", "", 0)


# ------------------------------------------------------------------------------------- ask


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


# ------------------------------------------------------------------------ operating points


POINTS = (
    OperatingPoint(0, "fp8_all", quantizer="fp8_e4m3", rank=16, steps="fp8_all"),
    OperatingPoint(1, "coarse_20", quantizer="uniform", tokens=20, rank=16, steps="coarse_20"),
    OperatingPoint(
        2,
        "coarse_10",
        quantizer="uniform",
        tokens=10,
        rank=16,
        steps="coarse_20",
        dead_zone=0.2,
        quiet=8.0,
        measured=Measured(40.5, 90, 0.93, 0.12, 0.3),
    ),
    RAW_KV_FP8,
    PICTURE,
)


MEASURED = asdict(Measured(40.5, 90, 0.93, 0.12, 0.3))


def test_operating_points_survive_json() -> None:
    assert points_from_json(points_to_json(POINTS)) == POINTS
    assert all(OperatingPoint.from_json(point.to_json()) == point for point in POINTS)


def test_a_point_that_was_never_measured_is_written_as_before_there_were_measurements() -> None:
    assert set(json.loads(POINTS[0].to_json())) == {
        "index", "name", "kind", "quantizer", "tokens", "rank", "steps",
    }  # fmt: skip


def test_the_wire_estimate_is_the_serialized_request_and_its_framing() -> None:
    kept = np.arange(36) % 3 > 0
    header = Header(operating_point=1, frame_number=7, kept=kept)
    packed = pack_header(header, b"x" * 40)
    request = seal(bytes(32), bytes(8), *packed)
    assert wire_bytes(header, b"x" * 40) == len(request.SerializeToString()) + 5 + 9


@pytest.mark.parametrize(
    "change",
    [
        {"index": 256},
        {"index": -1},
        {"index": True},
        {"index": "1"},
        {"name": ""},
        {"name": "n" * 65},
        {"kind": "video"},
        {"kind": "picture"},
        {"index": PICTURE_POINT},
        {"tokens": 70000},
        {"rank": 1.5},
        {"quantizer": None},
        {"extra": 1},
        {"dead_zone": -0.1},
        {"dead_zone": 0.6},
        {"dead_zone": True},
        {"dead_zone": "0.1"},
        {"quiet": -1},
        {"quiet": None},
        {"quiet": 1e10},
        {"measured": {}},
        {"measured": [1]},
        {"measured": {**MEASURED, "accuracy": 1.5}},
        {"measured": {**MEASURED, "payload_bytes": -1}},
        {"measured": {**MEASURED, "wire_bytes": "90"}},
        {"measured": {**MEASURED, "quantize": 1e300}},
        {"measured": {**MEASURED, "extra": 1}},
    ],
)
def test_lying_operating_points_are_refused(change: dict[str, Any]) -> None:
    plain = {**json.loads(POINTS[1].to_json()), **change}
    with pytest.raises(FrameMalformedError):
        points_from_json(json.dumps([plain]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        "[{}]",
        points_to_json([POINTS[0], replace(POINTS[1], index=0)]),
        points_to_json([POINTS[0], replace(POINTS[1], name="fp8_all")]),
        "[" + ",".join(["1"] * 300) + "]",
    ],
)
def test_json_that_is_no_list_of_distinct_points_is_refused(text: str) -> None:
    with pytest.raises(FrameMalformedError):
        points_from_json(text)


# ------------------------------------------------------------------------------- delta frames


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
