"""What the service stands on gives way under load: database, disk, clock, certificates, bundle."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.serve.device import Device
from benchmarks.serve.identities import Identities
from benchmarks.serve.load import fleet
from benchmarks.serve.pool import Pool
from benchmarks.serve.site import Site, descendants, site
from cloud_server.identity.authority import ROOT_KEY, Authority
from cloud_server.identity.tls import AUTHORITY, SERVER, server_names, write_server
from protos.errors import BridgeError
from reference.demo.halves import BUNDLE, BUNDLES
from tests.faults.arena import FULL, ITEMS, QUICK, SLOW, Faults, Steady, steady, times

pytestmark = pytest.mark.slow

DATABASE = "state.db"
NEWCOMER = 20
COMPILER = shutil.which("cc")
YEAR_S = 365 * 86400


async def comes_in(place: Site, pool: Pool, number: int) -> None:
    """A device that connects now is served."""
    async with fleet(1, place.dial, pool, first=number, tries=50) as (device,):
        await device.send(entry := device.prepare(number % ITEMS))
        await device.settle(60)
        assert entry.answered, entry


def judged_under_load(
    place: Site,
    pool: Pool,
    calm: list[str],
    faults: Faults,
    kind: str,
    count: int,
    fault: Callable[[Steady, int], object],
) -> None:
    """Inject a fault `count` times, between answers of good devices."""

    async def scenario() -> None:
        async with steady(place.dial, pool) as load:
            for number in range(count):
                await load.more(4)
                done = fault(load, number)
                if asyncio.iscoroutine(done):
                    await done
            await load.more(16)
        faults.judged(kind, count, load.entries, calm, load.strangers)

    asyncio.run(scenario())


def test_a_locked_database_stops_no_answer_and_no_known_device(
    place: Site, pool: Pool, calm: list[str], faults: Faults
) -> None:
    async def locked(load: Steady, number: int) -> None:
        held = sqlite3.connect(place.identities.directory / DATABASE, isolation_level=None)
        try:
            held.execute("BEGIN EXCLUSIVE")
            await load.more(16)
            await comes_in(place, pool, NEWCOMER)
            held.execute("ROLLBACK")
        finally:
            held.close()

    judged_under_load(place, pool, calm, faults, "database locked", times(2, 30), locked)


def test_a_database_that_is_gone_stops_no_answer_and_no_known_device(
    place: Site, pool: Pool, calm: list[str], faults: Faults
) -> None:
    database = place.identities.directory / DATABASE
    away = database.with_name("moved-away.db")

    async def gone(load: Steady, number: int) -> None:
        database.rename(away)
        try:
            await load.more(16)
            await comes_in(place, pool, NEWCOMER)
        finally:
            away.rename(database)
        await load.more(4)

    judged_under_load(place, pool, calm, faults, "database gone", times(2, 30), gone)


def test_a_full_disk_stops_no_answer_and_no_known_device(
    place: Site, pool: Pool, calm: list[str], faults: Faults
) -> None:
    """No process of the service may write to a file: what a full disk looks like from inside."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(most: tuple[int, int]) -> None:
        for pid in (place.server.pid, *descendants(place.server.pid)):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, most)

    async def full(load: Steady, number: int) -> None:
        limit((0, before[1]))
        try:
            await load.more(16)
            await comes_in(place, pool, NEWCOMER)
        finally:
            limit(before)

    judged_under_load(place, pool, calm, faults, "disk full", times(2, 30), full)


