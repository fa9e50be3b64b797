"""The digest is the documented one, and only the session's own."""

from __future__ import annotations

import hashlib
import json
import struct

import pytest

from protos.digest import frame_digest, session_constants, verify
from protos.errors import FrameCorruptError, FrameMalformedError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.requests import parse_infer_request, seal_ask
from tests.protos.frames import CONSTANTS, REAL, REQUEST, SESSION


def test_the_digest_is_keyed_blake2b_over_length_prefixed_parts() -> None:
    parts = [REQUEST, b"header", b"payload", "Wo?ü".encode(), struct.pack("<I", 8)]
    data = b"".join(struct.pack("<I", len(part)) + part for part in parts)
    expected = hashlib.blake2b(data, digest_size=8, key=CONSTANTS).digest()
    assert frame_digest(CONSTANTS, REQUEST, b"header", b"payload", "Wo?ü", 8) == expected
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
        verify(parse_infer_request(REAL).request, other)


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
    a = frame_digest(CONSTANTS, REQUEST, b"ab", b"c", "", 0)
    b = frame_digest(CONSTANTS, REQUEST, b"a", b"bc", "", 0)
    assert a != b


def test_constants_of_the_wrong_length_are_refused() -> None:
    for size in (0, 31, 33, 65):
        with pytest.raises(FrameMalformedError, match=f"{size} bytes"):
            frame_digest(bytes(size), REQUEST, b"h", b"p", "", 0)
