from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cloud_server import stage

AT_CHANCE = {
    "pictures": 512,
    "accuracy": {"float": 0.311},
    "controls": {"cloud_image": 0.93, "blind": 0.31, "mean_state": 0.3, "other_picture": 0.29},
}
"""A certificate of a map that answers as many questions as no picture does."""


@dataclass(frozen=True)
class Files:
    model: Path
    bundle: Path
    other_bundle: Path
    cloud: Any


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A tiny large model, and a random bundle for each of two edge models."""
    from projector.models.vlm import VLM
    from tests.fakes import tiny_models

    folder = tmp_path_factory.mktemp("cloud")
    model = tiny_models.tiny_llava(folder)
    target = VLM.load(model).layout
    cloud = stage.random_cloud(target)
    return Files(
        model,
        stage.write_random_bundle(folder / "bundle", target, stage.SOURCE, cloud),
        stage.write_random_bundle(
            folder / "other", target, stage.OTHER_SOURCE, cloud, certificate=AT_CHANCE
        ),
        cloud,
    )


@pytest.fixture(scope="session")
def server(files: Files) -> Iterator[stage.Server]:
    """One server for every test of a process that needs no settings of its own."""
    with stage.running_server(files.model, [files.bundle, files.other_bundle]) as running:
        yield running
        running.process.terminate()
        assert running.process.wait(timeout=30) == 0, "SIGTERM is an orderly end"


@pytest.fixture
def client(server: stage.Server) -> Iterator[stage.Client]:
    """A freshly negotiated edge."""
    with server.channel() as channel:
        made = stage.Client(channel)
        made.negotiate()
        yield made


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "config.json").write_text("{}")
    stage.describe(tmp_path)
    return {"model": tmp_path, "bundles": [tmp_path]}


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """Socket paths are short; the directories of tests may not be."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
