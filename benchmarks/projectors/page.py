"""The projector bench's tables, targets and plots.

`python -m benchmarks.projectors.page` writes the tables into docs/maps.md from
`build/bench/projectors.json`; with `--check` it changes nothing and ends with 1 if they are not the
report's.
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
from benchmarks.projectors.figures import (
    BUNDLED,
    Report,
    Rows,
    correlation,
    hardiest,
    is_full,
    summarise,
)
from projector.bundle.certificate import GRADES, TIERS
from reference.report.parts import Part, Plot, Table, html, markdown, percent
from reference.report.plot import QUIET, plot

NAME = "projectors.page"
_MUCH = 0.6  # retention on test above which the docs show what a shift takes


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["edge_model"],
        row["family"],
        str(row["rank"]),
        f"{row['params']:,}",
        *(f"{100 * row[key]:.1f}" for key in ("accuracy", "accuracy_shifted", "agreement")),
        f"{row['cosine']:.3f}",
        f"{row['r2_k']:.2f}, {row['r2_v']:.2f}",
        row["grade"],
        row["tier"],
    )


def _edges(rows: Rows) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(row["edge_model"], []).append(row)
    return found


# -- what is shown ---------------------------------------------------------------------------------


def page(report: Report) -> str:
    """One file, plots inside."""
    test, shifted = (percent(report[key]) for key in ("cloud_image", "cloud_image_shifted"))
    lead = (
        f"{test} % right on test ({shifted} % shifted) by the cloud seeing the picture. "
        f"`{report['command']}`, {report['minutes']} minutes."
    )
    return html("Every family on every edge model", lead, parts(report))


def parts(report: Report) -> list[Part]:
    """Tables and plots."""
    related = correlation(report["means"])
    return [
        "## All maps",
        *tables(report),
        "## Grade by reconstruction against grade by answers",
        "Each mark is a map. If reconstruction predicted answers, they would lie on one rising line"
        + ("" if related is None else f"; the rank correlation is {related:.2f}")
        + ". The published grades A to D are the vertical lines, the tiers the horizontal ones.",
        Plot("scatter.svg", "cosine against retention", _scatter(report["means"])),
        "## Retention against rank",
        Plot("ranks.svg", "retention against rank", _ranks(report["means"])),
        "## Bound and estimate against the actual error",
        "The bound holds and is loose; the estimate is of the error that FP8 latents add. Families "
        "without an exact norm have none.",
        Plot("bounds.svg", "bound and estimate over actual", _bounds(report["means"])),
        "## Shift: night, fog, unseen grounds",
        Plot("shift.svg", "test against shifted", _shift(report["means"])),
        "## All rows",
        Table(
            "Means over seeds, %",
            (
                *("edge", "family", "#rank", "#parameters", "#test", "#shifted", "#agreement"),
                *("#cosine", "#R² K, V", "grade", "tier"),
            ),
            [_cells(row) for row in report["means"]],
        ),
        Table(
            "The cloud half: ONNX Runtime, eager torch, one bare matrix product, ms",
            ("family", "#batch", "#eager", "#ORT", "#GEMM", "#eager / ORT", "#ORT / GEMM"),
            [
                (
                    r["family"],
                    r["batch"],
                    *(f"{r[key]:.3f}" for key in ("eager_ms", "onnxruntime_ms", "gemm_ms")),
                    f"{r['speedup']:.2f}",
                    f"{r['over_gemm']:.1f}",
                )
                for r in report["ort_over_eager"]
            ],
        ),
    ]


def tables(report: Report) -> list[Part]:
    """The tables of the docs: accuracy per family, what a shift leaves, targets."""
    edges = list(report["controls_by_edge"])
    found: dict[tuple[str, int | str], dict[str, dict[str, Any]]] = {}
    for row in report["means"]:
        rank = "all" if is_full(row) else row["rank"]
        found.setdefault((row["family"], rank), {})[row["edge_model"]] = row
    rows: list[tuple[object, ...]] = []
    for (family, rank), by_edge in found.items():
        judged = by_edge.get(edges[0]) or next(iter(by_edge.values()))
        shown = [_two(by_edge.get(e), "accuracy", "accuracy_shifted") for e in edges]
        seeds, said = judged["seeds"], f"{judged['grade']}, {judged['tier']}"
        rows.append((f"`{family}`", rank, *shown, seeds, said))
    controls = list(report["controls_by_edge"].values())
    for name in ("cloud_image", "edge_only", *report["controls"]):
        if all(name in by["test"] for by in controls):
            shown = [
                f"{percent(by['test'][name])} / {percent(by['shifted'][name])}" for by in controls
            ]
            rows.append((f"*{name.replace('_', ' ')}*", "", *shown, "", ""))
    heads = ("Map", "Rank", *(f"{e}: test / shifted" for e in edges), "Seeds")
    return [
        Table("Right answers, %", (*heads, f"Grade, tier ({edges[0]})"), rows),
        _shifts(report, edges),
        Table(
            "Targets",
            ("Target", "Measured", "Met"),
            [
                (t["target"], t["measured"], "yes" if t["met"] else "**no**")
                for t in report["targets"]
            ],
        ),
        _foot(report),
    ]


def _foot(report: Report) -> str:
    pictures, related = report["pictures"], correlation(report["means"])
    return (
        f"{pictures['test']} test and {pictures['shifted']} shifted pictures,"
        f" {report['questions_per_picture']} questions each; {pictures['train']} training pictures."
        " A seed leaves out another third of them; maps trained by gradient have one seed, for"
        f" time, all but the {BUNDLED}: seed 0 is the shipped bundle, others were trained by"
        " its recipe with another `seed`."
        " Differences in points, with picture-clustered 95 % intervals. Lead: what is right above"
        " *blind*, in % of the cloud's that sees the picture"
        + ("" if related is None else f"; its rank correlation with the cosine is {related:.2f}")
        + f". {report['minutes']:.0f} minutes. Command: `{report['command'].strip()}`."
    )


def _shifts(report: Report, edges: Sequence[str]) -> Table:
    """Lead over `blind` that is left under shift, in % of the lead of the cloud seeing pictures."""
    rows = []
    for row in hardiest(report, _MUCH):
        shown = [
            "{:.0f} to {:.0f}".format(*(100 * share for share in row["by_edge"][edge]))
            if edge in row["by_edge"]
            else "–"
            for edge in edges
        ]
        rows.append((f"`{row['family']}`", *shown, f"{row['shifted'] / row['test']:.2f}"))
    heads = ("Lead kept: test to shifted, %", *edges, "Share left, mean")
    return Table("What a shift leaves", heads, rows)


def _marks(rows: Rows) -> list[tuple[str, str, Rows]]:
    """Marker, name and rows of every edge model."""
    return [
        (mark, edge, part)
        for mark, (edge, part) in zip("os^Dv", _edges(rows).items(), strict=False)
    ]


def _scatter(rows: Rows) -> str:
    def draw(axes: Axes) -> None:
        for mark, edge, part in _marks(rows):
            shown = [r for r in part if r["retention"] is not None]
            x, y = [r["cosine"] for r in shown], [100 * r["retention"] for r in shown]
            axes.scatter(x, y, marker=mark, alpha=0.7, label=edge)
            for row, at, up in zip(shown, x, y, strict=True):
                if mark == "o":
                    axes.annotate(
                        f"{row['family']} {row['rank']}", (at, up), xytext=(4, 2),
                        textcoords="offset points", fontsize=6,
                    )  # fmt: skip
        for name, least, _ in GRADES:
            axes.axvline(least, color=QUIET, lw=0.6, ls=":")
            axes.text(least, axes.get_ylim()[1], name, fontsize=8, ha="left", va="top")
        for name, share in TIERS:
            axes.axhline(100 * share, color=QUIET, lw=0.6, ls=":")
            axes.text(axes.get_xlim()[0], 100 * share, name, fontsize=7, va="bottom")
        axes.set_xlabel("mean cosine (grade by reconstruction)")
        axes.set_ylabel("answers kept above blind, % (grade by answers)")
        axes.legend(loc="lower right")

    return plot("scatter", draw, height=5.5)


def _ranks(rows: Rows) -> str:
    def draw(axes: Axes) -> None:
        for edge, part in _edges(rows).items():
            line = sorted((r["rank"], r["retention"]) for r in part if r["family"] == "low_rank")
            axes.semilogx(*zip(*line, strict=True), "o-", base=2, label=edge)
        axes.set_xlabel("rank of low_rank, closed form")
        axes.set_ylabel("retention")
        axes.legend()

    return plot("ranks", draw)


def _bounds(rows: Rows) -> str:
    known = [r for r in next(iter(_edges(rows).values())) if r["bound_over_actual"] is not None]

    def draw(axes: Axes) -> None:
        names = [f"{r['family']} {r['rank']}" for r in known]
        axes.plot(names, [r["bound_over_actual"] for r in known], "o", label="bound / actual")
        axes.plot(names, [r["estimate_over_actual"] for r in known], "x", label="estimate / actual")
        axes.axhline(1, color=QUIET, lw=0.6)
        axes.set_yscale("log")
        axes.tick_params(axis="x", rotation=90, labelsize=6)
        axes.legend()

    return plot("bounds", draw)


def _shift(rows: Rows) -> str:
    def draw(axes: Axes) -> None:
        for mark, edge, part in _marks(rows):
            x, y = ([100 * r[key] for r in part] for key in ("accuracy", "accuracy_shifted"))
            axes.scatter(x, y, marker=mark, alpha=0.7, label=edge)
        axes.axline((60, 60), slope=1, color=QUIET, lw=0.6)
        axes.set_xlabel("right on test, %")
        axes.set_ylabel("right on shifted, %")
        axes.legend()

    return plot("shift", draw)


def _two(row: Mapping[str, Any] | None, one: str, other: str) -> str:
    return "–" if row is None else f"{100 * row[one]:.1f} / {100 * row[other]:.1f}"


def make(given: argparse.Namespace) -> Mapping[Path, str]:
    """The tables for the page."""
    report = json.loads(given.report.read_text(encoding="utf-8"))
    summarise(report)
    return {given.page: markdown(tables(report))}


def main() -> int:
    """Command line."""
    page, report = docs.DOCS / "maps.md", REPORTS / "projectors.json"
    return docs.main(NAME, make, "bench-projectors", report=report, page=page)


if __name__ == "__main__":
    sys.exit(main())
