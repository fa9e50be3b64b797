"""Quotas: requests and bytes of devices and tenants, which change while the service runs."""

from __future__ import annotations

from typing import Any

import pytest

from cloud_server.frontend.admission.quotas import Quotas
from cloud_server.state.quota import Quota
from protos.errors import OverloadedError


class Till:
    def __init__(self, **quotas: Quota) -> None:
        self.quotas: dict[Any, Quota] = {("t", name or None): q for name, q in quotas.items()}
        self.now = 0.0
        self.charges = Quotas(
            lambda tenant, device: self.quotas.get((tenant, device), Quota()), lambda: self.now
        )

    def passes(self, device: str = "d", size: int = 1) -> bool:
        try:
            self.charges.charge("t", device, size)
        except OverloadedError as error:
            assert error.retry_after_s > 0 and error.cause.endswith("_quota")
            return False
        return True


def test_a_device_sends_its_burst_and_then_at_its_rate() -> None:
    till = Till(d=Quota(requests_per_s=2.0, request_burst=3.0))
    assert [till.passes() for _ in range(4)] == [True, True, True, False]
    till.now += 0.5
    assert [till.passes(), till.passes()] == [True, False]
    assert till.passes("another"), "each device has its own"


def test_the_hint_is_when_it_passes() -> None:
    till = Till(d=Quota(requests_per_s=0.5, request_burst=1.0))
    assert till.passes()
    with pytest.raises(OverloadedError) as refused:
        till.charges.charge("t", "d", 1)
    till.now += refused.value.retry_after_s
    assert till.passes()


def test_the_hint_is_the_longest_wait_of_all_bounds() -> None:
    till = Till(d=Quota(requests_per_s=1.0, request_burst=1.0, bytes_per_s=1.0, byte_burst=10.0))
    till.quotas["t", None] = Quota(requests_per_s=0.25, request_burst=1.0)
    assert till.passes(size=10)
    with pytest.raises(OverloadedError) as refused:
        till.charges.charge("t", "d", 10)
    till.now += refused.value.retry_after_s
    assert till.passes(size=10)


def test_bytes_are_counted_and_one_large_request_passes_and_is_paid_for() -> None:
    till = Till(d=Quota(bytes_per_s=100.0, byte_burst=200.0))
    assert till.passes(size=1000)
    till.now += 8.0
    assert not till.passes(size=1)
    till.now += 2.0
    assert till.passes(size=200) and not till.passes(size=1)


def test_a_tenants_quota_holds_for_all_its_devices_together() -> None:
    till = Till()
    till.quotas["t", None] = Quota(requests_per_s=1.0, request_burst=2.0)
    assert [till.passes("a"), till.passes("b"), till.passes("c")] == [True, True, False]
    till.charges.charge("another", "a", 1)


def test_a_refused_request_uses_up_no_quota() -> None:
    till = Till(d=Quota(requests_per_s=1.0, request_burst=9.0))
    till.quotas["t", None] = Quota(requests_per_s=1.0, request_burst=1.0)
    assert [till.passes() for _ in range(5)] == [True] + [False] * 4
    till.quotas["t", None] = Quota()
    assert [till.passes() for _ in range(9)] == [True] * 8 + [False]


def test_a_changed_quota_counts_at_once() -> None:
    till = Till(d=Quota(requests_per_s=1.0, request_burst=1.0))
    assert [till.passes(), till.passes()] == [True, False]
    till.quotas["t", "d"] = Quota(requests_per_s=1000.0, request_burst=10.0)
    till.now += 0.01
    assert [till.passes() for _ in range(11)] == [True] * 10 + [False]
    till.quotas["t", "d"] = Quota()
    assert all(till.passes() for _ in range(100))
