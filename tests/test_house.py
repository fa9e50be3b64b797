"""The house: which way imports point, what each install needs, what stands at the top level."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from protos.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
OURS = {
    "protos",
    "projector",
    "edge_agent",
    "cloud_server",
    "reference",
    "benchmarks",
    "examples",
    "tests",
}
SERVED = ("models", "codec", "memory", "maps", "serving", "bundle")
"""Rooms of projector that a service needs, the lowest first: a room imports those before it."""
ROOMS = tuple(f"projector.{room}" for room in SERVED)
BASE = ROOMS[:3]
"""What an agent needs: no torch at import."""
# From a module prefix (the longest wins) to the prefixes of ours that it may import besides itself.
ARROWS: dict[str, tuple[str, ...]] = {
    "protos": (),
    "projector": ("protos", "projector"),
    **{room: ("protos", *ROOMS[:at]) for at, room in enumerate(ROOMS)},
    # One home for signatures, and for what is signed for devices.
    "edge_agent": ("protos", *BASE, "projector.bundle.keys", "projector.bundle.update"),
    "cloud_server": ("protos", *ROOMS),
    "reference": ("protos", "projector", "edge_agent", "cloud_server"),
    "benchmarks": ("protos", "projector", "edge_agent", "cloud_server", "reference"),
    "examples": ("protos", "projector", "edge_agent", "cloud_server", "reference"),
}
TOP_LEVEL = {
    "pyproject.toml",
    "README.md",
    "edge_agent",
    "cloud_server",
    "protos",
    "projector",
    "deploy",
    "tests",
    "Makefile",
    "reference",
    "benchmarks",
    "docs",
    "examples",
    "LICENSE",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "MANIFEST.in",
}


def _matches(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> Iterator[tuple[str, Path]]:
    for package in sorted(OURS - {"tests"}):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield _module_name(path), path


@functools.cache
def parsed(path: Path) -> ast.Module:
    """A file as it is parsed, once for all tests."""
    return ast.parse(path.read_text(encoding="utf-8"))


def is_ours(name: str) -> bool:
    """A module or a package of ours, not a name inside one."""
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def imports(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """Every dotted name that the file imports, at any depth, relative imports resolved."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if is_ours(full) else base


def wrong_arrows(name: str, imports: Iterator[tuple[int, str]]) -> list[str]:
    """The imports of module `name` that its package's row of ARROWS does not allow."""
    owner = max((prefix for prefix in ARROWS if _matches(name, prefix)), key=len)
    allowed = (owner, *ARROWS[owner])
    return [
        f"{name}:{line} imports {target}; {owner} may import {', '.join(allowed)}"
        for line, target in imports
        if target.split(".")[0] in OURS and not any(_matches(target, p) for p in allowed)
    ]


OPENS_PICTURES = {
    "projector.models.picture_file",
    "reference.yard.render",  # its sprites' transparency
    "reference.yard.build_assets",  # which made the committed assets, and is not run again
}


def test_picture_files_are_read_in_one_place() -> None:
    """Elsewhere a file would look otherwise: orientation, transparency, depth, colour profile."""
    strays = [
        f"{name}:{node.lineno}"
        for name, path in modules()
        if name not in OPENS_PICTURES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in {("Image", "open"), ("ImageFile", "Parser")}
    ]
    assert not strays, "\n".join(strays)


def test_no_import_points_the_wrong_way() -> None:
    wrong = [w for name, path in modules() for w in wrong_arrows(name, imports(name, path))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("protos.layout", "projector.models.cache"),
        ("edge_agent.cli", "projector.bundle.load"),
        ("edge_agent.cli", "projector"),
        ("edge_agent.cli", "cloud_server.config"),
        ("edge_agent.cli", "reference.source"),
        ("cloud_server.engine", "edge_agent.uplink.delivery"),
        ("cloud_server.engine", "projector.training.train"),
        ("projector.codec.select", "projector.bundle.load"),
        ("projector.models.vlm", "projector.codec.encoder"),
        ("projector.maps.base", "projector.serving.backends"),
        ("projector.serving.export", "projector.bundle.load"),
        ("projector.bundle.load", "projector.package.form"),
        ("reference.demo.run", "benchmarks.compare.measure"),
        ("benchmarks.compare.measure", "tests.fakes"),
        ("benchmarks.compare.measure", "examples.node"),
    ],
)
def test_the_walk_sees_a_wrong_arrow(name: str, target: str) -> None:
    assert wrong_arrows(name, iter([(1, target)]))


