"""The journal: revocations stay, whatever copy of the database is put back."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cloud_server.state import audit, certificates, devices, keys, tenants
from cloud_server.state.directory import Directory
from cloud_server.state.journal import Journal, Shut
from cloud_server.state.quota import Quota
from cloud_server.state.store import Store
from protos.errors import StateError


def _directory(store: Store) -> Directory:
    with store.read() as session:
        return Directory.load(session, Quota(), Quota())


def _filled(folder: Path) -> Store:
    store = Store.open(f"sqlite:///{folder}/state.db", folder / "revocations")
    with store.write("test") as tx:
        for tenant in ("acme", "other"):
            tenants.add(tx, tenant)
            for number in range(3):
                name = f"gate-{number}"
                devices.add(tx, tenant, name)
                serial = f"{tenant}-{number}"
                certificates.record(tx, tenant, name, serial, "ab", tx.now_s + 1e7)
    return store


def test_a_database_copied_back_by_hand_keeps_revocations(tmp_path: Path) -> None:
    store = _filled(tmp_path)
    with store.write("test") as tx:
        _, token = keys.add(tx, "acme", "app")
    key = _directory(store)
    store.close()
    shutil.copy(tmp_path / "state.db", tmp_path / "copy")
    store = Store.open(f"sqlite:///{tmp_path}/state.db", tmp_path / "revocations")
    with store.write("test") as tx:
        devices.disable(tx, "acme", "gate-0")
        devices.remove(tx, "acme", "gate-1")
        keys.disable(tx, "acme", "app")
        tenants.disable(tx, "other")
    store.close()
    for side in ("-wal", "-shm"):
        (tmp_path / f"state.db{side}").unlink(missing_ok=True)
    shutil.copy(tmp_path / "copy", tmp_path / "state.db")
    again = Store.open(f"sqlite:///{tmp_path}/state.db", tmp_path / "revocations")
    now = _directory(again)
    alive = [f"{t}-{n}" for t in ("acme", "other") for n in range(3)]
    assert [serial for serial in alive if now.certificate(serial)] == ["acme-2"]
    assert key.key(_sha(token)) is not None and now.key(_sha(token)) is None
    removed = now.device("acme", "gate-1")
    assert removed is not None and removed.disabled
    with again.read() as session:
        told = audit.entries(session, actor="journal")
        assert {one.action for one in told} == {
            "journal.certificate",
            "journal.device",
            "journal.key",
            "journal.tenant",
        }
    again.close()


def _sha(token: str) -> str:
    import hashlib

    return hashlib.sha256(token.encode()).hexdigest()


def test_a_tenant_that_was_disabled_and_enabled_again_is_not_shut_out(tmp_path: Path) -> None:
    store = _filled(tmp_path)
    with store.write("test") as tx:
        tenants.disable(tx, "acme")
    with store.write("test") as tx:
        tenants.enable(tx, "acme")
    store.close()
    again = Store.open(f"sqlite:///{tmp_path}/state.db", tmp_path / "revocations")
    assert _directory(again).certificate("acme-0") is not None
    again.close()


def test_a_name_used_again_is_not_touched_by_what_the_journal_says_of_the_earlier_one(
    tmp_path: Path,
) -> None:
    store = _filled(tmp_path)
    with store.write("test") as tx:
        devices.remove(tx, "acme", "gate-0")
        devices.add(tx, "acme", "gate-0")
        certificates.record(tx, "acme", "gate-0", "new", "ab", tx.now_s + 1e7)
    store.close()
    again = Store.open(f"sqlite:///{tmp_path}/state.db", tmp_path / "revocations")
    assert _directory(again).certificate("new") is not None
    assert _directory(again).certificate("acme-0") is None
    again.close()


@pytest.mark.parametrize("tail", [b"{", b'{"event":"shut"', b"\0\0\0", b"\xff\n", b"[]\n", b"7\n"])
def test_a_line_cut_short_by_a_power_cut_loses_no_other_line(tmp_path: Path, tail: bytes) -> None:
    journal = Journal(tmp_path / "revocations")
    journal.append([Shut("shut", "key", "1", "a", 1.0)])
    with journal.path.open("ab") as file:
        file.write(tail)
    journal.append([Shut("shut", "key", "2", "b", 2.0)])
    events, damaged = journal.read()
    assert [one.id for one in events] == ["1", "2"] and damaged == 1


def test_what_was_removed_by_mistake_can_be_enabled_in_an_older_copy(tmp_path: Path) -> None:
    _filled(tmp_path).close()
    shutil.copy(tmp_path / "state.db", tmp_path / "copy")
    store = Store.open(f"sqlite:///{tmp_path}/state.db", tmp_path / "revocations")
    with store.write("test") as tx:
        tenants.remove(tx, "acme", everything=True)
    store.close()
    shutil.copy(tmp_path / "copy", tmp_path / "state.db")
    for _ in range(2):
        store = Store.open(f"sqlite:///{tmp_path}/state.db", tmp_path / "revocations")
        assert _directory(store).certificate("acme-0") is None
        store.close()
    store = Store.open(f"sqlite:///{tmp_path}/state.db", tmp_path / "revocations")
    with store.write("test") as tx:
        tenants.enable(tx, "acme")
    store.close()
    store = Store.open(f"sqlite:///{tmp_path}/state.db", tmp_path / "revocations")
    assert _directory(store).certificate("acme-0") is not None
    store.close()


def test_a_removal_that_another_machine_made_gets_into_this_ones_journal(tmp_path: Path) -> None:
    store = _filled(tmp_path)
    url = f"sqlite:///{tmp_path}/state.db"
    elsewhere = Store.open(url, tmp_path / "elsewhere")
    with elsewhere.write("test") as tx:
        devices.remove(tx, "acme", "gate-0")
    elsewhere.close()
    store.settle_journal()
    events, _ = Journal(tmp_path / "revocations").read()
    assert [(one.event, one.kind, one.name) for one in events] == [("removed", "device", "gate-0")]
    store.settle_journal()
    assert Journal(tmp_path / "revocations").read() == (events, 0)
    store.close()


def test_where_the_journal_cannot_be_written_nothing_is_revoked_and_that_is_said(
    tmp_path: Path,
) -> None:
    store = _filled(tmp_path)
    store.close()
    (tmp_path / "revocations").mkdir()
    with pytest.raises(StateError, match="revocations"):
        Store.open(f"sqlite:///{tmp_path}/state.db", tmp_path / "revocations")
    (tmp_path / "revocations").rmdir()
    store = Store.open(f"sqlite:///{tmp_path}/state.db", tmp_path / "revocations")
    (tmp_path / "revocations").mkdir()
    with pytest.raises(StateError, match="nothing was changed"), store.write("test") as tx:
        devices.disable(tx, "acme", "gate-0")
    assert _directory(store).certificate("acme-0") is not None
    store.close()


def test_a_journal_without_room_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "revocations"
    journal = Journal(path)
    journal.append([Shut("shut", "key", "1", "a", 1.0)])
    before = path.read_bytes()
    script = (
        "import sys; from pathlib import Path; from cloud_server.state.journal import *\n"
        "try:\n    Journal(Path(sys.argv[1])).append([Shut('shut', 'key', 'x' * 50, 'b', 2.0)])\n"
        "except Exception as error:\n    print(type(error).__name__)\n"
    )

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, len(before) + 20))

    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        preexec_fn=bounded,
    )
    assert done.stdout == "StateError\n", done.stderr
    assert path.read_bytes() == before


def test_the_journal_holds_names_and_no_secrets(tmp_path: Path) -> None:
    store = _filled(tmp_path)
    with store.write("test") as tx:
        _, token = keys.add(tx, "acme", "app")
        keys.disable(tx, "acme", "app")
    lines = (tmp_path / "revocations").read_text().splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"event", "kind", "id", "name", "at_s"}]
    assert token not in "".join(lines) and os.stat(tmp_path / "revocations").st_mode & 0o77 == 0
    store.close()
