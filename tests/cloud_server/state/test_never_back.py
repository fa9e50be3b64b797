"""Random sequences of changes, backups and restores: revocations stay."""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path

import pytest

from cloud_server.state import certificates, codes, devices, keys, sealed, tenants
from cloud_server.state.directory import Directory
from cloud_server.state.quota import Quota
from cloud_server.state.store import Store
from protos.errors import BridgeError
from tests.cloud_server.state.conftest import Clock
from tests.cloud_server.state.test_backup import put, taken

NAMES = ("a", "b", "c")


class Walk:
    """One service's database, changed at random, and what must not be alive in it.

    `dead` holds certificates that the database knew when they were revoked; `shut` the ids of
    tenants and keys whose last change was to be disabled or removed.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.chance, self.clock = folder, random.Random(seed), Clock()
        self.dead: set[str] = set()
        self.shut: set[str] = set()
        self.serials: dict[str, str] = {}
        """Tenant's id of every certificate."""
        self.tokens: dict[str, tuple[str, str]] = {}
        """Tenant's and key's id of every key, by its hash."""
        self.backups: list[bytes] = []
        self.copies = 0
        self.store = self.opened()

    def opened(self) -> Store:
        url = f"sqlite:///{self.folder}/state.db"
        return Store.open(url, self.folder / "revocations", clock=self.clock)

    def step(self) -> str:
        """Make a random change; it may be refused if it is not possible now."""
        self.clock.now_s += 1
        act = self.chance.choice(
            [
                self.add,
                self.enrol,
                self.enrol,
                self.make_key,
                self.change_tenant,
                self.change_device,
                self.change_key,
                self.revoke,
                self.back_up,
                self.restore,
                self.copy_by_hand,
                self.put_back_by_hand,
            ]
        )
        try:
            act()
        except BridgeError as error:
            return f"{act.__name__}: {error.message}"
        return act.__name__

    def add(self) -> None:
        with self.store.write("walk") as tx:
            tenant = self.chance.choice(NAMES)
            if tenant not in {one.name for one in tenants.every(tx.session)}:
                tenants.add(tx, tenant)
            devices.add(tx, tenant, self.chance.choice(NAMES))

    def enrol(self) -> None:
        with self.store.write("walk") as tx:
            device = self.chance.choice(devices.every(tx.session) or [None])
            if device is None:
                return
            held = certificates.of(tx.session, device.tenant, device.name)
            secret = f"{self.clock.now_s:064.0f}"
            codes.issue(tx, device.tenant, device.name, secret)
            codes.redeem(tx, secret)
            serial = f"{len(self.serials):032x}"
            end_s = tx.now_s + 1e7
            certificates.record(tx, device.tenant, device.name, serial, "ab", end_s)
            of = tenants.show(tx.session, device.tenant).id
        self.dead |= {one.serial for one in held}
        self.serials[serial] = of

    def make_key(self) -> None:
        with self.store.write("walk") as tx:
            tenant = self.chance.choice(NAMES)
            key, token = keys.add(tx, tenant, self.chance.choice(NAMES))
            of = tenants.show(tx.session, tenant).id
        self.tokens[hashlib.sha256(token.encode()).hexdigest()] = (of, key.id)

    def change_tenant(self) -> None:
        name, verb = self.chance.choice(NAMES), self.chance.choice(["on", "off", "gone"])
        with self.store.write("walk") as tx:
            id = tenants.show(tx.session, name).id
            if verb == "on":
                tenants.enable(tx, name)
            elif verb == "off":
                tenants.disable(tx, name)
            else:
                tenants.remove(tx, name, everything=True)
        self.shut = self.shut - {id} if verb == "on" else self.shut | {id}

    def change_device(self) -> None:
        tenant, name = self.chance.choice(NAMES), self.chance.choice(NAMES)
        verb = self.chance.choice(["on", "off", "gone"])
        with self.store.write("walk") as tx:
            held = {one.serial for one in certificates.of(tx.session, tenant, name)}
            act = {"on": devices.enable, "off": devices.disable, "gone": devices.remove}[verb]
            act(tx, tenant, name)  # type: ignore[operator]
        if verb != "on":
            self.dead |= held

    def change_key(self) -> None:
        tenant, name = self.chance.choice(NAMES), self.chance.choice(NAMES)
        verb = self.chance.choice(["on", "off", "gone"])
        with self.store.write("walk") as tx:
            id = keys.show(tx.session, tenant, name).id
            act = {"on": keys.enable, "off": keys.disable, "gone": keys.remove}[verb]
            act(tx, tenant, name)  # type: ignore[operator]
        self.shut = self.shut - {id} if verb == "on" else self.shut | {id}

    def revoke(self) -> None:
        with self.store.write("walk") as tx:
            serial = self.chance.choice([*self.serials, "none"])
            certificates.revoke(tx, self.chance.choice(NAMES), serial)
        self.dead.add(serial)

    def back_up(self) -> None:
        self.backups.append(taken(self.store, self.clock.now_s))

    def restore(self) -> None:
        if self.backups:
            put(self.store, self.chance.choice(self.backups), force=True)

    def copy_by_hand(self) -> None:
        self.store.close()
        shutil.copy(self.folder / "state.db", self.folder / f"copy-{self.copies}")
        self.copies += 1
        self.store = self.opened()

    def put_back_by_hand(self) -> None:
        if self.copies:
            self.store.close()
            copy = self.folder / f"copy-{self.chance.randrange(self.copies)}"
            shutil.copy(copy, self.folder / "state.db")
            self.store = self.opened()

    def check(self) -> None:
        with self.store.read() as session:
            now = Directory.load(session, Quota(), Quota())
        alive = {serial for serial in self.serials if now.certificate(serial)}
        assert not alive & self.dead
        assert not {serial for serial in alive if self.serials[serial] in self.shut}
        keyed = {sha for sha in self.tokens if now.key(sha)}
        assert not {sha for sha in keyed if self.shut & set(self.tokens[sha])}


@pytest.mark.quick(1)
@pytest.mark.parametrize("seed", range(8))
def test_revocations_survive_any_sequence_of_backups_and_restores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setitem(sealed.SCRYPT, "n", 1 << 4)
    walk, steps = Walk(tmp_path, seed), []
    try:
        for _ in range(80):
            steps.append(walk.step())
            try:
                walk.check()
            except AssertionError as error:
                raise AssertionError("\n".join(steps)) from error
    finally:
        walk.store.close()
    assert walk.serials and (walk.dead or walk.shut), "the walk went somewhere"
