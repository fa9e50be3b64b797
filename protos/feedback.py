"""The bytes of feedback: a request for the cloud's state of a scene, and the response.

WAY BACK in bridge.proto describes them. Edge: `seal_feedback`, then `open_response`. Cloud:
`parse_feedback_request`, `digest.verify`, then `seal_response`.
"""

from __future__ import annotations

import hmac

from protos.digest import ask_digest, frame_digest
from protos.errors import FrameCorruptError, FrameMalformedError
from protos.header import Header, pack_header, unpack_header
from protos.limits import DEFAULT_LIMITS, Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.requests import check_lengths
from protos.wire import parse_exactly

MAX_POINT_BYTES = 64
_MAX_REQUEST_BYTES = 256


def seal_feedback(
    constants: bytes, session_id: bytes, request_id: bytes, frame_number: int, point: str = ""
) -> pb.FeedbackRequest:
    """Build the request for a scene's state, digest included.

    Args:
        constants: `digest.session_constants`.
        session_id: 16 bytes.
        request_id: 8 to 16 bytes.
        frame_number: a scene that the cloud holds.
        point: name of a feedback point; empty for the first.
    """
    return pb.FeedbackRequest(
        session_id=session_id,
        frame_number=frame_number,
        request_id=request_id,
        point=point,
        digest=ask_digest(constants, request_id, frame_number, point, 0),
    )


def parse_feedback_request(raw: bytes) -> pb.FeedbackRequest:
    """Read a serialized FeedbackRequest exactly, as `requests.parse_infer_request` does.

    The digest is not checked here (that needs the session): call `digest.verify` next.

    Raises:
        FrameTooLargeError: The message is too long.
        FrameMalformedError: Not exactly a request.
    """
    message: pb.FeedbackRequest = parse_exactly(raw, _MAX_REQUEST_BYTES, pb.FeedbackRequest)
    check_lengths(message)
    if len(message.point) > MAX_POINT_BYTES:
        raise FrameMalformedError(
            f"FeedbackRequest.point has {len(message.point)} letters, at most {MAX_POINT_BYTES} "
            "are accepted"
        )
    return message


def seal_response(
    constants: bytes, request_id: bytes, header: Header, body: bytes
) -> pb.FeedbackResponse:
    """Build the frame that answers a request, digest included.

    Args:
        constants: `digest.session_constants` with the *cloud's* layout for the source.
        request_id: the request's.
        header: the scene's, in the cloud's tokens.
        body: what the quantizer wrote.

    Raises:
        BridgeError: as `header.pack_header`.
    """
    packed, payload = pack_header(header, body)
    digest = frame_digest(constants, request_id, packed, payload, "", 0)
    return pb.FeedbackResponse(frame=pb.Frame(header=packed, payload=payload, digest=digest))


def open_response(
    message: pb.FeedbackResponse,
    constants: bytes,
    request_id: bytes,
    frame_number: int,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[Header, bytes]:
    """Verify and read what `seal_response` wrote; every byte is checked.

    Args:
        message: as received.
        constants: as `seal_response` takes it.
        request_id: the request's.
        frame_number: the scene that was asked for.
        limits: what the edge accepts.

    Returns:
        The header, and the payload without the bitmap: what the quantizer decodes.

    Raises:
        FrameTooLargeError: a field or the grid is larger than the limits.
        FrameCorruptError: the digest does not match: bytes changed on the way, or it answers
            another request, session, model or bundle.
        FrameMalformedError: it is for another scene, is a delta frame, or its header is malformed.
        BridgeError: as `header.unpack_header`.
    """
    frame = message.frame
    header, body = unpack_header(frame.header, frame.payload, limits)
    digest = frame_digest(constants, request_id, frame.header, frame.payload, "", 0)
    if not hmac.compare_digest(frame.digest, digest):
        raise FrameCorruptError(
            f"digest {frame.digest.hex()} does not match the state sent back: bytes changed on the "
            "way, or it answers another request"
        )
    if header.frame_number != frame_number or header.base is not None:
        raise FrameMalformedError(
            f"the state sent back is of frame {header.frame_number} (changes {header.base}), all "
            f"of frame {frame_number} was asked for"
        )
    return header, body
