"""Crops: which part of a picture the service asks for, and the message that brings it.

See CROPS in bridge.proto.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from protos.digest import CONSTANTS_BYTES, REQUEST_ID_BYTES, crop_digest
from protos.errors import FrameCorruptError, FrameMalformedError, FrameTooLargeError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.wire import parse_exactly

THOUSAND = 1000
MOST_CROP_BYTES = 1 << 20
_OVERHEAD_BYTES = 64
"""More than the other fields of a crop's message take."""


@dataclass(frozen=True)
class Box:
    """A part of a picture, in thousandths of its width and height.

    Attributes:
        left, top, right, bottom: its edges.

    Raises:
        FrameMalformedError: the edges are out of order or beyond the picture.
    """

    left: int
    top: int
    right: int
    bottom: int

    def __post_init__(self) -> None:
        across, down = (self.left, self.right), (self.top, self.bottom)
        if not all(0 <= first < last <= THOUSAND for first, last in (across, down)):
            raise FrameMalformedError(
                f"a crop from {across[0]}, {down[0]} to {across[1]}, {down[1]} thousandths is no "
                "part of a picture"
            )

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The box in a picture of that size: left, top, right, bottom; at least one pixel."""
        left, right = _within(self.left, self.right, width)
        top, bottom = _within(self.top, self.bottom, height)
        return left, top, right, bottom


def _within(first: int, last: int, size: int) -> tuple[int, int]:
    begin = min((2 * first * size + THOUSAND) // (2 * THOUSAND), size - 1)
    return begin, max(begin + 1, (2 * last * size + THOUSAND) // (2 * THOUSAND))


def seal_crop(constants: bytes, request_id: bytes, picture: bytes) -> pb.InferRequest:
    """The message that brings a crop; an empty picture says that none comes.

    Args:
        constants: `session_constants`.
        request_id: of the request that it belongs to.
        picture: a PNG, JPEG or WebP file.
    """
    digest = crop_digest(constants, request_id, picture)
    return pb.InferRequest(request_id=request_id, crop=pb.Crop(picture=picture, digest=digest))


def holds_crop(raw: bytes) -> bool:
    """Whether a message that protobuf can read brings a crop."""
    return bool(pb.InferRequest.FromString(raw).HasField("crop"))


def parse_crop(raw: bytes, constants: bytes, most_bytes: int) -> tuple[bytes, bytes]:
    """Read a message that brings a crop: the request's id, and the file.

    Args:
        raw: as received.
        constants: `session_constants`, 32 bytes.
        most_bytes: longest file that is taken.

    Raises:
        FrameTooLargeError: the file is longer.
        FrameMalformedError: another field stands beside it, or a length is wrong.
        FrameCorruptError: the digest does not match.
    """
    if len(constants) != CONSTANTS_BYTES:
        raise FrameMalformedError(f"session constants of {len(constants)} bytes")
    most = most_bytes + _OVERHEAD_BYTES
    if len(raw) > most:
        raise FrameTooLargeError(f"crop of {len(raw)} bytes, at most {most_bytes} are taken")
    message: pb.InferRequest = parse_exactly(raw, most, pb.InferRequest)
    if sorted(field.name for field, _ in message.ListFields()) != ["crop", "request_id"]:
        raise FrameMalformedError("a crop stands beside request_id, and no other field")
    least, longest = REQUEST_ID_BYTES
    if not least <= len(message.request_id) <= longest:
        raise FrameMalformedError(
            f"request_id has {len(message.request_id)} bytes, expected {least} to {longest}"
        )
    picture = message.crop.picture
    if len(picture) > most_bytes:
        raise FrameTooLargeError(f"crop of {len(picture)} bytes, at most {most_bytes} are taken")
    digest = crop_digest(constants, message.request_id, picture)
    if not hmac.compare_digest(message.crop.digest, digest):
        raise FrameCorruptError("the crop's digest does not match: bytes changed on the way")
    return message.request_id, picture
