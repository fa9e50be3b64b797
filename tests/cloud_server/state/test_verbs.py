"""Tenants, devices, codes, certificates, keys and quotas, as command line and HTTP change them."""

from __future__ import annotations

import hashlib
import threading

import pytest

from cloud_server.state import audit, certificates, codes, devices, keys, quotas, tenants
from cloud_server.state.directory import Directory
from cloud_server.state.quota import Quota
from cloud_server.state.store import Store
from protos.errors import ConfigError, ConflictError, EnrolmentError, MissingError
from tests.cloud_server.state.conftest import Clock, Opened

SECRET = hashlib.sha256(b"ABCDEFGHIJKLMNOP").hexdigest()
OTHER = hashlib.sha256(b"QRSTUVWXYZ234567").hexdigest()
DAY = 86400.0


def directory(store: Store) -> Directory:
    with store.read() as session:
        return Directory.load(session, Quota(concurrent=4), Quota(concurrent=64))


def enrolled(store: Store, tenant: str = "acme", name: str = "gate-3", serial: str = "01") -> None:
    """A tenant with a device that has a certificate."""
    with store.write("test") as tx:
        if tenant not in [one.name for one in tenants.every(tx.session)]:
            tenants.add(tx, tenant)
        devices.add(tx, tenant, name)
        certificates.record(tx, tenant, name, serial, "ab" * 32, tx.now_s + 90 * DAY)


def test_a_name_is_taken_once_and_in_each_tenant_anew(store: Store) -> None:
    with store.write("test") as tx:
        for tenant in ("acme", "other"):
            tenants.add(tx, tenant)
            devices.add(tx, tenant, "gate-3")
            keys.add(tx, tenant, "app")
        for again in (
            lambda: tenants.add(tx, "acme"),
            lambda: devices.add(tx, "acme", "gate-3"),
            lambda: keys.add(tx, "acme", "app"),
        ):
            with pytest.raises(ConflictError):
                again()
    with store.read() as session:
        assert [(one.tenant, one.name) for one in devices.every(session)] == [
            ("acme", "gate-3"),
            ("other", "gate-3"),
        ]
        assert len(keys.every(session)) == 2 and len(keys.every(session, "acme")) == 1


def test_names_sort_alike_in_every_database(store: Store) -> None:
    names = ["a-b", "a.b", "a0", "a_b", "ab", "b-1", "b10", "b2"]
    with store.write("test") as tx:
        tenants.add(tx, "acme")
        for name in reversed(names):
            devices.add(tx, "acme", name)
        assert [one.name for one in devices.every(tx.session, "acme")] == sorted(names)


@pytest.mark.parametrize("name", ["", "Gate", "gate 3", "-gate", "g" * 64, "gäte", "a/b", "a\0"])
def test_a_bad_name_is_refused(store: Store, name: str) -> None:
    with store.write("test") as tx:
        tenants.add(tx, "acme")
        for add in (
            lambda: tenants.add(tx, name),
            lambda: devices.add(tx, "acme", name),
            lambda: keys.add(tx, "acme", name),
        ):
            with pytest.raises(ConfigError, match="a name has"):
                add()


def test_unknown_names_give_a_missing_error(store: Store) -> None:
    with store.write("test") as tx:
        tenants.add(tx, "acme")
        for missing in (
            lambda: tenants.disable(tx, "none"),
            lambda: devices.add(tx, "none", "gate-3"),
            lambda: devices.disable(tx, "acme", "none"),
            lambda: devices.remove(tx, "acme", "none"),
            lambda: keys.remove(tx, "acme", "none"),
            lambda: keys.add(tx, "acme", "app", devices=["none"]),
            lambda: codes.issue(tx, "acme", "none", SECRET),
            lambda: certificates.revoke(tx, "acme", "ff"),
            lambda: quotas.change(tx, "acme", "none", {"scenes": 1}),
        ):
            with pytest.raises(MissingError):
                missing()


def test_an_error_undoes_the_whole_transaction(store: Store) -> None:
    before = store.token()
    with pytest.raises(ConflictError):
        with store.write("test") as tx:
            tenants.add(tx, "acme")
            tenants.add(tx, "acme")
    assert store.token() == before
    with store.read() as session:
        assert [one.name for one in tenants.every(session)] == ["service"]
        assert audit.entries(session) == []


