"""The real pair's tables and plot for the documents.

`python -m benchmarks.real_pair.page` writes both from `build/bench/real_pair.json` (and the other
direction's report, if it exists). With `--check` it changes nothing and ends with 1 if the table
differs from the reports.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from benchmarks import docs
from benchmarks.command import REPORTS
from benchmarks.real_pair.targets import FLOOR, REVERSE_RUNS
from reference.report.parts import Part, Plot, Table, interval, markdown, percent
from reference.report.plot import QUIET, plot

NAME = "real_pair.page"
FORWARD, REVERSE = "real_pair.json", "real_pair_reverse.json"
PLOT = "real-pair.svg"
_SPLITS = {"unseen": "unseen words", "seen": "seen", "binding": "binding"}
_LANGUAGES = {"german": "German", "chinese": "Chinese"}

Report = dict[str, Any]


def arms(report: Report) -> list[dict[str, Any]]:
    """The arms, those of several seeds averaged, in the report's order."""
    together: dict[str, list[dict[str, Any]]] = {}
    for arm in report["arms"]:
        together.setdefault(arm["name"], []).append(arm)
    made = []
    for name, some in together.items():
        entry = {**some[0], "seeds": len(some)}
        for key, value in some[0].items():
            found = [arm[key] for arm in some if key in arm]
            if isinstance(value, dict) and "mean" in value:
                entry[key] = {k: sum(f[k] for f in found) / len(found) for k in value}
            elif key.startswith("gap_recovered"):
                entry[key] = sum(found) / len(found)
        made.append(entry | {"name": name})
    return made


def parts(report: Report, other: Report | None) -> list[Part]:
    """Targets, arms, the time that a cache saves, and a plot."""
    rows = arms(report)
    ran = {} if other is None else {"measured": "its figures are below", "met": True}
    reached = [row | (ran if row["target"] == REVERSE_RUNS else {}) for row in report["targets"]]
    asked = rows[0]
    heads = [*_SPLITS.values(), "gap recovered, unseen"]
    heads += [f"{said} ({asked[f'n_{name}']} questions)" for name, said in _LANGUAGES.items()]
    text, first, spent = (
        report["text_on_the_wire"]["unseen"],
        report["ttft"],
        report["training_minutes"],
    )
    made: list[Part] = [
        Table(
            "Targets",
            ("Target", "Measured", "Met"),
            [(r["target"], r["measured"], "yes" if r["met"] else "**no**") for r in reached],
        ),
        Table(
            "Right answers of 8, %",
            ("Right answers of 8, %", "numbers a token", "bytes a token", *heads),
            [_cells(row) for row in rows],
        ),
        f"{report['settings']['texts']:,} texts ({report['tokens']:,} tokens) to learn from, none "
        "with a word of the unseen split; the interval resamples contexts. A context's text is "
        f"{text['bytes']:.0f} bytes ({text['bytes_per_token']:.1f} a token): a cache is never the "
        "smaller of the two here. What it saves is reading: the first token of "
        f"{first['tokens']} tokens comes after {first['injected_ms']:.0f} ms against "
        f"{first['native_ms']:.0f} ms. Minutes of the steps: "
        + ", ".join(f"{name} {minutes:.1f}" for name, minutes in spent.items() if minutes >= 0.5)
        + f" (threads: {report['threads']}). {_dearest(report)} Command: "
        "`python -m benchmarks.real_pair`.",
        Plot(PLOT, "right answers against numbers per token", draw(report)),
    ]
    return made if other is None else [*made, _reverse(other)]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    gap = row.get("gap_recovered_unseen") if row["numbers_per_token"] else None

    def whole(split: str) -> str:
        return interval(row[f"acc_{split}"]) if f"acc_{split}" in row else ""

    def mean(split: str) -> str:
        return percent(row[f"acc_{split}"]["mean"]) if f"acc_{split}" in row else ""

    return (
        row["name"] + (f" ({row['seeds']} seeds)" if row["seeds"] > 1 else ""),
        f"{row['numbers_per_token']:,}" if row["numbers_per_token"] else "",
        f"{row['bytes_per_token']:,.0f}" if row["bytes_per_token"] else "",
        whole("unseen"),
        *(mean(split) for split in list(_SPLITS)[1:]),
        "" if gap is None else f"{100 * gap:.0f} %",
        *(whole(split) for split in _LANGUAGES),
    )


