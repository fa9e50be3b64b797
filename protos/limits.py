"""Bounds on a request, checked before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass, fields

from protos.errors import FrameMalformedError
from protos.neuralbridge.v1 import bridge_pb2 as pb

# More than the tags and lengths of the nested messages add to a request's bounded fields.
_FIELD_OVERHEAD_BYTES = 64


@dataclass(frozen=True)
class Limits:
    """Bounds that are checked before anything is allocated; the cloud's travel in `Negotiate`.

    Attributes:
        max_payload_bytes: Payload, except at the picture point.
        max_header_bytes: Header.
        max_question_bytes: Question, as UTF-8.
        max_tokens: Image tokens of a grid.
        max_picture_bytes: Payload at the picture point.
        max_picture_px: Width and height of a picture.
        max_in_flight: Requests of one stream without a terminal event.
        max_new_tokens: Tokens that one answer may have.
    """

    max_payload_bytes: int = 1 << 20
    max_header_bytes: int = 64
    max_question_bytes: int = 512
    max_tokens: int = 4096
    max_picture_bytes: int = 4 << 20
    max_picture_px: int = 4096
    max_in_flight: int = 16
    max_new_tokens: int = 32

    @property
    def max_request_bytes(self) -> int:
        """A serialized InferRequest."""
        return (
            max(self.max_payload_bytes, self.max_picture_bytes)
            + self.max_header_bytes
            + self.max_question_bytes
            + _FIELD_OVERHEAD_BYTES
        )

    def to_proto(self) -> pb.Limits:
        """As the message."""
        return pb.Limits(**{entry.name: getattr(self, entry.name) for entry in fields(self)})

    @classmethod
    def from_proto(cls, message: pb.Limits) -> Limits:
        """From the message.

        Raises:
            FrameMalformedError: A limit is missing (0).
        """
        limits = {entry.name: int(getattr(message, entry.name)) for entry in fields(cls)}
        missing = [name for name, value in limits.items() if not value]
        if missing:
            raise FrameMalformedError(f"limits of the peer lack {', '.join(missing)}")
        return cls(**limits)


DEFAULT_LIMITS = Limits()
