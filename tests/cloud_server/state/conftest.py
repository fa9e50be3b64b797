from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud_server.state.store import Store
from tests.cloud_server.state import postgresql


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgresql.Postgres]:
    """A PostgreSQL server for every test that needs no other."""
    programs = postgresql.binaries()
    if programs is None:
        pytest.skip("no PostgreSQL is installed (Debian: apt-get install postgresql)")
    with postgresql.running(programs) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.db"
    server: postgresql.Postgres = request.getfixturevalue("postgres")
    return server.create()


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


Opened = Callable[[], Store]


@pytest.fixture
def opened(url: str, clock: Clock, tmp_path: Path) -> Iterator[Opened]:
    """Opens the same database as often as called, each time as another process would."""
    made: list[Store] = []

    def opening() -> Store:
        made.append(Store.open(url, tmp_path / "revocations", clock=clock))
        return made[-1]

    yield opening
    for store in made:
        store.close()


@pytest.fixture
def store(opened: Opened) -> Store:
    return opened()
