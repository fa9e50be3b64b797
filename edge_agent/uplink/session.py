"""A session: what both sides agreed on, and what the edge remembers of its frames."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from edge_agent.uplink.call_errors import cap_in
from edge_agent.uplink.point_controller import Rung
from projector.codec.deltas import Held
from projector.codec.encoder import Encoder
from projector.codec.feedback import FeedbackDecoder
from protos.distortion import Distortion
from protos.errors import FrameTooLargeError, IncompatibleLayoutError
from protos.layout import KVLayout
from protos.limits import Limits
from protos.points import OperatingPoint

_TICK_MS = 20
"""Capture times are told in so many milliseconds."""
_FARTHEST = (1 << 16) - 1024
"""Most frames a base may lie behind; the header takes 2^16 - 1, and frames may overtake others."""


@dataclass(frozen=True)
class Base:
    """A frame that the service accepted, for delta frames to change."""

    frame_number: int
    held: Held


@dataclass
class Session:
    """What both sides hold constant while a session lasts.

    Attributes:
        points: the server's operating points by name.
        advised: the point that the server advised last, or its default.
        max_in_flight: the server's credit, changed by its advice.
        max_message_bytes: longest request; the server's limit, or the lower cap of a proxy.
        target_layout_json: the large model's cache layout, as the server sent it.
        feedback_decoder_digest: of the decoder for feedback; empty if the bundle has none.
        feedback_decoder: that decoder, once it was fetched.
        doubt: what the bundle's certificate leaves open, in the server's words.
        reply: the server's NegotiateResponse, for `terms`.
        reserve: called with a frame number before it or a later one is used: returns the first
            number that is not reserved. No number is used twice, not even after a restart.
        max_parcel: requests that the server takes in one message; 0: it reads no parcels, or those
            of an older version.
    """

    session_id: bytes
    constants: bytes
    bundle_id: str
    bundle_version: str
    bundle_digest: str
    encoder_digest: str
    encoder: Encoder
    limits: Limits
    points: dict[str, OperatingPoint]
    default_point: str
    ladder: tuple[str, ...]
    advised: str
    max_in_flight: int
    max_message_bytes: int
    target_layout_json: str = ""
    feedback_decoder_digest: str = ""
    feedback_decoder: FeedbackDecoder | None = field(default=None, repr=False)
    doubt: str = ""
    reply: bytes = field(default=b"", repr=False)
    reserve: Callable[[int], int] | None = field(default=None, repr=False)
    _reserved: int = field(default=0, repr=False)
    max_parcel: int = 0
    _frames: int = field(default=0, repr=False)
    _captured_at: float | None = field(default=None, repr=False)
    _told: Distortion | None = field(default=None, repr=False)
    _base: Base | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Calibration's measurements of the points that send latents or the raw cache."""
        return tuple(
            Rung(
                name,
                point.measured.wire_bytes,
                point.measured.accuracy,
                math.hypot(point.measured.quantize, point.measured.dropped_attention),
            )
            for name, point in self.points.items()
            if point.measured is not None and point.kind != "picture"
        )

    def next_frame(self, captured_at: float) -> tuple[int, int]:
        """Return a frame's number and the milliseconds since the previous frame's capture.

        Times are rounded to `_TICK_MS`, and the remainder is carried over: a steady camera's do not
        differ, and cost nothing in a parcel.
        """
        with self._lock:
            number, before = self._frames, self._captured_at
            if self.reserve is not None and number >= self._reserved:
                self._reserved = self.reserve(number)
            self._frames = (number + 1) % (1 << 32)
            delta_ms = 0
            if before is not None:
                delta_ms = round((captured_at - before) * 1000 / _TICK_MS) * _TICK_MS
            delta_ms = min(max(delta_ms, 0), (1 << 32) - 1)
            told_at = captured_at if before is None else before + delta_ms / 1000
            self._captured_at = told_at if abs(captured_at - told_at) < 1.0 else captured_at
        return number, delta_ms

    def told(self, figures: Distortion, delta: bool) -> Distortion:
        """The figures to tell of the next frame.

        A delta frame repeats those told last that are within a step of its own: they cost nothing
        in a parcel.
        """
        with self._lock:
            if delta and self._told is not None:
                figures = figures.near(self._told)
            self._told = figures
            return figures

    def go_on_from(self, number: int) -> None:
        """Use this number for the next frame: an earlier process may have used those before."""
        with self._lock:
            self._frames = self._reserved = number

    @property
    def base(self) -> Base | None:
        """The newest accepted frame; None if there is none, or too many frames came since."""
        with self._lock:
            if self._base is None or self._behind(self._base.frame_number) > _FARTHEST:
                return None
            return self._base

    def accepted(self, base: Base) -> None:
        """Delta frames may change this frame from now on, unless a newer one is accepted too."""
        with self._lock:
            before = self._base
            if before is None or self._behind(base.frame_number) < self._behind(
                before.frame_number
            ):
                self._base = base

    def lost(self, frame_number: int) -> None:
        """The service does not hold that frame any more."""
        with self._lock:
            if self._base is not None and self._base.frame_number == frame_number:
                self._base = None

    def forget_advice(self) -> None:
        """Go back to the server's default point and credit."""
        self.advised, self.max_in_flight = self.default_point, self.limits.max_in_flight

    def _behind(self, frame_number: int) -> int:
        return (self._frames - frame_number) % (1 << 32)

    def require_tokenizer(self, digest: str) -> None:
        """Refuse a text that is not aligned to the large model's tokens.

        Raises:
            IncompatibleLayoutError: the digest is of another tokenizer.
        """
        target = KVLayout.from_json(self.target_layout_json)
        if digest != target.tokenizer_digest:
            raise IncompatibleLayoutError(
                f"texts are aligned to the tokenizer {digest[:12]}…; the server's "
                f"{target.model_id} has {target.tokenizer_digest[:12]}…: give its tokenizer with "
                "--target-tokenizer"
            )

    def check_message(self, size_bytes: int) -> None:
        """Refuse a request that is too large: it would end the stream for all others.

        Raises:
            FrameTooLargeError: it is larger than this session allows.
        """
        if size_bytes > self.max_message_bytes:
            raise FrameTooLargeError(
                f"the request has {size_bytes} bytes, the way to the server takes "
                f"{self.max_message_bytes}: choose a point of fewer bytes"
            )

    def learn_cap(self, error: FrameTooLargeError) -> None:
        """Remember the cap that gRPC named when it ended a stream, here or on the way."""
        cap_bytes = cap_in(error)
        if cap_bytes is not None:
            self.max_message_bytes = min(self.max_message_bytes, cap_bytes)
