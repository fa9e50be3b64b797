"""A selector from outside the package, by its one command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_selector_from_outside_chooses_what_the_agent_sends() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.selector"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    told = dict(re.findall(r"^(\w+)\n((?:  .*\n)+)", done.stdout, re.MULTILINE))
    assert set(told) == {"key_diversity", "centre"}
    grids = {name: re.findall(r"[#.]", text.partition("->")[0]) for name, text in told.items()}
    assert all(len(grid) == 36 and grid.count("#") == 12 for grid in grids.values())
    middle = [2 <= row < 4 and 2 <= column < 4 for row in range(6) for column in range(6)]
    assert all(grids["centre"][place] == "#" for place, inner in enumerate(middle) if inner)
    bytes_sent = {name: set(re.findall(r"\((\d+) bytes\)", text)) for name, text in told.items()}
    assert all(text.count(" -> ") == 4 for text in told.values())
    assert all(len(sizes) == 1 for sizes in bytes_sent.values())
    assert bytes_sent["centre"] != bytes_sent["key_diversity"]  # other tokens, another payload


def test_the_selector_fits_in_twenty_lines() -> None:
    code = (ROOT / "examples/selector/centre.py").read_text("utf-8").splitlines()
    assert sum(1 for line in code if line.strip()) <= 20
