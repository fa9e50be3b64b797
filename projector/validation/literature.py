"""Published figures of such maps with ours beside them, in the shape of the published tables.

Measures nothing: it reads what `validate` returns, and computes whether each published statement
holds here. A statement whose arithmetic cannot hold anywhere says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from projector.bundle.certificate import GOOD, WORSE

LIMIT = 0.1
"""Published `D_max`, the largest distortion of a task."""
COVERAGE = 0.985
"""Least share of test frames within a bound of the 99 % level."""


@dataclass(frozen=True)
class Task:
    """A row of the published table of attention amplification.

    Attributes:
        name: as published.
        ours: our kind of question for the same task; None if we have none.
        c_attn: published amplification.
        d_task: published distortion.
    """

    name: str
    ours: str | None
    c_attn: float
    d_task: float


TASKS = (
    Task("fire detection (2 classes)", "hazard", 6.4, 0.068),
    # Judged with a task head (`projector head`), not with questions.
    Task("object tracking (5 classes)", None, 8.2, 0.087),
    Task("scene understanding (20 classes)", "scene", 9.5, 0.101),
)

CONFIGURATIONS = (
    ("cloud only", "native", 0.92, 0.08),
    ("edge only", "edge_only", 0.88, 0.12),
    ("edge + projector", "mapped", 0.90, 0.10),
    ("edge + projector + FP8", "mapped_fp8", 0.89, 0.11),
)
"""Published name, our arm, published success and distortion."""

RELATIVE_ERROR = 0.0106
SENT_BYTES = {"projected": 512, "full": 51_200}
LATENCY_MS = {"projected": 18.0, "full": 120.0}
ENERGY_J = {"projected": 0.48, "full": 48.0}

_OF_ITS_SIZE = 2.0  # a bound up to so many times the error is called "of the size of the error"


def beside(report: Mapping[str, Any]) -> dict[str, Any]:
    """The published tables with our figures in them.

    Args:
        report: of `validate`, with `costs` if they were measured.

    Returns:
        `tasks[]` (empty unless a question of theirs was asked), `configurations[]`, `costs[]` (each
        with `published` and `measured`, None without a measurement), and `statements[]` with
        `holds`.
    """
    amplified, accuracy = report["attention_amplification"], report["accuracy"]
    native = accuracy["native"]["mean"]
    distances = report["distortion_by_arm"]
    asked = any(task.ours in amplified for task in TASKS)
    tasks = [
        {
            "task": task.name,
            "kind": task.ours,
            "published": {
                "c_attn": task.c_attn,
                "d_task": task.d_task,
                "within": task.d_task <= LIMIT,
            },
            "measured": None
            if task.ours is None or task.ours not in amplified
            else {
                "c_attn": amplified[task.ours]["c_attn"],
                "d_task": amplified[task.ours]["d_task"],
                "within": amplified[task.ours]["within_0.1"],
            },
        }
        for task in TASKS
        if asked
    ]
    configurations = [
        {
            "configuration": name,
            "published": {"success": success, "distortion": distortion},
            "measured": None
            if arm not in accuracy
            else {
                "success": accuracy[arm]["mean"],
                "failure": 1 - accuracy[arm]["mean"],
                "distortion": distances.get(arm),
                "of_native": accuracy[arm]["mean"] / native if native else None,
            },
        }
        for name, arm, success, distortion in CONFIGURATIONS
    ]
    costs = report.get("costs")
    return {
        "tasks": tasks,
        "configurations": configurations,
        "costs": [] if costs is None else _costs(costs),
        "statements": statements(report),
    }


def _costs(costs: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "figure": figure,
            "published": published,
            "measured": {arm: costs[arm][key] for arm in ("projected", "full")},
            "ratio": costs["full"][key] / costs["projected"][key]
            if costs["projected"][key] > 0
            else None,
        }
        for figure, key, published in (
            ("latency to the first token, ms", "latency_ms", LATENCY_MS),
            ("energy per picture, J", "energy_j", ENERGY_J),
            ("operations, FLOP", "flops", None),
            ("bytes sent", "bytes", SENT_BYTES),
        )
        if costs["full"][key] is not None
    ]


def statements(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the literature says, what was measured, and whether it holds here.

    `holds` is None if that cannot be judged: the questions need no picture, the map is no better
    than its controls, or there is nothing to divide by.
    """
    good, judged = (report["verdict"] in states for states in ((GOOD,), (GOOD, WORSE)))
    found: list[dict[str, Any]] = []

    def add(claim: str, measured: str, holds: bool | None) -> None:
        found.append({"claim": claim, "measured": measured, "holds": holds})

    def unless_idle(holds: bool) -> bool | None:
        """`holds`; None if the map cannot be judged, or instead of True if it is not good."""
        return holds if good or (judged and not holds) else None

    accuracy, amplified = report["accuracy"], report["attention_amplification"]
    telling = {k: v for k, v in sorted(amplified.items()) if v["within_0.1"] is not None}
    above = {k: v["d_task"] for k, v in telling.items() if not v["within_0.1"]}
    silent = len(amplified) - len(telling)
    add(
        f"every task's distortion is about {LIMIT} or less",
        f"{len(telling) - len(above)} of {len(telling)} kinds are within"
        + "".join(f"; {kind} {value:.3f}" for kind, value in above.items())
        + (f"; {silent} cannot be judged" if silent else ""),
        not above if telling else None,
    )
    factors = [v["c_attn"] for v in telling.values() if v["c_attn"] is not None]
    if factors:
        add(
            "attention amplifies a relative error of the states 6.4 to 9.5 times",
            f"{min(factors):.2f} to {max(factors):.2f} times (total variation of the first answer "
            "token over relative L2)",
            all(6.4 <= factor <= 9.5 for factor in factors),
        )
    error = report["reconstruction"]["whole"]["relative_l2"]
    add(
        f"the states' relative error is {RELATIVE_ERROR:.2%} (published arithmetic divides one "
        "token's error by a hundred tokens' norm)",
        "–" if error is None else f"{error:.1%}",
        None if error is None else error <= RELATIVE_ERROR,
    )
    if "mapped_fp8" in accuracy:
        lost = accuracy["mapped"]["mean"] - accuracy["mapped_fp8"]["mean"]
        holds = lost <= 0.01 if good else None
        add("FP8 costs one point", f"{100 * lost:.2f} points", holds)
    if "edge_only" in accuracy:
        gain = accuracy["mapped"]["mean"] - accuracy["edge_only"]["mean"]
        holds = unless_idle(gain >= 0.02)
        add("projecting gains two points on the edge alone", f"{100 * gain:+.1f}", holds)
    lack = accuracy["native"]["mean"] - accuracy["mapped"]["mean"]
    holds = unless_idle(lack <= 0.02)
    add("projecting loses two points on the cloud alone", f"{-100 * lack:+.1f}", holds)
    grade, other = report["grade_by_reconstruction"], report["grade_by_answers"]
    add(
        "the grade by reconstruction says what the map is good for",
        f"grade {grade} by reconstruction, "
        + ("by answers it cannot be judged" if other is None else f"{other} by answers"),
        None if other is None else grade == other,
    )
    bound = report["bound"]
    if "coverage" in bound:
        add(
            "the bound is of the size of the error",
            f"{_times(bound['bound_over_actual'], 1)} the actual error; the expected-error "
            f"estimate {_times(bound['estimate_over_actual'], 2)} what FP8 adds",
            None
            if bound["bound_over_actual"] is None
            else bound["bound_over_actual"] <= _OF_ITS_SIZE,
        )
        add(
            f"99 % of frames lie within the bound (at least {COVERAGE:.1%} of test frames)",
            f"{bound['coverage']:.2%}",
            bound["coverage"] >= COVERAGE,
        )
    costs = report.get("costs")
    if costs is not None:
        times = costs["projected"]["latency_ms"] / costs["full"]["latency_ms"]
        add(
            "projecting takes 85 % less time than full inference",
            f"{1 - times:.0%} less",
            times <= 0.15,
        )
        if costs["full"]["energy_j"] is not None:
            spent = costs["projected"]["energy_j"]
            energy = costs["full"]["energy_j"] / spent if spent > 0 else None
            add(
                "projecting takes a hundredth of the energy",
                "too little to be measured" if energy is None else f"1/{energy:.1f}",
                None if energy is None else energy >= 100,
            )
    return found


def _times(ratio: float | None, digits: int) -> str:
    return "no known multiple of" if ratio is None else f"{ratio:.{digits}f} times"
