"""`projector validate`: no figure without its controls, and whether the pictures were held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.projector.conftest import PICTURES


@pytest.mark.slow
def test_a_report_has_every_control_beside_its_figure(
    run: Any,
    data: Path,
    corpus: Path,
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("validate", made, data, corpus, tmp_path, "--watts", "20") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["questions"] == 6 * PICTURES
    assert set(report["accuracy"]) == {
        *("native", "mapped", "blind", "other_picture"),
        *("mean_state", "untrained_map", "untrained_edge"),
        *("mapped_fp8", "edge_only", "mapped_float16", "mapped_bfloat16"),
    }
    assert "not one linear map per token" in report["bound"]["none"]
    for arm in report["accuracy"].values():
        assert arm["low"] <= arm["mean"] <= arm["high"]
    assert set(report["accuracy_by_kind"]["mapped"]) == {"even", "odd"}
    assert report["other_picture_labels"]["questions"] == 6 * PICTURES
    assert len(report["worst_pictures"]) == 10
    literature = report["literature"]
    ways = {row["configuration"]: row["measured"] for row in literature["configurations"]}
    assert ways["cloud only"]["distortion"] == pytest.approx(0.0, abs=1e-6)
    assert ways["edge only"]["success"] == report["accuracy"]["edge_only"]["mean"]
    assert ways["edge + projector + FP8"]["success"] == report["accuracy"]["mapped_fp8"]["mean"]
    assert literature["tasks"] == [], "nobody asks the literature's questions here"
    for arm in ("projected", "full"):
        spent = report["costs"][arm]
        assert spent["energy_j"] == pytest.approx(20.0 * spent["cpu_s"], rel=1e-2, abs=1e-4)
        assert spent["flops"] > 0
    assert 0 < report["costs"]["projected"]["project_flops"] < report["costs"]["projected"]["flops"]
    assert [row["precision"] for row in report["precision"]] == ["float32", "float16", "bfloat16"]
    page = (tmp_path / "report.html").read_text()
    assert "fire detection" not in page and "edge + projector + FP8" in page
    assert "untrained_edge" in page and page.count("data:image/png") >= 11
    assert report["seen_in_training"] == PICTURES and "NOT HELD OUT: 64 of these 64" in page
    assert "NOT HELD OUT" in capsys.readouterr().out, "it was judged on what it was made from"
