"""What the two wheels hold: the product no picture of the yard, the reference all of it."""

from __future__ import annotations

import email
import filecmp
import os
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from reference.yard.build_assets import spdx
from tests.checkout import ROOT, copy_to, tracked

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ASSETS = "reference/yard/assets"
PRODUCT = {"protos", "projector", "edge_agent", "cloud_server"}
PAGE = {".html", ".css", ".js", ".svg", ".txt"}  # with its icon and its libraries' licences
SOURCES = {".py", ".pyi", ".proto", ".yaml", ".toml", ".jinja", ".typed", *PAGE}
"""What a file of the product may end in: no photograph, no weights."""
BUILD = "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"


SDIST = BUILD.replace("build_wheel", "build_sdist")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_to(tmp_path_factory.mktemp("checkout"))


def built(project: Path, out: Path, program: str = BUILD) -> Path:
    """The wheel that a folder with a pyproject.toml makes, by the installed setuptools."""
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-c", program, str(out)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def product(copy: Path) -> Path:
    return built(copy, copy / "wheels")


@pytest.fixture(scope="module")
def reference(copy: Path) -> Path:
    return built(copy / "reference", copy / "wheels")


def contents(wheel: Path) -> tuple[set[str], Message]:
    """The names in a wheel outside its .dist-info, and its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        told = email.message_from_bytes(archive.read(metadata))
    folder = metadata.partition("/")[0] + "/"
    held = {name.removeprefix(folder + "licenses/") for name in names if "/licenses/" in name}
    assert set(told.get_all("License-File", [])) <= held
    return {name for name in names if not name.startswith(folder)}, told


def pyproject(folder: str = ".") -> dict[str, Any]:
    with (ROOT / folder / "pyproject.toml").open("rb") as f:
        return tomllib.load(f)


def test_the_products_wheel_holds_its_four_packages_and_nothing_else(product: Path) -> None:
    names, told = contents(product)
    assert {name.partition("/")[0] for name in names} == PRODUCT
    assert {Path(name).suffix for name in names} <= SOURCES
    assert names == set(tracked(*PRODUCT))
    assert told["License-Expression"] == "Apache-2.0"


def test_the_references_wheel_holds_the_whole_folder(reference: Path) -> None:
    names, told = contents(reference)
    files = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
    about = {f"reference/{name}" for name in files}
    assert names == set(tracked("reference")) - about
    texts = {f"yard/assets/licenses/{f.name}" for f in (ROOT / ASSETS / "licenses").iterdir()}
    files = set(told.get_all("License-File", []))
    assert files == {"LICENSE", "yard/assets/LICENSES.md", *texts}


def test_the_references_licence_is_apache_and_what_its_assets_say() -> None:
    parts = set(pyproject("reference")["project"]["license"].split(" AND "))
    assert parts == {"Apache-2.0", *spdx().split(" AND ")}
    assert f"    {spdx()}\n" in (ROOT / ASSETS / "LICENSES.md").read_text(encoding="utf-8")
    assert filecmp.cmp(ROOT / "LICENSE", ROOT / "reference/LICENSE", shallow=False)


def test_the_two_distributions_go_together(product: Path, reference: Path) -> None:
    version = contents(product)[1]["Version"]
    told = contents(reference)[1]
    assert told["Version"] == version
    needs = [Requirement(line) for line in told.get_all("Requires-Dist", [])]
    (whole,) = [need for need in needs if need.name == "neural-bridge"]
    assert whole.extras == {"edge", "cloud", "align"} and str(whole.specifier) == f"=={version}"


@pytest.mark.slow
def test_a_tag_is_the_version_of_both_distributions(tmp_path: Path) -> None:
    """Also from the source archive alone, which has no tags."""
    copy = copy_to(tmp_path / "checkout")
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "a"], ["tag", "v3.1.4"]):
        subprocess.run(["git", *words], cwd=copy, check=True)
    for folder, name in ((copy, "neural_bridge"), (copy / "reference", "neural_bridge_reference")):
        archive = built(folder, tmp_path / "out", SDIST)
        assert archive.name == f"{name}-3.1.4.tar.gz"
        with tarfile.open(archive) as opened:
            opened.extractall(tmp_path / "alone", filter="data")
        wheel = built(tmp_path / "alone" / f"{name}-3.1.4", tmp_path / "out")
        assert wheel.name == f"{name}-3.1.4-py3-none-any.whl"
        needs = contents(wheel)[1].get_all("Requires-Dist", [])
        assert name == "neural_bridge" or any(need.endswith("==3.1.4") for need in needs)


@pytest.mark.slow
def test_the_source_archive_makes_the_same_wheel_as_the_checkout(
    copy: Path, product: Path, reference: Path, tmp_path: Path
) -> None:
    for folder, wheel in ((copy, product), (copy / "reference", reference)):
        archive = built(folder, tmp_path / "out", SDIST)
        with tarfile.open(archive) as opened:
            opened.extractall(tmp_path / "alone", filter="data")
        top = tmp_path / "alone" / archive.name.removesuffix(".tar.gz")
        assert contents(built(top, tmp_path / "out"))[0] == contents(wheel)[0]


@pytest.mark.quick(1)
@pytest.mark.parametrize("package", ["edge_agent", "cloud_server", "projector"])
def test_a_command_of_the_products_wheel_starts(
    product: Path, tmp_path: Path, package: str
) -> None:
    with zipfile.ZipFile(product) as archive:
        archive.extractall(tmp_path)
    where = f"import sys, {package}; print({package}.__file__); from {package}.__main__ import main"
    done = subprocess.run(
        [sys.executable, "-c", f"{where}; sys.exit(main(['--help']))"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file, _, said = done.stdout.partition("\n")
    assert Path(file).is_relative_to(tmp_path) and package.replace("_", "-") in said


def test_the_product_holds_the_databases_migrations(product: Path) -> None:
    folder = ROOT / "cloud_server" / "state" / "migrations"
    names, _ = contents(product)
    assert {str(path.relative_to(ROOT)) for path in folder.rglob("*.py")} <= names
