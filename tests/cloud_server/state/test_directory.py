"""The directory in memory: it follows the database, and stays while the database is gone."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
from sqlalchemy import insert
from structlog.testing import capture_logs

from cloud_server.state import connect, devices, quotas, tenants
from cloud_server.state.directory import Directory, LiveDirectory
from cloud_server.state.quota import Quota
from cloud_server.state.store import Store
from cloud_server.state.tables import CertificateRow, DeviceRow
from tests.cloud_server.state import postgresql
from tests.cloud_server.state.conftest import Opened

PATIENCE_S = 60.0


@asynccontextmanager
async def following(live: LiveDirectory) -> AsyncIterator[asyncio.Event]:
    """Follow the database; the event is set whenever the directory was replaced."""
    moved = asyncio.Event()
    live.changed(moved.set)
    running = asyncio.create_task(live.run())
    try:
        yield moved
    finally:
        running.cancel()
        await asyncio.wait({running})


async def until(
    live: LiveDirectory, moved: asyncio.Event, good: Callable[[Directory], bool]
) -> None:
    """Wait until the directory is as a test wants it."""
    while not good(live.now):
        await asyncio.wait_for(moved.wait(), PATIENCE_S)
        moved.clear()


@pytest.mark.quick(1)
def test_another_processes_change_is_seen(url: str, opened: Opened) -> None:
    live = LiveDirectory(opened(), Quota(concurrent=4))
    script = (
        "import sys; from cloud_server.state.store import Store; "
        "from cloud_server.state import devices, quotas, tenants\n"
        "with Store.open(sys.argv[1], create=False).write('test') as tx:\n"
        "    tenants.add(tx, 'acme'); devices.add(tx, 'acme', 'gate-3')\n"
        "    quotas.change(tx, 'acme', 'gate-3', {'scenes': 7})\n"
    )

    async def scene() -> None:
        async with following(live) as moved:
            assert live.now.device("acme", "gate-3") is None
            subprocess.run([sys.executable, "-c", script, url], check=True)
            await until(live, moved, lambda now: now.device("acme", "gate-3") is not None)
            assert live.now.quota("acme", "gate-3") == Quota(concurrent=4, scenes=7)
            assert [one.name for one in live.now.devices("acme")] == ["gate-3"]

    asyncio.run(scene())


def test_one_moment_of_the_directory_never_changes(store: Store) -> None:
    live = LiveDirectory(store)
    before = live.now

    async def scene() -> None:
        async with following(live) as moved:
            with store.write("test") as tx:
                tenants.add(tx, "acme")
            live.wake()
            await until(live, moved, lambda now: now.tenant("acme") is not None)
            assert before.tenant("acme") is None and live.now is not before

    asyncio.run(scene())


@pytest.fixture
def own_postgres(monkeypatch: pytest.MonkeyPatch) -> Iterator[postgresql.Postgres]:
    """A server that the test may stop."""
    programs = postgresql.binaries()
    if programs is None:
        pytest.skip("no PostgreSQL is installed (Debian: apt-get install postgresql)")
    monkeypatch.setattr(connect, "CONNECT_S", 2)
    with postgresql.running(programs) as server:
        yield server


@pytest.mark.slow
def test_while_postgresql_is_stopped_the_last_directory_is_used_and_that_is_said(
    own_postgres: postgresql.Postgres,
) -> None:
    url = own_postgres.create()
    store = Store.open(url)
    with store.write("test") as tx:
        tenants.add(tx, "acme")
    live = LiveDirectory(store)

    async def scene() -> None:
        async with following(live) as moved:
            with capture_logs() as logs:
                own_postgres.stop()
                live.wake()
                await _until(lambda: _said(logs, "last known state"))
                assert live.now.tenant("acme") is not None
                first = live.stale_seconds()
                await _until(lambda: live.stale_seconds() > first > 0)
                assert "PostgreSQL" in _said(logs, "last known state")[0]["cause"]
                own_postgres.start()
                with Store.open(url).write("test") as tx:
                    tenants.add(tx, "other")
                await until(live, moved, lambda now: now.tenant("other") is not None)
                assert _said(logs, "can be read again")
                await _until(lambda: live.stale_seconds() < 2)
                assert len(_said(logs, "last known state")) <= 3, "not a line a second"

    asyncio.run(scene())


@pytest.mark.slow
def test_a_database_that_never_answers_holds_up_neither_requests_nor_the_end(
    own_postgres: postgresql.Postgres,
) -> None:
    url = own_postgres.create()
    script = (
        "import asyncio, structlog, sys; from cloud_server.state.store import Store; "
        "from cloud_server.state.directory import LiveDirectory\n"
        "structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))\n"
        "async def main():\n"
        "    live = LiveDirectory(Store.open(sys.argv[1]))\n"
        "    running = asyncio.create_task(live.run())\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)\n"
        "    live.wake()\n"
        "    while live.stale_seconds() < 3: await asyncio.sleep(0.05)\n"
        "    assert live.now.tenant('service') is not None\n"
        "    running.cancel()\n"
        "asyncio.run(main()); print('ended', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    own_postgres.signal(signal.SIGSTOP)
    try:
        out, _ = process.communicate("go\n", timeout=PATIENCE_S)
        assert (process.returncode, out) == (0, "ended\n")
    finally:
        own_postgres.signal(signal.SIGCONT)


def test_while_the_file_of_sqlite_is_away_the_last_directory_is_used(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = Store.open(f"sqlite:///{path}")
    with store.write("test") as tx:
        tenants.add(tx, "acme")
    live = LiveDirectory(store)

    async def scene() -> None:
        async with following(live) as moved:
            with capture_logs() as logs:
                path.rename(tmp_path / "away")
                live.wake()
                await _until(lambda: _said(logs, "last known state"))
                assert live.now.tenant("acme") is not None
                (tmp_path / "away").rename(path)
                with store.write("test") as tx:
                    tenants.add(tx, "other")
                await until(live, moved, lambda now: now.tenant("other") is not None)

    asyncio.run(scene())
    store.close()


def test_a_revocation_made_elsewhere_gets_into_this_machines_journal(
    url: str, tmp_path: Path
) -> None:
    here = Store.open(url, tmp_path / "here")
    elsewhere = Store.open(url, tmp_path / "elsewhere")
    live = LiveDirectory(here)

    async def scene() -> None:
        async with following(live) as moved:
            with elsewhere.write("test") as tx:
                tenants.add(tx, "acme")
                devices.add(tx, "acme", "gate-3")
                devices.disable(tx, "acme", "gate-3")
            await until(live, moved, lambda now: now.device("acme", "gate-3") is not None)
            journal = tmp_path / "here"
            await _until(lambda: journal.exists() and b"gate-3" in journal.read_bytes())

    asyncio.run(scene())
    here.close()
    elsewhere.close()


@pytest.mark.quick(1)
def test_ten_thousand_devices_are_looked_up_one_by_one(store: Store) -> None:
    with store.write("test") as tx:
        tenant = tenants.add(tx, "acme")
        many = range(10_000)
        tx.session.execute(
            insert(DeviceRow),
            [
                {
                    "id": f"{number:032x}",
                    "tenant_id": tenant.id,
                    "name": f"d{number}",
                    "created_s": 0.0,
                    "disabled": number % 10 == 9,
                }
                for number in many
            ],
        )
        tx.session.execute(
            insert(CertificateRow),
            [
                {
                    "serial": f"{number:032x}",
                    "device_id": f"{number:032x}",
                    "fingerprint": f"{number:064x}",
                    "issued_s": 0.0,
                    "not_after_s": 1e10,
                    "revoked_s": 1.0 if number % 10 == 8 else None,
                }
                for number in many
            ],
        )
        quotas.change(tx, "acme", "d5", {"scenes": 3})
    with store.read() as session:
        now = Directory.load(session, Quota(), Quota())
    for number in many:
        device = now.device("acme", f"d{number}")
        assert device is not None and device.disabled == (number % 10 == 9)
        certificate = now.certificate(f"{number:032x}")
        assert (certificate is None) == (number % 10 in (8, 9))
        assert certificate is None or certificate.device == f"d{number}"
    assert now.quota("acme", "d5").scenes == 3 and now.quota("acme", "d6").scenes == 0


def _said(logs: list[structlog.typing.EventDict], part: str) -> list[structlog.typing.EventDict]:
    return [line for line in logs if part in line["event"]]


async def _until(good: Callable[[], object]) -> None:
    """Wait for something that another thread does without a signal."""
    end_s = time.monotonic() + PATIENCE_S
    while not good():
        assert time.monotonic() < end_s
        await asyncio.sleep(0.02)


def test_a_revocation_counts_even_where_the_journal_cannot_be_written(
    tmp_path: Path, opened: Opened, url: str
) -> None:
    opened()
    here = Store.open(url, tmp_path / "here")
    live = LiveDirectory(here)

    async def scene() -> None:
        async with following(live) as moved:
            (tmp_path / "here").mkdir()  # no file can be there now
            with opened().write("test") as tx:
                tenants.add(tx, "acme")
                tenants.disable(tx, "acme")
            await until(live, moved, lambda now: now.tenant("acme") is not None)

    asyncio.run(scene())
    here.close()
