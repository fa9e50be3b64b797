"""Authentication: from a certificate or key to a caller, by directory and service clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_server.identity.authority import DAY_S, Authority, Issued
from cloud_server.identity.caller import ANYONE, Caller
from cloud_server.identity.certificates import fresh_key
from cloud_server.identity.identify import Credential, Identities, Nobody, bearer_of
from cloud_server.state import certificates, devices, keys, tenants
from cloud_server.state.directory import LiveDirectory
from cloud_server.state.store import Store, Transaction
from edge_agent.identity.enrol import request_of
from protos.errors import UnauthenticatedError


class World:
    """A database, an authority and a clock that a test sets."""

    def __init__(self, folder: Path) -> None:
        self.now_s = time.time()
        self.store = Store.open(f"sqlite:///{folder / 'state.db'}", clock=lambda: self.now_s)
        self.authority = Authority.create(folder, self.now_s)
        with self.store.write("test") as tx:
            tenants.add(tx, "acme")
            devices.add(tx, "acme", "gate-3")
        self.identities = self.load()

    def load(self) -> Identities:
        return Identities(LiveDirectory(self.store), lambda: self.now_s)

    def change(self, act: Callable[[Transaction], object]) -> None:
        with self.store.write("test") as tx:
            act(tx)
        self.identities = self.load()

    def certificate(self, device: str = "gate-3", life_s: float = 90 * DAY_S) -> bytes:
        issued = self.authority.sign_device(
            request_of(fresh_key()), "acme", device, self.now_s, life_s
        )
        self.change(lambda tx: _record(tx, device, issued))
        return leaf(issued)

    def key(self, **about: object) -> str:
        made: list[str] = []
        self.change(lambda tx: made.append(keys.add(tx, "acme", "app", **about)[1]))  # type: ignore[arg-type]
        return made[0]

    def known(self, credential: Credential) -> Caller:
        return self.identities.of(credential)

    def unknown(self, credential: Credential) -> str:
        with pytest.raises(UnauthenticatedError) as error:
            self.identities.of(credential)
        return error.value.message


def _record(tx: Transaction, device: str, issued: Issued) -> None:
    certificates.record(tx, "acme", device, issued.serial, issued.fingerprint, issued.not_after_s)


def leaf(issued: Issued) -> bytes:
    """The certificate alone, as gRPC gives it."""
    end = b"-----END CERTIFICATE-----\n"
    return issued.chain_pem.partition(end)[0] + end


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()


def test_a_device_is_who_the_database_says(world: World) -> None:
    caller = world.known(world.certificate())
    assert (caller.kind, caller.tenant, caller.name) == ("device", "acme", "gate-3")
    assert caller.scopes == frozenset() and len(caller.credential) == 32


def test_a_key_is_who_the_database_says(world: World) -> None:
    token = world.key(scopes=("ask",), devices=("gate-3",))
    caller = world.known(token)
    assert (caller.kind, caller.tenant, caller.name) == ("application", "acme", "app")
    assert caller.scopes == {"ask"} and caller.devices == {"gate-3"}


def test_every_bad_credential_gets_the_same_error(world: World) -> None:
    good = world.certificate()
    stranger = world.authority.sign_device(
        request_of(fresh_key()), "acme", "gate-3", world.now_s, DAY_S
    )
    token = world.key()
    said = {world.unknown(leaf(stranger))}
    said |= {world.unknown(text) for text in ("", "nbk_", token[:-1], token + "x", "\udc80", "é")}
    world.change(lambda tx: devices.disable(tx, "acme", "gate-3"))
    said.add(world.unknown(good))
    world.change(lambda tx: tenants.disable(tx, "acme"))
    said.add(world.unknown(token))
    assert len(said) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(guess=st.one_of(st.text(max_size=300), st.text("nbk_-", max_size=60)))
def test_every_guessed_key_gets_the_same_error(world: World, guess: str) -> None:
    assert world.unknown(guess) == world.unknown("")


def test_a_certificate_and_a_key_end_by_the_services_own_clock(world: World) -> None:
    certificate = world.certificate(life_s=DAY_S)
    token = world.key(not_after_s=world.now_s + DAY_S)
    began_s = world.now_s
    for credential in (certificate, token):
        world.now_s = began_s + DAY_S - 2
        assert world.known(credential).not_after_s <= began_s + DAY_S
        world.now_s = began_s + DAY_S
        world.unknown(credential)
        world.now_s = began_s - 40 * 365 * DAY_S  # the clock jumps back: nothing ends for that
        assert world.known(credential).tenant == "acme"


@pytest.mark.parametrize("how", ["revoked", "removed"])
def test_a_certificate_does_not_come_back_with_the_devices_name(world: World, how: str) -> None:
    old = world.certificate()
    if how == "removed":
        world.change(lambda tx: devices.remove(tx, "acme", "gate-3"))
        world.change(lambda tx: devices.add(tx, "acme", "gate-3"))
    else:
        world.change(lambda tx: devices.disable(tx, "acme", "gate-3"))
        world.change(lambda tx: devices.enable(tx, "acme", "gate-3"))
    world.unknown(old)
    assert world.known(world.certificate()).name == "gate-3"


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Bearer nbk_x", "nbk_x"),
        ("bearer  nbk_x ", "nbk_x"),
        ("Basic nbk_x", ""),
        ("nbk_x", ""),
        ("Bearer", ""),
        ("", ""),
    ],
)
def test_a_key_is_read_from_its_header(header: str, key: str) -> None:
    assert bearer_of(header) == key


def test_without_identities_everyone_is_anyone() -> None:
    assert Nobody().of_call(object()) is Nobody().bearer("") is ANYONE
    assert not Nobody.required and Identities.required
