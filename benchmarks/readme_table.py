"""The results table of the README, from `build/bench/report.json`.

`python -m benchmarks.readme_table` writes it; with `--check` it changes nothing and ends with 1 if
the README's table is not the report's. Knows the report's keys and two marker lines; computes no
figure.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.command import ROOT

BEGIN = "<!-- results: python -m benchmarks.readme_table -->"
END = "<!-- /results -->"
NOTHING = "not measured"


def render(report: dict[str, Any]) -> str:
    """The table in Markdown, one row per figure that the project sets a target for."""
    accuracy, wire = report["accuracy"], report["wire_bytes_per_frame"]
    differences, ratio = report["differences"], report["bytes_ratio"]
    control = differences["other_picture_minus_other_picture_labels"]
    rows = [
        (
            "right answers, cloud seeing the picture",
            _percent(report, "cloud_image"),
            "≥ 93 %",
        ),
        ("right answers, **injected cache**", _percent(report, "injected"), ""),
        (
            "… minus the cloud seeing the picture",
            _points(differences["injected_minus_cloud_image"]),
            "≥ −2 points",
        ),
        (
            "… minus the edge alone",
            _points(differences["injected_minus_edge_only"]),
            "≥ +5 points",
        ),
        ("right answers, edge alone", _percent(report, "edge_only"), ""),
        ("right answers, raw cache in FP8", _percent(report, "raw_kv_fp8"), ""),
        ("right answers, no picture / mean state", _two(accuracy, "blind", "mean_state"), ""),
        ("another picture's cache, minus its labels", _points(control), "within 3 points"),
        (
            "**bytes on the wire per frame**, mean (p95)",
            f"{wire['mean']:.0f} ({wire['p95']:.0f})",
            "≤ 400",
        ),
        (
            f"… smallest picture within 2 points ({ratio['codec'] or 'none'})",
            f"{ratio['bytes']:.0f}, {ratio['ratio']:.1f}×" if ratio["ratio"] else NOTHING,
            "≥ 4×",
        ),
    ]
    for batch, target in (("batch_1", "≤ 0.8"), ("batch_16", "≤ 0.5")):
        times = report["ttft_ms"][batch]
        rows.append(
            (
                f"time to first token, injected / picture, {batch.replace('_', ' ')}",
                f"{report['ttft_ratio'][batch]:.2f} ({times['injected']['p50']:.1f} /"
                f" {times['picture_png']['p50']:.1f} ms)",
                target,
            )
        )
    flops = report["flops"]
    rows.append(
        (
            "operations up to the first token, injected / picture",
            f"{flops['injected'] / 1e6:.0f} M / {flops['picture'] / 1e6:.0f} M",
            "",
        )
    )
    lines = ["| Figure | Measured | Target |", "|---|---|---|"]
    lines += [f"| {name} | {measured} | {target} |" for name, measured, target in rows]
    made = report["made"]
    lines += [
        "",
        f"{report['questions']:,} questions about {report['pictures']:,} pictures of the"
        f" {made['split']} split; 95 % intervals resample pictures. {made['machine']};"
        f" {made['seconds'] / 60:.0f} minutes. Command: `{made['command']}`.",
    ]
    return "\n".join(lines)


def _percent(report: dict[str, Any], arm: str) -> str:
    low, high = report["accuracy_interval"][arm]
    return f"{100 * report['accuracy'][arm]:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _two(accuracy: dict[str, float], one: str, other: str) -> str:
    return f"{100 * accuracy[one]:.1f} % / {100 * accuracy[other]:.1f} %"


def _points(estimate: dict[str, float]) -> str:
    shown = [f"{100 * estimate[key]:+.1f}" for key in ("mean", "low", "high")]
    return "{} ({} to {})".format(*shown).replace("-", "−")


def placed(document: str, table: str, begin: str = BEGIN) -> str:
    """A document with the table between its markers.

    Args:
        document: what is read.
        table: what goes between the lines `begin` and `END`.
        begin: the first marker.

    Raises:
        ValueError: the markers are missing.
    """
    before, found, rest = document.partition(begin)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"the document lacks the lines {begin!r} and {END!r}")
    return f"{before}{begin}\n{table}\n{END}{after}"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the results table into README.md.")
    parser.add_argument("--report", type=Path, default=ROOT / "build" / "bench" / "report.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    given = parser.parse_args()
    if not given.report.is_file():
        print(f"readme_table: {given.report} is not there: run `make bench` first", file=sys.stderr)
        return 1
    table = render(json.loads(given.report.read_text(encoding="utf-8")))
    old = given.readme.read_text(encoding="utf-8")
    new = placed(old, table)
    if given.check:
        if new != old:
            print("readme_table: README.md is not up to date", file=sys.stderr)
        return int(new != old)
    given.readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