def test_a_code_is_used_once_within_its_hour(store: Store, clock: Clock) -> None:
    with store.write("test") as tx:
        tenants.add(tx, "acme")
        devices.add(tx, "acme", "gate-3")
        assert codes.issue(tx, "acme", "gate-3", SECRET) == clock.now_s + 3600
    clock.now_s += 3599
    with store.write("enrol") as tx:
        assert codes.redeem(tx, SECRET).name == "gate-3"
    with pytest.raises(EnrolmentError) as used, store.write("enrol") as tx:
        codes.redeem(tx, SECRET)
    with pytest.raises(EnrolmentError) as wrong, store.write("enrol") as tx:
        codes.redeem(tx, OTHER)
    with store.write("test") as tx:
        codes.issue(tx, "acme", "gate-3", OTHER)
    clock.now_s += 3600
    with pytest.raises(EnrolmentError) as late, store.write("enrol") as tx:
        codes.redeem(tx, OTHER)
    assert used.value.message == wrong.value.message == late.value.message


def test_a_code_stays_good_where_the_certificate_was_not_made(store: Store) -> None:
    with store.write("test") as tx:
        tenants.add(tx, "acme")
        devices.add(tx, "acme", "gate-3")
        codes.issue(tx, "acme", "gate-3", SECRET)
    with pytest.raises(ConfigError), store.write("enrol") as tx:
        codes.redeem(tx, SECRET)
        raise ConfigError("the request is no request for a certificate")
    with store.write("enrol") as tx:
        assert codes.redeem(tx, SECRET).tenant == "acme"


def test_a_new_code_ends_the_earlier_one_and_enrolling_again_the_earlier_certificate(
    store: Store,
) -> None:
    enrolled(store)
    with store.write("test") as tx:
        codes.issue(tx, "acme", "gate-3", SECRET)
        codes.issue(tx, "acme", "gate-3", OTHER)
    with pytest.raises(EnrolmentError), store.write("enrol") as tx:
        codes.redeem(tx, SECRET)
    assert directory(store).certificate("01") is not None
    with store.write("enrol") as tx:
        codes.redeem(tx, OTHER)
    assert directory(store).certificate("01") is None


@pytest.mark.parametrize("out", ["device", "tenant"])
def test_a_disabled_device_cannot_use_a_code(store: Store, out: str) -> None:
    with store.write("test") as tx:
        tenants.add(tx, "acme")
        devices.add(tx, "acme", "gate-3")
        codes.issue(tx, "acme", "gate-3", SECRET)
        if out == "device":
            devices.disable(tx, "acme", "gate-3")
        else:
            tenants.disable(tx, "acme")
    with pytest.raises(EnrolmentError), store.write("enrol") as tx:
        codes.redeem(tx, SECRET)
    with pytest.raises(EnrolmentError), store.write("renew") as tx:
        certificates.record(tx, "acme", "gate-3", "02", "ab", tx.now_s + DAY)


def test_a_disabled_tenant_is_shut_out_whole_and_let_in_again_whole(store: Store) -> None:
    enrolled(store)
    with store.write("test") as tx:
        key, _ = keys.add(tx, "acme", "app")
        other, _ = keys.add(tx, "acme", "late")
        keys.disable(tx, "acme", "late")
    assert key.name == "app" and other.scopes == {"ask", "read"}
    hashes = _hashes(store)
    assert [directory(store).key(h) is not None for h in hashes] == [True, False]
    with store.write("test") as tx:
        tenants.disable(tx, "acme")
    shut = directory(store)
    assert shut.certificate("01") is None
    assert [shut.key(h) for h in hashes] == [None, None]
    with store.write("test") as tx:
        tenants.enable(tx, "acme")
    back = directory(store)
    assert back.certificate("01") is not None
    assert [back.key(h) is not None for h in hashes] == [True, False]


def _hashes(store: Store) -> list[str]:
    from sqlalchemy import select

    from cloud_server.state.tables import KeyRow

    with store.read() as session:
        return list(session.scalars(select(KeyRow.token_sha256).order_by(KeyRow.name)))