def _dearest(report: Report) -> str:
    """Where the answers' Fisher information lies."""
    shares = report["sensitivity"]
    dearest, layer = max(
        ((part, layer) for part, found in shares.items() for layer in range(len(found))),
        key=lambda place: float(shares[place[0]][place[1]]),
    )
    return (
        f"Of the answers' Fisher information {100 * shares[dearest][layer]:.0f} % lies in the "
        f"{dearest} of layer {layer} (counted from 0), {100 * sum(shares['values']):.0f} % in all "
        "values together."
    )


def _reverse(report: Report) -> str:
    by_name = {row["name"]: row for row in arms(report)}
    names = ("native", FLOOR, "another context", "full", "full + KL", "rank 256", "rank 256 + KL")
    found = "; ".join(
        f"{name} {interval(by_name[name]['acc_unseen'])}" for name in names if name in by_name
    )
    plan, count = report["settings"], by_name["native"]["n"]
    flags = " ".join(f"--{name} {plan[name]}" for name in ("texts", "seeds", "steps", "contexts"))
    return (
        f"The other direction (`make bench-real-reverse`: `python -m benchmarks.real_pair "
        f"--reverse {flags}`, {count} questions), unseen words: {found} %."
    )


def draw(report: Report) -> str:
    """Right answers on unseen words against numbers per token, with both ends, as an SVG."""
    rows = arms(report)
    unseen = {row["name"]: row["acc_unseen"] for row in rows if "acc_unseen" in row}
    kinds = {"closed form": "", "then KL through the frozen model": " + KL"}
    ends = {"native": "its own cache", FLOOR: "no context", "another context": "another's cache"}

    def drawn(axes: Axes) -> None:
        for (label, ending), marker in zip(kinds.items(), "os", strict=True):
            some = [
                row
                for row in rows
                if row["numbers_per_token"]
                and row["name"].startswith(("full", "rank"))
                and "," not in row["name"]
                and row["name"].endswith(" + KL") == bool(ending)
            ]
            some.sort(key=lambda row: int(row["numbers_per_token"]))
            found = [row["acc_unseen"] for row in some]
            mean = [100 * f["mean"] for f in found]
            spread = [
                [100 * (f["mean"] - f["low"]) for f in found],
                [100 * (f["high"] - f["mean"]) for f in found],
            ]
            numbers = [row["numbers_per_token"] for row in some]
            axes.errorbar(numbers, mean, spread, marker=marker, capsize=3, label=label)
        for (name, label), style in zip(ends.items(), ("-", "--", ":"), strict=True):
            height = 100 * unseen[name]["mean"]
            axes.axhline(height, ls=style, c=QUIET, lw=1)
            axes.annotate(
                label, (0.99, height), xycoords=("axes fraction", "data"), ha="right",
                va="bottom", fontsize=8,
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xlabel("numbers per token")
        axes.set_ylabel("right of 8, unseen words, %")
        axes.set_ylim(0, 104)
        axes.legend(loc="center right", fontsize=8)

    return plot("real-pair", drawn, height=3.6)


def make(given: argparse.Namespace) -> dict[Path, str]:
    """The tables for the page, and the plot beside it."""
    report: Report = json.loads((given.reports / FORWARD).read_text(encoding="utf-8"))
    back = given.reports / REVERSE
    other: Report | None = json.loads(back.read_text(encoding="utf-8")) if back.is_file() else None
    made = parts(report, other)
    drawn = {given.page.with_name(p.file): p.svg for p in made if isinstance(p, Plot)}
    return {given.page: markdown(made), **drawn}


def main() -> int:
    """Command line."""
    return docs.main(NAME, make, "bench-real", reports=REPORTS, page=docs.DOCS / "real-pair.md")


if __name__ == "__main__":
    sys.exit(main())
