"""The database under trouble: two writers, locks, a full disk, damage, and files in its place."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from cloud_server.state import audit, connect, devices, tenants
from cloud_server.state.connect import checked_url
from cloud_server.state.store import Store
from protos.errors import ConfigError, StateError
from tests.cloud_server.state.conftest import Opened

_ADD = """
import sys
from cloud_server.state import devices
from cloud_server.state.store import Store
store = Store.open(sys.argv[1], create=False)
sys.stdin.read(1)
for number in range(int(sys.argv[3])):
    with store.write("test") as tx:
        devices.add(tx, "acme", f"{sys.argv[2]}-{number}")
"""


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for a lock ends soon."""
    monkeypatch.setattr(connect, "LOCK_WAIT_S", 0.2)


@pytest.mark.quick(1)
def test_processes_that_write_at_once_lose_nothing(url: str, opened: Opened) -> None:
    store = opened()
    with store.write("test") as tx:
        tenants.add(tx, "acme")
    made = [
        subprocess.Popen(
            [sys.executable, "-c", _ADD, url, name, "25"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in ("a", "b", "c")
    ]
    for process in made:
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.flush()
    for process in made:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()
    with store.read() as session:
        assert len(devices.every(session, "acme")) == 75
        assert len(audit.entries(session, action="device.add", limit=100)) == 75


def test_threads_share_a_store(store: Store) -> None:
    with store.write("test") as tx:
        tenants.add(tx, "acme")
    failed: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(10):
                with store.write("test") as tx:
                    devices.add(tx, "acme", f"{name}-{number}")
                store.token()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed, failed
    with store.read() as session:
        assert len(devices.every(session)) == 40


@pytest.mark.usefixtures("short_wait")
def test_a_writer_that_holds_the_lock_is_named_as_the_trouble(opened: Opened) -> None:
    first, second = opened(), opened()
    with first.write("test") as tx:
        tenants.add(tx, "acme")
        with pytest.raises(StateError, match="another process has been writing"):
            with second.write("test") as other:
                tenants.add(other, "other")
        with second.read() as session:  # readers are not held up
            assert [one.name for one in tenants.every(session)] == ["service"]
    with second.write("test") as tx:
        tenants.add(tx, "other")


def test_a_session_sees_one_moment(opened: Opened) -> None:
    first, second = opened(), opened()
    with first.read() as session:
        assert len(tenants.every(session)) == 1
        with second.write("test") as tx:
            tenants.add(tx, "acme")
        assert len(tenants.every(session)) == 1
    with first.read() as session:
        assert len(tenants.every(session)) == 2


def test_every_audited_change_moves_the_token_and_a_quiet_one_does_not(store: Store) -> None:
    seen = [store.token()]
    for name in ("acme", "other"):
        with store.write("test") as tx:
            tenants.add(tx, name)
        seen.append(store.token())
    with store.write("test", quiet=True) as tx:
        tx.session.execute(text("SELECT 1"))
    assert len(set(seen)) == 3 and store.token() == seen[-1]


@pytest.mark.quick(1)
@pytest.mark.parametrize("damage", ["head", "garbage", "cut", "empty table"])
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state.db"
    store = Store.open(f"sqlite:///{path}")
    with store.write("test") as tx:
        for number in range(200):
            tenants.add(tx, f"tenant-{number}")
    store.close()
    raw = path.read_bytes()
    if damage == "empty table":
        engine = create_engine(checked_url(f"sqlite:///{path}"))
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE tenants"))
        engine.dispose()
    else:
        path.write_bytes(
            {
                "head": b"\0" * 100 + raw[100:],
                "garbage": os.urandom(len(raw)),
                "cut": raw[: len(raw) // 3],
            }[damage]
        )
    with pytest.raises(StateError, match=r"state\.db: .*restore") as refused:
        again = Store.open(f"sqlite:///{path}", create=False)
        with again.read() as session:
            tenants.every(session)
    assert "Traceback" not in refused.value.message and "\n" not in refused.value.message


def test_a_full_disk_is_said_and_nothing_is_half_done(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/state.db"
    store = Store.open(url)
    with store.write("test") as tx:
        tenants.add(tx, "acme")
    script = (
        "import sys; from cloud_server import cli; "
        "sys.exit(cli.main(['tenants', 'add', 'other', '--database', sys.argv[1]]))"
    )
    most = (tmp_path / "state.db").stat().st_size

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, most))

    done = subprocess.run(
        [sys.executable, "-c", script, url], capture_output=True, text=True, preexec_fn=bounded
    )
    assert done.returncode == StateError.exit_code, done.stderr
    assert done.stderr.startswith("cloud-server: state: ") and len(done.stderr.splitlines()) == 1
    with store.read() as session:
        assert [one.name for one in tenants.every(session)] == ["acme", "service"]
    with store.write("test") as tx:
        tenants.add(tx, "other")
    store.close()


def test_a_file_that_goes_is_said_and_one_in_its_place_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = Store.open(f"sqlite:///{path}")
    before = store.token()
    path.rename(tmp_path / "away")
    with pytest.raises(StateError, match="gone"):
        store.token()
    with pytest.raises(StateError, match="gone"), store.write("test") as tx:
        tenants.add(tx, "acme")
    assert not path.exists(), "an empty database would shut everyone out"
    (tmp_path / "away").rename(path)
    assert store.token() == before
    other = Store.open(f"sqlite:///{tmp_path}/other.db")
    with other.write("test") as tx:
        tenants.add(tx, "acme")
    expected = other.token()
    other.close()
    shutil.move(tmp_path / "other.db", path)
    for side in ("-wal", "-shm"):
        path.with_name(path.name + side).unlink(missing_ok=True)
    assert store.token() == expected
    store.close()


def test_only_the_owner_can_read_the_files(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = Store.open(f"sqlite:///{tmp_path}/state.db", tmp_path / "revocations")
        with store.write("test") as tx:
            tenants.add(tx, "acme")
            tenants.disable(tx, "acme")
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600} and {"state.db", "revocations"} <= set(modes)
    store.close()


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("", ConfigError, "not a URL"),
        ("state.db", ConfigError, "not a URL"),
        ("mysql://host/name", ConfigError, "mysql is not supported"),
        ("sqlite:////none/state.db", StateError, "folder exists"),
        ("sqlite:////", StateError, "folder exists"),
        ("postgresql://anna:secret@127.0.0.1:9/none", StateError, "cannot be reached"),
        ("postgres://anna:secret@127.0.0.1:9/none", StateError, "cannot be reached"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused(url: str, error: type[ConfigError], said: str) -> None:
    with pytest.raises(error, match=said) as refused:
        Store.open(url)
    assert "secret" not in refused.value.message


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode != 0:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_on_a_disk_without_room_reading_goes_on_and_writing_when_there_is_room(
    tiny: Path,
) -> None:
    store = Store.open(f"sqlite:///{tiny}/state.db", tiny / "revocations")
    with store.write("test") as tx:
        tenants.add(tx, "acme")
        devices.add(tx, "acme", "gate-3")
    filler = (tiny / "filler").open("wb", buffering=0)
    with pytest.raises(OSError, match="No space"):
        while True:
            filler.write(b"x" * 1024)
    written = 0
    with pytest.raises(StateError, match="no room|No space"):
        for number in range(1000):  # the write-ahead log may have some room left
            with store.write("test") as tx:
                tenants.add(tx, f"t{number}")
            written += 1
    with store.read() as session:
        assert len(tenants.every(session)) == 2 + written
    with pytest.raises(StateError, match="no room|No space"), store.write("test") as tx:
        devices.disable(tx, "acme", "gate-3")
    filler.truncate(0)
    filler.close()
    with store.write("test") as tx:
        devices.disable(tx, "acme", "gate-3")
    with store.read() as session:
        assert devices.show(session, "acme", "gate-3").disabled
    store.close()
