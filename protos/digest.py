"""The digest that seals a request: a hash keyed with the session's constants."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Iterable

from protos.calls import PROTOCOL_VERSION
from protos.errors import FrameCorruptError, FrameMalformedError, QuestionError
from protos.neuralbridge.v1 import bridge_pb2 as pb

DIGEST_BYTES = 8
PARCEL_DIGEST_BYTES = 4
CONSTANTS_BYTES = 32
SESSION_ID_BYTES = 16
REQUEST_ID_BYTES = (8, 16)
_LENGTH = struct.Struct("<I")
_FOUR = _LENGTH.pack(_LENGTH.size)


def session_constants(session_id: bytes, source_fingerprint: str, bundle_digest: str) -> bytes:
    """The key of every digest in a session, made from what both sides agreed on.

    Args:
        session_id: 16 bytes.
        source_fingerprint: `KVLayout.fingerprint` of the edge's model.
        bundle_digest: SHA-256 (hex) of the bundle, which covers the encoder, the target's layout
            and the operating points.

    Returns:
        32 bytes: SHA-256 of the canonical JSON of these and the protocol version.
    """
    plain = {
        "bundle_digest": bundle_digest,
        "protocol_version": PROTOCOL_VERSION,
        "session_id": session_id.hex(),
        "source_fingerprint": source_fingerprint,
    }
    return hashlib.sha256(
        json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    ).digest()


def derived_id(constants: bytes, frame_number: int) -> bytes:
    """The id of a request that carries none: 8 bytes that both sides derive.

    Args:
        constants: `session_constants`.
        frame_number: The frame's number.
    """
    what = b"request" + _LENGTH.pack(frame_number)
    return hashlib.blake2b(what, key=constants, digest_size=REQUEST_ID_BYTES[0]).digest()


def frame_digest(
    constants: bytes,
    request_id: bytes,
    header: bytes,
    payload: bytes,
    question: str,
    max_new_tokens: int,
    priority: int = 0,
) -> bytes:
    """The digest of a request: 8 bytes of BLAKE2b (RFC 7693) keyed with the session's constants.

    Each part is preceded by its length (uint32, little endian), so bytes cannot move between them.
    A priority of 0 is left out.

    Raises:
        FrameMalformedError: The constants are not 32 bytes.
        QuestionError: The question cannot be written as UTF-8.
    """
    if len(constants) != CONSTANTS_BYTES:
        raise FrameMalformedError(
            f"session constants of {len(constants)} bytes, expected {CONSTANTS_BYTES}"
        )
    try:
        text = question.encode()
    except UnicodeEncodeError as error:
        raise QuestionError(f"the question is not valid Unicode: {error}") from error
    size = _LENGTH.pack
    parts = [size(len(request_id)), request_id, size(len(header)), header]
    parts += [size(len(payload)), payload, size(len(text)), text, _FOUR, size(max_new_tokens)]
    if priority:
        parts += [_FOUR, size(priority)]
    return hashlib.blake2b(b"".join(parts), key=constants, digest_size=DIGEST_BYTES).digest()


def parcel_digest(constants: bytes, digests: Iterable[bytes]) -> bytes:
    """The digest of a parcel: 4 bytes over the digests of its frames, in their order.

    Args:
        constants: `session_constants`.
        digests: from `frame_digest`, of each frame as if it travelled alone.
    """
    what = b"parcel" + b"".join(digests)
    return hashlib.blake2b(what, key=constants, digest_size=PARCEL_DIGEST_BYTES).digest()


def crop_digest(constants: bytes, request_id: bytes, picture: bytes) -> bytes:
    """The digest of a crop: 8 bytes over its request's id and its file."""
    state = hashlib.blake2b(key=constants, digest_size=DIGEST_BYTES)
    for part in (b"crop", request_id, picture):
        state.update(_LENGTH.pack(len(part)))
        state.update(part)
    return state.digest()


def shadow_digest(constants: bytes, frame_number: int, picture: bytes) -> bytes:
    """The digest of a shadowed picture: 8 bytes over its frame's number and its file."""
    state = hashlib.blake2b(key=constants, digest_size=DIGEST_BYTES)
    for part in (b"shadow", _LENGTH.pack(frame_number), picture):
        state.update(_LENGTH.pack(len(part)))
        state.update(part)
    return state.digest()


def ask_digest(
    constants: bytes, request_id: bytes, frame_number: int, question: str, max_new_tokens: int
) -> bytes:
    """The digest of an AskRequest: a frame's, with 4 bytes of frame number for a header."""
    header = _LENGTH.pack(frame_number)
    return frame_digest(constants, request_id, header, b"", question, max_new_tokens)


def verify(request: pb.InferRequest | pb.AskRequest | pb.FeedbackRequest, constants: bytes) -> None:
    """Check a request's digest against the session's constants.

    This finds damage and mix-ups, not forgery: whoever knows the session's id can make the key.

    Raises:
        FrameCorruptError: It does not match: bytes changed on the way, or the frame was sealed for
            another session, model or bundle.
    """
    if isinstance(request, pb.InferRequest):
        given = request.frame.digest
        digest = frame_digest(
            constants,
            request.request_id,
            request.frame.header,
            request.frame.payload,
            request.question,
            request.max_new_tokens,
            request.priority,
        )
    else:
        given = request.digest
        asked, limit = (
            (request.question, request.max_new_tokens)
            if isinstance(request, pb.AskRequest)
            else (request.point, 0)
        )
        digest = ask_digest(constants, request.request_id, request.frame_number, asked, limit)
    if not hmac.compare_digest(given, digest):
        raise FrameCorruptError(
            f"digest {given.hex()} does not match the request: bytes changed on the way, or it was "
            "sealed for another session, model or bundle"
        )
