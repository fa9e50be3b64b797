"""An update reaches a fleet stage by stage, and a bad one halts before it reaches many."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from sqlalchemy import select

from cloud_server.state import audit, devices, tenants, update_moves, update_offers, updates
from cloud_server.state.stages import Stages, Tally, rank, verdict
from cloud_server.state.store import Store, Transaction
from cloud_server.state.tables import DeviceRow, OfferDeviceRow, SoftwareRow
from cloud_server.state.update_moves import Software
from cloud_server.state.update_offers import OfferedUpdate, Told, UpdateOffer
from protos.errors import ConfigError, ConflictError, MissingError
from protos.update import Manifest, UpdateFile
from tests.cloud_server.state.conftest import Clock

SOFTWARE = Software("aarch64", "3.10", "6", 1)
STAGES = Stages(soak_s=600.0)


def manifest(number: int = 2, **fields: str) -> Manifest:
    words = {"version": f"v{number}", "machine": "aarch64", "python": "3.10"} | fields
    return Manifest(number=number, files={"agent/a.whl": UpdateFile(1, "0" * 64)}, **words)


def digest(number: int) -> str:
    return f"{number:x}".rjust(64, "0")


@dataclass
class Device:
    """A simulated device: it takes what it is offered, and says how that went at its next call."""

    tenant: str
    name: str
    software: Software = SOFTWARE
    failures: dict[str, int] = field(default_factory=dict)
    took: list[int] = field(default_factory=list)
    news: bool = False

    def call(self, tx: Transaction, good: Callable[[OfferedUpdate], bool] = lambda _: True) -> bool:
        """Ask once; returns whether it took an update."""
        told = [Told(d, update_moves.FAILED, "no_answers", n) for d, n in self.failures.items()]
        found = update_offers.check(tx, self.tenant, self.name, self.software, told)
        self.news = found is not None
        if found is None:
            return False
        self.took.append(found.number)
        if good(found):
            self.software = replace(self.software, number=found.number, digest=found.digest)
        else:
            self.failures[found.digest] = self.failures.get(found.digest, 0) + 1
        return True


class Fleet:
    """Devices that call in turns, a clock, and a front end that looks now and then."""

    def __init__(self, store: Store, clock: Clock, count: int, tenant: str = "acme") -> None:
        self.store, self.clock, self.tenant = store, clock, tenant
        self.devices = [Device(tenant, f"d{n:03}") for n in range(count)]
        with store.write("test") as tx:
            of = tenants.add(tx, tenant).id
            tx.session.flush()
            tx.session.add_all(
                DeviceRow(
                    id=f"{tenant}{device.name}",
                    tenant_id=of,
                    name=device.name,
                    created_s=0.0,
                    disabled=False,
                )
                for device in self.devices
            )
            tx.session.flush()
            tx.session.add_all(
                SoftwareRow(
                    device_id=f"{tenant}{device.name}", seen_s=tx.now_s, **vars(device.software)
                )
                for device in self.devices
            )

    def round(
        self, good: Callable[[OfferedUpdate], bool] = lambda _: True, everyone: bool = False
    ) -> int:
        """Every device with something to tell or to get calls; a front end looks; 5 minutes pass.

        Args:
            good: whether an update works on a device.
            everyone: the others call too, which changes nothing but takes time.
        """
        with self.store.write("all of it, to be quick", quiet=True) as tx:
            query = select(OfferDeviceRow.device_id).where(OfferDeviceRow.state == "offered")
            offered = set(tx.session.scalars(query))
            took = sum(
                device.call(tx, good)
                for device in self.devices
                if everyone or device.news or f"{self.tenant}{device.name}" in offered
            )
            update_offers.turn(tx)
        self.clock.now_s += 300
        return took

    def offer(self, name: str, stages: Stages = STAGES, **more: bool) -> None:
        with self.store.write("test", quiet=True) as tx:
            update_offers.offer(tx, name, self.tenant, stages, **more)

    def stands(self, number: int) -> UpdateOffer:
        with self.store.read() as session:
            found = update_offers.every(session, self.clock.now_s, self.tenant)
        return next(one for one in found if one.update.number == number)

    def touched(self, number: int) -> int:
        return sum(number in device.took for device in self.devices)


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """SQLite; the tests that need PostgreSQL say so."""
    made = Store.open(f"sqlite:///{tmp_path}/state.db", clock=clock)
    yield made
    made.close()


def added(store: Store, number: int = 2, **fields: str) -> str:
    with store.write("test", quiet=True) as tx:
        return updates.add(
            tx, manifest(number, **fields), digest=digest(number), size_bytes=9, signer="maker"
        ).digest


def test_a_good_update_goes_to_1_then_10_percent_then_all_and_each_stage_soaks(
    store: Store, clock: Clock
) -> None:
    fleet = Fleet(store, clock, 300)
    added(store)
    fleet.offer("2")
    reached = []
    for _ in range(12):
        fleet.round()
        reached.append(fleet.touched(2))
    # A stage has to last two rounds; its devices say that they keep it in their second call.
    assert reached[:3] == [3, 3, 3] and sorted(set(reached))[:2] == [3, 30]
    assert reached.count(30) >= 2 and reached[-1] == 300
    stands = fleet.stands(2)
    assert (stands.state, stands.stage, stands.counts) == ("running", 2, {"kept": 300})
    with store.read() as session:
        actions = [entry.action for entry in audit.entries(session, action="update.")]
    assert actions == ["update.stage", "update.stage", "update.offer", "update.add"]


def test_a_bad_update_halts_in_its_first_stage(store: Store, clock: Clock) -> None:
    fleet = Fleet(store, clock, 300)
    added(store)
    fleet.offer("2")
    for _ in range(20):
        fleet.round(good=lambda _: False)
    assert fleet.touched(2) == 3, "1 % of 300 devices"
    stands = fleet.stands(2)
    assert stands.state == "halted" and stands.causes == {"no_answers": 3}
    assert "devices that reported failed" in stands.note
    with store.read() as session:
        (entry,) = audit.entries(session, action="update.halt")
    assert (entry.tenant, entry.detail["number"]) == ("acme", 2)
    with store.read() as session:
        assert not update_offers.may_fetch(session, "acme", "d000", digest(2))


def test_an_update_that_fails_on_some_devices_halts_in_the_second_stage(
    store: Store, clock: Clock
) -> None:
    """Which ones is drawn anew, so that the first stage sees none of them."""
    fleet = Fleet(store, clock, 300)
    added(store)
    fleet.offer("2")
    drawn, calls = random.Random(3), 0

    def good(_: OfferedUpdate) -> bool:
        nonlocal calls
        calls += 1
        return calls <= 3 or drawn.random() > 0.3

    for _ in range(20):
        fleet.round(good)
    assert fleet.touched(2) == 30 and fleet.stands(2).state == "halted"


@pytest.mark.slow
def test_one_unlucky_device_in_a_hundred_halts_nothing(store: Store, clock: Clock) -> None:
    fleet = Fleet(store, clock, 300)
    added(store)
    fleet.offer("2")
    calls = 0

    def good(_: OfferedUpdate) -> bool:
        nonlocal calls
        calls += 1
        return calls <= 30 or calls % 100 != 0

    for _ in range(12):
        fleet.round(good)
    assert fleet.stands(2).counts == {"kept": 297, "failed": 3} and fleet.touched(2) == 300
    assert all(device.took.count(2) == 1 for device in fleet.devices), "never twice by itself"


def test_devices_that_go_silent_in_an_update_halt_it(store: Store, clock: Clock) -> None:
    """A device that the update broke for good can never report it."""
    fleet = Fleet(store, clock, 300)
    added(store)
    fleet.offer("2")
    with store.write("device", quiet=True) as tx:
        chosen = [device for device in fleet.devices if device.call(tx)]
        for device in chosen:
            device.software = SOFTWARE
            told = [Told(digest(2), update_moves.FETCHED)]
            assert update_offers.check(tx, "acme", device.name, SOFTWARE, told) is not None
    fleet.devices = [device for device in fleet.devices if device not in chosen]
    for _ in range(5):
        fleet.round()
    assert fleet.stands(2).state == "running"
    clock.now_s += update_moves.SILENT_S
    fleet.round()
    assert fleet.stands(2).state == "halted" and fleet.stands(2).causes == {"silent": 3}


def test_only_devices_that_it_is_for_and_whose_owners_allow_it_are_offered_an_update(
    store: Store, clock: Clock
) -> None:
    fleet = Fleet(store, clock, 9)
    others: dict[int, dict[str, object]] = {
        1: {"machine": "x86_64"}, 2: {"python": "3.12"}, 3: {"jetpack": "7"}, 4: {"number": 2},
        5: {"number": 3}, 6: {"takes": False}, 7: {"number": 3, "takes_older": True},
    }  # fmt: skip
    for number, fields in others.items():
        fleet.devices[number].software = replace(SOFTWARE, **fields)  # type: ignore[arg-type]
    fleet.round(everyone=True)
    with store.write("test") as tx:
        devices.disable(tx, "acme", "d008")
    del fleet.devices[8]
    added(store, 2, jetpack="6")
    fleet.offer("2", Stages((1.0,), soak_s=0.0))
    fleet.round(everyone=True)
    assert [device.name for device in fleet.devices if device.took] == ["d000"]
    fleet.offer("2", Stages((1.0,), soak_s=0.0), older=True)
    fleet.round(everyone=True)
    assert [device.name for device in fleet.devices if device.took] == ["d000", "d007"]


def test_a_tenants_update_reaches_no_other_tenant(store: Store, clock: Clock) -> None:
    ours, theirs = Fleet(store, clock, 5), Fleet(store, clock, 5, "globex")
    added(store)
    ours.offer("2", Stages((1.0,)))
    ours.round(everyone=True)
    theirs.round(everyone=True)
    ours.round()
    assert ours.touched(2) == 5 and theirs.touched(2) == 0
    ours.devices[0].software = SOFTWARE
    added(store, 3)
    ours.offer("3", Stages((1.0,)))
    with store.read() as session:
        assert update_offers.may_fetch(session, "acme", "d000", digest(3))
        for tenant, name, named in (
            ("globex", "d000", digest(3)), ("acme", "d000", digest(9)), ("acme", "none", digest(3)),
            ("none", "d000", digest(3)), ("acme", "d000", digest(2)),
        ):  # fmt: skip
            assert not update_offers.may_fetch(session, tenant, name, named)


def test_stages_are_nested_and_another_update_begins_with_others(
    store: Store, clock: Clock
) -> None:
    fleet = Fleet(store, clock, 300)
    firsts = []
    for number in (2, 3):
        added(store, number)
        fleet.offer(str(number), Stages(soak_s=1e9))
        with store.read() as session:
            firsts.append({n for n, _ in update_offers.devices_of(session, str(number), "acme")})
        with store.write("test", quiet=True) as tx:
            update_offers.withdraw(tx, str(number), "acme")
    assert firsts[0] != firsts[1] and len(firsts[0]) == len(firsts[1]) == 3
    fleet.offer("2", Stages((0.1, 1.0)))
    with store.read() as session:
        wider = {name for name, _ in update_offers.devices_of(session, "2", "acme")}
    assert firsts[0] < wider and len(wider) == 30


def test_paused_it_reaches_no_more_devices_and_goes_on_where_it_was(
    store: Store, clock: Clock
) -> None:
    fleet = Fleet(store, clock, 100)
    added(store)
    fleet.offer("2", Stages((0.5, 1.0)))
    with store.write("device", quiet=True) as tx:
        for device in fleet.devices[:60]:
            device.call(tx)
    before = fleet.touched(2)
    with store.write("test", quiet=True) as tx:
        update_offers.pause(tx, "2", "acme")
        with pytest.raises(ConflictError):
            update_offers.pause(tx, "2", "acme")
    fleet.round(everyone=True)
    assert 0 < fleet.touched(2) == before < 50
    with store.write("test", quiet=True) as tx:
        update_offers.resume(tx, "2", "acme")
        with pytest.raises(ConflictError):
            update_offers.resume(tx, "2", "acme")
    fleet.round()
    assert fleet.touched(2) == 50


@pytest.mark.slow
def test_after_a_halt_the_operator_goes_on_or_has_it_tried_again(
    store: Store, clock: Clock
) -> None:
    fleet = Fleet(store, clock, 100)
    added(store)
    stages = Stages((0.1, 1.0), soak_s=0.0)
    fleet.offer("2", stages)
    for _ in range(3):
        fleet.round(good=lambda _: False)
    assert fleet.stands(2).state == "halted"
    fleet.offer("2", stages, again=True)
    for _ in range(4):
        fleet.round()
    assert fleet.stands(2).counts == {"kept": 100} and fleet.stands(2).state == "running"

    added(store, 3)
    fleet.offer("3", stages)
    for _ in range(3):
        fleet.round(good=lambda _: False)
    assert fleet.stands(3).state == "halted"
    with store.write("test", quiet=True) as tx:
        update_offers.resume(tx, "3", "acme")
    for _ in range(4):
        fleet.round()
    assert fleet.stands(3).counts == {"failed": 10, "kept": 90}


def test_a_device_that_goes_back_by_hand_later_counts_as_failed(store: Store, clock: Clock) -> None:
    fleet = Fleet(store, clock, 4)
    added(store)
    fleet.offer("2", Stages((1.0,), failure_limit=0.5))
    for _ in range(2):
        fleet.round()
    assert fleet.stands(2).counts == {"kept": 4}
    fleet.devices[0].software, fleet.devices[0].failures = SOFTWARE, {digest(2): 1}
    fleet.round(everyone=True)
    assert fleet.stands(2).counts == {"kept": 3, "failed": 1}


def test_a_device_that_waits_says_why(store: Store, clock: Clock) -> None:
    fleet = Fleet(store, clock, 1)
    added(store)
    fleet.offer("2", Stages((1.0,)))
    with store.write("device", quiet=True) as tx:
        told = [Told(digest(2), "waiting", "disk_full")]
        assert update_offers.check(tx, "acme", "d000", SOFTWARE, told) is not None
    with store.read() as session:
        ((name, row),) = update_offers.devices_of(session, "2", "acme")
    assert (name, row.state, row.cause) == ("d000", "offered", "disk_full")


@pytest.mark.quick(1)
def test_front_ends_that_look_at_once_move_one_stage(url: str, clock: Clock) -> None:
    """Also with PostgreSQL, where several front ends share the database."""
    stores = [Store.open(url, clock=clock) for _ in range(2)]
    fleet = Fleet(stores[0], clock, 20)
    added(stores[0])
    fleet.offer("2", Stages((0.1, 0.5, 1.0), soak_s=0.0))
    for number in range(8):
        for half, store in zip((fleet.devices[::2], fleet.devices[1::2]), stores, strict=True):
            with store.write("device", quiet=True) as tx:
                for device in half:
                    device.call(tx)
        for store in stores[:: 1 if number % 2 else -1]:
            with store.write("front end", quiet=True) as tx:
                update_offers.turn(tx)
        with stores[1].read() as session:
            rows = session.scalars(select(OfferDeviceRow)).all()
        assert len({row.device_id for row in rows}) == len(rows)
    assert fleet.stands(2).counts == {"kept": 20}
    for store in stores:
        store.close()


def test_a_name_means_one_update(store: Store, clock: Clock) -> None:
    added(store, 2)
    with store.write("test", quiet=True) as tx:
        with pytest.raises(ConflictError, match="added before"):
            updates.add(tx, manifest(2), digest=digest(2), size_bytes=9, signer="maker")
        updates.add(tx, manifest(2, python="3.12"), digest="f" * 64, size_bytes=9, signer="maker")
    with store.read() as session:
        with pytest.raises(ConflictError, match=r"Python 3\.10.* or .*Python 3\.12"):
            updates.find(session, "2")
        assert updates.find(session, "ffff").python == "3.12"
        for name in ("7", "fff", "0" * 65):
            with pytest.raises(MissingError):
                updates.find(session, name)
    with store.write("test", quiet=True) as tx:
        updates.retire(tx, "ffff")
        assert updates.find(tx.session, "2").digest == digest(2)


def test_an_update_that_is_offered_is_not_retired(store: Store, clock: Clock) -> None:
    fleet = Fleet(store, clock, 1)
    added(store)
    fleet.offer("2")
    with store.write("test", quiet=True) as tx:
        with pytest.raises(ConflictError, match="withdraw"):
            updates.retire(tx, "2")
        update_offers.withdraw(tx, "2", "acme")
        updates.retire(tx, "2")
    with store.write("test", quiet=True) as tx:
        for tenant in ("acme", "none"):
            with pytest.raises(MissingError):
                update_offers.offer(tx, "2", tenant, STAGES)


# ---------------------------------------------------------------------- the rules alone


@pytest.mark.parametrize(
    ("tally", "lasted_s", "said"),
    [
        (Tally(), 9e9, "wait"),
        (Tally(3, 2, 0, 3, 2), 9e9, "wait"),
        (Tally(3, 3, 0, 3, 3), 599.0, "wait"),
        (Tally(3, 3, 0, 3, 3), 600.0, "next"),
        (Tally(3, 2, 1, 3, 2), 0.0, "halt"),
        (Tally(100, 4, 1, 100, 4), 0.0, "halt"),
        (Tally(100, 3, 1, 100, 3), 0.0, "wait"),
        (Tally(100, 38, 2, 100, 38), 0.0, "wait"),
        (Tally(100, 0, 6, 100, 0), 0.0, "halt"),
        (Tally(3, 3, 0, 0, 0), 600.0, "next"),
        (Tally(100, 95, 5, 5, 0, 5), 600.0, "next"),
    ],
)
def test_when_a_stage_ends(tally: Tally, lasted_s: float, said: str) -> None:
    assert verdict(STAGES, 0, lasted_s, tally)[0] == said


def test_the_last_stage_is_followed_by_none() -> None:
    assert verdict(STAGES, 2, 9e9, Tally(300, 300, 0, 270, 270)) == ("wait", "")


def test_a_stage_is_never_empty_and_never_more_than_its_share() -> None:
    for devices_ in range(1, 400):
        sizes = [STAGES.size(stage, devices_) for stage in range(3)]
        assert sizes[0] == -(-devices_ // 100) and sizes[2] == devices_ and sizes == sorted(sizes)


@pytest.mark.parametrize(
    "bad",
    [
        {"shares": ()}, {"shares": (0.0, 1.0)}, {"shares": (0.5, 0.1)}, {"shares": (0.5, 1.5)},
        {"shares": (0.1, 0.1)}, {"healthy": -1}, {"soak_s": -1.0}, {"failure_limit": 1.0},
        {"soak_s": float("nan")}, {"failure_limit": float("nan")},
    ],
)  # fmt: skip
def test_stages_that_make_no_sense_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Stages(**bad)  # type: ignore[arg-type]


def test_the_order_of_devices_is_spread_and_lasting() -> None:
    order = sorted(map(str, range(1000)), key=lambda id: rank("a" * 64, id))
    assert order == sorted(order, key=lambda id: rank("a" * 64, id)) != sorted(order)
    assert 400 < sum(map(int, order[:100])) / 100 < 600
