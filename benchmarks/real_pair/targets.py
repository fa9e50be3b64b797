"""The real pair's targets, beside what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.real_pair.learn import FOLDS

FLOOR = "no context"
REVERSE_RUNS = "the reverse direction runs by the same commands"


def targets(report: dict[str, Any], coded: int, reverse: Path) -> list[dict[str, Any]]:
    """Each target with what was measured and whether it was met."""
    arms = {(arm["name"], arm["seed"]): arm for arm in report["arms"]}
    squeezed, whole = f"rank {coded} + KL", "full + KL"
    rows = []

    def row(target: str, measured: str, met: bool) -> None:
        rows.append({"target": target, "measured": measured, "met": met})

    for name, least in ((squeezed, 0.85), (whole, 0.90)):
        found = arms[name, 0].get("gap_recovered_unseen")
        row(
            f"{name}: share of the gap recovered on unseen words at least {least:.0%}",
            "there is no gap" if found is None else f"{found:.1%}",
            found is not None and found >= least,
        )
    lost = 100 * (
        arms[squeezed, 0]["acc_unseen"]["mean"] - arms[f"{squeezed}, int4", 0]["acc_unseen"]["mean"]
    )
    told = all(arms[name, 0].get("gap_recovered_unseen") is not None for name in (squeezed, whole))
    met = told and lost <= 1.0  # without a gap nothing can be lost
    row("INT4 latents within 1 point of float", f"{-lost:+.1f} points", met)
    apart = arms["another context", 0]["minus_floor_unseen"]
    mean, low, high = (100 * apart[key] for key in ("mean", "low", "high"))
    row(
        "another context's cache at the floor without context (within two standard errors)",
        f"{mean:+.1f} ({low:+.1f} to {high:+.1f}) points",
        told and low <= 0.0 <= high,
    )
    spent = report["training_minutes"]
    moments = [f"moments {fold}" for fold in range(1, FOLDS)]  # seed 0 leaves the first fold out
    steps = ("corpus training", *moments, "sensitivity", "closed forms 0", f"tuned {coded}")
    untimed = [step for step in steps if step not in spent]
    minutes = sum(spent.get(step, 0.0) for step in steps)
    row(
        f"training {squeezed}, corpus included, at most 60 minutes",
        f"not timed by one run: {', '.join(untimed)}"
        if untimed
        else f"{minutes:.0f} minutes, threads: {report['threads']}",
        not untimed and minutes <= 60,
    )
    rest = sum(took for step, took in spent.items() if not step.startswith("corpus"))
    whole = rest + report["judging_minutes"]
    row(
        "all of it with the corpora there already at most 90 minutes",
        f"{whole:.0f} minutes, {report['judging_minutes']:.0f} of them for answers",
        whole <= 90,
    )
    ratio = report["ttft"]["ratio"]
    row(
        f"time to first token of {report['ttft']['tokens']} tokens at most 0.6 of reading them",
        f"{ratio:.2f}",
        ratio <= 0.6,
    )
    there = reverse.exists()
    row(
        REVERSE_RUNS,
        f"its figures are in {reverse.name}" if there else "not run (make bench-real-reverse)",
        there,
    )
    return rows
