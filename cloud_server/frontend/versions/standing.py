"""The state of a version in this front end, and the choice of versions for devices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from cloud_server.engine.jobs import Offer
from cloud_server.frontend.answers import Owner
from cloud_server.frontend.versions.judge import Judged
from cloud_server.frontend.versions.offers import Offered
from cloud_server.frontend.versions.plans import Wanted
from cloud_server.frontend.versions.rotation import Rotation

_REMEMBERED = 512
"""Outcomes of a version that are kept for the comparison with its successor."""
_ORDER = ("active", "replaced", "added", "retired", "rolled_back", "offered")
"""Wanted states by preference: the first loaded version serves all devices of an edge model."""


@dataclass(eq=False)
class Standing:
    """The state of a version in this front end.

    Attributes:
        version: the version and its wanted state.
        state: wanted, loading, judging, serving, retiring, refused or gone.
        offer: the engines' offer; None while it is not loaded.
        memory_bytes: its memory in the engines.
        why: why it was refused or rolled back.
        attempts: attempts to load and judge it.
        judged: result of its canary set.
        unused_since: when its last session ended, on the event loop's clock.
        outcomes: outcomes of its last frames, by kind.
        shadowed: those of its last shadowed frames, which are few: frames do not push them out.
    """

    version: Wanted
    state: str
    offer: Offer | None = None
    memory_bytes: int = 0
    why: str = ""
    attempts: int = 0
    judged: Judged | None = None
    unused_since: float = math.inf
    outcomes: Rotation[dict[str, float | None]] = field(
        default_factory=lambda: Rotation(_REMEMBERED)
    )
    shadowed: Rotation[dict[str, float | None]] = field(
        default_factory=lambda: Rotation(_REMEMBERED)
    )

    def remember(self, owner: Owner, outcomes: dict[str, float | None]) -> None:
        """Keep the outcomes of an owner's frame for the comparison with the version's successor."""
        (self.shadowed if "disagreed" in outcomes else self.outcomes).add(owner, outcomes)

    @property
    def remembered(self) -> Iterator[tuple[Owner, dict[str, float | None]]]:
        """What is kept, by owner."""
        return chain(self.outcomes, self.shadowed)

    @property
    def digest(self) -> str:
        """The bundle's digest."""
        return self.version.digest

    @property
    def good(self) -> bool:
        """Whether it serves and was judged, or need not be."""
        judged = self.judged is not None and self.judged.passed
        return self.up and self.state == "serving" and (judged or self.version.unjudged)

    @property
    def up(self) -> bool:
        """Whether sessions may be open on it."""
        return self.offer is not None and self.state in ("serving", "retiring")


def chosen(standings: Iterable[Standing]) -> dict[str, Offered]:
    """The versions to offer, by the fingerprint of the edge model.

    While the active version is not loaded, the version that it replaces still serves.
    """
    of_source: dict[str, list[Standing]] = {}
    for standing in standings:
        if standing.up:
            of_source.setdefault(standing.version.source, []).append(standing)
    choices = {}
    for source, up in of_source.items():
        base = min(up, key=lambda s: (_ORDER.index(s.version.wanted), -s.version.order_no))
        offered = [s for s in up if s.version.wanted == "offered" and s is not base]
        if base.offer is None:
            continue
        if offered:
            candidate = max(offered, key=lambda s: s.version.order_no)
            choices[source] = Offered(base.offer, candidate.offer, candidate.version.share)
        else:
            choices[source] = Offered(base.offer)
    return choices
