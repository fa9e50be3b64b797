"""CONTRIBUTING.md tried as it stands: each new member goes into a copy and keeps its contract."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checkout import ROOT, copy_to

Edit = tuple[str, str, str]
"""A file, a place in it, and what is put behind that place."""


@dataclass(frozen=True)
class Recipe:
    """What a section says in words.

    Attributes:
        place: the file that the block makes, or the place in a file that it is put before.
        edits: lines for the registry and for the contract test's list.
        test: the contract test.
        members: which of its tests are the new member's.
    """

    place: str | tuple[str, str]
    edits: tuple[Edit, ...]
    test: str
    members: str


SELECT, SELECT_TEST = "projector/codec/select.py", "tests/projector/codec/test_select.py"
QUANTIZERS, MAPS = "protos/quantize/__init__.py", "projector/maps/__init__.py"
MAPS_TEST, SOURCES_TEST = (
    "tests/projector/maps/test_families.py",
    "tests/edge_agent/test_sources.py",
)
ENGINES, ENGINES_TEST = (
    "cloud_server/engine/__init__.py",
    "tests/cloud_server/test_engine_contract.py",
)
RECIPES = {
    "A selector": Recipe(
        (SELECT, "SELECTORS: dict"),
        (
            (SELECT, "    for member in (\n", "        LongValues,\n"),
            (SELECT_TEST, "SELECTORS: list[select.Selector] = [\n", "    select.LongValues(),\n"),
        ),
        SELECT_TEST,
        "long_values or registered",
    ),
    "A quantizer": Recipe(
        "protos/quantize/int16.py",
        (
            (
                QUANTIZERS,
                "from protos.quantize.int8 import Int8Quantizer\n",
                "from protos.quantize.int16 import Int16Quantizer\n",
            ),
            (QUANTIZERS, "    for member in (\n", "        Int16Quantizer,\n"),
        ),
        "tests/protos/test_quantize.py",
        "int16",
    ),
    "A map": Recipe(
        "projector/maps/least_squares.py",
        (
            (
                MAPS,
                "from projector.maps.bidirectional import Bidirectional\n",
                "from projector.maps.least_squares import LeastSquares\n",
            ),
            (MAPS, "    for cls in (\n", "        LeastSquares,\n"),
            (MAPS_TEST, "MEMBERS: list[Family] = [\n", "    LeastSquares(),\n"),
            (MAPS_TEST, "LINEAR = (\n", "    LeastSquares,\n"),
            (
                MAPS_TEST,
                "from projector.maps.linear import Linear\n",
                "from projector.maps.least_squares import LeastSquares\n",
            ),
        ),
        MAPS_TEST,
        "least_squares or list_above",
    ),
    "A source": Recipe(
        "edge_agent/sources/noise.py",
        (
            (
                "pyproject.toml",
                '[project.entry-points."neural_bridge.sources"]\n',
                'noise = "edge_agent.sources.noise:open_source"\n',
            ),
            (SOURCES_TEST, "MEMBERS = {", '"noise": "noise:3", '),
        ),
        SOURCES_TEST,
        "noise or under_contract",
    ),
    "An engine": Recipe(
        "cloud_server/engine/capitals.py",
        (
            (
                ENGINES,
                "ENGINES: dict[str, tuple[str, str]] = {\n",
                '    "capitals": ("cloud_server.engine.capitals", "CapitalsEngine"),\n',
            ),
            (ENGINES_TEST, "NAMES = [", '"capitals", '),
        ),
        ENGINES_TEST,
        "capitals or under_contract",
    ),
}


def section(title: str) -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return text.split(f"\n### {title}\n")[1].split("\n### ")[0]


def insert(file: Path, place: str, text: str, before: bool = False) -> None:
    was = file.read_text(encoding="utf-8")
    assert was.count(place) == 1, f"{file}: {place!r}"
    now = was.replace(place, text + place if before else place + text)
    file.write_text(now, encoding="utf-8")


def run(copy: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=copy, env=environ, capture_output=True, text=True)


@pytest.mark.parametrize("title", RECIPES)
def test_a_member_that_is_added_as_the_guide_says_keeps_its_contract(
    title: str, tmp_path: Path
) -> None:
    recipe, text, copy = RECIPES[title], section(title), copy_to(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    if isinstance(recipe.place, str):
        assert f"`{recipe.place}`" in text
        (copy / recipe.place).write_text(block, encoding="utf-8")
    else:
        file, place = recipe.place
        insert(copy / file, place, block + "\n\n", before=True)
    for file, place, line in recipe.edits:
        assert f"`{file}`" in text
        insert(copy / file, place, line)
    python = sys.executable
    if any(file == "pyproject.toml" for file, _, _ in recipe.edits):  # what `make setup` would do
        metadata = run(copy, python, "-c", "import setuptools; setuptools.setup()", "egg_info")
        assert metadata.returncode == 0, metadata.stderr
    ruff = Path(python).parent / "ruff"
    changed = {file for file, _, _ in recipe.edits if file.endswith(".py")}
    changed.add(recipe.place if isinstance(recipe.place, str) else recipe.place[0])
    for check in (["check", "--ignore", "I"], ["format", "--check"]):
        style = run(copy, str(ruff), *check, *changed)
        assert style.returncode == 0, style.stdout
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", recipe.test]
    done = run(copy, *tests, "-k", recipe.members)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE)


def test_the_guide_adds_one_member_to_each_of_five_families() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == list(RECIPES)
