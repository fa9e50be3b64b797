"""Records of shadowed frames: two tests and their figures, in memory and in the database."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cloud_server.cli import main
from cloud_server.engine.jobs import Measured
from cloud_server.frontend.shadowing.ledger import ShadowLedger
from cloud_server.frontend.shadowing.record import ShadowRecord, differing, diverging
from cloud_server.frontend.shadowing.usual import FRAMES
from cloud_server.state import devices, shadows, tenants
from cloud_server.state.store import Store
from protos.errors import MissingError

LIMIT, EVERY_S = 0.2, 100.0


def measured(differ: int = 0, kl: float = 0.05, questions: int = 8) -> Measured:
    seen = ["no" if n < differ else "Yes." for n in range(questions)]
    return Measured(
        1, 0.0, [0.4, 0.6], ["q"] * questions, ["yes"] * questions, seen, [kl] * questions
    )


def _run(record: ShadowRecord, next: Callable[[], Measured], count: int, start: int = 0) -> int:
    """The frame at which the map begins or ceases to fit; -1 if it does neither."""
    for frame in range(count):
        if record.add(next(), LIMIT, 1e9 + (start + frame) * EVERY_S, 0.01):
            return frame
    return -1


def test_outcomes_are_shares_of_the_questions() -> None:
    assert differing(measured(2)) == 0.25
    assert diverging(measured(kl=0.5)) == 0.5 and diverging(measured(kl=9.0)) == 1.0


def test_a_camera_that_is_off_from_the_start_is_found_by_the_level() -> None:
    rng, record = np.random.default_rng(1), ShadowRecord()
    found = _run(record, lambda: measured(int(rng.binomial(8, 0.5))), 300)
    assert 0 <= found < 60 and "calibrated" in record.cause
    assert record.drifting_s == 1e9 + found * EVERY_S


def test_a_change_below_the_level_is_found_against_the_cameras_own_first_frames() -> None:
    rng, record = np.random.default_rng(2), ShadowRecord()

    def frame(mean: float) -> Callable[[], Measured]:
        return lambda: measured(int(rng.binomial(8, 0.05)), float(rng.exponential(mean)))

    assert _run(record, frame(0.08), FRAMES + 3000) == -1
    found = _run(record, frame(0.2), 500, FRAMES + 3000)
    assert 0 <= found < 200 and "first frames" in record.cause
    assert 0 <= _run(record, frame(0.05), 1000, FRAMES + 4000) < 1000 and not record.cause


def test_without_a_calibrated_share_only_the_change_is_tested() -> None:
    record = ShadowRecord()
    for frame in range(200):
        assert not record.add(measured(8), None, 1e9 + frame, 0.01)
    assert record.level.alarms == 0 and record.usual.count == 200


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.open(f"sqlite:///{tmp_path}/state.db")
    with made.write("test") as tx:
        for tenant in ("acme", "globex"):
            tenants.add(tx, tenant)
            for name in ("gate-1", "gate-2"):
                devices.add(tx, tenant, name)
    return made


@pytest.mark.parametrize("kept", [True, False], ids=["database", "memory"])
def test_the_ledger_keeps_devices_and_bundles_apart(store: Store, kept: bool) -> None:
    ledger = ShadowLedger(store if kept else None, 0.01)
    for frame in range(40):
        now_s = 1e9 + frame * EVERY_S
        ledger.add(("acme", "gate-1"), "a" * 64, "yard", measured(8), LIMIT, now_s)
        ledger.add(("acme", "gate-2"), "a" * 64, "yard", measured(0), LIMIT, now_s)
    ledger.add(("globex", "gate-1"), "b" * 64, "gate", measured(0), LIMIT, 2e9)
    fits = ledger.of("acme")
    assert sorted(fits) == ["gate-1", "gate-2"] and sorted(ledger.of("acme", "gate-2")) == [
        "gate-2"
    ]
    (fit,) = fits["gate-1"]
    assert fit.measured == 40 and fit.alarms == 1 and fit.drifting_since_s is not None
    assert fit.differ is not None and fit.differ.mean == 1.0
    assert fit.layer_errors == pytest.approx((0.4, 0.6))
    assert fits["gate-2"][0].drifting_since_s is None
    yard = next(one for one in ledger.summary() if one.bundle_id == "yard")
    assert (yard.devices, yard.drifting, yard.last_s) == (2, 1, 1e9 + 39 * EVERY_S)
    # with a new bundle the device begins anew
    ledger.add(("acme", "gate-1"), "c" * 64, "yard", measured(0), LIMIT, 3e9)
    assert [one.measured for one in ledger.of("acme", "gate-1")["gate-1"]] == [1, 40]
    assert next(o for o in ledger.summary() if o.bundle_id == "yard").drifting == 0


def test_the_database_forgets_with_the_device_and_keeps_the_newest_bundles(store: Store) -> None:
    ledger = ShadowLedger(store, 0.01)
    for number in range(shadows.MOST_OF_DEVICE + 3):
        digest = f"{number:064x}"
        ledger.add(("acme", "gate-1"), digest, "yard", measured(), LIMIT, 1e9 + number)
    fits = ledger.of("acme", "gate-1")["gate-1"]
    assert len(fits) == shadows.MOST_OF_DEVICE and fits[0].digest == f"{10:064x}"
    with store.write("test") as tx:
        devices.remove(tx, "acme", "gate-1")
    assert ledger.of("acme") == {}
    with pytest.raises(MissingError):
        ledger.add(("acme", "gate-1"), "a" * 64, "yard", measured(), LIMIT, 1e9)


def test_another_front_end_goes_on_from_the_database(store: Store) -> None:
    one, other = ShadowLedger(store, 0.01), ShadowLedger(store, 0.01)
    turned = [
        (one if frame % 2 else other)
        .add(("acme", "gate-1"), "a" * 64, "yard", measured(8), LIMIT, 1e9 + frame * EVERY_S)
        .turned
        for frame in range(40)
    ]
    assert sum(turned) == 1


def test_the_command_shows_the_fit_and_forgets_it(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = ShadowLedger(store, 0.01)
    for frame in range(40):
        now_s = 1e9 + frame * EVERY_S
        ledger.add(("acme", "gate-1"), "a" * 64, "yard", measured(8), LIMIT, now_s)
    named = ["--tenant", "acme", "--database", f"sqlite:///{tmp_path}/state.db"]

    def typed(verb: str, *more: str) -> str:
        assert main(["devices", verb, "gate-1", *named, *more]) == 0
        return capsys.readouterr().out

    shown = typed("show")
    assert "no longer fits since 2001-09-09" in shown and "100.0%" in shown
    assert "more answers differ" in " ".join(shown.split())
    (fit,) = json.loads(typed("show", "--json"))["fits"]
    assert (fit["measured"], fit["alarms"], fit["limit"]) == (40, 1, LIMIT)
    assert "measured anew" in typed("refit")
    assert json.loads(typed("show", "--json"))["fits"] == []