def test_a_disabled_device_needs_a_new_code(store: Store) -> None:
    enrolled(store)
    with store.write("test") as tx:
        devices.disable(tx, "acme", "gate-3")
        with pytest.raises(ConflictError, match="devices enable"):
            codes.issue(tx, "acme", "gate-3", SECRET)
    assert directory(store).certificate("01") is None
    with store.write("test") as tx:
        devices.enable(tx, "acme", "gate-3")
        codes.issue(tx, "acme", "gate-3", SECRET)
        codes.redeem(tx, SECRET)
        certificates.record(tx, "acme", "gate-3", "02", "ab", tx.now_s + DAY)
    assert directory(store).certificate("01") is None
    assert directory(store).certificate("02") is not None


def test_a_removed_devices_certificate_stays_invalid_when_its_name_is_used_again(
    store: Store,
) -> None:
    enrolled(store)
    with store.write("test") as tx:
        keys.add(tx, "acme", "app", devices=["gate-3"])
        devices.remove(tx, "acme", "gate-3")
        devices.add(tx, "acme", "gate-3")
    now = directory(store)
    assert now.device("acme", "gate-3") is not None and now.certificate("01") is None
    with store.read() as session:
        assert keys.show(session, "acme", "app").devices == frozenset(), "not every device"


def test_a_device_has_a_bounded_number_of_certificates(store: Store, clock: Clock) -> None:
    enrolled(store, serial="00")
    for number in range(1, 12):
        clock.now_s += 1
        with store.write("renew") as tx:
            certificates.record(tx, "acme", "gate-3", f"{number:02d}", "ab", tx.now_s + DAY)
    now = directory(store)
    alive = [number for number in range(12) if now.certificate(f"{number:02d}") is not None]
    assert alive == list(range(4, 12))


def test_a_tenant_goes_with_what_it_has_only_if_that_is_asked_for(store: Store) -> None:
    enrolled(store)
    with store.write("test") as tx:
        with pytest.raises(ConflictError, match="1 devices and 0 keys"):
            tenants.remove(tx, "acme")
        tenants.remove(tx, "acme", everything=True)
        tenants.add(tx, "acme")
    now = directory(store)
    assert now.certificate("01") is None and now.devices("acme") == []


def test_the_tenant_of_the_operators_stays(store: Store) -> None:
    with store.write("test") as tx:
        for wrong in (
            lambda: tenants.disable(tx, "service"),
            lambda: tenants.remove(tx, "service", everything=True),
            lambda: devices.add(tx, "service", "gate-3"),
        ):
            with pytest.raises(ConflictError):
                wrong()


def test_a_key_is_shown_once_and_kept_as_its_hash(store: Store, clock: Clock) -> None:
    enrolled(store)
    with store.write("test") as tx:
        key, token = keys.add(
            tx,
            "acme",
            "dash",
            kind="operator",
            scopes=["manage", "read"],
            devices=["gate-3"],
            not_after_s=clock.now_s + DAY,
        )
    found = directory(store).key(hashlib.sha256(token.encode()).hexdigest())
    assert found == key and token.startswith("nbk_") and len(token) > 40
    assert found.scopes == {"read", "manage"} and found.devices == {"gate-3"}
    assert found.not_after_s == clock.now_s + DAY and found.kind == "operator"
    with store.read() as session:
        assert token not in repr(audit.entries(session))


@pytest.mark.parametrize(
    "wrong",
    [{"scopes": []}, {"scopes": ["ask", "fly"]}, {"devices": []}, {"not_after_s": 5.0}],
    ids=str,
)
def test_a_key_that_could_do_nothing_is_refused(store: Store, wrong: dict[str, object]) -> None:
    with store.write("test") as tx:
        tenants.add(tx, "acme")
        with pytest.raises(ConfigError):
            keys.add(tx, "acme", "app", **wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="operators"):
            keys.add(tx, "service", "app")


