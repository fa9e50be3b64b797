"""One frame: a capture's payload at one operating point, what it lost, and what the guard says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from projector.codec.deltas import Held
from protos.distortion import Distortion
from protos.errors import BridgeError, FrameTooLargeError
from protos.limits import Limits
from protos.points import OperatingPoint


@dataclass(frozen=True)
class Frame:
    """What is sent for one capture, or would be sent if the guard allowed it.

    Attributes:
        point: the operating point it was made at.
        tokens: image tokens of the grid, 0 for a picture.
        kept: `[tokens]` bool.
        payload: the quantized latents, or the picture's file; without the kept bitmap.
        distortion: as `protos.distortion` defines the figures; None for a picture.
        select_ms: time to choose the tokens, milliseconds.
        encode_ms: time to encode them, or the picture, milliseconds.
        held: what the service knows after the frame; None for a picture.
        base: number of the frame that a delta frame changes; None for a key frame.
        differences: whether the payload holds differences to the base.
        risk: probability that the frame's answer differs from the picture's. A picture sent
            instead of a frame has that frame's risk. None if the guard did not measure it.
        fallback: why the guard sends this picture instead of a frame; else empty.
        refused: why the guard sends neither frame nor picture; None if this may be sent.
    """

    point: OperatingPoint
    tokens: int
    kept: npt.NDArray[np.bool_]
    payload: bytes
    distortion: Distortion | None
    select_ms: float
    encode_ms: float
    held: Held | None = None
    base: int | None = None
    differences: bool = False
    risk: float | None = None
    fallback: str = ""
    refused: BridgeError | None = None

    @property
    def kept_tokens(self) -> int:
        """Tokens in the payload."""
        return int(self.kept.sum())


def check_size(frame: Frame, limits: Limits) -> None:
    """Refuse a frame that the server would refuse.

    Raises:
        FrameTooLargeError: the payload or the grid is over the server's limit.
    """
    picture = frame.point.kind == "picture"
    limit = limits.max_picture_bytes if picture else limits.max_payload_bytes
    advice = "lower picture_quality or picture_px" if picture else "choose a point of fewer bytes"
    if len(frame.payload) > limit:
        raise FrameTooLargeError(
            f"the payload has {len(frame.payload)} bytes at point {frame.point.name!r}, the server "
            f"takes {limit}: {advice}"
        )
    if frame.tokens > limits.max_tokens:
        raise FrameTooLargeError(
            f"the model's picture takes {frame.tokens} tokens, the server takes {limits.max_tokens}"
        )
