"""The picture's walk through every step, by its one command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "examples" / "steps"
STEPS = ["source", "prefill", "select", "encode", "send", "decode", "project", "inject", "answer"]


@pytest.mark.slow
def test_every_step_is_told_and_drawn_and_the_answers_are_those_of_seeing_the_picture() -> None:
    for drawn in OUT.glob("*"):
        drawn.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "examples.steps"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\w+) ", done.stdout, re.MULTILINE) == STEPS
    page = (OUT / "index.html").read_text("utf-8")
    for step in STEPS:
        assert f"<img src={step}.png>" in page
        with Image.open(OUT / f"{step}.png") as drawing:
            assert min(drawing.size) > 200
    answers = re.findall(r"-> (\w+) \(seeing the picture: (\w+)\)", done.stdout)
    assert len(answers) == 4 and all(injected == seen for injected, seen in answers)
