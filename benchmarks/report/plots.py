"""The report's plots, as SVG that follows the page's colours and font.

Knows matplotlib and figures; knows nothing of the page around them. Text stays text (it can be
searched and takes the page's font); black becomes `currentColor`, so a plot reads on light and on
dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import rc_context  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

OURS, CLOUD, EDGE, JPEG, WEBP, QUIET = (
    "#0f9d85",
    "#5b6ee1",
    "#c9822b",
    "#d0617e",
    "#9a6fd0",
    "#8a93a3",
)
_INK = "#010203"  # becomes currentColor
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": QUIET,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
ARM_NAMES = {
    "cloud_image": "cloud, sees the picture",
    "injected": "cloud, injected cache (ours)",
    "injected_float": "… latents not quantized",
    "raw_kv_fp8": "… raw cache in FP8",
    "edge_only": "edge alone",
    "other_picture": "another picture's cache",
    "other_picture_labels": "… what its labels would score",
    "mean_state": "mean state",
    "blind": "no picture",
}
_ARM_COLOURS = {
    "cloud_image": CLOUD,
    "injected": OURS,
    "injected_float": OURS,
    "raw_kv_fp8": OURS,
    "edge_only": EDGE,
}
STAGE_NAMES = {
    "edge_prefill": "edge: prefill",
    "select": "edge: select",
    "encode": "edge: encode",
    "uplink": "wire and gRPC",
    "queue": "cloud: queue",
    "decode": "cloud: decode",
    "project": "cloud: project",
    "inject": "cloud: inject",
    "prefill": "cloud: question prefill",
    "generate": "cloud: generate",
}


def _draw(name: str, size: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    """One figure as an SVG element, its ids made unique by `name`."""
    style: Any = {**_STYLE, "svg.hashsalt": name}
    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"\bfont-family: [^;\"]*|font: ([\d.]+px) [^;\"]*", _font, svg)
    svg = svg.replace(_INK, "currentColor")
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r"<svg [^>]*?(?=viewBox|xmlns)", "<svg role='img' ", svg, count=1)
    return svg


def _font(match: re.Match[str]) -> str:
    return f"font-size: {match.group(1)}" if match.group(1) else "font-family: inherit"


def accuracy(report: dict[str, Any]) -> str:
    """Every arm as a dot with its 95 % interval; the floors in grey."""
    arms = [arm for arm in ARM_NAMES if arm in report["accuracy"]]

    def draw(axes: Axes) -> None:
        for row, arm in enumerate(arms):
            value = 100 * report["accuracy"][arm]
            low, high = (100 * v for v in report["accuracy_interval"][arm])
            colour = _ARM_COLOURS.get(arm, QUIET)
            axes.plot([low, high], [row, row], color=colour, linewidth=3, alpha=0.45)
            axes.plot(value, row, "o", color=colour, markersize=8)
            axes.text(101.5, row, f"{value:.1f}", va="center", ha="left")
        axes.set_yticks(range(len(arms)), [ARM_NAMES[arm] for arm in arms])
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("right answers, %")

    return _draw("accuracy", (7.6, 3.9), draw)


def bytes_against_accuracy(report: dict[str, Any]) -> str:
    """What each byte buys: picture codecs, raw cache and our frames, bytes on a log axis."""
    points = report["image_codecs"]
    wire = report["wire_bytes_per_frame_by_arm"]
    accuracy_of = report["accuracy"]

    def draw(axes: Axes) -> None:
        for codec, colour, label in (("jpeg", JPEG, "JPEG"), ("webp", WEBP, "WebP")):
            mine = sorted((p["bytes"], 100 * p["accuracy"]) for p in points if p["codec"] == codec)
            if mine:
                axes.plot(*zip(*mine, strict=True), "o-", color=colour, markersize=5, label=label)
        others = (
            ("cloud_image", CLOUD, "D", "PNG"),
            ("raw_kv_fp8", QUIET, "s", "raw cache, FP8"),
            ("injected_float", OURS, "^", "ours, not quantized"),
            ("injected", OURS, "*", "ours"),
        )
        for arm, colour, marker, label in others:
            size = 15 if marker == "*" else 7
            x, y = wire[arm], 100 * accuracy_of[arm]
            axes.plot(x, y, marker, color=colour, markersize=size, label=label)
        floor = 100 * accuracy_of["cloud_image"] - 2
        axes.axhline(floor, color=CLOUD, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(
            0.995, floor, "cloud − 2 points ", va="bottom", ha="right", fontsize=9,
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("bytes on the wire per frame (log)")
        axes.set_ylabel("right answers, %")
        axes.legend(frameon=False, fontsize=9, loc="lower right", ncols=2)

    return _draw("bytes", (7.6, 3.9), draw)


def waterfall(report: dict[str, Any]) -> str:
    """Medians of the stages, one after the other, in milliseconds."""
    latency = report["latency_ms"]
    stages = [name for name in STAGE_NAMES if name in latency]

    def draw(axes: Axes) -> None:
        start = 0.0
        for row, stage in enumerate(stages):
            width = latency[stage]["p50"]
            colour = EDGE if stage in ("edge_prefill", "select", "encode") else CLOUD
            colour = QUIET if stage == "uplink" else colour
            colour = OURS if stage in ("decode", "project", "inject") else colour
            axes.barh(row, width, left=start, height=0.62, color=colour)
            tail = f"{width:.2f} ms   (p95 {latency[stage]['p95']:.2f})"
            axes.annotate(
                tail, (start + width, row), xytext=(6, 0), textcoords="offset points",
                va="center", fontsize=9.5,
            )  # fmt: skip
            start += width
        axes.set_yticks(range(len(stages)), [STAGE_NAMES[s] for s in stages])
        axes.set_ylim(len(stages) - 0.4, -0.6)
        axes.set_xlim(0, start * 1.32)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("milliseconds, medians laid end to end")

    return _draw("waterfall", (7.6, 3.9), draw)


def first_token(report: dict[str, Any]) -> str:
    """Median time to first token of the arms, by batch size; the whisker ends at the 95th."""
    names = {
        "injected": ("injected cache", OURS),
        "picture_png": ("picture, PNG", CLOUD),
        "picture_webp": ("picture, WebP", WEBP),
    }
    batches = list(report["ttft_ms"])

    def draw(axes: Axes) -> None:
        height = 0.25
        for row, batch in enumerate(batches):
            for place, (arm, (label, colour)) in enumerate(names.items()):
                found = report["ttft_ms"][batch][arm]
                y = row + (place - 1) * height
                shown = label if row == 0 else None
                axes.barh(y, found["p50"], height=height * 0.85, color=colour, label=shown)
                axes.plot([found["p50"], found["p95"]], [y, y], color=colour, linewidth=1.4)
                axes.annotate(
                    f"{found['p50']:.1f}", (max(found["p50"], found["p95"]), y), xytext=(5, 0),
                    textcoords="offset points", va="center", fontsize=9.5,
                )  # fmt: skip
        axes.set_yticks(range(len(batches)), [b.replace("_", " ") for b in batches])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.12)
        axes.set_xlabel("milliseconds to the first token")
        axes.legend(frameon=False, fontsize=9, loc="upper right")

    return _draw("ttft", (7.6, 2.9), draw)


def layers(per_layer: Sequence[dict[str, float]]) -> str:
    """Relative error of the projected keys and values, by layer of the large model."""

    def draw(axes: Axes) -> None:
        places = range(len(per_layer))
        for key, colour, marker in (("keys", OURS, "o-"), ("values", CLOUD, "s-")):
            axes.plot(
                places, [p[key] for p in per_layer], marker, color=colour, markersize=6, label=key
            )
        axes.set_xticks(list(places))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("layer of the large model")
        axes.set_ylabel("relative L2 error")
        axes.legend(frameon=False, fontsize=9)

    return _draw("layers", (7.6, 2.6), draw)
