"""What becomes of a frame that would probably be answered otherwise than its picture.

The ladder, over the limit: more bits → more tokens → the picture, if its operator allows it → the
small model's own answer. Knows risks, points and causes; knows nothing of states or the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

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
    """How much risk is taken, and what follows.

    Attributes:
        mode: off; measure (the risk is reported, nothing follows); edge_only (over the limit the
            frame is made more faithful, and where that is not enough the small model answers);
            picture (the same, but the picture is sent before the small model answers).
        limit: probability of another answer that is accepted; None takes the encoder's own.
    """

    mode: Mode = "measure"
    limit: float | None = None

    def watches(self, encoder: Encoder) -> bool:
        """Whether frames made with this encoder are looked at."""
        return self.mode != "off" and encoder.risk is not None

    def acts(self) -> bool:
        """Whether anything follows from a risk."""
        return self.mode in ("edge_only", "picture")


@dataclass(frozen=True)
class Question:
    """All that a risk depends on besides the frame's own losses.

    Attributes:
        encoder: with a risk model.
        text: empty where no question is known.
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
    ) -> Question:
        """A question about a picture's state."""
        moved: Floats = encoder.project(state.flat()) - encoder.centre
        return cls(encoder, text, first_token, moved)

    def risk(self, figures: Distortion) -> float:
        """Probability of another answer from a frame with these losses; 0 without a model."""
        if self.encoder.risk is None:
            return 0.0
        found = features(figures, self.text, self.first_token, self.moved)
        return float(self.encoder.risk.risk(found))

    def cause(self, figures: Distortion, limit: float) -> Cause | None:
        """Why the risk is over the limit: what the frame loses, or the picture itself; or None."""
        if self.risk(figures) <= limit:
            return None
        faithful = replace(figures, quantize=0.0, dropped_attention=0.0)
        return UNFAMILIAR if self.risk(faithful) > limit else DISTORTION


def more_faithful(
    point: OperatingPoint, points: Mapping[str, OperatingPoint], ladder: Sequence[str]
) -> list[OperatingPoint]:
    """Points to try one after the other: more bits for as many tokens first, then more tokens.

    Args:
        point: where the frame is now.
        points: of the session, by name.
        ladder: their names from the fewest bytes to the most.
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
    """The error that stands for a frame that is not to be sent."""
    kind = UnfamiliarError if cause == UNFAMILIAR else DistortionError
    return kind(
        f"from this frame the answer would differ from the picture's with probability {risk:.2f}, "
        f"{limit:.2f} is accepted"
    )


def nothing_to_see(reason: str) -> BridgeError:
    """The error that stands for a frame of a picture that shows nothing."""
    return DegenerateError(f"the picture shows nothing to answer from: {reason}")
