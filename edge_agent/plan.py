"""The plan: how frames are made, and at which operating point the next one travels."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from edge_agent.guard import Guard
from edge_agent.picture import PictureCodec
from edge_agent.uplink.point_controller import PointController
from edge_agent.uplink.session import Session
from protos.errors import ConfigError
from protos.points import OperatingPoint

AUTO = "auto"


@dataclass(frozen=True)
class Plan:
    """How frames are made, in any session.

    Attributes:
        point: auto, or an operating point's name.
        highest_point: most expensive point that auto climbs to; None: what the server advises.
        selector: name of a token selector; None takes the encoder's own.
        token_budget: tokens kept; None takes the operating point's.
        token_threshold: share of the scores that the kept tokens must reach; None: no threshold.
        picture: how the picture point makes its file.
        max_new_tokens: longest answer.
        delta: send only what changed since the last frame that was accepted.
        guard: how much risk is accepted, and what is done above that.
        priority: one of `protos.calls.PRIORITIES`, by its number.
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
    priority: int = 0


def choose_point(
    plan: Plan, session: Session, controller: PointController | None = None
) -> OperatingPoint:
    """Resolve the plan's point to one of the session's.

    Args:
        plan: names a point, or auto.
        session: brings the points, their measurements and the server's advice.
        controller: chooses if the plan says auto; without one, auto is the highest point allowed.

    Raises:
        ConfigError: the server has no point of that name; the message lists its points.
    """
    name = plan.point
    if name == AUTO:
        name = plan.highest_point or session.advised
        if controller is not None:
            name = controller.choose(session.rungs, name, session.advised)
    found = session.points.get(name)
    if found is not None:
        return found
    names = [*session.points, AUTO]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"point {name!r} is not one of the server's ({', '.join(sorted(names))}){hint}"
    )
