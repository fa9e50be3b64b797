"""What several tests of the agent share: one edge export of a reference model."""

from __future__ import annotations

from pathlib import Path

import pytest

REFERENCE = Path(__file__).resolve().parents[2] / "reference/models/edge-a"


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from projector.commands import cli as projector

    folder = tmp_path_factory.mktemp("exports") / "edge-a"
    assert projector.main(["export-edge", str(REFERENCE), str(folder)]) == 0
    return folder
