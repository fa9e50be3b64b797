"""The table and the plot of accuracy against bytes, on a terminal and as one HTML page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "rate"  # else names in an SVG differ from run to run
from matplotlib import pyplot  # noqa: E402  (after the backend is chosen)

COLUMNS = ("kind", "edge_model", "name", "seed", "payload_bytes", "wire_bytes", "accuracy")
"""Of the table; the difference from seeing the picture follows."""
HEADLINES = {
    "guard": (
        *("auroc", "auroc_test", "auroc_shifted"),
        *("accuracy_mixed", "bytes_mixed", "cloud_image_mixed"),
    ),
    "controller": ("adaptive", "best_fixed", "best_fixed_point"),
}
_MARKERS = {"ours": "o-", "rival": "s", "control": "x", "video": "^"}


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the table and what it comes to."""
    table = Table(title=f"{report['questions']} questions about {report['pictures']} test pictures")
    for name in (*COLUMNS, "minus seeing"):
        table.add_column(name, justify="right" if "bytes" in name or "acc" in name else "left")
    for row in report["rows"]:
        table.add_row(*_cells(row))
    console.print(table)
    console.print_json(data=report["within_two_points"])
    for name in ("sequences_within_two_points", "cachegen", "frames_per_second_one_core"):
        if report.get(name):
            console.print_json(data={name: report[name]})
    for name, keys in HEADLINES.items():
        if report.get(name):
            console.print_json(data={name: {key: report[name][key] for key in keys}})


def render(report: Mapping[str, Any]) -> str:
    """The page."""
    return (
        "<!doctype html><meta charset=utf-8><title>Rate and accuracy</title>"
        "<style>body{font:15px system-ui;margin:2rem;max-width:70rem}td,th{padding:.15rem .6rem;"
        "text-align:left;border-bottom:1px solid #8884}img{max-width:100%}</style>"
        "<h1>Accuracy against bytes</h1>"
        f"<p>{report['questions']:,} questions about {report['pictures']:,} pictures of the test "
        f"split. Command: <code>{html.escape(report['command'])}</code></p>"
        + _figure(report)
        + _halved(report)
        + _sequences(report)
    )


def _sequences(report: Mapping[str, Any]) -> str:
    """The same of sequences, where there are any."""
    rows = report.get("sequences")
    if not rows:
        return ""
    part = {"rows": rows, "cloud_image": report["sequences_cloud_image"]}
    return "<h2>A fixed camera, against video</h2>" + _figure(part) + _inner(chain(report))


def _halved(report: Mapping[str, Any]) -> str:
    """What each halving of the payload costs, where any was measured."""
    if not report.get("per_halving"):
        return ""
    return "<h2>What a halving costs</h2>" + _inner(halvings(report))


def _inner(drawn: str) -> str:
    """An SVG file's picture, to stand within a page."""
    return drawn[drawn.index("<svg") :]


def _figure(report: Mapping[str, Any]) -> str:
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row)) + "</tr>"
        for row in report["rows"]
    )
    heads = "".join(f"<th>{name}</th>" for name in (*COLUMNS, "minus seeing"))
    return (
        f'<img alt="accuracy against bytes on the wire" src="data:image/png;base64,{plot(report)}">'
        f"<table><tr>{heads}</tr>{rows}</table>"
    )


def plot(report: Mapping[str, Any]) -> str:
    """Accuracy against bytes on the wire, log axis: a PNG in base64."""
    return base64.b64encode(_drawn(report, "png")).decode()


def svg(report: Mapping[str, Any]) -> str:
    """The same as SVG."""
    return _drawn(report, "svg").decode()


def _drawn(report: Mapping[str, Any], form: str) -> bytes:
    figure, axes = pyplot.subplots(figsize=(9, 5))
    rows = [r for r in report["rows"] if r["wire_bytes"]]
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["kind"], _series(row)), []).append(row)
    for (kind, group), some in lines.items():
        _line(axes, kind, f"{kind}: {group}" if group else kind, some)
    axes.axhline(report["cloud_image"], color="gray", linewidth=0.8)
    axes.axhline(report["cloud_image"] - 0.02, color="gray", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("bytes on the wire per frame")
    axes.set_ylabel("right answers (lines: seeing the picture, and 2 points less)")
    axes.legend(fontsize=8)
    figure.tight_layout()
    out = io.BytesIO()
    plain = {"metadata": {"Date": None, "Creator": None}} if form == "svg" else {"dpi": 110}
    figure.savefig(out, format=form, **plain)
    pyplot.close(figure)
    return out.getvalue()


def _series(row: Mapping[str, Any]) -> str:
    """Which rows belong together: a codec's, or one way of doing it of one edge model."""
    name, edge = str(row["name"]), str(row["edge_model"])
    if row["kind"] in ("image", "video"):
        return name.split()[0]
    way = name.split(",")[0] if row["kind"] == "rival" else ""
    if name.startswith(("kvpress", "selector")):
        way = name.split()[0]
    return str(row.get("series") or f"{edge} {way}".strip())


def chain(report: Mapping[str, Any]) -> str:
    """Right answers by the number of deltas since the key frame, default points, as SVG."""
    figure, axes = pyplot.subplots(figsize=(7, 3.6))
    for row in report["sequences"]:
        if row["kind"] != "ours" or not row["default"]:
            continue
        by_frame = {int(at): right for at, right in row["accuracy_by_frame"].items()}
        style = "o-" if "delta" in row["series"] else "x:"
        axes.plot(list(by_frame), [100 * v for v in by_frame.values()], style, label=row["series"])
    axes.axhline(100 * report["sequences_cloud_image"], color="gray", linewidth=0.8)
    axes.set_xlabel("frames since the key frame")
    axes.set_ylabel("right answers, % (line: seeing the frames)")
    return _saved(figure, axes)


def halvings(report: Mapping[str, Any]) -> str:
    """Points of accuracy lost per halving of the payload, between neighbouring points, as SVG."""
    figure, axes = pyplot.subplots(figsize=(7, 3.6))
    for edge, steps in report["per_halving"].items():
        middle = [(step["from_bytes"] * step["to_bytes"]) ** 0.5 for step in steps]
        axes.plot(middle, [step["points_lost_per_halving"] for step in steps], "o-", label=edge)
    axes.axvline(48, color="gray", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    for along in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        along("{x:.0f}")
    axes.set_xlabel("payload in bytes, between two operating points (dotted: 48)")
    axes.set_ylabel("points lost per halving")
    return _saved(figure, axes)


def _saved(figure: Any, axes: Any) -> str:
    axes.legend(fontsize=8)
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return out.getvalue()


def _line(axes: Any, kind: str, label: str, rows: Sequence[Mapping[str, Any]]) -> None:
    ordered = sorted(rows, key=lambda row: row["wire_bytes"])
    x, y = ([row[k] for row in ordered] for k in ("wire_bytes", "accuracy"))
    axes.plot(x, y, _MARKERS.get(kind, "d--"), label=label, markersize=4, linewidth=1)


def _cells(row: Mapping[str, Any]) -> list[str]:
    difference = row["minus_cloud_image"]
    return [
        *(_shown(row[name]) for name in COLUMNS[:-1]),
        f"{100 * row['accuracy']:.1f} %",
        f"{100 * difference['mean']:+.1f} ({100 * difference['low']:+.1f} to "
        f"{100 * difference['high']:+.1f})",
    ]


def _shown(value: object) -> str:
    return "" if value is None else f"{value:.0f}" if isinstance(value, float) else str(value)