def test_quotas_go_from_the_defaults_over_the_tenant_to_the_device(store: Store) -> None:
    enrolled(store)
    enrolled(store, name="gate-4", serial="02")
    assert directory(store).quota("acme", "gate-3") == Quota(concurrent=4)
    assert directory(store).quota("acme") == Quota(concurrent=64)
    with store.write("test") as tx:
        quotas.change(tx, "acme", "*", {"scenes": 9, "requests_per_s": 2.5})
        quotas.change(tx, "acme", "gate-3", {"scenes": 1})
        quotas.change(tx, "acme", None, {"bytes_per_s": 1e6})
    now = directory(store)
    assert now.quota("acme", "gate-3") == Quota(concurrent=4, scenes=1, requests_per_s=2.5)
    assert now.quota("acme", "gate-4") == Quota(concurrent=4, scenes=9, requests_per_s=2.5)
    assert now.quota("acme") == Quota(concurrent=64, bytes_per_s=1e6)
    assert now.quota("other", "gate-3") == Quota(concurrent=4)
    with store.write("test") as tx:
        quotas.change(tx, "acme", "gate-3", {}, unset=["scenes"])
    assert directory(store).quota("acme", "gate-3").scenes == 9
    with store.read() as session:
        assert [one.device for one in quotas.every(session, "acme")] == [None, "*", "gate-3"]


@pytest.mark.parametrize(
    "values",
    [
        {"speed": 1.0},
        {"scenes": -1},
        {"scenes": 1.5},
        {"weight": 0},
        {"requests_per_s": float("nan")},
        {"bytes_per_s": float("inf")},
    ],
    ids=str,
)
def test_a_bad_quota_is_refused(store: Store, values: dict[str, float]) -> None:
    with store.write("test") as tx:
        tenants.add(tx, "acme")
        with pytest.raises(ConfigError, match="quota"):
            quotas.change(tx, "acme", None, values)


def test_the_audit_log_says_who_did_what_and_when(store: Store, clock: Clock) -> None:
    with store.write("cli:anna") as tx:
        tenants.add(tx, "acme")
    clock.now_s += 5
    with store.write("key:dash") as tx:
        devices.add(tx, "acme", "gate-3")
        devices.disable(tx, "acme", "gate-3")
    with store.read() as session:
        found = audit.entries(session)
        assert [(one.actor, one.action, one.subject) for one in found] == [
            ("key:dash", "device.disable", "gate-3"),
            ("key:dash", "device.add", "gate-3"),
            ("cli:anna", "tenant.add", "acme"),
        ]
        assert found[0].at_s - found[2].at_s == 5
        assert found[0].detail == {"certificates_revoked": 0}
        assert [one.action for one in audit.entries(session, before=found[1].id)] == ["tenant.add"]
        assert len(audit.entries(session, action="device.")) == 2
        assert len(audit.entries(session, actor="cli:anna")) == 1
        assert len(audit.entries(session, since_s=clock.now_s)) == 2
        assert audit.entries(session, tenant="other") == []
        assert len(audit.entries(session, limit=2)) == 2


@pytest.mark.parametrize("text", ["", "a\0b", "\ud800", "x" * 10_000, "'; DROP TABLE tenants; --"])
def test_arbitrary_text_names_nothing(store: Store, text: str) -> None:
    with store.write("test") as tx:
        tenants.add(tx, "acme")
        for look in (
            lambda: tenants.find(tx.session, text),
            lambda: devices.find(tx.session, "acme", text),
            lambda: keys.show(tx.session, "acme", text),
            lambda: certificates.revoke(tx, "acme", text),
            lambda: quotas.change(tx, "acme", text, {"scenes": 1}),
        ):
            with pytest.raises(MissingError):
                look()
    with store.read() as session:
        found = audit.entries(session, tenant=text, actor=text, action=text, before=1 << 80)
        assert found == []


def test_of_many_that_try_a_code_at_once_one_gets_in(opened: Opened) -> None:
    store = opened()
    with store.write("test") as tx:
        tenants.add(tx, "acme")
        devices.add(tx, "acme", "gate-3")
        codes.issue(tx, "acme", "gate-3", SECRET)
    begin = threading.Barrier(6)
    let_in: list[str] = []
    refused: list[str] = []

    def work(own: Store) -> None:
        begin.wait(60)
        try:
            with own.write("enrol") as tx:
                let_in.append(codes.redeem(tx, SECRET).name)
        except EnrolmentError as error:
            refused.append(error.message)

    threads = [threading.Thread(target=work, args=(opened(),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (let_in, len(refused)) == (["gate-3"], 5)
