"""Whether answers about a scene can be believed: one word, and why."""

from __future__ import annotations

import math
from typing import Literal

from cloud_server.frontend.scenes import HeldScene
from projector.codec.risk import RiskModel

Belief = Literal["believed", "doubted", "picture", "unknown", "none"]
"""`picture`: the device sent the picture itself; `unknown`: no guard measured the risk; `none`: no
scene is held."""


def belief_of(scene: HeldScene | None) -> tuple[Belief, str]:
    """Whether answers about a scene can be believed, and why.

    Args:
        scene: a device's newest scene; None without one.
    """
    if scene is None:
        return "none", "no scene is held"
    if scene.warnings:
        return "doubted", ", ".join(scene.warnings)
    if scene.point == "picture":
        cause = f": {scene.fallback}" if scene.fallback else ""
        return "picture", f"the device sent the picture{cause}"
    risk = scene.risk
    if risk is None or scene.risk_model is None:
        return "unknown", scene.risk_unknown
    limit = scene.risk_model.limit
    if risk > limit:
        return "doubted", f"risk {risk:.0%} is above the limit of {limit:.0%}"
    return "believed", f"risk {risk:.0%}, limit {limit:.0%}"


Losses = tuple[float, float, float, float]
"""Distortion: quantize, dropped attention, latent residual, unfamiliarity."""
_LOGARITHMIC = (False, False, True, True)
"""Which of them the risk takes the logarithm of (`projector.codec.risk.losses_of`)."""
_LEAST = 1e-4


def limits_of(model: RiskModel, lost: Losses, risk: float) -> tuple[float | None, ...]:
    """For each loss, its value at which the risk would reach the limit, the others unchanged.

    The risk is a logistic regression, so this is one division. None where no value does that.

    Args:
        model: the service's guard.
        lost: the losses.
        risk: of this answer, 0..1.
    """
    if not (0.0 < risk < 1.0 and 0.0 < model.limit < 1.0):
        return (None,) * 4
    room = _logit(model.limit) - _logit(risk)
    found: list[float | None] = []
    for value, logarithmic, weight in zip(lost, _LOGARITHMIC, model.weights[:4], strict=True):
        if weight <= 0.0:
            found.append(None)
            continue
        step = room / float(weight)
        if logarithmic:
            exponent = math.log(max(value, _LEAST)) + step
            limit = math.exp(exponent) if abs(exponent) < 50.0 else math.inf
        else:
            limit = value + step
        found.append(limit if 0.0 <= limit < 1e6 else None)
    return tuple(found)


def _logit(chance: float) -> float:
    return math.log(chance / (1.0 - chance))
