"""The rate bench's plots: accuracy against bytes, over chains of deltas, per halving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from reference.report.plot import QUIET, plot

_MARKERS = {"ours": "o-", "rival": "s", "control": "x", "video": "^"}

Report = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


def against_bytes(name: str, measured: Rows, cloud_image: float) -> str:
    """Accuracy against bytes on the wire, log axis."""
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in measured:
        if row["wire_bytes"]:
            lines.setdefault((row["kind"], _series(row)), []).append(row)

    def draw(axes: Axes) -> None:
        for (kind, group), some in lines.items():
            some.sort(key=lambda row: float(row["wire_bytes"]))
            x, y = ([row[k] for row in some] for k in ("wire_bytes", "accuracy"))
            label = f"{kind}: {group}" if group else kind
            axes.plot(x, y, _MARKERS.get(kind, "d--"), label=label, markersize=4, linewidth=1)
        for floor, style in ((cloud_image, "-"), (cloud_image - 0.02, ":")):
            axes.axhline(floor, color=QUIET, linewidth=0.8, linestyle=style)
        axes.set_xscale("log")
        axes.set_xlabel("bytes on the wire per frame")
        axes.set_ylabel("right answers (lines: seeing the picture, and 2 points less)")
        axes.legend(fontsize=8)

    return plot(name, draw, height=5)


def _series(row: Mapping[str, Any]) -> str:
    """Which rows belong together: a codec's, or one way of doing it of one edge model."""
    name, edge = str(row["name"]), str(row["edge_model"])
    if row["kind"] in ("image", "video"):
        return name.split()[0]
    way = name.split(",")[0] if row["kind"] == "rival" else ""
    if name.startswith(("kvpress", "selector")):
        way = name.split()[0]
    return str(row.get("series") or f"{edge} {way}".strip())


def chain(report: Report) -> str:
    """Right answers by the number of deltas since the key frame, default points."""

    def draw(axes: Axes) -> None:
        for row in report["sequences"]:
            if row["kind"] != "ours" or not row["default"]:
                continue
            by_frame = {int(at): 100 * right for at, right in row["accuracy_by_frame"].items()}
            style = "o-" if "delta" in row["series"] else "x:"
            axes.plot(list(by_frame), list(by_frame.values()), style, label=row["series"])
        axes.axhline(100 * report["sequences_cloud_image"], color=QUIET, linewidth=0.8)
        axes.set_xlabel("frames since the key frame")
        axes.set_ylabel("right answers, % (line: seeing the frames)")
        axes.legend(fontsize=8)

    return plot("rate-chain", draw)


def halvings(report: Report) -> str:
    """Points of accuracy lost per halving of the payload, between neighbouring points."""

    def draw(axes: Axes) -> None:
        for edge, steps in report["per_halving"].items():
            middle = [(step["from_bytes"] * step["to_bytes"]) ** 0.5 for step in steps]
            lost = [step["points_lost_per_halving"] for step in steps]
            axes.plot(middle, lost, "o-", label=edge)
        axes.axvline(48, color=QUIET, linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        for along in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            along("{x:.0f}")
        axes.set_xlabel("payload in bytes, between two operating points (dotted: 48)")
        axes.set_ylabel("points lost per halving")
        axes.legend(fontsize=8)

    return plot("rate-halvings", draw)
