"""What every test gets: a cache folder of its own run, and logging as a program starts with it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """No test leaves logging configured: the next would print its log lines on standard output."""
    yield
    structlog.reset_defaults()


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The cases that `quick` does not name are slow."""
    seen: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("quick")
        if mark is None:
            continue
        name, _, case = item.nodeid.partition("[")
        seen[name] += 1
        first, *more = mark.args
        quick = seen[name] <= first if isinstance(first, int) else case[:-1] in (first, *more)
        if not quick:
            item.add_marker(pytest.mark.slow)
