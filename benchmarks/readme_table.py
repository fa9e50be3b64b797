"""The results table of the README, from `build/bench/report.json`.

`python -m benchmarks.readme_table` writes it. With `--check` it changes nothing and ends with 1 if
the README's table differs from the report's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import docs
from benchmarks.command import REPORTS
from reference.report.parts import Table, markdown, percent, points

NAME = "readme_table"


def render(report: dict[str, Any]) -> str:
    """The table in Markdown, one row per figure that the project sets a target for."""
    right, wire = report["accuracy"], report["wire_bytes_per_frame"]
    differences, ratio = report["differences"], report["bytes_ratio"]
    control = differences["other_picture_minus_other_picture_labels"]

    def of(arm: str) -> str:
        low, high = report["accuracy_interval"][arm]
        return f"{percent(right[arm])} % ({percent(low)} to {percent(high)})"

    def ttft(batch: str) -> str:
        ms = report["ttft_ms"][batch]
        injected, picture = ms["injected"]["p50"], ms["picture_png"]["p50"]
        return f"{report['ttft_ratio'][batch]:.2f} ({injected:.1f} / {picture:.1f} ms)"

    floors = " / ".join(f"{percent(right[arm])} %" for arm in ("blind", "mean_state"))
    smallest = f"{ratio['bytes']:.0f}, {ratio['ratio']:.1f}×" if ratio["ratio"] else docs.NOTHING
    flops = [f"{report['flops'][arm] / 1e6:.0f} M" for arm in ("injected", "picture")]
    first = "time to first token, injected / picture, batch"
    rows = [
        ("right answers, cloud seeing the picture", of("cloud_image"), "≥ 93 %"),
        ("right answers, **injected cache**", of("injected"), ""),
        (
            "… minus the cloud seeing the picture",
            points(differences["injected_minus_cloud_image"]),
            "≥ −2 points",
        ),
        (
            "… minus the edge alone",
            points(differences["injected_minus_edge_only"]),
            "≥ +5 points",
        ),
        ("right answers, edge alone", of("edge_only"), ""),
        ("right answers, raw cache in FP8", of("raw_kv_fp8"), ""),
        ("right answers, no picture / mean state", floors, ""),
        ("another picture's cache, minus its labels", points(control), "within 3 points"),
        (
            "**bytes on the wire per frame**, mean (p95)",
            f"{wire['mean']:.0f} ({wire['p95']:.0f})",
            "≤ 400",
        ),
        (f"… smallest picture within 2 points ({ratio['codec'] or 'none'})", smallest, "≥ 4×"),
        (f"{first} 1", ttft("batch_1"), "≤ 0.8"),
        (f"{first} 16", ttft("batch_16"), "≤ 0.5"),
        ("operations up to the first token, injected / picture", " / ".join(flops), ""),
    ]
    made = report["made"]
    foot = (
        f"{report['questions']:,} questions about {report['pictures']:,} pictures of the "
        f"{made['split']} split; 95 % intervals resample pictures. {made['machine']}; "
        f"{made['seconds'] / 60:.0f} minutes. Command: `{made['command']}`."
    )
    return markdown([Table("", ("Figure", "Measured", "Target"), rows), foot])


def make(given: argparse.Namespace) -> Mapping[Path, str]:
    """The table for the README."""
    return {given.readme: render(json.loads(given.report.read_text(encoding="utf-8")))}


def main() -> int:
    """Command line."""
    report = REPORTS / "report.json"
    return docs.main(NAME, make, "bench", report=report, readme=docs.README)


if __name__ == "__main__":
    sys.exit(main())
