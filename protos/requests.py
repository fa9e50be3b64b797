"""Requests with a frame or a further question: sealed at the edge, read exactly by the cloud.

Edge: `header.pack_header`, then `seal`. Cloud: `parse_infer_request`, then `digest.verify`.
"""

from __future__ import annotations

from typing import NamedTuple

from protos.calls import PRIORITIES
from protos.digest import (
    CONSTANTS_BYTES,
    DIGEST_BYTES,
    REQUEST_ID_BYTES,
    SESSION_ID_BYTES,
    ask_digest,
    derived_id,
    frame_digest,
    verify,
)
from protos.errors import BridgeError, FrameMalformedError, QuestionError, QuestionTooLongError
from protos.header import Header, frame_number_of, pack_header, unpack_header
from protos.limits import DEFAULT_LIMITS, Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.wire import parse_exactly

_ASK_OVERHEAD_BYTES = 256
"""Longest AskRequest without its question; its varints may be longer than needed."""
_GRPC_BYTES = 5 + 9
"""A gRPC message's prefix and the header of the HTTP/2 DATA frame that carries it."""


def seal(
    constants: bytes,
    request_id: bytes,
    header: bytes,
    payload: bytes,
    question: str = "",
    max_new_tokens: int = 0,
    priority: int = 0,
) -> pb.InferRequest:
    """Build the request of one frame, digest included.

    Args:
        constants: `session_constants`.
        request_id: 8 to 16 bytes; empty for `derived_id`, which does not travel.
        header: From `pack_header`.
        payload: From `pack_header`.
        question: Empty to just hold the scene.
        max_new_tokens: 0 for the server's maximum.
        priority: one of `PRIORITIES`, by its number.
    """
    digest = frame_digest(
        constants, request_id, header, payload, question, max_new_tokens, priority
    )
    return pb.InferRequest(
        request_id=request_id,
        frame=pb.Frame(header=header, payload=payload, digest=digest),
        question=question,
        max_new_tokens=max_new_tokens,
        priority=priority,
    )


def seal_ask(
    constants: bytes,
    session_id: bytes,
    request_id: bytes,
    frame_number: int,
    question: str,
    max_new_tokens: int = 0,
) -> pb.AskRequest:
    """Build the request of a further question, digest included."""
    return pb.AskRequest(
        session_id=session_id,
        frame_number=frame_number,
        request_id=request_id,
        question=question,
        max_new_tokens=max_new_tokens,
        digest=ask_digest(constants, request_id, frame_number, question, max_new_tokens),
    )


def wire_bytes(header: Header, body: bytes) -> int:
    """About how many uplink bytes a frame without a question takes.

    The request with the shortest id, in gRPC's and HTTP/2's framing; what HTTP/2 sends beside data
    (window updates, pings) and the layers below it are left out.

    Args:
        header: As for `pack_header`.
        body: As for `pack_header`.

    Raises:
        BridgeError: As `pack_header`.
    """
    packed = pack_header(header, body)
    request = seal(bytes(CONSTANTS_BYTES), bytes(REQUEST_ID_BYTES[0]), *packed)
    return int(request.ByteSize()) + _GRPC_BYTES


class Parsed(NamedTuple):
    """A request with a frame, as it was read.

    Attributes:
        request: The whole message.
        header: The frame's header.
        body: What the quantizer decodes, or a picture file: the payload without the bitmap.
    """

    request: pb.InferRequest
    header: Header
    body: bytes


