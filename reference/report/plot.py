"""Draws plots: calls a function with matplotlib's axes and returns an SVG element.

Text stays text: it can be searched and takes the page's font. Black becomes `currentColor`, so a
plot reads on light and on dark. The same figures give the same SVG.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import rc_context  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

OURS, CLOUD, EDGE, JPEG, WEBP, QUIET = (
    *("#0f9d85", "#5b6ee1", "#c9822b"),
    *("#d0617e", "#9a6fd0", "#8a93a3"),
)
WIDTH = 7.6
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


def plot(name: str, draw: Callable[[Axes], None], height: float = 3.9) -> str:
    """One drawing as an SVG element, its ids made unique by `name`; as wide as `WIDTH` inches."""
    style: Any = {**_STYLE, "svg.hashsalt": name}
    with rc_context(style):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
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
