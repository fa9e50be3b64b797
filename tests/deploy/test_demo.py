"""`make demo` on a few pictures: two real processes, the committed weights, a whole report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from deploy.measure import ROOT
from deploy.report import schema


def test_the_demo_answers_over_a_real_wire_and_reports_everything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.demo", "--pictures", "8", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert schema.problems(report) == []
    assert report["pictures"] == 8
    assert report["accuracy"]["injected"] > report["accuracy"]["blind"]
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert "data:image/" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://127.0.0.1", "")
