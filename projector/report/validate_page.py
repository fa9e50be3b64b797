"""A validation as one self-contained HTML page: figures, plots, the worst pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

from projector.report.validate_words import diagnosed, doubted, grade_text, number, seen, yes_no
from projector.training.dataset import Dataset, Texts

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (after the backend is chosen)

_TEMPLATE = Path(__file__).with_name("validate.html.jinja")


def html(report: Mapping[str, Any], data: Dataset) -> str:
    """The page: one file, plots and the worst pictures inside."""
    names = {file.name: index for index, file in enumerate(data.files)}
    worst = []
    for row in report["worst_pictures"]:
        shown = {"image": "", "text": ""}
        if isinstance(data, Texts):
            shown["text"] = data.text(names[row["picture"]])
        else:
            stream = io.BytesIO()
            data.picture(names[row["picture"]]).save(stream, "PNG")
            shown["image"] = base64.b64encode(stream.getvalue()).decode()
        worst.append({**row, **shown})
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page: str = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        seen=seen(report),
        worst=worst,
        layers=_layers(report["reconstruction"]["layers"]),
        singular=_singular(report["diagnostics"].get("singular_values")),
        ranks=_ranks(report),
        diagnosed=diagnosed(report),
        doubted=doubted(report),
        shown=number,
        said=grade_text,
        yes_no=yes_no,
        way_back=report.get("way_back"),
        frames=_frames(report["bound"].get("frames")),
    )
    return page


def _layers(rows: list[dict[str, Any]]) -> str:
    figure, axes = pyplot.subplots(figsize=(7, 3))
    for part in ("keys", "values"):
        axes.plot([r["layer"] for r in rows], [r[part]["r2"] for r in rows], "o-", label=part)
    axes.set_xlabel("layer of the cloud model")
    axes.set_ylabel("R²")
    axes.legend()
    return _png(figure)


def _singular(values: list[float] | None) -> str:
    if not values:
        return ""
    figure, axes = pyplot.subplots(figsize=(7, 3))
    axes.semilogy(range(1, len(values) + 1), values)
    axes.set_xlabel("index")
    axes.set_ylabel("singular value")
    return _png(figure)


def _ranks(report: Mapping[str, Any]) -> str:
    rows = report["retention_by_rank"]
    if not rows:
        return ""
    figure, axes = pyplot.subplots(figsize=(7, 3))
    axes.semilogx([r["rank"] for r in rows], [r["retention"] for r in rows], "o-", base=2)
    if report["retention"] is not None:
        axes.axhline(report["retention"], color="grey", lw=0.8, label="the whole map")
    axes.set_xlabel("rank that the map is cut to")
    axes.set_ylabel("retention")
    axes.legend()
    return _png(figure)


def _frames(frames: Mapping[str, list[float]] | None) -> str:
    if not frames:
        return ""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6))
    left.scatter(frames["actual"], frames["bound"], s=6)
    left.set_xlabel("actual error of a frame")
    left.set_ylabel("bound")
    right.scatter(frames["added"], frames["estimate"], s=6)
    right.set_xlabel("what FP8 latents add")
    right.set_ylabel("expected-error estimate")
    for axes in (left, right):
        most = max(axes.get_xlim()[1], axes.get_ylim()[1])
        axes.plot([0, most], [0, most], color="grey", lw=0.8)
    return _png(figure)


def _png(figure: Any) -> str:
    stream = io.BytesIO()
    figure.tight_layout()
    figure.savefig(stream, format="png", dpi=110)
    pyplot.close(figure)
    return base64.b64encode(stream.getvalue()).decode()
