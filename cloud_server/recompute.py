"""Computes metrics of requests again from the event log, without the service.

The counts are made from the lines alone (`frontend/event_log.py` writes them), so a difference to
what /metrics showed is a fault of one of the two.
"""

from __future__ import annotations

import bisect
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from cloud_server.frontend.event_log import BEGIN
from cloud_server.metrics import Metrics
from protos.errors import ConfigError

Labels: TypeAlias = tuple[tuple[str, str], ...]
Series: TypeAlias = tuple[str, Labels]
"""A metric's name without its prefix, and its labels."""
COUNTERS = (
    *("frames_total", "frame_kinds_total", "questions_total", "fallbacks_total"),
    *("warnings_total", "answers_total", "generated_tokens_total", "refusals_total"),
    *("overloads_total", "feedbacks_total"),
)
HISTOGRAMS = (
    *("payload_bytes", "kept_tokens", "quantization_error_ratio", "dropped_attention_ratio"),
    *("latent_residual_ratio", "unfamiliarity_ratio", "risk_ratio", "stage_seconds"),
    *("first_token_seconds", "answer_seconds", "sent_back_bytes"),
)
"""What can be computed again; the other metrics are no counts of requests."""
_DISTORTION = HISTOGRAMS[2:6]
_STAGES = ("queue", "decode", "project", "inject")


@dataclass
class Recomputed:
    """Metrics from events.

    Attributes:
        events: number of lines that were read.
        torn: lines that could not be read, such as the last one of a power cut.
        begun: whether the first line read is a start of the service: else older events are gone.
    """

    counts: dict[Series, float] = field(default_factory=lambda: defaultdict(float))
    values: dict[Series, list[float]] = field(default_factory=lambda: defaultdict(list))
    events: int = 0
    torn: int = 0
    begun: bool = False

    def add(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        kind = event["e"]
        take = getattr(self, f"_{kind}", None)
        if take is not None:
            take(event)

    def samples(self) -> Iterator[tuple[str, Labels, float]]:
        """The samples as /metrics has them, without the prefix."""
        for (name, labels), count in self.counts.items():
            yield name, labels, count
        for (name, labels), values in self.values.items():
            yield f"{name}_count", labels, len(values)
            yield f"{name}_sum", labels, sum(values)
            ordered = sorted(values)
            for bound in _bounds()[name]:
                at_most = bisect.bisect_right(ordered, bound)
                yield f"{name}_bucket", _with(labels, repr(bound)), at_most
            yield f"{name}_bucket", _with(labels, repr(math.inf)), len(values)

    def quantile(self, name: str, share: float) -> float | None:
        """The exact quantile of all values of a histogram; None without any."""
        found = sorted(
            one for (of, _), values in self.values.items() if of == name for one in values
        )
        return found[min(len(found) - 1, int(share * len(found)))] if found else None

    def _count(self, name: str, number: float = 1.0, **labels: str) -> None:
        self.counts[name, tuple(sorted(labels.items()))] += number

    def _value(self, name: str, value: float, **labels: str) -> None:
        self.values[name, tuple(sorted(labels.items()))].append(value)

    def _frame(self, event: Mapping[str, Any]) -> None:
        self._count("frames_total", point=event["point"])
        self._count("frame_kinds_total", kind=event["kind"])
        self._value("payload_bytes", event["bytes"], point=event["point"])
        if event["q"]:
            self._count("questions_total", call="infer")
        if event["cause"]:
            self._count("fallbacks_total", cause=event["cause"])
        if event["lost"] is not None:
            self._value("kept_tokens", event["kept"])
            for name, value in zip(_DISTORTION, event["lost"], strict=True):
                self._value(name, value)

    def _asked(self, event: Mapping[str, Any]) -> None:
        self._count("questions_total", call=event["call"])

    def _accepted(self, event: Mapping[str, Any]) -> None:
        for stage, seconds in zip(_STAGES, event["s"], strict=True):
            self._value("stage_seconds", seconds, stage=stage)
        for cause in event["w"]:
            self._count("warnings_total", cause=cause)

    def _answered(self, event: Mapping[str, Any]) -> None:
        for stage, seconds in zip(("queue", "prefill", "generate"), event["s"], strict=True):
            if seconds is not None:
                self._value("stage_seconds", seconds, stage=stage)
        self._count("generated_tokens_total", event["tokens"])
        self._count("answers_total", bundle=event["bundle"])

    def _risky(self, event: Mapping[str, Any]) -> None:
        self._value("risk_ratio", event["risk"])

    def _sent(self, event: Mapping[str, Any]) -> None:
        self._value("first_token_seconds", event["first"])
        self._value("answer_seconds", event["total"])

    def _refused(self, event: Mapping[str, Any]) -> None:
        self._count("refusals_total", reason=event["error"])
        if event["cause"] is not None:
            self._count("overloads_total", cause=event["cause"])

    def _fed_back(self, event: Mapping[str, Any]) -> None:
        self._count("feedbacks_total", point=event["point"])
        self._value("sent_back_bytes", event["bytes"], point=event["point"])
        for stage, seconds in zip(("queue", "compress"), event["s"], strict=True):
            self._value("stage_seconds", seconds, stage=stage)


class Difference(NamedTuple):
    """A sample that /metrics showed and the one from the events."""

    name: str
    labels: Labels
    recorded: float
    recomputed: float

    @property
    def ratio(self) -> float:
        """The difference in relation to the larger one; 0 if both are 0."""
        most = max(abs(self.recorded), abs(self.recomputed))
        return abs(self.recorded - self.recomputed) / most if most else 0.0


def recompute(files: Iterable[Path], every_run: bool = False) -> Recomputed:
    """Read event logs.

    Args:
        files: in the order in which they were written.
        every_run: whether to count all runs of the service; else only the last one, as /metrics
            does.

    Raises:
        ConfigError: a file cannot be read.
    """
    found = Recomputed()
    for path in files:
        try:
            lines = open(path, encoding="utf-8", errors="replace")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"event log {path} cannot be read: {error.strerror}") from error
        with lines:
            for line in lines:
                try:
                    event = json.loads(line)
                    begins = event["e"] == BEGIN
                    if begins and not every_run:
                        found = Recomputed(begun=True)
                    found.begun = found.begun or (begins and not found.events)
                    found.add(event)
                    found.events += 1
                except (ValueError, KeyError, TypeError):
                    found.torn += 1
    return found


