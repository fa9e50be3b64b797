"""What demo and bench show: progress and tables on a terminal, the report's files.

Knows tables and files; `benchmarks/measure.py` measures. A run's exit code is 0 only if it was
whole: every question answered in every arm, every figure of the report there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.measure import Advance, Plan, measure
from benchmarks.report import schema
from benchmarks.report.page import render
from benchmarks.report.plots import ARM_NAMES, STAGE_NAMES
from edge_agent.picture import PictureCodec
from protos.errors import BridgeError
from reference.demo.processes import ChildError
from reference.demo.testset import TestSet

CODECS = (
    PictureCodec("webp", 80),
    PictureCodec("jpeg", 50, 96),
    PictureCodec("webp", 20, 64),
)


class Terminal:
    """Progress on a console: bars where there is a terminal, one line per stage elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, style="dim", highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, text: str, total: int) -> Iterator[Advance]:
        """Show one stage; without a terminal, its name once it is done."""
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )
        with bar:
            task = bar.add_task(f"{text:<38}", total=total)
            yield lambda units: bar.advance(task, units)


def write(report: dict[str, Any], out: Path) -> None:
    """Write `report.json` and, if no figure is missing, `report.html` into `out`."""
    missing = schema.problems(report)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=bool(missing))
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    if missing:
        return
    shown = {q["picture"] for q in report["first_questions"]}
    test = TestSet.load(report["made"]["split"], max(shown) + 1, 1)
    page = render(report, {number: test.pictures[number] for number in shown})
    (out / "report.html").write_text(page, encoding="utf-8")


def show(report: dict[str, Any], console: Console) -> None:
    """Print the report's tables."""
    for table in (
        _first(report),
        _accuracy(report),
        _bytes(report),
        _latency(report),
        _distortion(report),
        _targets(report),
    ):
        console.print()
        console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        right = column.endswith(">")
        table.add_column(column.rstrip(">"), justify="right" if right else "left")
    return table


def _first(report: dict[str, Any]) -> Table:
    table = _table(
        "The first ten questions", "question", "truth", "injected cache", "cloud, picture", "edge"
    )
    for row in report["first_questions"]:
        answers = [row[arm] for arm in ("injected", "cloud_image", "edge_only")]
        marked = [a if a == row["truth"] else f"[red]{a or '(nothing)'}[/red]" for a in answers]
        table.add_row(row["question"], row["truth"], *marked)
    return table


def _accuracy(report: dict[str, Any]) -> Table:
    kinds = list(report["questions_by_kind"])
    table = _table(
        f"Right answers, % ({report['questions']} questions, {report['pictures']} pictures)",
        "arm", "all>", "95 %>", *(f"{kind}>" for kind in kinds),
    )  # fmt: skip
    for arm, name in ARM_NAMES.items():
        low, high = report["accuracy_interval"][arm]
        by_kind = report["accuracy_by_kind"][arm]
        table.add_row(
            name,
            f"{100 * report['accuracy'][arm]:.1f}",
            f"{100 * low:.1f} to {100 * high:.1f}",
            *(f"{100 * by_kind[kind]:.1f}" for kind in kinds),
            style="bold" if arm == "injected" else None,
        )
    return table


def _bytes(report: dict[str, Any]) -> Table:
    table = _table("Bytes on the wire per frame", "what is sent", "bytes>", "p95>", "right, %>")
    wire = report["wire_bytes_per_frame"]
    accuracy = report["accuracy"]
    point = report["operating_point"]["name"]
    table.add_row(
        f"ours ({point})",
        f"{wire['mean']:.0f}",
        f"{wire['p95']:.0f}",
        f"{100 * accuracy['injected']:.1f}",
        style="bold",
    )
    by_arm = report["wire_bytes_per_frame_by_arm"]
    for arm, name in (
        ("injected_float", "latents, not quantized"),
        ("raw_kv_fp8", "raw cache in FP8"),
        ("cloud_image", "PNG"),
    ):
        table.add_row(name, f"{by_arm[arm]:.0f}", "", f"{100 * accuracy[arm]:.1f}")
    for codec in sorted(report["image_codecs"], key=lambda c: -c["bytes"]):
        name = f"{codec['codec']} q{codec['quality']}, {codec['size_px']} px"
        table.add_row(name, f"{codec['bytes']:.0f}", "", f"{100 * codec['accuracy']:.1f}")
    table.add_row("set-up, once", f"{report['setup_bytes']}", "", "", style="dim")
    table.add_row("a question", f"{report['wire_bytes_per_question']:.0f}", "", "", style="dim")
    return table


