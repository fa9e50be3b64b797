"""What is known of one device with one bundle: figures with intervals, and the test for drift."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from cloud_server.engine.jobs import Measured
from cloud_server.frontend.shadowing.drift import Drift
from cloud_server.frontend.shadowing.intervals import Running
from cloud_server.frontend.shadowing.usual import Usual
from projector.codec.answers import same_answer

MOST_ERROR, MOST_KL = 2.0, 4.0
"""A larger relative error, or a divergence of more nats, counts as this."""
_MOST_LAYERS = 512


def differing(measured: Measured) -> float:
    """The share of a frame's answers that differ from its picture's, 0..1."""
    pairs = zip(measured.given, measured.seen, strict=True)
    wrong = [not same_answer(given, seen) for given, seen in pairs]
    return sum(wrong) / len(wrong)


def diverging(measured: Measured) -> float:
    """The mean divergence of a frame's first tokens in nats; more than 1 counts as 1."""
    return sum(min(1.0, kl) for kl in measured.kl) / len(measured.kl)


@dataclass
class ShadowRecord:
    """The record; it is kept as JSON.

    Two tests share the rate of false alarms. `level`: more answers differ than the bundle was
    calibrated to. `change`: first tokens diverge more than on this camera's own first frames, which
    a change in what it sees shows much sooner.

    Attributes:
        level, change: the tests.
        usual: divergence of the first frames.
        differ: share of answers that differ.
        error: relative error of a frame, mean over the layers.
        kl: divergence of the first token, in nats.
        layers: sums of each layer's relative error.
        limit: of `level`, at the last frame; 0 if the bundle has no calibrated share.
    """

    level: Drift = field(default_factory=Drift)
    change: Drift = field(default_factory=Drift)
    usual: Usual = field(default_factory=Usual)
    differ: Running = field(default_factory=Running)
    error: Running = field(default_factory=lambda: Running(MOST_ERROR))
    kl: Running = field(default_factory=lambda: Running(MOST_KL))
    layers: list[float] = field(default_factory=list)
    limit: float = 0.0
    last_s: float = 0.0

    def add(
        self, measured: Measured, limit: float | None, now_s: float, false_alarms: float
    ) -> bool:
        """Add a frame; returns whether the map begins or ceases to fit with it.

        Args:
            measured: its figures.
            limit: largest share of answers that differ which is no drift; None if the bundle has
                no calibrated share: the level is not tested.
            now_s: seconds since 1970.
            false_alarms: of a device in a year.
        """
        before = self.drifting_s is not None
        outcome, errors = differing(measured), measured.errors[:_MOST_LAYERS]
        self.differ.add(outcome)
        self.error.add(sum(errors) / len(errors))
        self.kl.add(sum(measured.kl) / len(measured.kl))
        if len(self.layers) != len(errors):
            self.layers = [0.0] * len(errors)
        self.layers = [total + one for total, one in zip(self.layers, errors, strict=True)]
        self.limit, self.last_s = limit or 0.0, max(now_s, self.last_s)
        if limit is not None:
            self.level.see(outcome, limit, now_s, false_alarms / 2)
        usual = self.usual.limit
        if usual is None:
            self.usual.add(diverging(measured))
        else:
            self.change.see(diverging(measured), usual, now_s, false_alarms / 2)
        return (self.drifting_s is not None) != before

    @property
    def drifting_s(self) -> float | None:
        """Since when the map no longer fits what the camera sees; None if it does."""
        since = [test.alarm_s for test in (self.level, self.change) if test.alarm_s is not None]
        return min(since, default=None)

    @property
    def cause(self) -> str:
        """Why the map no longer fits, in words; empty if it does."""
        if self.level.alarm_s is not None:
            return "more answers differ from the picture's than the bundle was calibrated to"
        if self.change.alarm_s is not None:
            return "answers diverge more than on this camera's first frames"
        return ""

    def to_json(self) -> str:
        """As JSON text."""
        parts = ("level", "change", "usual", "differ", "error", "kl")
        plain = {name: getattr(self, name).to_json() for name in parts}
        plain |= {"layers": self.layers, "limit": self.limit, "last_s": self.last_s}
        return json.dumps(plain)

    @classmethod
    def from_json(cls, text: str) -> ShadowRecord:
        """From what `to_json` made."""
        value: dict[str, Any] = json.loads(text)
        level, change = (Drift.from_json(value[name]) for name in ("level", "change"))
        differ, error, kl = (Running.from_json(value[name]) for name in ("differ", "error", "kl"))
        return cls(
            level,
            change,
            Usual.from_json(value["usual"]),
            differ,
            error,
            kl,
            value["layers"],
            value["limit"],
            value["last_s"],
        )


@dataclass(frozen=True)
class Figure:
    """A mean with its 95 % interval, which holds at all times at once."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, running: Running) -> Figure | None:
        """From the figures so far; None before the first."""
        mean = running.mean
        return None if mean is None else cls(mean, *running.interval)


@dataclass(frozen=True)
class Fit:
    """How well a bundle's map fits what a device sees, as measured by shadowed frames.

    Attributes:
        bundle: the bundle's id.
        digest: the bundle's digest.
        measured: frames measured.
        last_s: when the last one was, seconds since 1970.
        differ: share of answers that differ from the picture's.
        limit: largest such share that is no drift; None if the bundle has no calibrated share, so
            that the share is not tested.
        usual_frames: frames that made what is usual for this camera, so far.
        drifting_since_s: since when the map no longer fits; None if it does, as far as is known.
        cause: why it no longer fits, in words; else empty.
        alarms: alarms so far.
        error: relative error of the projected cache.
        layer_errors: its mean, by layer.
        kl_nats: divergence of the first token's distribution from the picture's.
    """

    bundle: str
    digest: str
    measured: int
    last_s: float
    differ: Figure | None
    limit: float | None
    usual_frames: int
    drifting_since_s: float | None
    cause: str
    alarms: int
    error: Figure | None
    layer_errors: tuple[float, ...]
    kl_nats: Figure | None

    @classmethod
    def of(cls, bundle: str, digest: str, record: ShadowRecord) -> Fit:
        """From a record."""
        count = record.differ.count
        return cls(
            bundle,
            digest,
            count,
            record.last_s,
            Figure.of(record.differ),
            record.limit or None,
            record.usual.count,
            record.drifting_s,
            record.cause,
            record.level.alarms + record.change.alarms,
            Figure.of(record.error),
            tuple(total / count for total in record.layers) if count else (),
            Figure.of(record.kl),
        )
