"""Which version a device gets: always the same; a share of the devices gets the new one."""

from __future__ import annotations

from msgspec.structs import replace

from cloud_server.frontend.versions.offers import Offered, choices_of, place_of
from tests.cloud_server import stage

OLD = stage.offer()
NEW = replace(OLD, bundle_digest="c" * 64, bundle_version="2")
DEVICES = [f"gate-{number}" for number in range(5000)]


def on_new(share: float, digest: str = NEW.bundle_digest) -> set[str]:
    choice = Offered(OLD, replace(NEW, bundle_digest=digest), share)
    return {name for name in DEVICES if choice.of("acme", name).bundle_digest == digest}


def test_the_share_of_devices_is_about_the_share_that_was_asked_for() -> None:
    for share in (0.01, 0.1, 0.5):
        assert abs(len(on_new(share)) / len(DEVICES) - share) < 0.02
    assert on_new(0.0) == set() and on_new(1.0) == set(DEVICES)


def test_a_larger_share_only_adds_devices_and_another_version_begins_with_others() -> None:
    assert on_new(0.1) < on_new(0.2)
    other = on_new(0.1, "d" * 64)
    assert len(on_new(0.1) & other) < 0.5 * len(other)


def test_devices_of_the_same_name_in_two_tenants_are_two_devices() -> None:
    places = [place_of(NEW.bundle_digest, tenant, "gate-1") for tenant in ("acme", "zoo")]
    assert places[0] != places[1] and all(0 <= place < 1 for place in places)


def test_without_a_candidate_all_devices_get_the_one_version() -> None:
    (choice,) = choices_of([OLD]).values()
    assert choice.every == (OLD,)
    assert choice.of("acme", "gate-1") is OLD
