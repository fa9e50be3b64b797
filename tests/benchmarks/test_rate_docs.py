"""The rate bench's tables in the documents: what stands in them is what the report says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.docs import begin
from benchmarks.rate import docs
from reference.report.parts import Plot, html, markdown

PLAIN = {"mean": -0.012, "low": -0.02, "high": -0.004}
POINTS = [
    {"name": "small", "payload_bytes": 34.1, "wire_bytes": 76.0, "accuracy": 0.92, "default": True},
    {"name": "large", "payload_bytes": 95.0, "wire_bytes": 137, "accuracy": 0.93, "default": False},
]


def report(**over: Any) -> dict[str, Any]:
    """One edge model, two points, one of each kind of rival."""
    common = {"edge_model": "edge-a", "minus_cloud_image": PLAIN, "seed": 0}
    guarded = {"accuracy_guarded": 0.931, "wire_bytes_guarded": 500.0, "pictures_sent_share": 0.2}
    ours = [{**common, "kind": "ours", **guarded, **point} for point in POINTS]
    listed = [
        {**common, "kind": "rival", "name": "list", "payload_bytes": b, "wire_bytes": b + 40.0}
        | {"accuracy": 0.8, "seed": seed}
        for seed, b in enumerate((20.0, 22.0))
    ]
    press = {**common, "kind": "rival", "name": "kvpress KeyDiff, 6 tokens", "tokens": 6}
    press |= {"payload_bytes": 25.0, "wire_bytes": 67.0, "accuracy": 0.893}
    image = {**common, "edge_model": "", "kind": "image", "name": "webp q50 48 px"}
    image |= {"payload_bytes": 387.0, "wire_bytes": 429.0, "accuracy": 0.92}
    film = [
        {**common, "kind": "ours", "name": "small, delta frames", "series": "edge-a, delta frames"}
        | {"payload_bytes": 9.0, "wire_bytes": 54.0, "accuracy": 0.92, "default": True}
        | {"accuracy_by_frame": {"7": 0.93, "15": 0.91}}
    ]
    best = {**POINTS[0], "image_over_ours": 5.64}
    camera = {"video_over_ours": 2.0, "video_over_ours_payload": 5.5}
    guard = {"auroc": 0.841, "auroc_test": 0.81, "auroc_shifted": 0.83, "bytes_mixed": 441.0}
    coder = {"ours": "transform, rank 3", "bytes_ratio": 7.06}
    coder |= {"encode_speed_ratio": 1.84, "decode_speed_ratio": 1.49}
    coded = {"kind": "ours", "name": "transform, rank 3", "bytes": 1126.0, "error": 0.04}
    left_out = {"kind": "ours", "name": "transform, rank 9", "bytes": 3785.0, "error": 0.006}
    return {
        "command": "python -m benchmarks.rate ",
        "pictures": 2048,
        "questions": 12288,
        "cpu_minutes": 71.4,
        "bundles": {"edge-a": "00"},
        "cloud_image": 0.937,
        "rows": [*ours, *listed, press, image],
        "within_two_points": {
            "image_wire_bytes": image,
            "image_bare_bytes": {"name": "avif small", "bare_bytes": 306.9},
            "edge-a": best,
        },
        "per_halving": {
            "edge-a": [{"from_bytes": 95.0, "to_bytes": 34.1, "points_lost_per_halving": 0.68}]
        },
        "sequences": film,
        "sequences_cloud_image": 0.93,
        "sequences_within_two_points": {"video": {"name": "h264 crf 38"}, "edge-a": camera},
        "tensors": {"edge-a": {"cachegen": coder, "rows": [coded, left_out]}},
        "guard": {"by_edge_model": {"edge-a": {**guard, "guarded_minus_cloud_image": PLAIN}}},
        "controller": {
            "adaptive": 0.884,
            "best_fixed": 0.877,
            "best_fixed_point": "small",
            "traces": {"4g": {"adaptive": {"score": 0.94}, "small": {"score": 0.936}}},
            "mean_score": {"adaptive": 0.884, "small": 0.877},
        },
        "frames_per_second_one_core": 1864,
        "codec_speed": {
            "edge-a": {"frames_per_second_one_core": 2500},
            "edge-b": {"frames_per_second_one_core": 1864},
        },
        **over,
    }


def test_each_figure_stands_beside_its_target() -> None:
    table = docs.summary(report())
    for text in ("**34** (small)", "5.6×", "≥ 8×", "2.0×, 5.5×", "7.1×; 1.8×, 1.5×", "0.84 (0.81"):
        assert text in table
    assert "(avif small, 307), over our payload | 9.0× |" in table
    assert "**1,864** and more (edge-a 2,500, edge-b 1,864; target 1,000)" in table
    assert "88.4 % with the controller, 87.7 %" in table


def test_what_was_not_reached_or_not_measured_is_said() -> None:
    bare = report(
        guard={},
        within_two_points={"image_wire_bytes": None, "image_bare_bytes": None, "edge-a": None},
        sequences_within_two_points={"video": None, "edge-a": None},
        tensors={"edge-a": {"cachegen": None, "rows": []}},
    )
    lines = docs.summary(bare).splitlines()[3:10]
    assert [line.split("|")[2].strip() for line in lines] == ["none"] * 7


def test_the_page_has_every_row_once_and_seeds_as_a_mean() -> None:
    page = markdown(docs.parts(report()))
    for text in ("| **small** | 34.1 |", "| large | 95.0 |", "list, edge-a, 2 seeds | 21 |"):
        assert page.count(text) == 1
    assert "kvpress KeyDiff | 89.3 % (25)" in page and "webp q50 48 px | 387 | 429" in page
    assert "rank 3" in page and "rank 9" not in page
    assert "+0.7 (95 to 34 bytes)" in page


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rate.json").write_text(json.dumps(report()))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{begin(docs.NAME)}\n<!-- /results -->\nafter\n")
    return tmp_path


@pytest.mark.slow
def test_a_table_that_is_out_of_date_is_found_and_written(folder: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.rate.docs", "--report", str(folder / "rate.json")]
    command += ["--page", str(folder / "page.md")]
    assert subprocess.run([*command, "--check"], check=False).returncode == 1
    assert "before\n" + begin(docs.NAME) + "\n<!--" in (folder / "page.md").read_text()
    assert subprocess.run(command, check=False).returncode == 0
    assert subprocess.run([*command, "--check"], check=False).returncode == 0
    text = (folder / "page.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "**34**" in text
    assert "<svg" in (folder / "rate.svg").read_text()
    assert "<svg" in (folder / "rate-chain.svg").read_text()


@pytest.mark.slow
def test_the_page_holds_the_tables_and_a_plot_of_its_own_for_fixed_cameras() -> None:
    video = {"kind": "video", "edge_model": "", "name": "h264 crf 38", "minus_cloud_image": PLAIN}
    video |= {"payload_bytes": 100.0, "wire_bytes": 200.0, "accuracy": 0.9}
    found = report(command="x <y>")
    both = docs.page(report(sequences=[*found["sequences"], video]))
    alone = docs.page({**found, "sequences": []})
    assert [sum(isinstance(part, Plot) for part in made) for made in (alone, both)] == [3, 4]
    page = html("t", f"`{found['command']}`", both)
    assert "x &lt;y&gt;" in page and page.count("<svg") == 4
    assert "h264 crf 38" in page and "h264 crf 38 |" not in markdown(alone)


@pytest.mark.slow
def test_the_plot_is_the_same_file_for_the_same_figures() -> None:
    first, again = ([p.svg for p in docs.parts(report()) if isinstance(p, Plot)] for _ in range(2))
    assert first == again and all("<svg" in svg for svg in first)
