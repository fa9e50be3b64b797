"""Whatever a protobuf library writes is read; what hides a bit is refused by its field's name."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.digest import session_constants, verify
from protos.errors import BridgeError, FrameMalformedError, FrameTooLargeError
from protos.feedback import parse_feedback_request, seal_feedback
from protos.header import Header, pack_header
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.requests import parse_ask_request, parse_infer_request, seal, seal_ask

SESSION = bytes(range(16))
CONSTANTS = session_constants(SESSION, "f" * 64, "b" * 64)
KEPT = np.arange(10) % 2 == 0
HEADER, PAYLOAD = pack_header(Header(3, 0, KEPT), bytes(9) + b"\x80\0\x80\0" + bytes(7))
PARSERS: dict[type, Callable[[bytes], Any]] = {
    pb.InferRequest: lambda raw: parse_infer_request(raw).request,
    pb.AskRequest: parse_ask_request,
    pb.FeedbackRequest: parse_feedback_request,
}
# Zeros and 0x80 in the contents: where a length moves, they are what could pass for another number.
REQUESTS = {
    "infer": seal(CONSTANTS, bytes(8), HEADER, PAYLOAD, "what ?", 8),
    "infer, all left out": seal(CONSTANTS, b"", HEADER, PAYLOAD),
    "infer, no id": seal(CONSTANTS, b"", HEADER, PAYLOAD, "what ?"),
    "infer, no question": seal(CONSTANTS, b"\x80\0" * 4, HEADER, PAYLOAD, "", 1),
    "infer, alarm": seal(CONSTANTS, bytes(8), HEADER, PAYLOAD, "what ?", 8, 1),
    "ask": seal_ask(CONSTANTS, SESSION, b"request-", 300, "what ?", 4),
    "ask of frame 0": seal_ask(CONSTANTS, SESSION, bytes(8), 0, "what ?"),
    "feedback": seal_feedback(CONSTANTS, SESSION, b"request-", 7, "fine"),
    "feedback of frame 0": seal_feedback(CONSTANTS, SESSION, b"request-", 0),
}


def accept(raw: bytes, kind: type) -> Any:
    request = PARSERS[kind](raw)
    # The server looks the constants up by session id, so another id is another key.
    known = kind is pb.InferRequest or request.session_id == SESSION
    verify(request, CONSTANTS if known else session_constants(bytes(16), "f", "b"))
    return request


# ------------------------------------------------- an encoder that can write what no library would


def varint(value: int, pad: int = 0) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    if pad:
        out[-1] |= 0x80
        out += b"\x80" * (pad - 1) + b"\0"
    return bytes(out)


def field(number: int, value: Any, pad: int = 0) -> bytes:
    if isinstance(value, int):
        return varint(number << 3, pad) + varint(value, pad)
    blob = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2, pad) + varint(len(blob), pad) + blob


def fields_of(message: Any, defaults: bool = False) -> list[tuple[int, Any]]:
    return [
        (entry.number, getattr(message, entry.name))
        for entry in message.DESCRIPTOR.fields
        if (
            message.HasField(entry.name)
            if entry.message_type
            else defaults or getattr(message, entry.name)
        )
    ]


def encodings(message: Any) -> Iterator[tuple[str, bytes]]:
    """A message as libraries write it, and as the format allows it."""
    draw = random.Random(0)
    yield "canonical", message.SerializeToString(deterministic=True)

    def written(fields: list[tuple[int, Any]], pad: int = 0, shuffle: bool = False) -> bytes:
        if shuffle:
            draw.shuffle(fields)
        parts = []
        for number, value in fields:
            if isinstance(value, pb.Frame):
                value = written(fields_of(value), pad, shuffle)
            parts.append(field(number, value, pad))
        return b"".join(parts)

    yield "defaults written out", written(fields_of(message, defaults=True))
    for pad in (1, 2):
        yield f"varints {pad} longer", written(fields_of(message), pad)
        yield f"defaults and varints {pad} longer", written(fields_of(message, True), pad)
    for i in range(6):
        yield f"reordered {i}", written(fields_of(message), shuffle=True)
        yield f"reordered {i}, varints longer", written(fields_of(message), 1, shuffle=True)
    # Only some of the defaults are written out: as a client does that sets some fields.
    empty = [f for f in fields_of(message, True) if f not in fields_of(message)]
    for some in itertools.chain.from_iterable(
        itertools.combinations(empty, n) for n in range(1, len(empty) + 1)
    ):
        yield f"written out: {some}", written(sorted([*fields_of(message), *some]))


@pytest.mark.parametrize("name", REQUESTS)
def test_every_encoding_that_a_library_may_write_is_accepted_and_means_the_same(name: str) -> None:
    message = REQUESTS[name]
    seen = dict(encodings(message))
    assert len(set(seen.values())) > 8
    for how, raw in seen.items():
        assert type(message).FromString(raw) == message, how  # it is such an encoding
        assert accept(raw, type(message)) == message, how


@pytest.mark.quick("infer, alarm", "ask", "feedback")
@pytest.mark.parametrize("name", REQUESTS)
def test_no_flipped_bit_of_any_encoding_is_accepted(name: str) -> None:
    kind = type(REQUESTS[name])
    accepted = []
    for how, raw in encodings(REQUESTS[name]):
        for bit in range(8 * len(raw)):
            wrong = bytearray(raw)
            wrong[bit // 8] ^= 1 << bit % 8
            try:
                accept(bytes(wrong), kind)
            except BridgeError:
                continue
            accepted.append((how, bit))
    assert not accepted


@pytest.mark.parametrize("name", REQUESTS)
def test_no_encoding_is_accepted_that_ends_early(name: str) -> None:
    kind = type(REQUESTS[name])
    for _, raw in encodings(REQUESTS[name]):
        whole = fields_of(kind.FromString(raw))
        for n in range(len(raw)):
            try:
                accept(raw[:n], kind)
            except BridgeError:
                continue
            # Only defaults that were written out can be missing without a trace.
            assert fields_of(kind.FromString(raw[:n])) == whole


def test_an_empty_id_and_an_empty_question_are_not_one_bit_apart() -> None:
    message = REQUESTS["infer, all left out"]
    frame = field(2, message.frame.SerializeToString())
    for raw in (field(1, "") + frame, frame + field(3, ""), field(1, "") + frame + field(3, "")):
        assert accept(raw, pb.InferRequest) == message
    for raw in (frame + field(1, ""), field(3, "") + frame):
        with pytest.raises(FrameMalformedError, match="ascending order: leave it out"):
            parse_infer_request(raw)


INFER = REQUESTS["infer"].SerializeToString()
FRAME = REQUESTS["infer"].frame.SerializeToString()
BEFORE, AFTER = INFER[:10], INFER[-10:]  # the id; the question and max_new_tokens
ASK = REQUESTS["ask of frame 0"].SerializeToString()


@pytest.mark.parametrize(
    ("raw", "kind", "said"),
    [
        (
            INFER + field(5, 1),
            pb.InferRequest,
            "no field 5.*4 max_new_tokens, 7 priority, 8 parcel, 13 crop; send no others",
        ),
        (INFER + b"\x2b\x2c", pb.InferRequest, "no field 5"),
        (INFER + field(3, "what ?"), pb.InferRequest, r"question is written twice: write it once"),
        (INFER + field(4, 8), pb.InferRequest, "max_new_tokens is written twice"),
        (BEFORE + field(2, FRAME) * 2 + AFTER, pb.InferRequest, "InferRequest.frame .* twice"),
        (BEFORE + field(2, FRAME[:12]) + field(2, FRAME[12:]), pb.InferRequest, "frame"),
        (
            BEFORE + field(2, FRAME + field(1, HEADER)) + AFTER,
            pb.InferRequest,
            "InferRequest.frame.header is written twice",
        ),
        (
            BEFORE + field(2, FRAME + field(4, 1)) + AFTER,
            pb.InferRequest,
            "InferRequest.frame has no field 4: it has 1 header, 2 payload, 3 digest",
        ),
        (INFER[:-2] + field(4, "8"), pb.InferRequest, "max_new_tokens .* with 0, as uint32"),
        (INFER[:-2] + field(4, 8 + (1 << 32)), pb.InferRequest, "max_new_tokens is 4294967304"),
        (INFER[:-2] + b"\x20" + b"\x88" + b"\x80" * 9 + b"\0", pb.InferRequest, "max_new_tokens"),
        (INFER.replace(b"what", b"\xff\xfe\xfd\xfc"), pb.InferRequest, "question is not valid UTF"),
        (b"\0" + INFER, pb.InferRequest, "no field 0"),
        (field(2, INFER), pb.InferRequest, "InferRequest.frame"),
        (INFER[:-1], pb.InferRequest, "ends within InferRequest.max_new_tokens"),
        (INFER[:-3], pb.InferRequest, "question has 6 bytes by its length, 5 follow"),
        (ASK + field(2, 0), pb.AskRequest, "ascending order"),
        (field(2, "0") + ASK, pb.AskRequest, "AskRequest.frame_number is written with wire type 2"),
        (ASK.replace(b"\x0a\x10", b"\x0a\x11"), pb.AskRequest, "AskRequest"),
        (ASK[18:], pb.AskRequest, "AskRequest.session_id has 0 bytes, expected 16"),
        (ASK[:18] + ASK[28:], pb.AskRequest, "AskRequest.request_id has 0 bytes, expected 8 to 16"),
        (ASK[:-10], pb.AskRequest, "AskRequest.digest has 0 bytes, expected 8: see DIGEST"),
        (
            seal_ask(CONSTANTS, SESSION, b"request-", 1, "?", 33).SerializeToString(),
            pb.AskRequest,
            "max_new_tokens is 33, at most 32 are accepted: write 0",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused_is_named_and_so_is_what_to_write(
    raw: bytes, kind: type, said: str
) -> None:
    with pytest.raises(FrameMalformedError, match=said):
        PARSERS[kind](raw)


def test_a_message_beyond_its_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(FrameTooLargeError):
        parse_feedback_request(b"\xff" * 300)


@settings(max_examples=600, deadline=None, database=None)
@given(
    st.sampled_from([(name, i) for name in REQUESTS for i in range(12)]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3),
    st.binary(max_size=6),
)
def test_no_message_is_accepted_that_a_protobuf_library_reads_as_another(
    which: tuple[str, int], changes: list[tuple[int, int]], more: bytes
) -> None:
    name, i = which
    kind = type(REQUESTS[name])
    raw = bytearray([raw for _, raw in encodings(REQUESTS[name])][i] + more)
    for at, value in changes:
        raw[at % len(raw)] = value
    try:
        seen = PARSERS[kind](bytes(raw))
    except BridgeError:
        return
    try:
        plain = kind.FromString(bytes(raw))  # type: ignore[attr-defined]
    except DecodeError:
        pytest.fail("accepted what a protobuf library refuses")
    assert seen == plain and not seen.ByteSize() > len(raw)
