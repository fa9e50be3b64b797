"""Backups: complete and consistent, for any database; revocations survive a restore."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from cloud_server.state import (
    audit,
    backup,
    certificates,
    codes,
    devices,
    keys,
    quotas,
    sealed,
    tenants,
)
from cloud_server.state.directory import Directory
from cloud_server.state.quota import Quota
from cloud_server.state.restore import restore
from cloud_server.state.store import Store
from protos.errors import BackupError, ConfigError, ConflictError
from tests.cloud_server.state import postgresql
from tests.cloud_server.state.conftest import Clock

SECRET = "correct horse battery"
Make = Callable[[str], Store]


@pytest.fixture(autouse=True)
def cheap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Derive keys fast, except where that is what is tested."""
    if "cost" not in request.node.name:
        monkeypatch.setitem(sealed.SCRYPT, "n", 1 << 4)


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Any:
    """Makes an empty database of a kind, with a journal of its own."""
    made: list[Store] = []

    def making(kind: str) -> Store:
        number = len(made)
        url = f"sqlite:///{tmp_path}/{number}.db"
        if kind == "postgresql":
            server: postgresql.Postgres = request.getfixturevalue("postgres")
            url = server.create()
        made.append(Store.open(url, tmp_path / f"revocations-{number}", clock=clock))
        return made[-1]

    yield making
    for store in made:
        store.close()


def fill(store: Store) -> None:
    """Two tenants with devices, certificates, keys, quotas and a code."""
    with store.write("cli:anna") as tx:
        for tenant in ("acme", "other"):
            tenants.add(tx, tenant)
            for number in range(4):
                name = f"gate-{number}"
                devices.add(tx, tenant, name)
                serial = f"{tenant}-{number}"
                certificates.record(tx, tenant, name, serial, "ab" * 32, tx.now_s + 1e7)
            keys.add(tx, tenant, "app", devices=["gate-1"], not_after_s=tx.now_s + 9e6)
            keys.add(tx, tenant, "op", kind="operator", scopes=["manage"])
            quotas.change(tx, tenant, None, {"requests_per_s": 0.1 + 0.2})
            quotas.change(tx, tenant, "gate-2", {"scenes": 3})
        devices.disable(tx, "acme", "gate-3")
        codes.issue(tx, "acme", "gate-0", "c0" * 32)