def compare(page: str, found: Recomputed) -> list[Difference]:
    """A page of /metrics beside what the events say, sample by sample.

    Args:
        page: in Prometheus's text format.
        found: from the same run of the service.

    Raises:
        ConfigError: it is no page of /metrics.
    """
    ours: dict[Series, float] = {(name, labels): value for name, labels, value in found.samples()}
    recorded: dict[Series, float] = {}
    families = set(COUNTERS) | set(HISTOGRAMS)
    try:
        for family in text_string_to_metric_families(page):
            name = family.name.removeprefix(Metrics.prefix)
            if name in families or f"{name}_total" in families:
                for sample in family.samples:
                    labels = tuple(
                        sorted((one, _exact(one, value)) for one, value in sample.labels.items())
                    )
                    recorded[sample.name.removeprefix(Metrics.prefix), labels] = sample.value
    except ValueError as error:
        raise ConfigError(f"not a page of /metrics: {error}") from error
    if not recorded:
        raise ConfigError(f"not a page of this service's /metrics: no {Metrics.prefix}… in it")
    return [
        Difference(*key, recorded.get(key, 0.0), ours.get(key, 0.0))
        for key in sorted({*recorded, *(key for key in ours if ours[key])})
    ]


def _bounds() -> dict[str, tuple[float, ...]]:
    return {row.name: row.buckets for row in Metrics.rows() if row.buckets}


def _with(labels: Labels, bound: str) -> Labels:
    return tuple(sorted((*labels, ("le", bound))))


def _exact(label: str, value: str) -> str:
    """A label's value; a bound as Python writes it."""
    return repr(float(value)) if label == "le" else value
