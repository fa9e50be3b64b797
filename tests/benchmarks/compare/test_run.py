"""`make demo` on a few pictures: two real processes, the committed weights, every arm."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.command import ROOT
from benchmarks.compare import run, schema
from benchmarks.compare.measure import Plan
from reference.demo.processes import ChildError
from reference.demo.terminal import Terminal


@pytest.mark.slow
def test_the_demo_answers_over_a_real_wire_and_reports_everything(tmp_path: Path) -> None:
    asked = ["--pictures", "8", "--out", str(tmp_path)]
    answers = ["--answers", str(tmp_path / "answers-1.jsonl")]
    for command in (["reference.demo", *asked], ["benchmarks.compare", *asked, *answers]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert schema.problems(report) == []
    assert report["pictures"] == 8
    assert report["accuracy"]["injected"] > report["accuracy"]["blind"]
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert "data:image/" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://127.0.0.1", "")


def exit_code(monkeypatch: pytest.MonkeyPatch, out: Path, outcome: Any) -> int:
    def measured(*_: object) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return copy.deepcopy(outcome)

    monkeypatch.setattr(run, "measure", measured)
    return run.run(Plan(out=out), Terminal(Console(quiet=True)))


def test_only_a_whole_run_ends_with_zero(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exit_code(monkeypatch, tmp_path, report) == 0
    assert (tmp_path / "report.html").exists()
    unanswered = copy.deepcopy(report)
    unanswered["problems"] = ["one question was left unanswered"]
    assert exit_code(monkeypatch, tmp_path, unanswered) == 1
    lost = (("ttft_ratio", "batch_1"), ("image_codecs", 0, "accuracy"), ("latency_ms", "ttft"))
    for number, path in enumerate(lost):
        lacking: Any = copy.deepcopy(report)
        part = lacking
        for name in path[:-1]:
            part = part[name]
        del part[path[-1]]
        out = tmp_path / str(number)
        out.mkdir()
        assert exit_code(monkeypatch, out, lacking) == 1
        assert not (out / "report.html").exists()
    assert exit_code(monkeypatch, tmp_path, ChildError("the server ended")) == 1
