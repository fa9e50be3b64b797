"""A validation report for people: tables on a terminal, one self-contained HTML page with plots.

Knows what `validate.Validator.report` returns. Measures nothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

from projector.dataset import Dataset
from projector.tables import print_tables, table

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (after the backend is chosen)

_TEMPLATE = Path(__file__).with_name("validate.html.jinja")


def show(report: Mapping[str, Any]) -> None:
    """Print the figures that matter first, controls beside them."""
    accuracy = [
        (name, f"{a['mean']:.1%}", f"{a['low']:.1%} to {a['high']:.1%}")
        for name, a in report["accuracy"].items()
    ]
    kinds = report["accuracy_by_kind"]
    by_kind = [
        (
            kind,
            f"{kinds['native'][kind]:.1%}",
            f"{kinds['mapped'][kind]:.1%}",
            f"{kinds['blind'][kind]:.1%}",
            _shown(report["attention_amplification"][kind]["c_attn"]),
        )
        for kind in kinds["native"]
    ]
    fit = report["reconstruction"]
    reconstruction = [
        (name, *(f"{fit[name][key]:.3f}" for key in ("cosine", "mse", "relative_l2", "r2")))
        for name in ("whole", "keys", "values")
    ]
    print_tables(
        [
            table(
                f"{report['questions']} questions about {report['pictures']} pictures",
                ("cache", "right", "95 % interval"),
                accuracy,
            ),
            table("by kind", ("kind", "native", "mapped", "blind", "C_attn"), by_kind),
            table(
                "reconstruction, z-scores", ("", "cosine", "MSE", "rel. L2", "R²"), reconstruction
            ),
        ]
    )
    print(
        f"retention {_shown(report['retention'])}: tier {report['tier_by_answers']} by answers, "
        f"grade {report['grade_by_reconstruction']} by reconstruction"
    )


def write(report: Mapping[str, Any], data: Dataset, path: Path) -> None:
    """Write the page."""
    names = {file.name: index for index, file in enumerate(data.files)}
    worst = []
    for row in report["worst_pictures"]:
        stream = io.BytesIO()
        data.picture(names[row["picture"]]).save(stream, "PNG")
        worst.append({**row, "image": base64.b64encode(stream.getvalue()).decode()})
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        worst=worst,
        layers=_layers(report["reconstruction"]["layers"]),
        singular=_singular(report["diagnostics"].get("singular_values")),
    )
    path.write_text(page, encoding="utf-8")


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _layers(rows: list[dict[str, Any]]) -> str:
    figure, axes = pyplot.subplots(figsize=(7, 3))
    for part in ("keys", "values"):
        axes.plot([r["layer"] for r in rows], [r[part]["r2"] for r in rows], "o-", label=part)
    axes.set_xlabel("layer of the large model")
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


def _png(figure: Any) -> str:
    stream = io.BytesIO()
    figure.tight_layout()
    figure.savefig(stream, format="png", dpi=110)
    pyplot.close(figure)
    return base64.b64encode(stream.getvalue()).decode()
