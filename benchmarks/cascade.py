"""The cascade: accuracy against the share of questions that go up, at every limit.

    python -m benchmarks.cascade --pictures 512

The confidence is learnt on validation pictures and judged on test and shifted ones. Questions that
go up are answered from the frame at the bundle's default point. `make bench-cascade`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from rich.console import Console

from benchmarks import command
from benchmarks.compare.arms import Pair
from benchmarks.compare.measure import quiet_libraries
from benchmarks.guard import GuardRows, collect, made_for
from projector.calibration.confidence import calibration_error, learn_confidence
from projector.codec.confidence import FEATURES, Confidence
from reference.demo.halves import BUNDLE, CLOUD_MODEL, EDGE_MODEL
from reference.demo.terminal import Terminal
from reference.report.parts import Part, Plot, Table, html, percent
from reference.report.parts import show as print_tables
from reference.report.plot import CLOUD, OURS, QUIET, plot

LIMITS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.01)
"""0 answers everything here, 1.01 sends everything up."""
_FIRST = 4  # the features before are about the frame


def confidence_features(rows: GuardRows) -> npt.NDArray[np.float64]:
    """What a cascade knows: the question and the small model's certainty, not the frame."""
    found: npt.NDArray[np.float64] = rows.found[:, _FIRST : _FIRST + FEATURES].astype(np.float64)
    return found


def at_limit(rows: GuardRows, chance: npt.NDArray[np.float64], limit: float) -> dict[str, float]:
    """Accuracy and bytes when less confident answers go up."""
    up = chance < limit
    right = np.where(up, rows.right_frame, rows.right_edge)
    return {
        "limit": limit,
        "sent_up_share": round(float(up.mean()), 4),
        "accuracy": round(float(right.mean()), 4),
        "accuracy_here": round(float(rows.right_edge[~up].mean()), 4) if (~up).any() else 0.0,
        "payload_bytes": round(float(np.where(up, rows.frame_bytes, 0).mean()), 2),
    }


def examine(confidence: Confidence, rows: GuardRows) -> dict[str, Any]:
    """The figures on one set of pictures."""
    chance = confidence.of_features(confidence_features(rows))
    thresholds = np.quantile(chance, np.linspace(0, 1, 41))
    return {
        "questions": len(rows),
        "calibration_error": round(calibration_error(chance, rows.right_edge), 4),
        "edge_alone": round(float(rows.right_edge.mean()), 4),
        "all_sent_up": round(float(rows.right_frame.mean()), 4),
        "at_limit": [at_limit(rows, chance, limit) for limit in LIMITS],
        "curve": [at_limit(rows, chance, float(each)) for each in thresholds],
    }


def parts(report: dict[str, Any]) -> list[Part]:
    """A table for each set, and a plot."""
    found: list[Part] = []
    for name, figures in report["sets"].items():
        rows = [
            (
                f"{row['limit']:.2f}",
                percent(row["sent_up_share"]),
                percent(row["accuracy"]),
                percent(row["accuracy_here"]) if row["sent_up_share"] < 1 else "-",
                f"{row['payload_bytes']:.1f}",
            )
            for row in figures["at_limit"]
        ]
        heads = (
            "limit",
            "#sent up, %",
            "#right, %",
            "#right of those here, %",
            "#bytes a question",
        )
        found.append(Table(f"The cascade on {name}", heads, rows))
    return [*found, Plot("cascade.svg", "right answers against the share sent up", _plot(report))]


def _plot(report: dict[str, Any]) -> str:
    def draw(axes: Axes) -> None:
        for (name, figures), colour in zip(report["sets"].items(), (OURS, CLOUD), strict=False):
            curve = figures["curve"]
            axes.plot(
                [100 * row["sent_up_share"] for row in curve],
                [100 * row["accuracy"] for row in curve],
                color=colour,
                label=name,
            )
            axes.axhline(100 * figures["all_sent_up"], color=QUIET, linestyle=":")
        axes.set_xlabel("questions sent up, %")
        axes.set_ylabel("right answers, %")
        axes.legend(frameon=False, fontsize=8)

    return plot("cascade", draw, height=3.6)


def bench(given: argparse.Namespace) -> int:
    """Learn, judge, print, write."""
    console = Console()
    show = Terminal(console)
    quiet_libraries()
    pair = Pair.load(given.edge, given.cloud, given.bundle)
    work, default = given.work / made_for(pair), pair.bundle.info.default_point
    sets = {}
    for split in ("validation", "test", "shifted"):
        rows = collect(pair, split, 0, given.pictures, work, show)
        sets[split] = rows.where(rows.point == default)
    learnt_from = sets.pop("validation")
    made = learn_confidence(
        confidence_features(learnt_from), learnt_from.right_edge, learnt_from.picture
    )
    report = {
        "command": command.command("cascade"),
        "bundle": pair.bundle.digest,
        "learnt_from_questions": len(learnt_from),
        "calibration_error_validation": round(made.error, 4),
        "sets": {name: examine(made.confidence, rows) for name, rows in sets.items()},
    }
    shown = parts(report)
    command.write(report, given.out, html("The cascade", f"`{report['command']}`", shown))
    print_tables(shown, console)
    return 0


def main() -> int:
    """Command line."""
    parser = command.parser("cascade", (__doc__ or "").split("\n")[0])
    parser.add_argument("--pictures", type=int, default=512, help="of each split")
    parser.add_argument("--edge", type=Path, default=EDGE_MODEL)
    parser.add_argument("--cloud", type=Path, default=CLOUD_MODEL)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--work", type=Path, default=command.ROOT / "build" / "guard")
    parser.add_argument("--out", type=Path, default=command.REPORTS / "cascade.json")
    return command.run(parser, bench)


if __name__ == "__main__":
    sys.exit(main())
