"""The rooms of the house: who may use whose names, which names stand once, how long a file is."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.test_house import ROOT, imports, is_ours, modules, parsed

LONGEST = 520
"""Lines of a file that holds several ideas without becoming hard to read."""
ONE_IDEA: dict[str, str] = {"protos/errors.py": "the table of every error"}
"""Longer files, each with the one idea that it is."""


def _trees() -> Iterator[tuple[str, Path, ast.Module]]:
    for name, path in modules():
        yield name, path, parsed(path)


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_uses(module: str, tree: ast.Module) -> list[str]:
    """Where a module takes a private name of another, as an import or as an attribute."""
    found = []
    taken: set[str] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not is_ours(node.module or "."):
            continue
        for alias in node.names:
            if _private(alias.name):
                found.append(f"{module}:{node.lineno} takes {node.module}.{alias.name}")
            if is_ours(f"{node.module}.{alias.name}"):
                taken.add(alias.asname or alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in taken and _private(node.attr):
                found.append(f"{module}:{node.lineno} takes {node.value.id}.{node.attr}")
    return found


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of modules that import each other in a circle (Tarjan, 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for after in graph.get(node, ()):
            if after not in order:
                visit(after)
                low[node] = min(low[node], low[after])
            elif after in stack:
                low[node] = min(low[node], order[after])
        if low[node] == order[node]:
            at = stack.index(node)
            circle = stack[at:]
            del stack[at:]
            if len(circle) > 1:
                found.append(sorted(circle))

    for node in graph:
        if node not in order:
            visit(node)
    return found


def test_no_module_takes_a_private_name_of_another() -> None:
    uses = [use for name, _, tree in _trees() for use in private_uses(name, tree)]
    assert not uses, "\n".join(uses)


@pytest.mark.parametrize(
    "source",
    [
        "from protos.layout import _digest",
        "from protos import layout\nlayout._digest()",
        "from protos import layout as described\ndescribed._digest()",
        "def f():\n    from protos import layout\n    return layout._digest",
    ],
)
def test_a_private_name_is_seen_however_it_is_taken(source: str) -> None:
    assert private_uses("edge_agent.cli", ast.parse(source))


def test_no_class_name_stands_twice_within_a_package() -> None:
    places = defaultdict(list)
    for name, _, tree in _trees():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                places[name.split(".")[0], node.name].append(name)
    twice = {f"{cls}: {', '.join(at)}" for (_, cls), at in places.items() if len(at) > 1}
    assert not twice, "\n".join(sorted(twice))


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        name: {target for _, target in imports(name, path) if target != name}
        for name, path in modules()
    }
    found = circles(graph)
    assert not found, "\n".join(" ↔ ".join(circle) for circle in found)


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_a_long_file_is_one_idea() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for _, path in modules()
        if "neuralbridge" not in path.parts
    }
    long = {name for name, lines in lengths.items() if lines > LONGEST}
    assert long == set(ONE_IDEA), {name: lengths[name] for name in long ^ set(ONE_IDEA)}


PAGES = ("README.md", "docs/architecture.md", "docs/glossary.md")
_NAMED = re.compile(r"`((?:[\w.]+/)*[\w.]+\.py|(?:\w+/)+)(?:: (\w+))?`")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_function_that_a_page_names_is_there(page: str) -> None:
    tops = {path.name for path in ROOT.iterdir() if path.is_dir()}
    missing = []
    for name, function in _NAMED.findall((ROOT / page).read_text(encoding="utf-8")):
        if name.split("/")[0] not in tops:
            continue  # short for a file that the same row names in full
        path = ROOT / name
        if not path.exists():
            missing.append(name)
        elif function:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            named = {getattr(node, "name", None) for node in ast.walk(tree)}
            if function not in named:
                missing.append(f"{name}: {function}")
    assert not missing, missing


DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.rglob("*.md")
    if not {".venv", "build", "node_modules"} & set(path.relative_to(ROOT).parts)
)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(document: str) -> None:
    path = ROOT / document
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        file, _, heading = target.partition("#")
        if "://" in target:
            continue
        there = path.parent / file if file else path
        if not there.exists() or (heading and heading not in _headings(there)):
            lost.append(target)
    assert not lost, lost


def _headings(path: Path) -> set[str]:
    """The anchors that a Markdown file's headings make."""
    lines = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}