def test_certificates_replaced_under_load_break_no_stream_and_serve_the_next_connection(
    place: Site, pool: Pool, calm: list[str], faults: Faults
) -> None:
    own = place.identities.directory / SERVER
    folder = place.identities.directory / AUTHORITY

    async def replaced(load: Steady, number: int) -> None:
        broken = sum(len(entry.broken) for entry in load.entries)
        authority = Authority.open(folder)
        if number % 5 == 4:
            authority = authority.renew_intermediate(folder / ROOT_KEY, time.time())
        elif number % 5 == 3:
            kept = own.read_bytes()
            own.write_bytes(kept[: len(kept) // 2])  # damaged: the service keeps what it has
            await load.more(8)
            own.write_bytes(kept)
        write_server(own, authority, server_names(own), time.time())
        await load.more(8)
        await comes_in(place, pool, NEWCOMER)
        assert sum(len(entry.broken) for entry in load.entries) == broken, "a stream broke"

    judged_under_load(place, pool, calm, faults, "certificates replaced", times(5, 60), replaced)


@contextmanager
def swapped(served: Path, kind: str) -> Iterator[None]:
    """While the block runs, a served bundle's files on disk are others."""
    kept = served.with_name("kept")
    served.rename(kept)
    try:
        if kind == "another":
            shutil.copytree(BUNDLES / "edge-b-cloud", served)
        elif kind == "damaged":
            shutil.copytree(kept, served)
            weights = served / "cloud.safetensors"
            raw = bytearray(weights.read_bytes())
            raw[len(raw) // 2] ^= 1
            weights.write_bytes(raw)
        yield
    finally:
        shutil.rmtree(served, ignore_errors=True)
        kept.rename(served)


@pytest.mark.skipif(not FULL, reason=SLOW)
def test_a_bundle_swapped_on_disk_never_changes_an_answer(
    tmp_path: Path, identities: Identities, pool: Pool, calm: list[str], faults: Faults
) -> None:
    """Each time the engine and its spare are killed too, so that everything is read again."""
    served = tmp_path / "bundle"
    shutil.copytree(BUNDLE, served)

    async def scenario(place: Site) -> Steady:
        async with steady(place.dial, pool) as load:
            for number in range(times(1, 12)):
                await load.more(8)
                with swapped(served, ("damaged", "another", "missing")[number % 3]):
                    await load.more(8)
                    tree = place.tree()
                    for pid in (*tree["spare"], *tree["engine"]):
                        os.kill(pid, signal.SIGKILL)
                    await load.until(lambda: load.refusals()["engine_unavailable"] > 0, "a refusal")
                await load.more(16)
        return load

    with site(tmp_path / "service", identities, *QUICK, bundle=served) as place:
        load = asyncio.run(scenario(place))
    faults.judged("bundle swapped on disk", times(1, 12), load.entries, calm, load.strangers)


@pytest.mark.skipif(not FULL, reason=SLOW)
@pytest.mark.skipif(COMPILER is None, reason="no C compiler, so no clock of a service's own")
def test_a_clock_that_jumps_loses_no_answer_and_lets_nobody_in_who_is_not_known(
    tmp_path: Path, identities: Identities, pool: Pool, calm: list[str], faults: Faults
) -> None:
    assert COMPILER is not None
    source = Path(__file__).with_name("clock.c")
    library, shift = tmp_path / "clock.so", tmp_path / "shift"
    build = [COMPILER, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(build, check=True)
    shift.write_text("0")
    jumps = (3600, -3600, -50 * YEAR_S, 86400)
    kind = "clock jumps"

    async def scenario(place: Site) -> Steady:
        async with steady(place.dial, pool) as load:
            for number in range(times(4, 40)):
                shift.write_text(str(jumps[number % len(jumps)]))
                await load.more(16)
                await comes_in(place, pool, NEWCOMER)
            shift.write_text(str(2 * YEAR_S))  # every device's certificate has ended
            late = Device("late", place.dial(NEWCOMER), pool)
            with pytest.raises(BridgeError):
                await asyncio.wait_for(refused(late), 30)
            await late.close()
            shift.write_text("0")
            await load.more(16)
        return load

    before = os.environ.get("LD_PRELOAD")
    os.environ |= {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(shift)}
    try:
        context = site(tmp_path / "service", identities, *QUICK)
        place = context.__enter__()
    finally:
        del os.environ["CLOCK_SHIFT"], os.environ["LD_PRELOAD"]
        if before is not None:
            os.environ["LD_PRELOAD"] = before
    try:
        load = asyncio.run(scenario(place))
    finally:
        context.__exit__(None, None, None)
    faults.judged(kind, times(4, 40) + 1, load.entries, calm, load.strangers)


async def refused(device: Device) -> None:
    """Connect until that is refused."""
    while True:
        await device.connect()
        await device.close()
        await asyncio.sleep(0.1)
