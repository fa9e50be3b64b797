"""What a bundle was calibrated to: how often its answers differ, and questions of its own."""

from __future__ import annotations

from collections import OrderedDict

from msgspec import Struct

from cloud_server.engine.jobs import Offer
from cloud_server.frontend.versions.judge import canary_of
from projector.codec.answers import same_answer
from protos.errors import BridgeError

_MOST = 64
_MOST_LIMIT = 0.95


class _Known(Struct, frozen=True):
    """What is known of one bundle."""

    questions: tuple[str, ...]
    share: float | None


class Expected:
    """Reads offers; each bundle's canary set is read once.

    Args:
        margin: above the calibrated share of answers that differ.
    """

    def __init__(self, margin: float) -> None:
        self._margin = margin
        self._known: OrderedDict[str, _Known] = OrderedDict()

    def limit(self, offer: Offer, point: str) -> float | None:
        """Largest share of answers that differ which is no drift.

        Args:
            offer: the bundle.
            point: name of the frame's operating point.

        Returns:
            The share that was calibrated for that point, or for the bundle's canary set, and the
            margin. None if neither is known.
        """
        share = offer.differ.get(point)
        if share is None:
            share = self._of(offer).share
        return None if share is None else min(_MOST_LIMIT, share + self._margin)

    def questions(self, offer: Offer, most: int) -> list[str]:
        """Questions of the bundle's canary set; none if it has no such set."""
        return list(self._of(offer).questions[:most])

    def _of(self, offer: Offer) -> _Known:
        known = self._known.pop(offer.bundle_digest, None) or _read(offer)
        self._known[offer.bundle_digest] = known
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
        return known


def _read(offer: Offer) -> _Known:
    try:
        canary = canary_of(offer)
    except BridgeError:
        canary = None  # `Rollout` says so
    if canary is None:
        return _Known((), None)
    differ = [not same_answer(frame.answer, frame.seen) for frame in canary.frames]
    questions = tuple(dict.fromkeys(frame.question for frame in canary.frames))
    return _Known(questions, sum(differ) / len(differ))
