from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from benchmarks import command
from benchmarks.serve import pool as pools
from benchmarks.serve.identities import Identities
from benchmarks.serve.load import calm_answers, fleet
from benchmarks.serve.pool import Pool
from benchmarks.serve.site import Site, site
from tests.faults.arena import FULL, ITEMS, QUICK, Faults

REPORT = command.ROOT / "build" / "faults.json"


@pytest.fixture(scope="session")
def faults() -> Iterator[Faults]:
    made = Faults(REPORT if FULL else None)
    yield made
    if made.kinds:
        count = sum(int(str(kind["faults"])) for kind in made.kinds.values())
        print(f"\nfaults: {count} injected, {len(made.kinds)} kinds")


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    kept = command.REPORTS / "serve"
    return pools.pool(kept if FULL else tmp_path_factory.mktemp("pool"))


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    """An authority, tenants, and the certificates of simulated devices."""
    return Identities.make(tmp_path_factory.mktemp("identities") / "directory", 40)


@pytest.fixture(scope="module")
def quick() -> tuple[str, ...]:
    """Further flags of a module's service."""
    return ()


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, identities: Identities, quick: tuple[str, ...]
) -> Iterator[Site]:
    """A service that notices faults soon."""
    with site(tmp_path_factory.mktemp("service"), identities, *QUICK, *quick) as running:
        yield running


@pytest.fixture(scope="module")
def calm(place: Site, pool: Pool) -> list[str]:
    """The right answers: one at a time, before anything happens to the service."""

    async def ask() -> list[str]:
        async with fleet(1, place.dial, pool, first=32) as (device,):
            return await calm_answers(device, ITEMS)

    return asyncio.run(ask())
