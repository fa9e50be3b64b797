"""`python -m reference.demo` on a few pictures: two real processes, a report, no benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_WITHOUT = """
import importlib.abc, runpy, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("benchmarks", "torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
sys.argv[0] = "demo"
runpy.run_module("reference.demo", run_name="__main__", alter_sys=True)
"""


def test_the_demo_answers_from_bytes_and_needs_nothing_of_the_benchmarks(tmp_path: Path) -> None:
    asked = ["--pictures", "4", "--out", str(tmp_path)]
    command = [sys.executable, "-c", _WITHOUT, *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["pictures"], report["questions"], report["whole"]) == (4, 20, True)
    assert report["accuracy"]["injected"] > 0.6
    assert 0 < report["payload_bytes_per_frame"]["mean"] < 128
    sent = report["uplink"]["bytes"] / report["questions"]
    assert report["payload_bytes_per_frame"]["mean"] < sent < report["png_bytes"] / 10
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/webp;base64,") == 10
    assert "http://" not in page.replace("http://127.0.0.1", "")
    assert "Right answers, %" in done.stdout and "report.html" in done.stdout


@pytest.mark.slow
def test_a_bundle_that_is_not_there_is_one_line_and_its_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reference.demo", "--bundle", str(tmp_path / "none")]
    command += ["--pictures", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "none" in done.stdout + done.stderr and "Traceback" not in done.stdout + done.stderr
