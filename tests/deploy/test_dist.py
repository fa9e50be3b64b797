"""What `make dist` leaves: release notes, licences, and wheels that run away from the sources."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.checkout import ROOT

full = pytest.mark.skipif(
    os.environ.get("NEURAL_BRIDGE_DEPLOY") != "full", reason="takes minutes: make test-deploy"
)


@pytest.fixture(scope="module")
def dist() -> ModuleType:
    """`.ci/dist.py`, which is in no package."""
    spec = importlib.util.spec_from_file_location("dist", ROOT / ".ci" / "dist.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHANGES = (
    "# Changelog\n\n## [Unreleased]: next\n\n- new\n\n## [0.2.0]: a day\n\n### Added\n\n- old\n"
)


def test_release_notes_are_the_section_of_the_version(dist: ModuleType) -> None:
    assert dist.release_notes(CHANGES, "0.2.0") == "# Neural Bridge 0.2.0\n\n### Added\n\n- old\n"
    between = "0.2.1.dev3+g0123456"
    assert dist.release_notes(CHANGES, between) == f"# Neural Bridge {between}\n\n- new\n"


@pytest.mark.parametrize("version", ["0.3.0", "0.2"])
def test_a_release_without_notes_is_refused(dist: ModuleType, version: str) -> None:
    with pytest.raises(ValueError, match="says nothing"):
        dist.release_notes(CHANGES, version)


def test_the_changelog_has_notes_for_what_comes_next(dist: ModuleType) -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert len(dist.release_notes(text, "9.9.dev1")) > 100


def test_licences_come_from_every_form_that_a_bill_has(dist: ModuleType) -> None:
    parts = [
        {"name": "b", "version": "2", "licenses": [{"expression": "MIT OR Apache-2.0"}]},
        {"name": "A", "version": "1", "licenses": [{"license": {"id": "MIT"}}]},
        {"name": "c", "licenses": [{"license": {"name": "Some licence\nand its text"}}]},
        {"name": "d", "version": "4"},
    ]
    assert dist.licences({"components": parts}) == [
        ("A", "1", "MIT"),
        ("b", "2", "MIT OR Apache-2.0"),
        ("c", "", "Some licence"),
        ("d", "4", "not stated"),
    ]


@full
@pytest.mark.timeout(3600)
def test_the_wheels_alone_run_the_demo_in_a_bare_environment(
    dist: ModuleType, tmp_path: Path
) -> None:
    """The demo starts the service and an agent that enrols, out of this checkout's reach."""
    out, home = tmp_path / "dist", tmp_path / "home"
    home.mkdir()
    assert dist.main(["--out", str(out), "--no-bom"]) == 0
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*install, "-c", ROOT / ".ci/constraints.txt", *out.glob("*.whl")], check=True)
    quiet = {"PATH": os.environ["PATH"], "HOME": str(home), "OMP_NUM_THREADS": "1"}

    def run(*words: str) -> str:
        command = [str(python), *words]
        done = subprocess.run(command, cwd=home, env=quiet, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run(
        "-c", "import reference, cloud_server; print(reference.__file__, cloud_server.__file__)"
    )
    assert all(Path(file).is_relative_to(environment) for file in where.split())
    run("-m", "reference.demo", "--pictures", "2", "--out", "report")
    report = json.loads((home / "report" / "report.json").read_text())
    assert report["whole"] and report["pictures"] == 2
    for name in ("edge-agent", "cloud-server", "projector"):
        told = subprocess.run([python.parent / name, "--version"], env=quiet, capture_output=True)
        assert told.returncode == 0, told.stderr
