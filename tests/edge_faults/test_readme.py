"""The tests that README.md names are there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.checkout import ROOT


def test_every_test_that_the_readme_names_exists() -> None:
    text = Path(__file__).with_name("README.md").read_text()
    named = set(re.findall(r"::(test_\w+)", text))
    folders = (ROOT / "tests" / "edge_agent", ROOT / "tests" / "edge_faults")
    files = [path for folder in folders for path in folder.rglob("test_*.py")]
    there = {n for path in files for n in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    assert len(named) > 20 and not named - there
    modules = set(re.findall(r"(test_\w+\.py)", text))
    assert not modules - {path.name for path in files}
