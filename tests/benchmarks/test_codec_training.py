"""What training with a codec buys: variants that can be trained, a table and a plot of all."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from benchmarks import codec_training
from projector.calibration.ladder import grid
from projector.training.settings import TrainSettings
from reference.report.parts import show


def test_every_variant_is_a_setting_of_training_and_the_first_has_no_codec() -> None:
    made = [TrainSettings(**changed) for changed in codec_training.VARIANTS.values()]  # type: ignore[arg-type]
    assert made[0] == TrainSettings()
    assert all(one.finish_scale == codec_training.SCALE for one in made[1:])
    assert [one.quiet > 0 for one in made] == [False, False, True, False]
    assert [one.drop > 0 for one in made] == [False, False, False, True]


def test_the_table_and_the_plot_show_every_variant() -> None:
    names = [plan[0].name for plan in grid(codec_training.SWEEP, 32)]
    point = {"payload_bytes": 30.0, "accuracy": 0.9}
    variants: dict[str, Any] = {
        name: {
            "unrounded": 0.91,
            "native": 0.95,
            "default": point,
            "points": dict.fromkeys(names, point),
            "hull": [point, {"payload_bytes": 60.0, "accuracy": 0.92}],
        }
        for name in codec_training.VARIANTS
    }
    report = {"edge_model": "edge-c", "variants": variants}
    plot = codec_training.draw(report)
    console = Console(record=True, width=200)
    show([codec_training.table(report)], console)
    text = console.export_text()
    for name in variants:
        assert name in text and f">{name}</text>" in plot
