"""The wheel in an environment of its own, without torch: it is small, and its agent answers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.edge.without_torch import ask, install, installed_bytes
from edge_agent.prefill import load
from projector.commands import cli as projector
from projector.models import pictures
from reference.demo.halves import BUNDLE, CLOUD_MODEL, EDGE_MODEL
from reference.demo.testset import TestSet
from tests.cloud_server.stage import running_server

pytestmark = pytest.mark.skipif(
    os.environ.get("NEURAL_BRIDGE_FAULTS") != "full",
    reason="installs an environment of 300 MB: make test-edge",
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("install"))


def test_the_install_is_under_400_mb_and_holds_no_torch(python: Path) -> None:
    sizes = installed_bytes(python)
    assert not {"torch", "transformers", "jinja2", "onnx"} & set(sizes)
    assert sum(sizes.values()) <= 400e6, sorted(sizes.items(), key=lambda item: -item[1])[:10]


def test_its_agent_answers_as_the_checkpoint_does_and_stays_small(
    python: Path, tmp_path: Path
) -> None:
    assert projector.main(["export-edge", str(EDGE_MODEL), str(tmp_path / "export")]) == 0
    TestSet.load("test", 1, 1).pictures[0].save(tmp_path / "a.png")
    with running_server(CLOUD_MODEL, [BUNDLE]) as server:
        address = f"127.0.0.1:{server.port}"
        started = ask(
            python,
            tmp_path / "export",
            address,
            tmp_path / "a.png",
            tmp_path / "state",
            "--edge-only-too",
        )
    original = load(EDGE_MODEL).see(pictures.read(tmp_path / "a.png"))
    assert started.record["edge_answer"] == original.answer("is there a fire ?", 16)
    assert started.record["answer"] in ("yes", "no") and started.record["error"] is None
    weights = sum(file.stat().st_size for file in (tmp_path / "export").glob("*.weights"))
    assert started.resident_bytes - weights <= 150e6


def test_a_checkpoint_there_is_refused_in_one_line(python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(python), "-m", "edge_agent", "inspect", str(EDGE_MODEL)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
    )
    assert done.returncode == 13
    assert "neural-bridge[edge-torch]" in done.stderr and len(done.stderr.splitlines()) == 1
