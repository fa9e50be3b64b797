"""Versions of bundles in both databases: the order of their states."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cloud_server.state import audit, bundles
from cloud_server.state.store import Store
from cloud_server.state.tables import BundleVersion
from protos.errors import ConflictError, MissingError
from tests.cloud_server.state.conftest import Clock

Opened = Callable[[], Store]


def added(store: Store, version: int, source: str = "s" * 64) -> str:
    digest = f"{version:02x}" * 32
    with store.write("cli:anna") as tx:
        bundles.add(
            tx, digest=digest, bundle_id="map", version=version, source=source, path=f"/b/{version}"
        )
    return digest


def wanted(store: Store) -> dict[int, tuple[str, float]]:
    with store.read() as session:
        return {row.version: (row.wanted, row.share) for row in bundles.every(session)}


def act(
    store: Store, verb: Callable[..., object], name: str, *given: object, **named: object
) -> None:
    with store.write("cli:anna") as tx:
        verb(tx, name, *given, **named)


def test_a_version_goes_from_added_to_a_share_to_all_and_what_it_replaces_can_come_back(
    opened: Opened,
) -> None:
    store = opened()
    for version in (1, 2):
        added(store, version)
    act(store, bundles.activate, "map@1")
    act(store, bundles.activate, "map@2", 0.1)
    assert wanted(store) == {1: ("active", 1.0), 2: ("offered", 0.1)}
    act(store, bundles.activate, "map@2")
    assert wanted(store) == {1: ("replaced", 0.0), 2: ("active", 1.0)}
    act(store, bundles.rollback, "map@2", "worse")
    assert wanted(store) == {1: ("active", 1.0), 2: ("rolled_back", 0.0)}
    with store.read() as session:
        assert bundles.find(session, "map@2").note == "worse"
    act(store, bundles.activate, "map@2", 0.5)
    act(store, bundles.rollback, "0202")
    assert wanted(store) == {1: ("active", 1.0), 2: ("rolled_back", 0.0)}


def test_another_edge_models_versions_are_left_alone(opened: Opened) -> None:
    store = opened()
    added(store, 1)
    added(store, 2, source="t" * 64)
    act(store, bundles.activate, "map@1")
    act(store, bundles.activate, "map@2")
    assert wanted(store) == {1: ("active", 1.0), 2: ("active", 1.0)}


def test_a_second_offer_takes_the_place_of_the_first(opened: Opened) -> None:
    store = opened()
    for version in (1, 2, 3):
        added(store, version)
    act(store, bundles.activate, "map@1")
    act(store, bundles.activate, "map@2", 0.1)
    act(store, bundles.activate, "map@3", 0.1)
    assert wanted(store) == {
        1: ("active", 1.0),
        2: ("retired", 0.0),
        3: ("offered", 0.1),
    }


def test_what_cannot_be_done_says_what_to_do(opened: Opened) -> None:
    store = opened()
    added(store, 1)
    with pytest.raises(ConflictError, match="added before"):
        added(store, 1)
    with pytest.raises(ConflictError, match="without --share"):
        act(store, bundles.activate, "map@1", 0.1)
    with pytest.raises(ConflictError, match="serves nobody"):
        act(store, bundles.rollback, "map@1")
    act(store, bundles.activate, "map@1")
    with pytest.raises(ConflictError, match="no version served before"):
        act(store, bundles.rollback, "map@1")
    with pytest.raises(ConflictError, match="serves all devices"):
        act(store, bundles.retire, "map@1")
    with pytest.raises(MissingError, match="bundles list"):
        act(store, bundles.activate, "map@9")
    with pytest.raises(MissingError):
        act(store, bundles.activate, "010")
    assert wanted(store)[1] == ("active", 1.0)


def test_a_refused_first_version_leaves_nothing_that_serves(opened: Opened) -> None:
    store = opened()
    added(store, 1)
    act(store, bundles.activate, "map@1")
    act(store, bundles.rollback, "map@1", "refused", alone=True)
    assert wanted(store) == {1: ("rolled_back", 0.0)}


def test_every_change_is_audited_with_who_and_what(opened: Opened) -> None:
    store = opened()
    for version in (1, 2):
        added(store, version)
    act(store, bundles.activate, "map@1")
    act(store, bundles.activate, "map@2", 0.25)
    act(store, bundles.rollback, "map@2", "worse")
    act(store, bundles.retire, "map@2")
    with store.read() as session:
        told = [entry for entry in audit.entries(session) if entry.action.startswith("bundle.")]
    assert {entry.actor for entry in told} == {"cli:anna"}
    assert sorted(entry.action for entry in told) == [
        "bundle.activate",
        "bundle.activate",
        "bundle.add",
        "bundle.add",
        "bundle.retire",
        "bundle.rollback",
    ]


def test_reports_of_front_ends_are_replaced_withdrawn_and_deleted_when_old(
    opened: Opened, clock: Clock
) -> None:
    store = opened()
    digest = added(store, 1)
    for name, state in (("a", "loading"), ("a", "serving"), ("b", "refused")):
        with store.write(name, quiet=True) as tx:
            bundles.report(tx, bundles.Said(name, digest, state, figures={"judged": {"same": 3}}))
    with store.read() as session:
        told = bundles.said(session, clock.now_s)
    assert [(one.front_end, one.state) for one in told] == [("a", "serving"), ("b", "refused")]
    assert told[0].figures == {"judged": {"same": 3}}
    with store.write("a", quiet=True) as tx:
        bundles.withdraw(tx, "a")
    with store.read() as session:
        assert [one.front_end for one in bundles.said(session, clock.now_s)] == ["b"]
        assert bundles.said(session, clock.now_s + 3600) == []


def test_a_report_from_before_the_clock_was_set_back_is_not_believed(
    store: Store, clock: Clock
) -> None:
    digest = added(store, 1)
    with store.write("gone", quiet=True) as tx:
        bundles.report(tx, bundles.Said("gone", digest, "serving"))
    clock.now_s -= 2 * 3600
    with store.write("here", quiet=True) as tx:
        bundles.withdraw(tx, "here")
        bundles.report(tx, bundles.Said("here", digest, "judging"))
    with store.read() as session:
        assert [one.front_end for one in bundles.said(session, clock.now_s)] == ["here"]


def test_a_version_counts_as_served_until_it_is_wanted_anew(store: Store) -> None:
    old, new = added(store, 1), added(store, 2)

    def served() -> dict[str, bool]:
        with store.read() as session:
            return {row.digest: row.served for row in bundles.every(session)}

    act(store, bundles.activate, old)
    act(store, bundles.served, old)
    act(store, bundles.activate, new, 0.5)
    assert served() == {old: True, new: False}
    act(store, bundles.served, new)
    act(store, bundles.activate, new)
    assert served() == {old: True, new: True}, "from a share to all it is the same version"
    act(store, bundles.rollback, new)
    act(store, bundles.activate, new)
    assert served() == {old: True, new: False}


def test_two_processes_see_the_same_versions(opened: Opened) -> None:
    one, other = opened(), opened()
    added(one, 1)
    act(other, bundles.activate, "map@1")
    assert wanted(one) == {1: ("active", 1.0)}
    with other.read() as session:
        (row,) = bundles.every(session)
        assert isinstance(row, BundleVersion) and row.path == "/b/1"