def _latency(report: dict[str, Any]) -> Table:
    latency = report["latency_ms"]
    table = _table("Latency, ms (one request at a time)", "stage", "p50>", "p95>", "")
    start, total = 0.0, max(latency["total"]["p50"], 1e-9)
    for stage, name in STAGE_NAMES.items():
        found = latency[stage]
        left, width = round(40 * start / total), max(1, round(40 * found["p50"] / total))
        bar = " " * left + "█" * width
        table.add_row(name, f"{found['p50']:.2f}", f"{found['p95']:.2f}", bar)
        start += found["p50"]
    for stage, name in (("ttft", "arrived → first token"), ("total", "picture → answer")):
        found = latency[stage]
        table.add_row(name, f"{found['p50']:.2f}", f"{found['p95']:.2f}", "", style="bold")
    for batch, ratio in report["ttft_ratio"].items():
        name = f"first token, injected / picture, {batch.replace('_', ' ')}"
        table.add_row(name, f"{ratio:.2f}", "", "", style="bold")
    return table


def _distortion(report: dict[str, Any]) -> Table:
    table = _table("Distortion per stage", "stage", "figure>", "is")
    found = report["distortion"]
    for name, meaning in (
        ("quantize", "relative L2 error of the latents"),
        ("select", "attention on dropped tokens"),
        ("latent", "share of the cache's norm outside the latents"),
        ("actual", "relative L2 error against the cloud's own cache"),
    ):
        table.add_row(name, f"{found[name]:.3f}", meaning)
    return table


def _targets(report: dict[str, Any]) -> Table:
    table = _table("Targets (set for the full split: make bench)", "figure", "target", "here>", "")
    for row in report["targets"]:
        measured = "–" if row["measured"] is None else f"{row['measured']:g}"
        mark = {True: "[green]met[/green]", False: "[red]missed[/red]", None: "–"}[row["met"]]
        table.add_row(row["name"], row["target"], measured, mark)
    return table


def run(plan: Plan, console: Console) -> int:
    """Measure, print, write; the exit code says whether the run was whole.

    Returns:
        0 if whole, 1 if something was left unanswered, the error's own code if it stopped.
    """
    try:
        report = measure(plan, Terminal(console))
    except BridgeError as error:
        console.print(f"[red]{error.name} ({error.code})[/red]: {error}", highlight=False)
        return error.exit_code
    except ChildError as error:
        console.print(f"[red]{error}[/red]", highlight=False, markup=True)
        return 1
    missing = schema.problems(report)
    report["problems"] += missing
    report["whole"] = not report["problems"]
    write(report, plan.out)
    if not missing:
        show(report, console)
    console.print()
    for problem in report["problems"]:
        console.print(f"[red]not whole:[/red] {problem}", highlight=False)
    made = report["made"]
    console.print(
        f"metrics while it ran: {made['metrics']} (kept: {_short(plan.out / 'cloud-metrics.txt')},"
        f" {_short(plan.out / 'edge-metrics.txt')})",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"report: {_short(plan.out / 'report.html')}, {_short(plan.out / 'report.json')};"
        f" {made['seconds']:.0f} s",
        highlight=False,
        soft_wrap=True,
    )
    return 0 if report["whole"] else 1


def _short(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def arguments(description: str, out: Path, pictures: int) -> argparse.ArgumentParser:
    """The command line that the demo and the bench share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--pictures", type=int, default=pictures, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=out, help="default: build/%(prog)s's own")
    parser.add_argument("--edge", type=Path, default=Plan.edge, help="checkpoint of the edge model")
    parser.add_argument("--cloud", type=Path, default=Plan.cloud, help="checkpoint of the cloud's")
    parser.add_argument("--bundle", type=Path, default=Plan.bundle, help="bundle between them")
    return parser