def test_the_walk_reads_relative_and_nested_imports(tmp_path: Path) -> None:
    source = "from . import errors\nfrom ..projector.models import cache\n"
    source += "def f():\n    import torch\n"
    path = tmp_path / "layout.py"
    path.write_text(source)
    assert [t for _, t in imports("protos.layout", path)] == [
        "protos.errors" if is_ours("protos.errors") else "protos",
        "projector.models.cache" if is_ours("projector.models.cache") else "projector",
        "torch",
    ]


def _project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as f:
        table: dict[str, Any] = tomllib.load(f)["project"]
    return table


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _direct(extra: str) -> set[str]:
    project = _project()
    lines = [*project["dependencies"], *project["optional-dependencies"][extra]]
    found = [Requirement(line) for line in lines]
    return {_normal(r.name) for r in found if r.marker is None or r.marker.evaluate()}


def _closure(names: set[str]) -> set[str]:
    """The distributions that installing `names` brings, by the metadata of what is installed."""
    seen: set[str] = set()
    todo = set(names)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.add(_normal(requirement.name))
    return seen


def test_the_edge_install_brings_nothing_of_the_cloud() -> None:
    closure = _closure(_direct("edge"))
    cloud_only = _direct("cloud") - _direct("edge")
    heavy = {"torch", "torchvision", "transformers", "onnx", "msgspec", "tensorrt", "vllm"}
    assert {"msgspec", "torch", "transformers"} <= cloud_only
    assert not closure & (cloud_only | heavy)


def _third_party(prefixes: tuple[str, ...]) -> dict[str, str]:
    """From import name to the first place that imports it, over the modules under `prefixes`."""
    found: dict[str, str] = {}
    for name, path in modules():
        if any(_matches(name, p) for p in prefixes):
            for line, target in imports(name, path):
                top = target.split(".")[0]
                if top not in OURS and top not in sys.stdlib_module_names:
                    found.setdefault(top, f"{name}:{line}")
    return found


@pytest.mark.parametrize(
    ("prefixes", "extras", "besides"),
    [
        (("protos", "edge_agent", *BASE), ("edge", "edge-torch", "video", "otlp", "dev"), set()),
        (
            ("protos", "cloud_server", *ROOMS),
            ("cloud", "terminal", "otlp", "align", "dev"),
            {"tensorrt"},
        ),
    ],
    ids=["edge", "cloud"],
)
def test_every_third_party_import_is_declared(
    prefixes: tuple[str, ...], extras: tuple[str, ...], besides: set[str]
) -> None:
    owners = importlib.metadata.packages_distributions()
    declared = set().union(*(_direct(extra) for extra in extras))
    missing = {
        f"{place} imports {top}"
        for top, place in _third_party(prefixes).items()
        if top not in {"tomli", "tensorrt_rtx", *besides}
        and not {_normal(d) for d in owners.get(top, [])} & declared
    }
    assert not missing, "\n".join(sorted(missing))


_BLOCKED_IMPORT = """
import importlib, importlib.abc, pkgutil, sys
blocked = set({blocked!r})
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError("blocked: " + name)
        return None
sys.meta_path.insert(0, Block())
for root in {roots!r}:
    module = importlib.import_module(root)
    for info in pkgutil.walk_packages(getattr(module, "__path__", []), root + "."):
        if not info.name.endswith("__main__"):
            importlib.import_module(info.name)
"""


