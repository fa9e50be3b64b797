"""How a request ended; with feedback, the state that the server sent back."""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.uplink.request import Sealed
from edge_agent.uplink.session import Session
from projector.codec.arrays import Floats
from projector.codec.feedback import FeedbackDecoder
from protos.distortion import Distortion
from protos.errors import BridgeError
from protos.neuralbridge.v1 import bridge_pb2


@dataclass(frozen=True)
class Returned:
    """The server's own state of a scene that it holds, sent back for the small model.

    Attributes:
        decoder: makes a state of the small model from the latents.
        latents: as decoded, `[M, r + 1]`.
        point: name of the operating point.
        payload_bytes: of the frame that carried it.
        distortion: as the server measured it.
        round_trip: see `protos.distortion`; None if the small model did not see the picture.
    """

    decoder: FeedbackDecoder
    latents: Floats
    point: str
    payload_bytes: int
    distortion: Distortion
    round_trip: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How a request ended.

    Attributes:
        request_id: empty if it never got one.
        answer: the service's answer; None for a held scene and for an error.
        error: what ended it without an answer; None if nothing did.
        sealed: what was sent last; None if nothing was.
        message_bytes: size of the last message sent.
        uplink_ms: from the last send to the terminal event, milliseconds.
        attempts: times it was sent.
        session: the session in which it ended.
        returned: the state that was asked for; None for any other request.
        final: sending it again would not help: it was answered, or refused for good. Else the way
            to the server, or the time for it, ended the attempts.
        ended_ns: when it ended (nanoseconds, the machine's monotonic clock); 0 if unknown.
        crop_bytes: of the crop that the service asked for and got; 0 without one.
    """

    request_id: bytes
    answer: bridge_pb2.Answer | None = None
    error: BridgeError | None = None
    sealed: Sealed | None = None
    message_bytes: int = 0
    uplink_ms: float = 0.0
    attempts: int = 0
    session: Session | None = None
    returned: Returned | None = None
    final: bool = True
    crop_bytes: int = 0
    ended_ns: int = 0
