"""Which families are compared, and how each is trained."""

from __future__ import annotations

from dataclasses import asdict

from projector.maps import Family
from projector.maps.baselines import Autoencoder, Interpolate, Truncate, ZeroPad
from projector.maps.bidirectional import Bidirectional
from projector.maps.linear import Linear
from projector.maps.low_rank import LowRank
from projector.maps.mix import Mix
from projector.maps.mlp import MLP
from projector.maps.procrustes import Procrustes
from projector.maps.ridge import Ridge
from projector.maps.shared import Shared

DEFAULT = LowRank(r=64)
"""The W-Matrix at the rank that has a target; the one that is also measured in fewer bits."""

CLOSED: tuple[Family, ...] = (
    Ridge(),
    Ridge(spread=False),
    Ridge(choose=True),
    Ridge(layers="best", best_layers=2),
    Ridge(layers="last", best_layers=2),
    *(LowRank(r=r) for r in (8, 16, 32, 64, 128)),
    LowRank(r=64, spread=False),
    LowRank(r=64, start="covariance"),
    Procrustes(),
    Procrustes(softness=0.5),
    Shared(),
    Bidirectional(),
    Truncate(),
    ZeroPad(),
    Interpolate(),
    Autoencoder(),
)
"""Fitted in closed form, with every seed."""

FOCUSED: tuple[Family, ...] = (Ridge(), Ridge(choose=True), DEFAULT)
"""Closed forms with each token weighed by how much the answers depend on it, with every seed."""

DESCENDED: tuple[Family, ...] = (Linear(), MLP())
"""Without a closed form: reconstruction by gradient, one seed."""

FINALISTS: tuple[Family, ...] = (
    DEFAULT,
    Ridge(),
    Mix(inner="low_rank", config={"r": DEFAULT.r}, width=256, depth=2),
)
"""Trained through the frozen model, one seed, after the closed form or reconstruction."""

TASK = " + task loss"
FOCUS = " + focus"


def label(member: Family) -> str:
    """A member's name with the settings that differ from its defaults; its rank is a column."""
    changed = {k: v for k, v in asdict(member).items() if v != asdict(type(member)())[k]}
    if member.name == Mix.name:
        changed = {}
    return member.name + "".join(f" {k}={v}" for k, v in changed.items() if k != "r")
