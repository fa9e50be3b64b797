"""Front ends that end at every moment of a rollout, while devices go on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.serve.identities import Identities
from benchmarks.serve.pool import Pool
from benchmarks.serve.site import Site, site
from cloud_server.state import bundles
from cloud_server.state.location import open_store
from cloud_server.state.store import Store
from projector.bundle.load import Bundle
from reference.demo.halves import BUNDLE
from tests.faults.arena import FULL, SLOW, Faults, Steady, steady, times
from tests.faults.test_restarts import fixed, free_port
from tests.system.test_rollout import next_version

pytestmark = pytest.mark.slow

MOMENTS = ("loading", "judging", "offered", "retiring")


class Operator:
    """Changes versions, and reads what the running front end says of them."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.old, info = Bundle.peek(BUNDLE).digest, Bundle.peek(folder)
        self.new = info.digest
        with store.write("test") as tx:
            bundles.add(
                tx,
                digest=info.digest,
                bundle_id=info.id,
                version=info.version,
                source=info.source.fingerprint,
                path=str(folder),
            )

    def activate(self, share: float) -> None:
        with self.store.write("test") as tx:
            bundles.activate(tx, self.new, share)

    def rollback(self) -> None:
        with self.store.write("test") as tx:
            bundles.rollback(tx, self.new)

    def wanted(self, digest: str) -> str:
        with self.store.read() as session:
            return bundles.find(session, digest).wanted

    def state(self, place: Site, digest: str) -> str:
        with self.store.read() as session:
            said = bundles.said(session, time.time())
        mine = f":{place.server.pid}"
        found = [one for one in said if one.digest == digest and one.front_end.endswith(mine)]
        return found[0].state if found else ""


async def reach(load: Steady, operator: Operator, place: Site, moment: str) -> None:
    """Begin a rollout and wait for a moment of it."""
    operator.activate(0.5 if moment == "offered" else 1.0)
    new, old = operator.new, operator.old
    if moment == "retiring":
        await load.until(lambda: operator.state(place, old) in ("retiring", "gone"), moment)
    elif moment == "offered":
        await load.until(lambda: operator.state(place, new) == "serving", moment)
    else:  # it may be over before it is seen
        seen = (moment, "judging", "serving")
        await load.until(lambda: operator.state(place, new) in seen, moment)


@pytest.mark.skipif(not FULL, reason=SLOW)
def test_a_rollout_goes_on_after_its_front_end_was_killed_or_ended(
    tmp_path: Path, pool: Pool, calm: list[str], faults: Faults
) -> None:
    ends = times(2, 8)
    identities = Identities.make(tmp_path / "directory", 8)
    store = open_store("", identities.directory)
    ports = free_port(), free_port()
    flags = (*fixed(*ports), "--bundle-move-s", "0.5")

    async def scenario() -> None:
        with ExitStack() as running:

            async def start(number: int) -> Site:
                made = site(tmp_path / f"service{number}", identities, *flags)
                return await asyncio.to_thread(running.enter_context, made)

            place = await start(0)
            operator = Operator(store, next_version(tmp_path / "next"))
            async with steady(place.dial, pool) as load:
                for number in range(ends):
                    moment = MOMENTS[number % len(MOMENTS)]
                    await load.more(10)
                    await reach(load, operator, place, moment)
                    how = signal.SIGTERM if number // len(MOMENTS) % 2 else signal.SIGKILL
                    os.kill(place.server.pid, how)
                    await asyncio.to_thread(place.server.wait, lambda: None, 60)
                    place = await start(number + 1)
                    there = place
                    await load.until(
                        lambda there=there: operator.state(there, operator.new) == "serving",  # type: ignore[misc]
                        "the new version",
                    )
                    wanted = "offered" if moment == "offered" else "active"
                    assert operator.wanted(operator.new) == wanted
                    await load.more(10)
                    operator.rollback()
                    await load.until(
                        lambda there=there: operator.state(there, operator.old) == "serving",  # type: ignore[misc]
                        "the old version",
                    )
                await load.more(10)
            faults.judged("front end ended in a rollout", ends, load.entries, calm, load.strangers)

    try:
        asyncio.run(scenario())
    finally:
        store.close()
