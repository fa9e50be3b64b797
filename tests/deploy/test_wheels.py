"""A device's Python and processor: every dependency is a wheel, no code is too new."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import ROOT, copy_to
from tests.deploy.test_install import install
from tests.edge_faults.faults import FULL
from tests.test_distributions import BUILD

ON_A_DEVICE = ("protos", "edge_agent", "projector/models", "projector/codec", "projector/bundle")
LATER = {
    "tomllib": "imported only from 3.11 on, else tomli",
    "wsgiref.types": "imported only by a type checker",
}
"""Modules newer than Python 3.10 that may stand in the sources, and why."""
JETPACKS = {"6.2": "3.10", "7.2": "3.12"}
"""The Python of each JetPack."""
full = pytest.mark.skipif(not FULL, reason="needs the network and minutes: make test-edge")


def tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed (make setup)")
    return found


def too_new(folders: list[str], *options: str) -> list[str]:
    """What in these sources Python 3.10 lacks, as vermin tells it."""
    command = [tool("vermin"), "-t=3.10-", "--violations", "--no-tips", "--eval-annotations"]
    done = subprocess.run([*command, *options, *folders], cwd=ROOT, capture_output=True, text=True)
    return re.findall(r"^.* require[s]? .*3\.1[1-9].*$", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_the_code_of_a_device_runs_on_python_3_10() -> None:
    excluded = [word for name in LATER for word in ("--exclude", name)]
    assert too_new(list(ON_A_DEVICE), *excluded) == []


def test_code_that_is_too_new_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text(
        "import asyncio\nfrom datetime import UTC\nfrom enum import StrEnum\n"
        "async def f():\n    async with asyncio.timeout(1), asyncio.TaskGroup():\n"
        "        try:\n            pass\n        except* ValueError:\n            pass\n"
    )
    found = "\n".join(too_new([str(tmp_path)]))
    for name in ("UTC", "StrEnum", "timeout", "TaskGroup", "except*"):
        assert name in found, found


@full
@pytest.mark.parametrize("extras", [("edge",), ("edge", "video")])
@pytest.mark.parametrize("jetpack", JETPACKS)
def test_every_dependency_is_a_wheel_for_a_jetson(jetpack: str, extras: tuple[str, ...]) -> None:
    """A device has no compiler. uv also follows the markers of the other Python, unlike pip."""
    command = [tool("uv"), "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["--python-version", JETPACKS[jetpack], "--only-binary", ":all:"]
    command += ["--python-platform", "aarch64-manylinux_2_28", "pyproject.toml"]
    command += [word for extra in extras for word in ("--extra", extra)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = {line.partition("==")[0] for line in done.stdout.split()}
    assert {"grpcio", "numpy", "onnxruntime", "cryptography"} <= names
    assert ("tomli" in names) == (JETPACKS[jetpack] == "3.10")
    assert not names & {"torch", "transformers", "constriction"}


def of_version(version: str) -> Path:
    """A Python of this version: on the path, or pyenv's."""
    found = shutil.which(f"python{version}")
    others = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"))
    if not found and not others:
        pytest.skip(f"no Python {version} here")
    return others[-1] if others else Path(str(found))


@full
@pytest.mark.parametrize("jetpack", JETPACKS)
def test_the_wheel_installs_without_a_network_and_every_module_imports(
    tmp_path: Path, jetpack: str
) -> None:
    python = of_version(JETPACKS[jetpack])
    wheelhouse, root = tmp_path / "wheelhouse", tmp_path / "root"
    root.mkdir()
    source = copy_to(tmp_path / "source")
    build = [sys.executable, "-c", BUILD, str(wheelhouse)]
    wheelhouse.mkdir()
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, check=True)
    wheel = wheelhouse / done.stdout.splitlines()[-1]
    download = [str(python), "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    download += ["--dest", str(wheelhouse), f"{wheel}[edge]"]
    done = subprocess.run(download, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)

    said = install(root, "--wheelhouse", wheelhouse, "--python", python)
    assert said.returncode == 0, said.stderr
    agent = root / "opt/neural-bridge/current/agent"
    quiet = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    for words in (["--version"], ["run", "--help"]):
        command = [str(agent / "bin/edge-agent"), *words]
        done = subprocess.run(command, cwd=root, env=quiet, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    code = (
        "import importlib, pkgutil, sys, edge_agent, protos, projector.codec, projector.models\n"
        "from protos.entropy import rans\n"
        "for package in (edge_agent, protos):\n"
        "    for found in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not found.name.endswith(('__main__', 'protos.generate')):\n"
        "            importlib.import_module(found.name)\n"
        "print(edge_agent.__file__, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [agent / "bin/python", "-c", code], cwd=root, env=quiet, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    where, torch = done.stdout.split()
    assert Path(where).is_relative_to(root) and torch == "False"
