"""The way back on the wire: no changed bit is accepted, on either side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from protos.digest import session_constants, verify
from protos.distortion import Distortion
from protos.errors import (
    BridgeError,
    FrameCorruptError,
    FrameMalformedError,
    FrameTooLargeError,
    FrameTruncatedError,
    from_code,
)
from protos.feedback import (
    MAX_POINT_BYTES,
    open_response,
    parse_feedback_request,
    seal_feedback,
    seal_response,
)
from protos.header import Header, pack_header
from protos.limits import DEFAULT_LIMITS
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.requests import seal

SESSION, REQUEST = bytes(range(16)), b"request-"
EDGE_KEY = session_constants(SESSION, "e" * 64, "b" * 64)
CLOUD_KEY = session_constants(SESSION, "c" * 64, "b" * 64)
HEADER = Header(10, 77, np.ones(36, dtype=np.bool_), 0, Distortion(0.1, 0.0, 0.2, 1.0))
BODY = np.random.default_rng(0).bytes(36 * 9)


def raw_request(point: str = "fine") -> bytes:
    return seal_feedback(EDGE_KEY, SESSION, REQUEST, 77, point).SerializeToString()


def response() -> pb.FeedbackResponse:
    return seal_response(CLOUD_KEY, REQUEST, HEADER, BODY)


def opened(message: pb.FeedbackResponse, **over: Any) -> tuple[Header, bytes]:
    given = {"constants": CLOUD_KEY, "request_id": REQUEST, "frame_number": 77} | over
    return open_response(message, **given)


@pytest.mark.parametrize("point", ["", "fine"])
def test_a_request_arrives_as_it_was_sealed(point: str) -> None:
    request = parse_feedback_request(raw_request(point))
    verify(request, EDGE_KEY)
    assert (request.frame_number, request.point, request.request_id) == (77, point, REQUEST)


def test_no_flipped_bit_of_a_request_is_accepted() -> None:
    raw = raw_request()
    for bit in range(8 * len(raw)):
        broken = bytearray(raw)
        broken[bit // 8] ^= 1 << bit % 8
        try:
            request = parse_feedback_request(bytes(broken))
            verify(request, EDGE_KEY)
        except BridgeError:
            continue
        # The session id is looked up before it is believed, and its key is another's.
        assert request.session_id != SESSION, f"bit {bit}"


def test_a_request_with_anything_more_is_refused() -> None:
    for more in (b"\x30\x01", raw_request()[-10:]):
        with pytest.raises(FrameMalformedError):
            parse_feedback_request(raw_request() + more)
    with pytest.raises(FrameTooLargeError):
        parse_feedback_request(b"\0" * 300)
    for request in (
        seal_feedback(EDGE_KEY, SESSION, REQUEST, 1, "x" * (MAX_POINT_BYTES + 1)),
        seal_feedback(EDGE_KEY, SESSION[:15], REQUEST, 1),
        seal_feedback(EDGE_KEY, SESSION, b"short", 1),
    ):
        with pytest.raises(FrameMalformedError):
            parse_feedback_request(request.SerializeToString())


def test_a_response_arrives_as_it_was_sealed() -> None:
    header, body = opened(response())
    assert body == BODY and header.frame_number == 77 and header.operating_point == 10
    assert header.kept.all() and header.tokens == 36
    assert header.distortion.latent_residual == pytest.approx(0.2, rel=0.02)


def test_no_flipped_bit_of_a_response_is_accepted() -> None:
    good = response().frame
    for name in ("header", "payload", "digest"):
        blob = getattr(good, name)
        for bit in range(8 * len(blob)):
            broken = bytearray(blob)
            broken[bit // 8] ^= 1 << bit % 8
            message = response()
            setattr(message.frame, name, bytes(broken))
            with pytest.raises(BridgeError):
                opened(message)


@pytest.mark.parametrize(
    ("over", "error"),
    [
        ({"request_id": b"another-"}, FrameCorruptError),
        ({"constants": EDGE_KEY}, FrameCorruptError),
        ({"frame_number": 78}, FrameMalformedError),
        ({"limits": replace(DEFAULT_LIMITS, max_payload_bytes=len(BODY) - 1)}, FrameTooLargeError),
        ({"limits": replace(DEFAULT_LIMITS, max_tokens=35)}, FrameTooLargeError),
        ({"limits": replace(DEFAULT_LIMITS, max_header_bytes=8)}, FrameTooLargeError),
    ],
    ids=["another request", "another key", "another scene", "payload", "grid", "header"],
)
def test_a_response_to_something_else_or_above_the_limits_is_refused(
    over: dict[str, Any], error: type[BridgeError]
) -> None:
    with pytest.raises(error):
        opened(response(), **over)


def test_a_wrong_digest_is_refused_without_telling_the_right_one() -> None:
    message = response()
    right, message.frame.digest = message.frame.digest, bytes(8)
    with pytest.raises(FrameCorruptError) as caught:
        opened(message)
    assert right.hex() not in caught.value.message


def test_an_empty_response_is_refused() -> None:
    with pytest.raises(FrameTruncatedError):
        opened(pb.FeedbackResponse())


def test_a_delta_frame_is_refused_as_a_response() -> None:
    with pytest.raises(FrameMalformedError, match="changes 70"):
        opened(seal_response(CLOUD_KEY, REQUEST, replace(HEADER, base=70), BODY))


def test_a_request_does_not_pass_for_a_response() -> None:
    """Both sides hold the same session: what one sealed must not be taken for the other's."""
    packed, payload = pack_header(HEADER, BODY)
    sealed = seal(EDGE_KEY, REQUEST, packed, payload)
    with pytest.raises(FrameCorruptError):
        opened(pb.FeedbackResponse(frame=sealed.frame))


def test_the_refusal_for_a_bundle_without_a_way_back_travels_as_its_number() -> None:
    error = from_code(307, "one way only")
    assert (error.name, error.grpc_status, error.retryable) == (
        "no_feedback",
        "FAILED_PRECONDITION",
        False,
    )
