"""The page: `report.json` and the pictures of its questions as one HTML file that needs no other.

Knows the report's keys and the template; computes no figure.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from benchmarks.report import plots
from projector.validation.estimate import same_answer

TEMPLATE = "page.html.jinja"


def render(report: dict[str, Any], pictures: dict[int, Image.Image]) -> str:
    """Render the page.

    Args:
        report: as `report.json` holds it, complete (`schema.problems` finds nothing).
        pictures: those that `first_questions` names, by number.

    Raises:
        KeyError, UndefinedError: the report lacks a figure that the page shows.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["percent"] = lambda v: f"{100 * v:.1f}"
    environment.filters["points"] = lambda v: f"{100 * v:+.1f}".replace("-", "−")
    environment.filters["whole"] = lambda v: f"{v:,.0f}".replace(",", "\u202f")
    environment.filters["mega"] = lambda v: f"{v / 1e6:.1f}"
    environment.tests["same_as_truth"] = same_answer
    return environment.get_template(TEMPLATE).render(
        r=report,
        arm_names=plots.ARM_NAMES,
        stage_names=plots.STAGE_NAMES,
        pictures={number: data_uri(picture) for number, picture in pictures.items()},
        plots={
            "accuracy": plots.accuracy(report),
            "bytes": plots.bytes_against_accuracy(report),
            "waterfall": plots.waterfall(report),
            "first_token": plots.first_token(report),
            "layers": plots.layers(report["distortion_by_layer"]),
        },
    )


def data_uri(picture: Image.Image) -> str:
    """A picture as a `data:` address (WebP, quality 90)."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
