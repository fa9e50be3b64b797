from __future__ import annotations

import pytest

from tests.cloud_server.conftest import Files
from tests.cloud_server.engine_bench import Bench


@pytest.fixture(scope="session")
def shared(files: Files) -> Bench:
    return Bench(files)


@pytest.fixture
def bench(shared: Bench) -> Bench:
    """An engine that holds nothing and has said nothing."""
    shared.engine.forget("s")
    shared.said.clear()
    return shared
