"""The command of `make bench-observe`: a report with rows for what was and was not measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.observe.__main__ import main, plan


def test_a_part_alone_gives_its_rows(tmp_path: Path) -> None:
    assert main(["--quick", "--part", "scrape", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "observe.json").read_text())
    names = {figure["name"] for figure in report["figures"]}
    assert "scrape with 1,000 devices: p95" in names
    assert all({"name", "value", "unit", "target", "met"} <= set(one) for one in report["figures"])


def test_a_report_that_is_not_there_is_a_row_that_was_not_run(tmp_path: Path) -> None:
    measure, _ = plan()["drift"]
    figures = measure(tmp_path, True)["figures"]
    assert figures and all(
        one["name"] and (one["value"] is None or one["value"] >= 0) for one in figures
    )


def test_where_no_machine_can_be_made_its_rows_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.observe.fresh_machine.shutil.which", lambda name: None)
    measure, _ = plan()["fresh_machine"]
    figures = measure(tmp_path, True)["figures"]
    assert [one["value"] for one in figures] == [None, None]
    assert all("make containers" in one["not_run"] for one in figures)
