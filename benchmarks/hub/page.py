"""The hub bench's page: targets, arms, accuracy against pictures and against bytes.

`python -m benchmarks.hub.page` writes tables and plots of the last report into `docs/`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from benchmarks import docs
from benchmarks.command import REPORTS
from benchmarks.hub.arms import COUNTS, OTHER_GRID, SAME_GRID
from reference.report.parts import Part, Plot, Table, html, judged, markdown
from reference.report.plot import CLOUD, EDGE, OURS, QUIET, WEBP, plot

NAME = "hub.page"
PICTURES, BYTES = "hub-pictures.svg", "hub-bytes.svg"
_SAID = {"founder": "another edge model's latents", "reading": "the large model's own cache"}
Report = Mapping[str, Any]


def page(report: Report) -> str:
    """One file, plots inside."""
    lead = f"`{report['command']}`, {report['minutes']} minutes."
    return html("Edge models that join a hub", lead, parts(report))


def parts(report: Report) -> list[Part]:
    """Tables and plots."""
    return [
        *tables(report),
        Plot(PICTURES, "accuracy against the pictures fitted to", by_pictures(report)),
        Plot(BYTES, "accuracy against payload bytes", by_bytes(report)),
    ]


def tables(report: Report) -> list[Part]:
    """The targets, and every arm without rounding."""
    targets = [
        (
            row["name"],
            "–" if row["value"] is None else f"{_number(row['value'])} {row['unit']}",
            row["target"],
            judged(row["met"]),
            row.get("note", ""),
        )
        for row in report["figures"]
    ]
    rows = [
        (" ".join(map(str, row["arm"])), f"{100 * row['accuracy']:.1f}", row.get("questions", ""))
        for row in report["rows"]
        if "accuracy" in row
    ]
    floors = [
        (" ".join(map(str, row["arm"])), f"{100 * row['native']:.1f}", f"{100 * row['blind']:.1f}")
        for row in report["rows"]
        if "native" in row
    ]
    return [
        Table("Targets", ("figure", "#measured", "#target", "met", "more"), targets),
        Table("Right answers without rounding, %", ("arm", "#right", "#questions"), rows),
        Table("The large model, %", ("split", "#its own cache", "#no picture"), floors),
    ]


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, int) else f"{value:.3g}"


def _arm(report: Report, *start: Any) -> Mapping[str, Any] | None:
    size = len(start)
    return next((r for r in report["rows"] if tuple(r["arm"][:size]) == start), None)


def by_pictures(report: Report) -> str:
    """Accuracy of a joined edge model against the pictures that it was fitted to."""

    def draw(axes: Axes) -> None:
        for targets, colour in (("founder", OURS), ("reading", CLOUD)):
            found = [(n, _arm(report, "joined", SAME_GRID, targets, n, "test")) for n in COUNTS]
            seen = [(n, 100 * row["accuracy"]) for n, row in found if row is not None]
            if seen:
                axes.plot(*zip(*seen, strict=True), "o-", color=colour, markersize=4,
                          label=f"{SAME_GRID}, fitted to {_SAID[targets]}")  # fmt: skip
        found = [(n, _arm(report, "joined", OTHER_GRID, "reading", n, "test")) for n in COUNTS]
        other = [(n, 100 * row["accuracy"]) for n, row in found if row is not None]
        if other:
            axes.plot(*zip(*other, strict=True), "s--", color=EDGE, markersize=4,
                      label=f"{OTHER_GRID} (another grid), closed form")  # fmt: skip
        tuned = _arm(report, "tuned", OTHER_GRID)
        if tuned is not None:
            axes.plot([256], [100 * tuned["accuracy"]], "D", color=WEBP, markersize=5,
                      label=f"{OTHER_GRID}, tuned")  # fmt: skip
        for name, style in ((SAME_GRID, "-"), (OTHER_GRID, ":")):
            own = _arm(report, "own", name, "test")
            if own is not None:
                axes.axhline(100 * own["accuracy"], color=QUIET, linestyle=style, linewidth=0.9,
                             label=f"{name}, a bundle of its own")  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(COUNTS, [str(n) for n in COUNTS])
        axes.set_xlabel("unlabelled pictures that the edge half is fitted to")
        axes.set_ylabel("right answers, % (not rounded)")
        axes.legend(fontsize=8)

    return plot("hub-pictures", draw)


def by_bytes(report: Report) -> str:
    """Accuracy against payload bytes, joined edge models beside bundles of their own."""

    def draw(axes: Axes) -> None:
        lines: Sequence[tuple[str, tuple[Any, ...], str, str]] = (
            (f"{SAME_GRID}, its own bundle", ("own points", SAME_GRID, "test"), "o-", QUIET),
            (
                f"{SAME_GRID}, joined with 16 pictures",
                ("joined points", SAME_GRID, "founder", 16),
                "v--",
                WEBP,
            ),
            (
                f"{SAME_GRID}, joined with 64 pictures",
                ("joined points", SAME_GRID, "founder", 64),
                "^-",
                CLOUD,
            ),
            (
                f"{SAME_GRID}, joined with 256 pictures",
                ("joined points", SAME_GRID, "founder", 256),
                "s-",
                OURS,
            ),
            (f"{OTHER_GRID}, tuned with 256", ("tuned", OTHER_GRID), "D--", EDGE),
        )
        for label, key, style, colour in lines:
            row = _arm(report, *key)
            if row is None or not row.get("points"):
                continue
            seen = sorted((p["bytes"], 100 * p["accuracy"]) for p in row["points"])
            axes.plot(*zip(*seen, strict=True), style, color=colour, markersize=4, label=label)
        axes.set_xscale("log")
        axes.set_xlabel("payload bytes per frame")
        axes.set_ylabel("right answers, %")
        axes.legend(fontsize=8)

    return plot("hub-bytes", draw)


def make(given: argparse.Namespace) -> Mapping[Path, str]:
    """The tables for the page, and its plots."""
    report = json.loads(given.report.read_text(encoding="utf-8"))
    return {
        given.page: markdown(tables(report)),
        given.page.with_name(PICTURES): by_pictures(report),
        given.page.with_name(BYTES): by_bytes(report),
    }


def main() -> int:
    """Command line."""
    page_path, report = docs.DOCS / "hub.md", REPORTS / "hub.json"
    return docs.main(NAME, make, "bench-hub", report=report, page=page_path)


if __name__ == "__main__":
    sys.exit(main())