def content(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """Every row that a backup holds; the database numbers the audit log by itself."""
    with store.read() as session:
        return {
            table.name: sorted(
                tuple(row)[1 if table.name == "audit" else 0 :]
                for row in session.execute(select(table))
            )
            for table in backup.tables()
        }


def taken(store: Store, made_s: float) -> bytes:
    return b"".join(sealed.seal(backup.dump_state(store, None, made_s), SECRET))


def read(raw: bytes, secret: str = SECRET) -> backup.Backup:
    return backup.read(sealed.unseal(io.BytesIO(raw), secret, "FILE"), "state", "FILE")


def put(store: Store, raw: bytes, **options: bool) -> Any:
    opened = read(raw)
    try:
        return restore(store, opened, "cli:anna", **options)
    finally:
        opened.close()


def directory(store: Store) -> Directory:
    with store.read() as session:
        return Directory.load(session, Quota(), Quota())


KINDS = ("sqlite", "postgresql")


@pytest.mark.quick(2)
@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("of", KINDS)
def test_a_backup_restores_into_another_kind_of_database(make: Make, of: str, to: str) -> None:
    source, target = make(of), make(to)
    fill(source)
    raw = taken(source, 1_800_000_000.0)
    done = put(target, raw)
    assert done.counts == {"tenants": 3, "devices": 8, "keys": 4, "certificates": 8}
    with target.read() as session:
        newest = audit.entries(session, limit=1)[0]
        assert (newest.actor, newest.action) == ("cli:anna", "state.restore")
    expected, found = content(source), content(target)
    found["audit"] = [row for row in found["audit"] if "state.restore" not in row]
    assert found == expected
    with target.write("test") as tx:  # numbers and names go on
        tenants.add(tx, "later")
        assert codes.issue(tx, "acme", "gate-0", "c1" * 32) > 0


def test_a_restore_brings_no_one_time_codes_back(make: Make) -> None:
    source, target = make("sqlite"), make("sqlite")
    fill(source)
    assert b"c0c0" not in b"".join(backup.dump_state(source, None, 0.0))
    put(target, taken(source, 0.0))
    with pytest.raises(Exception, match="wrong, used or expired"), target.write("x") as tx:
        codes.redeem(tx, "c0" * 32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_backup_is_of_one_moment_while_the_service_writes(make: Make, kind: str) -> None:
    source = make(kind)
    with source.write("test") as tx:
        tenants.add(tx, "acme")
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.is_set():
            with source.write("test") as tx:  # a device and its key come together
                devices.add(tx, "acme", f"gate-{number}")
                keys.add(tx, "acme", f"key-{number}", devices=[f"gate-{number}"])
            number += 1

    writer = threading.Thread(target=work)
    writer.start()
    try:
        for _ in range(10):
            opened = read(taken(source, 0.0))
            assert opened.rows is not None
            counts = [
                len(opened.rows.execute(select(table)).all())
                for table in backup.tables()
                if table.name in ("devices", "keys", "key_devices")
            ]
            opened.close()
            assert len(set(counts)) == 1, counts
    finally:
        stop.set()
        writer.join(60)


@pytest.mark.quick(1)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_shut_out_since_the_backup_stays_out(make: Make, clock: Clock, kind: str) -> None:
    store = make(kind)
    fill(store)
    raw = taken(store, clock.now_s)
    clock.now_s += 100
    with store.write("cli:anna") as tx:
        devices.disable(tx, "acme", "gate-0")
        devices.remove(tx, "acme", "gate-1")
        certificates.revoke(tx, "acme", "acme-2")
        keys.remove(tx, "acme", "op")
        tenants.disable(tx, "other")
        devices.enable(tx, "acme", "gate-3")
        devices.add(tx, "acme", "new")
        certificates.record(tx, "acme", "new", "of-new", "ab", tx.now_s + 1e7)
    clock.now_s += 100
    with pytest.raises(ConflictError, match="--force"):
        put(store, raw)
    done = put(store, raw, force=True)
    now = directory(store)
    every = [f"{tenant}-{number}" for tenant in ("acme", "other") for number in range(4)]
    assert [serial for serial in (*every, "of-new") if now.certificate(serial)] == []
    assert done.gone == ("device acme/new",)
    with store.read() as session:
        states = {one.name: one.disabled for one in devices.every(session, "acme")}
        assert states == {"gate-0": True, "gate-1": True, "gate-2": False, "gate-3": True}
        assert {one.name: one.disabled for one in keys.every(session, "acme")} == {
            "app": False,
            "op": True,
        }
        told = [one.action for one in audit.entries(session)]
        assert told[0] == "state.restore" and "tenant.disable" in told, "the history goes on"
    assert put(store, raw, force=True).shut_again == done.shut_again, "nor by a second restore"


def test_where_the_old_database_is_lost_the_journal_alone_keeps_revocations(
    make: Make, clock: Clock, tmp_path: Path
) -> None:
    store = make("sqlite")
    fill(store)
    raw = taken(store, clock.now_s)
    with store.write("cli:anna") as tx:
        devices.disable(tx, "acme", "gate-0")
        devices.remove(tx, "acme", "gate-1")
    store.close()
    for path in tmp_path.glob("0.db*"):
        path.unlink()
    store = Store.open(f"sqlite:///{tmp_path}/0.db", tmp_path / "revocations-0", clock=clock)
    assert put(store, raw).shut_again == 4  # two devices, two certificates
    now = directory(store)
    assert [n for n in range(4) if now.certificate(f"acme-{n}")] == [2]
    store.close()


def test_a_device_that_renewed_since_the_backup_is_not_locked_out(make: Make, clock: Clock) -> None:
    store = make("sqlite")
    fill(store)
    raw = taken(store, clock.now_s)
    clock.now_s += 100
    with store.write("renew") as tx:
        certificates.record(tx, "acme", "gate-0", "renewed", "cd", tx.now_s + 1e7)
    assert put(store, raw, force=True).certificates_kept == 1
    assert directory(store).certificate("renewed") is not None


def test_a_restore_that_fails_changes_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = make("sqlite"), make("sqlite")
    fill(source)
    with target.write("test") as tx:
        tenants.add(tx, "precious")
    before, token = content(target), target.token()
    raw = taken(source, 0.0)
    from cloud_server.state import restore as module

    def fail(*_: object) -> None:
        raise ConfigError("in the middle")

    monkeypatch.setattr(module, "reapply", fail)
    with pytest.raises(ConfigError, match="in the middle"):
        put(target, raw, force=True)
    assert content(target) == before and target.token() == token


@pytest.mark.parametrize("sample", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_every_changed_missing_or_added_byte_is_noticed(make: Make, sample: int) -> None:
    source = make("sqlite")
    fill(source)
    with source.write("test") as tx:  # several chunks
        for number in range(900):
            devices.add(tx, "acme", f"d{number}")
    raw = taken(source, 0.0)
    assert len(raw) > 2 << 16
    chance = random.Random(7)
    head = len(sealed.MAGIC) + 24
    places = [*range(0, head + 2, 100 // sample), len(raw) - 1]
    places += [chance.randrange(len(raw)) for _ in range(sample)]
    for place in places:
        changed = bytearray(raw)
        changed[place] ^= 1 << chance.randrange(8)
        with pytest.raises(BackupError, match="FILE"):
            read(bytes(changed))
    chunk = (1 << 16) + 16
    whole = [head + number * chunk for number in range(len(raw) // chunk + 1)]
    for length in (0, 1, 7, *whole, *(chance.randrange(len(raw)) for _ in range(sample))):
        with pytest.raises(BackupError, match="FILE"):
            read(raw[:length])
    first, second = raw[head:][:chunk], raw[head + chunk :][:chunk]
    for wrong in (
        raw + b"x",
        raw + raw[head:],
        raw[:head] + second + first + raw[head + 2 * chunk :],
        raw[:head] + first + first + raw[head + 2 * chunk :],
        b"",
        b"x" * 1000,
        raw[head:],
    ):
        with pytest.raises(BackupError, match="FILE"):
            read(wrong)
    read(raw).close()


def test_a_wrong_passphrase_opens_nothing(make: Make) -> None:
    raw = taken(make("sqlite"), 0.0)
    for wrong in ("", "correct horse", SECRET + " ", SECRET.upper()):
        with pytest.raises(BackupError, match="passphrase is wrong"):
            read(raw, wrong)
    with pytest.raises(ConfigError, match="shorter"):
        list(sealed.seal([b"x"], "short"))


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"format": "other"}],
        [[]],
        [7],
        [{"format": backup.FORMAT, "holds": "state", "revision": "9999", "made_s": 1}],
        [{"format": backup.FORMAT, "holds": "authority", "revision": "0001", "made_s": 1}],
        [{"format": backup.FORMAT, "holds": "state", "made_s": 1}],
        [{"format": backup.FORMAT, "holds": "state", "revision": "0001", "made_s": 1}],
        [..., {"end": 2}],
        [..., {"end": 1}, {"end": 2}],
        [..., {"table": "none", "columns": ["a"], "rows": [[1]]}, {"end": 2}],
        [..., {"table": "tenants", "columns": ["id"], "rows": [["1"]]}, {"end": 2}],
        [..., {"table": "tenants", "columns": ["id"], "rows": [["1", 2]]}, {"end": 2}],
        [..., {"table": "key_devices", "columns": ["key_id"], "rows": 7}, {"end": 2}],
        [..., {"file": "a", "base64": "ä"}, {"end": 2}],
        [..., {"file": "a"}, {"end": 2}],
        [..., {}, {"end": 2}],
    ],
    ids=repr,
)
def test_a_sealed_file_that_is_no_backup_is_refused(lines: list[Any]) -> None:
    import json

    good = {"format": backup.FORMAT, "holds": "state", "revision": "0001", "made_s": 1}
    text = b"".join(json.dumps(good if line is ... else line).encode() + b"\n" for line in lines)
    with pytest.raises(BackupError, match="FILE"):
        read(b"".join(sealed.seal([text], SECRET)))


def test_the_key_is_derived_at_the_cost_that_the_form_says() -> None:
    """An independent reading of the form, with the standard library's scrypt."""
    import hashlib

    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    plain = b"p" * ((1 << 16) + 5)
    raw = b"".join(sealed.seal([plain[:9], plain[9:]], SECRET))
    head, salt, prefix = raw[:32], raw[9:25], raw[25:32]
    key = hashlib.scrypt(SECRET.encode(), salt=salt, n=1 << 16, r=8, p=1, dklen=32, maxmem=1 << 27)
    cipher, chunk = ChaCha20Poly1305(key), (1 << 16) + 16
    parts = [
        cipher.decrypt(prefix + number.to_bytes(4, "big") + bytes([number == 1]), part, head)
        for number, part in enumerate((raw[32:][:chunk], raw[32:][chunk:]))
    ]
    assert b"".join(parts) == plain and raw[:9] == b"NBSEALED\x01"


def test_equal_contents_give_different_files() -> None:
    one, other = (b"".join(sealed.seal([b"x" * 100], SECRET)) for _ in range(2))
    assert one[9:] != other[9:] and len(one) == len(other)
