"""Judges a version of a bundle before it serves: an engine answers its canary set.

Each frame of the set is handled like a device's frame. The answers must equal those recorded in the
set: another graph, backend, number format or model would change some of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cloud_server.engine.jobs import Answered, Failed, Forget, Job, JobEvent, Offer
from cloud_server.engine.link import FrontLink
from projector.bundle.canary import CanaryFrame, CanarySet
from projector.bundle.files import CANARY
from protos.errors import BridgeError, BundleFormatError
from protos.header import unpack_header
from protos.layout import KVLayout
from protos.points import points_from_json

_NORMAL_95 = 1.959964
_ids = itertools.count(-(1 << 50), -1)
"""First id of these jobs. The bridge's ids are positive, other negative ids are closer to 0."""


@dataclass(frozen=True)
class Judged:
    """Result of a bundle's canary set.

    Attributes:
        frames: frames of the set.
        same: answers equal to the recorded ones.
        as_seen: answers equal to those from the picture itself.
        refused: frames that were refused or not answered in time.
        least: least lower end of the interval of `same` to pass.
    """

    frames: int
    same: int
    as_seen: int
    refused: int
    least: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share of answers that are the same (Wilson 1927)."""
        return interval(self.same, self.frames)

    @property
    def passed(self) -> bool:
        """Whether it may serve."""
        return self.interval[0] >= self.least

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.same} of {self.frames} answers are those that its maker recorded (95 %: "
            f"{low:.1%} to {high:.1%}; the lower end must be {self.least:.1%} at least), "
            f"{self.as_seen} are those from the picture, {self.refused} frames were refused"
        )

    def figures(self) -> dict[str, float | int]:
        """The figures, for reports."""
        low, high = self.interval
        return {
            "frames": self.frames,
            "same": self.same,
            "low": round(low, 4),
            "high": round(high, 4),
            "as_seen": self.as_seen,
            "refused": self.refused,
        }


def interval(hits: int, of: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    z2 = _NORMAL_95**2
    share, scale = hits / of, 1.0 + z2 / of
    middle = (share + z2 / (2 * of)) / scale
    half = _NORMAL_95 * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def canary_of(offer: Offer) -> CanarySet | None:
    """A bundle's canary set; None if it has none.

    Raises:
        BundleFormatError: the canary set does not fit the bundle.
    """
    if not offer.canary:
        return None
    layout = KVLayout.from_json(offer.source_layout_json)
    points = points_from_json(offer.operating_points_json)
    return CanarySet.from_bytes(offer.canary, layout.tokens, points, Path(offer.bundle_id) / CANARY)


async def judge(
    offer: Offer, link: FrontLink, max_new_tokens: int, timeout_s: float, least: float
) -> Judged:
    """Ask an engine every question of a bundle's canary set, one after another.

    Args:
        offer: the bundle, loaded by that engine.
        link: the link to the engine.
        max_new_tokens: longest answer of this service.
        timeout_s: longest wait for each answer.
        least: least lower end of the interval to pass.

    Raises:
        BundleFormatError: the bundle has no canary set.
        EngineUnavailableError: the engine has ended.
    """
    canary = canary_of(offer)
    if canary is None:
        raise BundleFormatError(
            f"bundle '{offer.bundle_id}' {offer.bundle_version} has no canary set to be judged on: "
            "add one with `projector canary`, or activate it with --unjudged"
        )
    session, most = f"judge-{secrets.token_hex(8)}", min(max_new_tokens, canary.max_new_tokens)
    same = as_seen = refused = 0
    try:
        for number, frame in enumerate(canary.frames):
            said = await _ask(
                _job(offer, frame, session, number, most), link.submit, link.abandon, timeout_s
            )
            if said is None:
                refused += 1
                continue
            cut = said.tokens >= most  # the recorded answer may be longer
            same += _same(said.text, frame.answer, cut)
            as_seen += _same(said.text, frame.seen, cut)
    finally:
        link.tell(Forget(session))
    return Judged(len(canary.frames), same, as_seen, refused, least)


async def _ask(
    job: Job,
    submit: Callable[[Job, Callable[[JobEvent | BridgeError], None]], None],
    abandon: Callable[[int], None],
    timeout_s: float,
) -> Answered | None:
    """The engine's answer; None if it refuses or is too late.

    Raises:
        BridgeError: the engine has ended.
    """
    ended: asyncio.Future[Answered | Failed | BridgeError] = (
        asyncio.get_running_loop().create_future()
    )

    def hear(said: JobEvent | BridgeError) -> None:
        if isinstance(said, Answered | Failed | BridgeError) and not ended.done():
            ended.set_result(said)

    submit(job, hear)
    with contextlib.suppress(asyncio.TimeoutError):
        said = await asyncio.wait_for(ended, timeout_s)
        if isinstance(said, BridgeError):
            raise said
        return said if isinstance(said, Answered) else None
    abandon(job.id)
    return None


def _job(offer: Offer, frame: CanaryFrame, session: str, number: int, most: int) -> Job:
    header, body = unpack_header(frame.header, frame.payload)
    return Job(
        id=next(_ids),
        session=session,
        frame_number=number,
        request_id=f"{number:016x}",
        question=frame.question,
        max_new_tokens=most,
        received_ns=time.monotonic_ns(),
        bundle=offer.bundle_digest,
        point=header.operating_point,
        kept=header.kept.tobytes(),
        body=body,
        hold=0,
    )


def _same(given: str, recorded: str, cut: bool) -> bool:
    """Whether two answers are equal up to blanks; one that was cut may be the other's beginning."""
    mine, theirs = " ".join(given.split()), " ".join(recorded.split())
    return mine == theirs or (cut and bool(mine) and theirs.startswith(mine))
