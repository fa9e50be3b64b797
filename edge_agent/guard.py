"""The guard: decides what to do if a frame's answer would probably differ from the picture's.

Over the limit it tries, in order: more bits → more tokens → the picture, if the operator allows it
→ the small model's own answer (`agent` gives it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edge_agent.frame import Frame
from edge_agent.picture import PICTURE
from edge_agent.uplink.session import Session
from projector.codec.encoder import Encoder
from projector.codec.risk import Floats, features
from protos.distortion import Distortion
from protos.errors import BridgeError, DegenerateError, DistortionError, UnfamiliarError
from protos.points import OperatingPoint
from protos.state import KVState

Mode = Literal["off", "measure", "edge_only", "picture"]
Cause = Literal["distortion", "unfamiliar", "degenerate"]

DISTORTION: Cause = "distortion"
UNFAMILIAR: Cause = "unfamiliar"
DEGENERATE: Cause = "degenerate"


@dataclass(frozen=True)
class Guard:
    """How much risk is accepted, and what is done above that.

    Attributes:
        mode: off; measure (only report the risk); edge_only (over the limit, make the frame more
            faithful; if that is not enough, the small model answers); picture (the same, but try
            the picture before the small model answers).
        limit: largest accepted probability of a different answer; None: the encoder's own.
    """

    mode: Mode = "measure"
    limit: float | None = None

    def watches(self, encoder: Encoder) -> bool:
        """Whether the risk of frames made with this encoder is measured."""
        return self.mode != "off" and encoder.risk is not None

    def acts(self) -> bool:
        """Whether a risk over the limit changes what is sent."""
        return self.mode in ("edge_only", "picture")


@dataclass(frozen=True)
class AnswerRisk:
    """Probability that a frame's answer differs from its picture's, for one picture and question.

    Attributes:
        encoder: brings the risk model, if it has one.
        text: the question; empty if none is known.
        first_token: the small model's distribution for the first token of its own answer, or None.
        moved: latents of all tokens, less the centre, `[T, r]`.
    """

    encoder: Encoder
    text: str
    first_token: Floats | None
    moved: Floats

    @classmethod
    def about(
        cls, encoder: Encoder, state: KVState, text: str, first_token: Floats | None
    ) -> AnswerRisk:
        """The risk for a question about a picture's state."""
        moved: Floats = encoder.project(encoder.on_grid(state).flat()) - encoder.centre
        return cls(encoder, text, first_token, moved)

    def of(self, lost: Distortion) -> float:
        """The risk of a frame with these losses; 0 without a risk model."""
        if self.encoder.risk is None:
            return 0.0
        found = features(lost, self.text, self.first_token, self.moved)
        return float(self.encoder.risk.risk(found))

    def cause(self, lost: Distortion, limit: float) -> Cause | None:
        """Why the risk is over the limit: the frame's losses or the picture; None if it is not."""
        if self.of(lost) <= limit:
            return None
        faithful = replace(lost, quantize=0.0, dropped_attention=0.0)
        return UNFAMILIAR if self.of(faithful) > limit else DISTORTION


def within_limit(
    frame: Frame,
    lost: Distortion,
    risk: AnswerRisk,
    guard: Guard,
    session: Session,
    at: Callable[[OperatingPoint], Frame],
) -> Frame:
    """The frame itself if its risk is within the limit, else its replacement.

    Args:
        frame: as it was first made, with its risk.
        lost: its losses.
        risk: the risk of this picture and question.
        guard: a guard that acts.
        session: brings the points and the risk model's own limit.
        at: makes the same capture's frame at another point.
    """
    risk_model = session.encoder.risk
    limit = guard.limit if guard.limit is not None or risk_model is None else risk_model.limit
    cause = risk.cause(lost, limit or 0.0)
    if cause is None:
        return frame
    picture_point = _picture_point(guard, session)
    if cause == DISTORTION:
        for point in more_faithful(frame.point, session.points, session.ladder):
            better = at(point)
            if better.distortion is None or risk.of(better.distortion) > (limit or 0.0):
                continue
            if picture_point is not None and len(at(picture_point).payload) <= len(better.payload):
                break  # the picture costs no more and loses nothing
            return replace(better, risk=risk.of(better.distortion))
    error = refusal(cause, frame.risk or 0.0, limit or 0.0)
    return in_its_place(frame, cause, error, guard, session, at)


def in_its_place(
    frame: Frame,
    cause: Cause,
    error: BridgeError,
    guard: Guard,
    session: Session,
    at: Callable[[OperatingPoint], Frame],
) -> Frame:
    """The picture instead of the frame if it may be sent; else the frame, refused with `error`."""
    picture_point = _picture_point(guard, session)
    if picture_point is not None:
        return replace(at(picture_point), risk=frame.risk, fallback=cause)
    return replace(frame, refused=error)


def _picture_point(guard: Guard, session: Session) -> OperatingPoint | None:
    """The point at which the guard may send pictures, if it may."""
    if guard.mode != PICTURE:
        return None
    return next((p for p in session.points.values() if p.kind == PICTURE), None)


def more_faithful(
    point: OperatingPoint, points: Mapping[str, OperatingPoint], ladder: Sequence[str]
) -> list[OperatingPoint]:
    """Points to try in this order: first more bits for as many tokens, then more tokens.

    Args:
        point: the frame's present point.
        points: the session's points, by name.
        ladder: their names, fewest bytes first.
    """
    if point.name not in ladder:
        return []
    later = [points[n] for n in ladder[ladder.index(point.name) + 1 :] if n in points]
    whole = 1 << 16  # 0 tokens in a point means all of them

    def tokens(each: OperatingPoint) -> int:
        return each.tokens or whole

    later = [p for p in later if p.kind == "latent" and tokens(p) >= tokens(point)]
    return sorted(later, key=tokens)  # stable: within one budget the ladder's order stays


def refusal(cause: Cause, risk: float, limit: float) -> BridgeError:
    """The error of a frame that is not sent."""
    kind = UnfamiliarError if cause == UNFAMILIAR else DistortionError
    return kind(
        f"from this frame the answer would differ from the picture's with probability {risk:.2f}, "
        f"{limit:.2f} is accepted"
    )


def nothing_to_see(reason: str) -> BridgeError:
    """The error of a picture that shows nothing."""
    return DegenerateError(f"the picture shows nothing to answer from: {reason}")
