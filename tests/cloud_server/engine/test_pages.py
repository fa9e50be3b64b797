"""Memory in pages."""

from __future__ import annotations

import torch

from cloud_server.engine.pages import PagePool


def test_a_pool_takes_a_block_at_a_time_and_uses_pages_again() -> None:
    pool = PagePool((1 << 20,), torch.uint8, most_bytes=1 << 30)
    assert pool.bytes == 0, "a service without scenes needs no memory for them"
    first = pool.take(3)
    assert pool.bytes == 16 << 20 and len(set(first)) == 3
    more = pool.take(30)
    assert pool.bytes == 48 << 20 and not set(first) & set(more)
    pool.give(first)
    assert set(pool.take(3)) == set(first) and pool.take(0) == [] and pool.bytes == 48 << 20
