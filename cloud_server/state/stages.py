"""The stages of an update: which devices come first, and when the next ones may follow.

Pure functions: no database and no clock.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

from protos.errors import ConfigError

Verdict = Literal["wait", "next", "halt"]


@dataclass(frozen=True)
class Stages:
    """How an update is offered to a tenant's devices.

    Attributes:
        shares: share of devices in each stage, growing, each above 0 and at most 1.
        healthy: devices of a stage that must keep the update before the next stage begins; all of
            them if the stage has fewer.
        soak_s: shortest time of a stage, seconds.
        failure_limit: largest share of devices that may fail; above it the update halts.
    """

    shares: tuple[float, ...] = (0.01, 0.1, 1.0)
    healthy: int = 5
    soak_s: float = 3600.0
    failure_limit: float = 0.05

    def __post_init__(self) -> None:
        grows = all(a < b for a, b in zip(self.shares, self.shares[1:], strict=False))
        if not 1 <= len(self.shares) <= 16 or not grows or self.shares[0] <= 0.0:
            raise ConfigError("stages grow, such as 1%,10%,100%: each above 0, at most 16 of them")
        if self.shares[-1] > 1.0:
            raise ConfigError("a stage has at most 100% of the devices")
        if self.healthy < 0 or not self.soak_s >= 0.0 or not 0.0 <= self.failure_limit < 1.0:
            raise ConfigError(
                "the number of healthy devices and the time of a stage are not below 0, and the "
                "failure limit is from 0 to below 100%"
            )

    def to_json(self) -> str:
        """As the database keeps it."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Stages:
        """Read what `to_json` wrote."""
        plain = json.loads(text)
        return cls(**(plain | {"shares": tuple(plain["shares"])}))

    def size(self, stage: int, devices: int) -> int:
        """How many of so many devices a stage has, with those of the stages before it."""
        return math.ceil(self.shares[stage] * devices - 1e-9)

    def after(self, share: float) -> int:
        """The first stage with at least this share; the last one if there is none."""
        found = (n for n, each in enumerate(self.shares) if each >= share - 1e-9)
        return next(found, len(self.shares) - 1)


@dataclass(frozen=True)
class Tally:
    """How an update goes.

    Attributes:
        offered: devices that it was offered to, in every stage so far.
        kept: those of them that keep it.
        failed: those that went back, refused it or are silent since they began.
        offered_now: devices of the present stage alone.
        kept_now: those of them that keep it.
        failed_now: those of them that failed.
    """

    offered: int = 0
    kept: int = 0
    failed: int = 0
    offered_now: int = 0
    kept_now: int = 0
    failed_now: int = 0


def verdict(
    stages: Stages, stage: int, lasted_s: float, tally: Tally, excused: int = 0
) -> tuple[Verdict, str]:
    """Whether a stage goes on, is followed by the next one, or the update halts; and why.

    Args:
        stages: the stages.
        stage: the present one.
        lasted_s: its age, seconds.
        tally: how it goes.
        excused: failures that an operator has seen and does not count.
    """
    failed, reported = max(0, tally.failed - excused), tally.kept + tally.failed
    limit = stages.failure_limit
    enough = reported >= min(max(1, stages.healthy), tally.offered)
    if failed > limit * tally.offered or (enough and failed > limit * reported):
        return "halt", (
            f"{failed} of {reported} devices that reported failed, at most {100 * limit:g} % may"
        )
    if not tally.offered:
        return "wait", "no device takes it yet"
    needed = min(stages.healthy, tally.offered_now - tally.failed_now)
    if tally.kept_now < needed:
        missing = needed - tally.kept_now
        return "wait", f"{missing} more device{'s have' if missing > 1 else ' has'} to keep it"
    if lasted_s < stages.soak_s:
        return "wait", f"{math.ceil((stages.soak_s - lasted_s) / 60)} more minutes have to pass"
    if stage + 1 == len(stages.shares):
        return "wait", ""
    return "next", ""


def rank(digest: str, device_id: str) -> bytes:
    """A device's place among those that get an update; another one for each update."""
    return hashlib.sha256(f"{digest}/{device_id}".encode()).digest()
