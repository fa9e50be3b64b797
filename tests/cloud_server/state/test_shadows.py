"""What shadowed frames have shown, in either database, written by several front ends at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from cloud_server.frontend.shadowing.ledger import ShadowLedger
from cloud_server.state import devices, tenants
from tests.cloud_server.frontend.shadowing.test_record import LIMIT, measured
from tests.cloud_server.state.conftest import Opened

OWNER, DIGEST = ("acme", "gate-1"), "a" * 64


def test_two_front_ends_at_once_lose_no_frame(opened: Opened) -> None:
    stores = [opened(), opened()]
    with stores[0].write("test") as tx:
        tenants.add(tx, "acme")
        devices.add(tx, *OWNER)
    ledgers = [ShadowLedger(store, 0.01) for store in stores]

    def add(number: int) -> bool:
        ledger = ledgers[number % 2]
        return ledger.add(OWNER, DIGEST, "yard", measured(8), LIMIT, 1e9 + 100.0 * number).turned

    with ThreadPoolExecutor(4) as pool:
        turned = list(pool.map(add, range(60)))
    (fit,) = ledgers[0].of("acme")["gate-1"]
    assert fit.measured == 60 and sum(turned) == 1 and fit.alarms == 1
    (summary,) = ledgers[1].summary()
    assert (summary.bundle_id, summary.devices, summary.drifting) == ("yard", 1, 1)
