"""What the heads bench prints and derives must follow from its rows alone."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import heads


def row(task: str, arm: str, mean: float, **more: Any) -> dict[str, Any]:
    place = {"edge_model": "edge-a", "split": "test", "task": task, "arm": arm}
    return {**place, "accuracy": {"mean": mean}, "majority": {"mean": 0.25}, **more}


def test_amplification_is_what_answers_move_per_unit_of_error() -> None:
    rows = [
        row("fire", "transferred", 0.9, variation=0.1),
        row("fire", "transferred", 0.8, variation=0.3),
        row("fire", "cloud_only", 0.99),
    ]
    found = heads.amplification(rows, {"test": 0.5})
    assert set(found) == {"test fire"}
    assert found["test fire"] == pytest.approx({"d_task": 0.2, "c": 0.4})


def test_the_table_holds_means_over_seeds_and_what_needs_no_head() -> None:
    rows = [
        row("fire", "projected", 0.90),
        row("fire", "projected", 0.94),
        row("track", "projected", 0.50, nearest={"mean": 0.71}),
    ]
    lines = {row[2]: row[3:] for row in heads.table(rows).rows}
    assert "92.0" in lines["projected"] and "50.0" in lines["projected"]
    assert "25.0" in lines["majority"]
    assert "71.0" in lines["nearest"] and "92.0" not in lines["nearest"]
