"""What the bench chooses and what the README says must follow from the figures alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench, command, docs, readme_table

ESTIMATE = {"mean": -0.012, "low": -0.02, "high": -0.004}
REPORT: dict[str, Any] = {
    "pictures": 2048,
    "questions": 12288,
    "accuracy": {"blind": 0.3, "mean_state": 0.31},
    "accuracy_interval": {},
    "wire_bytes_per_frame": {"mean": 262.4, "p95": 280.0},
    "bytes_ratio": {"codec": "webp q40 at 96 px", "bytes": 1200.0, "ratio": 4.573},
    "differences": {
        "injected_minus_cloud_image": ESTIMATE,
        "injected_minus_edge_only": {"mean": 0.08, "low": 0.07, "high": 0.09},
        "other_picture_minus_other_picture_labels": ESTIMATE,
    },
    "ttft_ratio": {"batch_1": 0.512, "batch_16": 0.321},
    "ttft_ms": {
        batch: {"injected": {"p50": 5.0}, "picture_png": {"p50": 10.0}}
        for batch in ("batch_1", "batch_16")
    },
    "flops": {"injected": 3.2e8, "picture": 9.1e8},
    "made": {
        "split": "test",
        "command": "python -m benchmarks.bench",
        "machine": "x86_64, Linux, 2 cores",
        "seconds": 1500.0,
    },
}
for _arm in ("cloud_image", "injected", "edge_only", "raw_kv_fp8"):
    REPORT["accuracy"][_arm] = 0.9
    REPORT["accuracy_interval"][_arm] = [0.89, 0.91]


def test_the_table_holds_the_measured_figures() -> None:
    table = readme_table.render(REPORT)
    assert "| **bytes on the wire per frame**, mean (p95) | 262 (280) | ≤ 400 |" in table
    assert "−1.2 (−2.0 to −0.4) | ≥ −2 points" in table
    assert "1200, 4.6×" in table
    assert "12,288 questions about 2,048 pictures" in table


def test_a_ratio_that_was_not_measured_is_not_invented() -> None:
    ratio = {"codec": None, "bytes": None, "ratio": None}
    assert "not measured" in readme_table.render(REPORT | {"bytes_ratio": ratio})


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks"):
        docs.placed("# Title\n", readme_table.NAME, "table")


def test_check_tells_an_old_table_from_a_new_one(tmp_path: Path) -> None:
    report, readme = tmp_path / "report.json", tmp_path / "README.md"
    report.write_text(json.dumps(REPORT))
    readme.write_text(f"# T\n\n{docs.begin(readme_table.NAME)}\nold\n{docs.END}\n\nrest\n")
    command = [sys.executable, "-m", "benchmarks.readme_table"]
    command += ["--report", str(report), "--readme", str(readme)]
    assert subprocess.run([*command, "--check"], capture_output=True).returncode == 1
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert subprocess.run([*command, "--check"], capture_output=True).returncode == 0
    assert readme.read_text().startswith("# T\n")
    assert readme.read_text().endswith("\n\nrest\n")


def test_the_committed_readme_has_its_markers() -> None:
    readme = docs.README.read_text(encoding="utf-8")
    assert docs.placed(readme, readme_table.NAME, "x")


def test_the_frontier_keeps_the_codec_that_the_target_is_about() -> None:
    rows = [
        {
            "codec": "webp" if i % 2 else "jpeg",
            "quality": 10 + i,
            "size_px": 96,
            "bytes": 100.0 * 1.3**i,
            "accuracy": min(0.95, 0.4 + i / 40),
        }
        for i in range(30)
    ]
    chosen = bench.frontier(rows, reference=0.95, most=8)
    enough = next(row for row in rows if row["accuracy"] >= 0.93)
    assert len(chosen) == 8
    assert any(c.quality == enough["quality"] and c.codec == enough["codec"] for c in chosen)


def test_a_part_is_kept_for_the_code_that_measured_it_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "parts" / "one.json"
    assert command.kept(path) is None
    made = command.keep({"figures": [1]}, path, 2.04)
    assert command.kept(path) == made and made["figures"] == [1] and made["took_s"] == 2.0
    path.write_text(json.dumps({**made, "code": "that of yesterday"}), encoding="utf-8")
    assert command.kept(path) is None
