"""Select and encode: a `KVState` to a payload, at an operating point, timed.

Pure: no network, no torch. The kept tokens are chosen by a selector of `projector.codec.select`;
latents, quantizer and distortion are `projector.codec.encoder`'s.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_agent.guard import Guard
from edge_agent.picture import PictureCodec
from edge_agent.uplink.budget import Budget
from edge_agent.uplink.session import Base, Session
from projector.codec.deltas import Held
from projector.codec.encoder import Encoder
from protos.distortion import Distortion
from protos.errors import ConfigError
from protos.points import OperatingPoint
from protos.state import KVState

AUTO = "auto"
PICTURE = "picture"
Clock = Callable[[], float]


@dataclass(frozen=True)
class Plan:
    """How frames are to be made, whatever the session.

    Attributes:
        point: auto, or an operating point's name.
        highest_point: most expensive point that auto climbs to; None: what the server advises.
        selector: name of a token selector; None takes the encoder's own.
        token_budget: tokens kept; None takes the operating point's.
        token_threshold: share of the scores that the kept tokens must reach; None: no threshold.
        picture: how the picture point makes its file.
        max_new_tokens: longest answer.
        delta: send only what changed since the last frame that was accepted.
        guard: how much risk of another answer is taken, and what follows.
    """

    point: str = AUTO
    highest_point: str | None = None
    selector: str | None = None
    token_budget: int | None = None
    token_threshold: float | None = None
    picture: PictureCodec = PictureCodec()
    max_new_tokens: int = 16
    delta: bool = False
    guard: Guard = Guard()


@dataclass(frozen=True)
class Coded:
    """One picture's payload.

    Attributes:
        point: the operating point it was made at.
        tokens: image tokens of the grid, 0 for a picture.
        kept: `[tokens]` bool.
        payload: the quantized latents, or the picture's file; without the kept bitmap.
        distortion: as `protos.distortion` defines the figures; None for a picture.
        held: what the service knows after the frame; None for a picture.
        base: number of the frame that a delta frame changes; None for a key frame.
        differences: the payload holds differences to the base.
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


def choose_point(plan: Plan, session: Session, budget: Budget | None = None) -> OperatingPoint:
    """Resolve the plan's point to one of the session's.

    Args:
        plan: names a point, or auto.
        session: brings the points, what was measured of them and the server's advice.
        budget: chooses at auto; without it the highest point that the plan allows.

    Raises:
        ConfigError: the server has no point of that name; the message lists those it has.
    """
    name = plan.point
    if name == AUTO:
        name = plan.highest_point or session.advised
        if budget is not None:
            name = budget.choose(session.rungs, name, session.advised)
    found = session.points.get(name)
    if found is not None:
        return found
    names = [*session.points, AUTO]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"point {name!r} is not one of the server's ({', '.join(sorted(names))}){hint}"
    )


def encode_state(
    state: KVState,
    encoder: Encoder,
    point: OperatingPoint,
    plan: Plan,
    clock: Clock = time.perf_counter,
    base: Base | None = None,
    fresh: npt.NDArray[np.bool_] | None = None,
) -> Coded:
    """Choose the tokens to keep and encode them.

    With a base this is a delta frame, unless most of what is known would travel anyway.

    Args:
        state: one picture's cache, RoPE removed.
        encoder: the edge half of the bundle.
        point: a latent or raw point.
        plan: selector, budget and threshold.
        clock: seconds, for the two timings.
        base: the frame to change; only for a latent point.
        fresh: of a text, the tokens that travel.

    Raises:
        ConfigError: the selector is unknown, or there is one for a text.
        NonFiniteError: the state holds NaN or infinity.
    """
    start = clock()
    selector = encoder.selecting(plan.selector)
    budget = plan.token_budget if plan.token_budget is not None else point.tokens or None
    if fresh is not None:
        if budget is not None or plan.token_threshold is not None:
            raise ConfigError("a text travels whole: no token_budget, no token_threshold")
        kept = fresh
    elif budget is None and plan.token_threshold is None:
        kept = np.ones(state.positions.shape[0], dtype=np.bool_)
    else:
        kept = selector.keep(state, budget, plan.token_threshold)
    selected = clock()
    encoded = encoder.encode(state, point, kept, base.held if base is not None else None)
    if base is not None and 2 * encoded.kept.sum() > encoded.held.kept.sum():
        base, encoded = None, encoder.encode(state, point, kept)
    done = clock()
    return Coded(
        point=point,
        tokens=int(state.positions.shape[0]),
        kept=encoded.kept,
        payload=encoded.payload,
        distortion=encoded.distortion,
        select_ms=(selected - start) * 1000,
        encode_ms=(done - selected) * 1000,
        held=encoded.held,
        base=base.frame_number if base is not None else None,
        differences=encoded.differences,
    )