def parse_infer_request(raw: bytes, limits: Limits = DEFAULT_LIMITS) -> Parsed:
    """Read a serialized InferRequest exactly: every bit is known and every field bounded.

    How a client's protobuf library wrote the fields does not matter (`protos.wire`).

    The digest is not checked here (that needs the session): call `verify` next.

    Args:
        raw: The message as received.
        limits: What this side accepts.

    Returns:
        The message, its frame's header and the body behind it.

    Raises:
        FrameTooLargeError: The message or a field of it is too long.
        FrameMalformedError: Not a request; an unknown field or one twice; a field missing or of the
            wrong length; more new tokens than allowed.
        QuestionTooLongError: The question is too long.
        QuestionError: The question is blank but not empty.
        BridgeError: Whatever `unpack_header` raises.
    """
    message: pb.InferRequest = parse_exactly(raw, limits.max_request_bytes, pb.InferRequest)
    if message.HasField("crop"):
        raise FrameMalformedError(
            "InferRequest.crop answers CropWanted, on a stream that was opened with nb-crop, with "
            "request_id and no other field"
        )
    if message.parcel:
        raise FrameMalformedError(
            "InferRequest.parcel stands beside other fields: leave them out, the parcel holds its "
            "requests' own"
        )
    _check_request(message, limits)
    if message.question and not message.question.strip():
        raise QuestionError("the question is blank: leave it empty to just hold the scene")
    if message.priority >= len(PRIORITIES):
        raise FrameMalformedError(
            f"priority is {message.priority}: write 0 ({PRIORITIES[0]}), 1 ({PRIORITIES[1]}) or 2 "
            f"({PRIORITIES[2]})"
        )
    header, body = unpack_header(message.frame.header, message.frame.payload, limits)
    return Parsed(message, header, body)


def parse_ask_request(raw: bytes, limits: Limits = DEFAULT_LIMITS) -> pb.AskRequest:
    """Read a serialized AskRequest exactly, as `parse_infer_request` does.

    Raises:
        FrameTooLargeError: The message is too long.
        FrameMalformedError: Not exactly a request.
        QuestionTooLongError: The question is too long.
        QuestionError: The question is blank.
    """
    most = limits.max_question_bytes + _ASK_OVERHEAD_BYTES
    message: pb.AskRequest = parse_exactly(raw, most, pb.AskRequest)
    _check_request(message, limits)
    if not message.question.strip():
        raise QuestionError("the question is blank")
    return message


def id_of(request: pb.InferRequest, constants: bytes) -> bytes:
    """The id of a request that may be damaged.

    Returns:
        The id that it carries. If it carries none, the id that both sides derive, where its digest
        proves the frame number right. Else nothing.
    """
    if request.request_id:
        return request.request_id[: REQUEST_ID_BYTES[1]]
    number = frame_number_of(request.frame.header)
    try:
        verify(request, constants)
    except BridgeError:
        return b""
    return b"" if number is None else derived_id(constants, number)


def check_lengths(message: pb.InferRequest | pb.AskRequest | pb.FeedbackRequest) -> None:
    """Check the lengths of a request's ids and digest.

    Raises:
        FrameMalformedError: A length is wrong; the message says what was expected.
    """
    name = message.DESCRIPTOR.name
    least, most = REQUEST_ID_BYTES
    derived = isinstance(message, pb.InferRequest) and not message.request_id
    if not derived and not least <= len(message.request_id) <= most:
        raise FrameMalformedError(
            f"{name}.request_id has {len(message.request_id)} bytes, expected {least} to {most}"
        )
    if isinstance(message, pb.InferRequest):
        digest, where = message.frame.digest, "frame.digest"
    else:
        digest, where = message.digest, "digest"
        if len(message.session_id) != SESSION_ID_BYTES:
            raise FrameMalformedError(
                f"{name}.session_id has {len(message.session_id)} bytes, expected "
                f"{SESSION_ID_BYTES}: write NegotiateResponse.session_id"
            )
    if len(digest) != DIGEST_BYTES:
        raise FrameMalformedError(
            f"{name}.{where} has {len(digest)} bytes, expected {DIGEST_BYTES}: see DIGEST in "
            "bridge.proto"
        )


def _check_request(message: pb.InferRequest | pb.AskRequest, limits: Limits) -> None:
    check_lengths(message)
    question_bytes = len(message.question.encode())
    if question_bytes > limits.max_question_bytes:
        raise QuestionTooLongError(
            f"question of {question_bytes} bytes, at most {limits.max_question_bytes} are accepted"
        )
    if message.max_new_tokens > limits.max_new_tokens:
        raise FrameMalformedError(
            f"max_new_tokens is {message.max_new_tokens}, at most {limits.max_new_tokens} are "
            "accepted: write 0 for that"
        )
