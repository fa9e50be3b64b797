"""The plan: how frames are made, and at which operating point the next one travels."""

from __future__ import annotations

import difflib
from collections.abc import Collection
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

    A name that the service's bundle lacks counts as if it were not set: a device goes on answering
    after a bundle was replaced. `unknown_point` tells.

    Args:
        plan: names a point, or auto.
        session: brings the points, their measurements and the server's advice.
        controller: chooses if the plan says auto; without one, auto is the highest point allowed.
    """
    named = session.points.get(plan.point)
    if named is not None:
        return named
    name = highest_of(plan, session)
    if controller is not None:
        name = controller.choose(session.rungs, name, session.advised)
    return session.points[name]


def highest_of(plan: Plan, session: Session) -> str:
    """Name of the most expensive point that auto may choose."""
    highest = plan.highest_point
    return highest if highest in session.points else session.advised


def unknown_point(
    point: str, highest_point: str | None, points: Collection[str]
) -> ConfigError | None:
    """What is wrong with the names of points in the settings; None if nothing is.

    Args:
        point: auto, or a name.
        highest_point: a name, or None.
        points: names of the service's points.
    """
    for setting, name in (("point", point), ("highest_point", highest_point)):
        if name is None or name in points or (name == AUTO and setting == "point"):
            continue
        names = [*points, AUTO] if setting == "point" else [*points]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return ConfigError(
            f"{setting} {name!r} is not one of the server's ({', '.join(sorted(names))}){hint}"
        )
    return None
