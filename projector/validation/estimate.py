"""Figures from single answers: accuracy, differences, percentiles, intervals.

Questions about one picture are not independent, so every interval resamples pictures (a clustered
bootstrap, Efron 1979), never questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LEAST_EVENTS = 10
"""An AUROC is reported only with at least this many rows with the event, and as many without."""
_RESAMPLES = 4000
_CHUNK = 500
_SEED = 20240501


@dataclass(frozen=True)
class Estimate:
    """A mean over questions with its picture-clustered 95 % interval."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """`mean`, `low`, `high`, rounded to five digits."""
        return {k: round(v, 5) for k, v in vars(self).items()}


def clustered(values: Sequence[float], pictures: Sequence[int]) -> Estimate:
    """Mean of `values [Q]` with the 95 % interval over resampled pictures.

    Args:
        values: one number per question (1 right, 0 wrong; or a difference of two such).
        pictures: the picture that each question is about.

    Raises:
        ValueError: no values, or lengths that differ.
    """
    if len(values) == 0 or len(values) != len(pictures):
        raise ValueError(f"{len(values)} values for {len(pictures)} questions")
    _, cluster = np.unique(np.asarray(pictures), return_inverse=True)
    sums = np.bincount(cluster, weights=np.asarray(values, dtype=np.float64))
    sizes = np.bincount(cluster).astype(np.float64)
    rng = np.random.default_rng(_SEED)
    share = np.full(len(sums), 1.0 / len(sums))
    means = []
    for _ in range(0, _RESAMPLES, _CHUNK):
        drawn = rng.multinomial(len(sums), share, size=_CHUNK).astype(np.float64)
        means.append((drawn @ sums) / (drawn @ sizes))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return Estimate(float(sums.sum() / sizes.sum()), float(low), float(high))


def paired(a: Sequence[bool], b: Sequence[bool], pictures: Sequence[int]) -> Estimate:
    """Accuracy of `a` minus accuracy of `b` on the same questions, with its interval."""
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return clustered(difference.tolist(), pictures)


def by_group(correct: Sequence[bool], groups: Sequence[str]) -> dict[str, float]:
    """Accuracy within each group, in the order of first appearance."""
    right: dict[str, list[bool]] = {}
    for value, group in zip(correct, groups, strict=True):
        right.setdefault(group, []).append(value)
    return {group: round(float(np.mean(values)), 5) for group, values in right.items()}


def spread(values: Sequence[float] | npt.NDArray[np.float64]) -> dict[str, float]:
    """The 50th and 95th percentile, as `p50` and `p95` (nan for no values)."""
    if len(values) == 0:
        return {"p50": float("nan"), "p95": float("nan")}
    p50, p95 = np.percentile(np.asarray(values, dtype=np.float64), (50, 95))
    return {"p50": round(float(p50), 4), "p95": round(float(p95), 4)}


def auroc(score: npt.NDArray[np.floating], event: npt.NDArray[np.bool_]) -> float:
    """Chance that a row with the event has the higher score, ties counted half (Mann-Whitney).

    Raises:
        ValueError: no row has the event, or every one.
    """
    values, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    hits, misses = int(event.sum()), int((~event).sum())
    if not hits or not misses:
        raise ValueError(f"{hits} rows with the event and {misses} without: it takes both")
    return float((ranks[event].sum() - hits * (hits + 1) / 2) / (hits * misses))


def pareto(points: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of the points that beat every cheaper one, by rising `bytes` and `accuracy`."""
    order = sorted(range(len(points)), key=lambda i: (points[i]["bytes"], -points[i]["accuracy"]))
    front: list[int] = []
    for i in order:
        if not front or points[i]["accuracy"] > points[front[-1]]["accuracy"]:
            front.append(i)
    return front


def thin(
    points: Sequence[Mapping[str, Any]], front: Sequence[int], most: int, floor: float
) -> list[int]:
    """At most `most` points of a frontier: those where it crosses `floor`, the ends, and a spread.

    Args:
        points: as `pareto` takes them.
        front: what `pareto` returned.
        most: how many to keep.
        floor: an accuracy; the cheapest point that reaches it matters most.
    """
    if len(front) <= most:
        return list(front)
    crossing = next(
        (n for n, i in enumerate(front) if points[i]["accuracy"] >= floor), len(front) - 1
    )
    near = [crossing, crossing - 1, crossing + 1, crossing - 2]
    logs = np.log([points[i]["bytes"] for i in front])
    spread_out = [int(np.abs(logs - w).argmin()) for w in np.linspace(logs[0], logs[-1], most)]
    chosen: list[int] = []
    for n in [*near, 0, len(front) - 1, *spread_out, *range(len(front))]:
        if 0 <= n < len(front) and n not in chosen and len(chosen) < most:
            chosen.append(n)
    return [front[n] for n in sorted(chosen)]
