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

Edit = tuple[str, str]
"""A place in a file, and what is put behind it."""


@dataclass(frozen=True)
class Recipe:
    """What a section says in words.

    Attributes:
        file: what the section's block of code is.
        registry: the file that names the members, and what is put into it.
        test: the contract test, and what is put into it.
        members: which of its tests are the new member's.
    """

    file: str
    registry: tuple[str, tuple[Edit, ...]]
    test: tuple[str, tuple[Edit, ...]]
    members: str


SELECTOR = "from projector.codec.select.long_values import LongValues\n"
MAP = "from projector.maps.least_squares import LeastSquares\n"
RECIPES = {
    "A selector": Recipe(
        "projector/codec/select/long_values.py",
        (
            "projector/codec/select/__init__.py",
            (
                ("from projector.codec.select.kv_norm import KVNorm\n", SELECTOR),
                ("    for member in (\n", "        LongValues,\n"),
            ),
        ),
        (
            "tests/projector/codec/test_select.py",
            (
                ("from projector.codec.select.kv_norm import KVNorm\n", SELECTOR),
                ("SELECTORS: list[Selector] = [\n", "    LongValues(),\n"),
            ),
        ),
        "long_values or registered",
    ),
    "A quantizer": Recipe(
        "protos/quantize/int16.py",
        (
            "protos/quantize/__init__.py",
            (
                (
                    "from protos.quantize.fp8_token import Fp8TokenQuantizer\n",
                    "from protos.quantize.int16 import Int16Quantizer\n",
                ),
                ("    for member in (\n", "        Int16Quantizer,\n"),
            ),
        ),
        ("tests/protos/test_quantize.py", ()),
        "int16",
    ),
    "A map": Recipe(
        "projector/maps/least_squares.py",
        (
            "projector/maps/__init__.py",
            (
                ("from projector.maps.factors import Factors\n", MAP),
                ("for _member in (\n", "    LeastSquares,\n"),
            ),
        ),
        (
            "tests/projector/maps/test_families.py",
            (
                ("from projector.maps.factors import Factors\n", MAP),
                ("MEMBERS: list[Family] = [\n", "    LeastSquares(),\n"),
                ("LINEAR = (\n", "    LeastSquares,\n"),
            ),
        ),
        "least_squares or list_above",
    ),
    "A source": Recipe(
        "edge_agent/sources/noise.py",
        (
            "pyproject.toml",
            (
                (
                    '[project.entry-points."neural_bridge.sources"]\n',
                    'noise = "edge_agent.sources.noise:open_source"\n',
                ),
            ),
        ),
        ("tests/edge_agent/test_sources.py", (("MEMBERS = {", '"noise": "noise:3", '),)),
        "noise or under_contract",
    ),
    "An engine": Recipe(
        "cloud_server/engine/capitals.py",
        (
            "cloud_server/engine/__init__.py",
            (
                (
                    "ENGINES: dict[str, tuple[str, str]] = {\n",
                    '    "capitals": ("cloud_server.engine.capitals", "CapitalsEngine"),\n',
                ),
            ),
        ),
        ("tests/cloud_server/engine/test_contract.py", (("NAMES = [", '"capitals", '),)),
        "capitals or under_contract",
    ),
}


def section(title: str) -> str:
    """The text under a heading of the guide."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return text.split(f"\n### {title}\n")[1].split("\n### ")[0]


def add(title: str, copy: Path) -> None:
    """Do in a copy of the repository what a section says."""
    recipe, text = RECIPES[title], section(title)
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (copy / recipe.file).write_text(block, encoding="utf-8")
    for name, edits in (recipe.registry, recipe.test):
        assert f"`{name}`" in text
        whole = (copy / name).read_text(encoding="utf-8")
        for place, line in edits:
            assert whole.count(place) == 1, f"{name}: {place!r}"
            whole = whole.replace(place, place + line)
        (copy / name).write_text(whole, encoding="utf-8")
    assert f"`{recipe.file}`" in text


def run(copy: Path, *command: str) -> str:
    """What a command prints that runs in a copy; it must succeed."""
    environ = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=copy, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.quick(1)
@pytest.mark.parametrize("title", RECIPES)
def test_a_member_that_is_added_as_the_guide_says_keeps_its_contract(
    title: str, tmp_path: Path
) -> None:
    recipe, copy = RECIPES[title], copy_to(tmp_path)
    add(title, copy)
    python = sys.executable
    if recipe.registry[0] == "pyproject.toml":  # what `make setup` does with its entry points
        run(copy, python, "-c", "import setuptools; setuptools.setup()", "egg_info")
    ruff, changed = str(Path(python).parent / "ruff"), [recipe.file, recipe.test[0]]
    run(copy, ruff, "check", *changed)
    run(copy, ruff, "format", "--check", *changed)
    told = run(copy, python, "-m", "pytest", "-q", recipe.test[0], "-k", recipe.members)
    assert re.search(r"^\d+ passed", told, re.MULTILINE)


def test_the_guide_adds_one_member_to_each_of_five_families() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == list(RECIPES)
