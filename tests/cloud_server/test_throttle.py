"""Bounded rates."""

from __future__ import annotations

import pytest

from cloud_server.throttle import Buckets


def test_a_bucket_refuses_once_it_is_in_debt_and_says_for_how_long() -> None:
    now = [0.0]
    buckets = Buckets(10.0, 20.0, most=2, clock=lambda: now[0])
    assert buckets.take("a", 50) == 0.0  # larger than any bucket, but it was full
    assert buckets.take("a", 1) == pytest.approx(3.1)
    assert buckets.take("b", 1) == 0.0
    now[0] = 3.0
    assert buckets.take("a", 1) > 0.0
    now[0] = 3.2
    assert buckets.take("a", 1) == 0.0
    assert Buckets(0.0, 1.0).take("a", 1e9) == 0.0
