"""Shadows: the messages that bring a frame's picture, in parts. See SHADOW in bridge.proto."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass

from protos.digest import CONSTANTS_BYTES, SESSION_ID_BYTES, shadow_digest
from protos.errors import FrameCorruptError, FrameMalformedError, FrameTooLargeError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.wire import parse_exactly

_OVERHEAD_BYTES = 64
"""More than the other fields of a message take."""
MOST_PARTS = 1 << 14


def shadow_parts(
    session_id: bytes, constants: bytes, frame_number: int, picture: bytes, part_bytes: int
) -> Iterator[pb.ShadowRequest]:
    """The messages that bring a picture.

    Args:
        session_id: of the frame's session.
        constants: `session_constants` of it.
        frame_number: of the frame.
        picture: a PNG, JPEG or WebP file.
        part_bytes: longest part, at least 1.
    """
    step = max(part_bytes, -(-len(picture) // MOST_PARTS))
    for at in range(0, len(picture), step):
        part = picture[at : at + step]
        rest = len(picture) - at - len(part)
        message = pb.ShadowRequest(picture=part, rest=rest)
        if at == 0:
            message.session_id, message.frame_number = session_id, frame_number
        if not rest:
            message.digest = shadow_digest(constants, frame_number, picture)
        yield message


@dataclass(frozen=True)
class Shadowed:
    """A picture as it came.

    Attributes:
        session_id, frame_number: of its frame.
        picture: the file.
        digest: not checked yet: that takes the session's constants.
    """

    session_id: bytes
    frame_number: int
    picture: bytes
    digest: bytes

    def verify(self, constants: bytes) -> None:
        """Check the digest.

        Raises:
            FrameCorruptError: bytes changed on the way, or it is of another session.
        """
        if len(constants) != CONSTANTS_BYTES:
            raise FrameMalformedError(f"session constants of {len(constants)} bytes")
        wanted = shadow_digest(constants, self.frame_number, self.picture)
        if not hmac.compare_digest(self.digest, wanted):
            raise FrameCorruptError(
                "the shadowed picture's digest does not match: bytes changed on the way"
            )


class Gathering:
    """Puts a picture together from its parts.

    Args:
        most_bytes: longest file that is taken.

    Attributes:
        bytes: of the parts so far.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._first: pb.ShadowRequest | None = None
        self._parts: list[bytes] = []
        self._rest = 0
        self.bytes = 0

    def add(self, raw: bytes) -> Shadowed | None:
        """Take a message; returns the picture once it is whole.

        Raises:
            FrameTooLargeError: the file is longer than is taken.
            FrameMalformedError: no such message, a field is missing or out of place, or the parts
                do not fit together.
        """
        message: pb.ShadowRequest = parse_exactly(
            raw, self._most + _OVERHEAD_BYTES, pb.ShadowRequest
        )
        size = len(message.picture)
        if self.bytes + size + message.rest > self._most:
            raise FrameTooLargeError(
                f"shadowed picture of {self.bytes + size + message.rest} bytes, at most "
                f"{self._most} are taken"
            )
        self._require(message, size)
        self._first = first = self._first or message
        self._parts.append(message.picture)
        self.bytes += size
        self._rest = message.rest
        if message.rest:
            return None
        return Shadowed(first.session_id, first.frame_number, b"".join(self._parts), message.digest)

    def _require(self, message: pb.ShadowRequest, size: int) -> None:
        if not size:
            raise FrameMalformedError("a part of a shadowed picture is empty")
        if self._first is None:
            if len(message.session_id) != SESSION_ID_BYTES:
                raise FrameMalformedError(
                    f"a session id of {len(message.session_id)} bytes, expected "
                    f"{SESSION_ID_BYTES}: the first part of a shadowed picture names its frame"
                )
        elif message.session_id or message.frame_number:
            raise FrameMalformedError("only the first part of a shadowed picture names its frame")
        elif size + message.rest != self._rest:
            raise FrameMalformedError(
                f"{self._rest} bytes of the shadowed picture were to come, now "
                f"{size + message.rest}"
            )
        if len(self._parts) >= MOST_PARTS:
            raise FrameMalformedError(f"a shadowed picture in more than {MOST_PARTS} parts")
        if bool(message.digest) != (message.rest == 0):
            raise FrameMalformedError(
                "the last part of a shadowed picture has the digest, no other"
            )