@pytest.mark.parametrize(
    ("roots", "blocked"),
    [
        (
            ["edge_agent"],
            [
                "cryptography",
                "grpc_reflection",
                "msgspec",
                "onnx",
                "onnxruntime",
                "tensorrt",
            ],
        ),
        (
            ["protos.state", "protos.rotation", "protos.requests", "protos.quantize"],
            ["torch", "transformers", "msgspec", "onnxruntime"],
        ),
        (
            [
                "protos.process.settings",
                "projector.codec.select",
                "projector.codec.encoder",
                "projector.bundle.load",
            ],
            ["cryptography", "torch", "transformers"],
        ),
        (
            ["projector.commands.cli"],
            ["cryptography", "torch", "transformers", "onnxruntime", "onnx", "rich"],
        ),
    ],
    ids=["edge", "protos", "serving", "projector"],
)
def test_modules_import_without_what_their_install_lacks(
    roots: list[str], blocked: list[str]
) -> None:
    script = _BLOCKED_IMPORT.format(roots=roots, blocked=blocked)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_front_end_starts_without_a_tensor_library() -> None:
    script = "import cloud_server.cli, sys; print([m for m in {!r} if m in sys.modules])".format(
        ["torch", "transformers", "onnxruntime"]
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_top_level_holds_only_what_belongs_there() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so ignored files cannot be told apart")
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = {name.split("/")[0] for name in done.stdout.split("\0") if name}
    assert {n for n in names if not n.startswith(".")} <= TOP_LEVEL


@pytest.mark.quick(3)
@pytest.mark.parametrize("script", sorted(_project()["scripts"]))
@pytest.mark.parametrize("flag", ["--help", "--version", "--check-config"])
def test_each_console_script_says_what_it_is(script: str, flag: str) -> None:
    path = Path(sys.executable).parent / script
    environ = {k: v for k, v in os.environ.items() if not k.startswith("NEURAL_BRIDGE_")}
    done = subprocess.run(
        [str(path), flag], capture_output=True, text=True, timeout=120, env=environ
    )
    if flag == "--check-config" and script != "projector":  # these two cannot do without a model
        assert done.returncode == ConfigError.exit_code
        assert done.stderr.startswith(f"{script}: config: no model: give --model")
        return
    assert done.returncode == 0, done.stderr
    if flag == "--version":
        assert importlib.metadata.version("neural-bridge") in done.stdout
    elif flag == "--help":
        for said in (script, "--config FILE", "--check-config", "exit codes", "10  config"):
            assert said in done.stdout
    else:
        assert "bundles" in json.loads(done.stdout)


_SCRIPT_WITHOUT = """
import importlib, importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None
sys.meta_path.insert(0, Block())
sys.exit(importlib.import_module({module!r}).main({arguments!r}))
"""


def _without(
    script: str, blocked: list[str], arguments: list[str]
) -> subprocess.CompletedProcess[str]:
    module = _project()["scripts"][script].partition(":")[0]
    code = _SCRIPT_WITHOUT.format(module=module, blocked=blocked, arguments=arguments)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("script", ["cloud-server", "projector"])
def test_a_script_starts_where_only_the_edge_extra_is_installed(script: str) -> None:
    cloud_only = ["cryptography", "grpc_health", "grpc_reflection", "onnxruntime", "msgspec"]
    done = _without(script, [*cloud_only, "torch", "rich"], ["--version"])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("script", "package", "arguments", "extra"),
    [
        ("edge-agent", "tenacity", ["--version"], "edge"),
        ("edge-agent", "pydantic", ["--version"], "edge"),
        ("cloud-server", "msgspec", ["serve"], "cloud"),
        ("cloud-server", "pydantic", ["--version"], "cloud"),
        ("projector", "pydantic", ["--version"], "align"),
    ],
)
def test_a_script_names_the_package_that_its_install_lacks_in_one_line(
    script: str, package: str, arguments: list[str], extra: str
) -> None:
    done = _without(script, [package], arguments)
    assert done.returncode == ConfigError.exit_code
    assert done.stderr == (
        f"{script}: config: needs the package {package}: pip install 'neural-bridge[{extra}]'\n"
    )
    assert done.stdout == ""


def test_signing_without_its_library_names_the_extras_that_bring_it(tmp_path: Path) -> None:
    done = _without("projector", ["cryptography"], ["package", "keygen", str(tmp_path / "key.pem")])
    assert done.returncode == ConfigError.exit_code
    assert done.stderr == (
        "projector: config: signatures need the package cryptography: "
        "pip install 'neural-bridge[cloud]' or 'neural-bridge[align]'\n"
    )


def test_every_make_target_says_what_it_does() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("help", "demo", "test", "check", "bench", "reference", "clean"):
        assert re.search(rf"^  make {target}\s+\w", done.stdout, re.M), target


def test_console_scripts_and_modules_run_the_same() -> None:
    with (ROOT / "pyproject.toml").open("rb") as f:
        scripts: dict[str, str] = tomllib.load(f)["project"]["scripts"]
    assert {name: f"{name.replace('-', '_')}.__main__:main" for name in scripts} == scripts


def test_the_hooks_before_a_commit_are_the_checks_and_need_no_network() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    programs = {Path(hook["entry"].split()[0]) for hook in hooks}
    assert {str(program.parent) for program in programs} == {".venv/bin"}
    assert all((Path(sys.executable).parent / program.name).is_file() for program in programs)
    checks = re.search(r"^check: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert checks is not None
    named = re.findall(r'@echo "check: (.*)"', checks[1])
    assert [hook["name"] for hook in hooks] == named
