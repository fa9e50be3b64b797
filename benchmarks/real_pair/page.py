"""The real pair's figures for people: a table and a plot in the documents.

`python -m benchmarks.real_pair.page` writes both from `build/bench/real_pair.json` (and the other
direction's report where there is one); with `--check` it changes nothing and ends with 1 if the
table is not the reports'. Knows the reports' keys. Measures nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import readme_table
from benchmarks.real_pair.targets import FLOOR, REVERSE_RUNS

ROOT = Path(__file__).resolve().parents[2]
BEGIN = "<!-- results: python -m benchmarks.real_pair.page -->"
placed = partial(readme_table.placed, begin=BEGIN)

FORWARD, REVERSE = "real_pair.json", "real_pair_reverse.json"
PLOT = "real-pair.svg"
_SPLITS = {"unseen": "unseen words", "seen": "seen", "binding": "binding"}
_LANGUAGES = {"german": "German", "chinese": "Chinese"}

Report = dict[str, Any]


def _percent(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{100 * found['mean']:.1f}"


def _interval(found: dict[str, float]) -> str:
    return f"{100 * found['mean']:.1f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


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


def markdown(report: Report, other: Report | None) -> str:
    """Targets, arms and what a cache buys, as Markdown."""
    rows = arms(report)
    lines = ["| Target | Measured | Met |", "|---|---|---|"]
    ran = {} if other is None else {"measured": "its figures are below", "met": True}
    lines += [
        f"| {row['target']} | {row['measured']} | {'yes' if row['met'] else '**no**'} |"
        for row in (
            row | (ran if row["target"] == REVERSE_RUNS else {}) for row in report["targets"]
        )
    ]
    asked = rows[0]
    heads = [*_SPLITS.values(), "gap recovered, unseen"]
    heads += [f"{said} ({asked[f'n_{name}']} questions)" for name, said in _LANGUAGES.items()]
    lines += [
        "",
        f"| Right answers of 8, % | numbers a token | bytes a token | {' | '.join(heads)} |",
        "|---|---|---|" + "---|" * len(heads),
    ]
    for row in rows:
        gap = row.get("gap_recovered_unseen") if row["numbers_per_token"] else None
        cells = [
            row["name"] + (f" ({row['seeds']} seeds)" if row["seeds"] > 1 else ""),
            f"{row['numbers_per_token']:,}" if row["numbers_per_token"] else "",
            f"{row['bytes_per_token']:,.0f}" if row["bytes_per_token"] else "",
            _interval(row["acc_unseen"]) if "acc_unseen" in row else "",
            *(_percent(row.get(f"acc_{split}")) for split in list(_SPLITS)[1:]),
            "" if gap is None else f"{100 * gap:.0f} %",
            *(
                _interval(row[f"acc_{split}"]) if f"acc_{split}" in row else ""
                for split in _LANGUAGES
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    text, first = report["text_on_the_wire"]["unseen"], report["ttft"]
    spent = report["training_minutes"]
    lines += [
        "",
        f"{report['settings']['texts']:,} texts ({report['tokens']:,} tokens) to learn from, none "
        "with a word of the unseen split; the interval resamples contexts. A context's text is "
        f"{text['bytes']:.0f} bytes ({text['bytes_per_token']:.1f} a token): a cache is never the "
        "smaller of the two here. What it saves is reading: the first token of "
        f"{first['tokens']} tokens comes after {first['injected_ms']:.0f} ms against "
        f"{first['native_ms']:.0f} ms. Minutes of the steps: "
        + ", ".join(f"{name} {minutes:.1f}" for name, minutes in spent.items() if minutes >= 0.5)
        + f" (threads: {report['threads']}). {_dearest(report)} Command: "
        "`python -m benchmarks.real_pair`.",
        "",
        f"![right answers against numbers per token]({PLOT})",
    ]
    if other is not None:
        lines += ["", _reverse(other)]
    return "\n".join(lines)


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
        f"{name} {_interval(by_name[name]['acc_unseen'])}" for name in names if name in by_name
    )
    plan, count = report["settings"], by_name["native"]["n"]
    flags = " ".join(f"--{name} {plan[name]}" for name in ("texts", "seeds", "steps", "contexts"))
    return (
        f"The other direction (`make bench-real-reverse`: `python -m benchmarks.real_pair "
        f"--reverse {flags}`, {count} questions), unseen words: {found} %."
    )


def draw(report: Report, path: Path) -> None:
    """Right answers on unseen words against numbers per token, with both ends, as an SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = arms(report)
    by_name = {row["name"]: row for row in rows}
    matplotlib.rcParams["svg.hashsalt"] = "real-pair"  # the same file for the same figures
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6))
    kinds = {"closed form": "", "then KL through the frozen model": " + KL"}
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
    ends = {"native": "its own cache", FLOOR: "no context", "another context": "another's cache"}
    for (name, label), style in zip(ends.items(), ("-", "--", ":"), strict=True):
        axes.axhline(100 * by_name[name]["acc_unseen"]["mean"], ls=style, c="grey", lw=1)
        axes.annotate(
            label, (0.99, 100 * by_name[name]["acc_unseen"]["mean"]),
            xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xlabel("numbers per token")
    axes.set_ylabel("right of 8, unseen words, %")
    axes.set_ylim(0, 104)
    axes.legend(loc="center right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the real pair's table into the docs.")
    parser.add_argument("--reports", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "model-engineer.md")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    args = parser.parse_args()
    if not (args.reports / FORWARD).is_file():
        lack = f"{args.reports / FORWARD} is not there: run `make bench-real` first"
        print(f"real_pair.page: {lack}", file=sys.stderr)
        return 1
    report: Report = json.loads((args.reports / FORWARD).read_text(encoding="utf-8"))
    back = args.reports / REVERSE
    other: Report | None = json.loads(back.read_text(encoding="utf-8")) if back.is_file() else None
    old = args.page.read_text(encoding="utf-8")
    new = placed(old, markdown(report, other))
    if args.check:
        if new != old:
            print(f"real_pair.page: {args.page} is not up to date", file=sys.stderr)
        return int(new != old)
    args.page.write_text(new, encoding="utf-8")
    draw(report, args.page.with_name(PLOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
