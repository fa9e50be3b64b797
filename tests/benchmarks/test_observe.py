"""The command of `make bench-observe`: a report with rows for what was and was not measured."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.observe.__main__ import main, plan


def test_a_part_alone_gives_its_rows(tmp_path: Path) -> None:
    assert main(["--quick", "--part", "scrape", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "observe.json").read_text())
    names = {figure["name"] for figure in report["figures"]}
    assert "scrape with 1,000 devices: p95" in names
    assert all({"name", "value", "unit", "target", "met"} <= set(one) for one in report["figures"])


def test_a_report_that_is_not_there_is_a_row_that_was_not_run(tmp_path: Path) -> None:
    measure, _ = plan()["fresh machine"]
    (figure,) = measure(tmp_path, True)["figures"]
    assert figure["name"] and (figure["value"] is None or figure["value"] >= 0)
