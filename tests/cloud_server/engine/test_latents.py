"""Latents come out bit for bit, within their cap."""

from __future__ import annotations

import numpy as np
import pytest

from cloud_server.engine.latents import LATENT_PAGE_BYTES, LatentMemory
from projector.codec.deltas import Held
from protos.errors import UnknownSceneError


@pytest.mark.parametrize("shape", [(36, 24), (16, 6), (1, 1), (400, 33)])
def test_latents_come_out_bit_for_bit_and_their_copy_is_ones_own(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    held = LatentMemory(1 << 20)
    made = [
        Held(rng.standard_normal(shape, dtype=np.float32), rng.random(shape[0]) < 0.5)
        for _ in range(4)
    ]
    made[0].latents[0, 0] = -0.0
    for number, one in enumerate(made):
        held.put(("s", number), one)
    for number, one in enumerate(made):
        got = held.get(("s", number))
        assert got.latents.tobytes() == one.latents.tobytes()
        assert got.kept.dtype == np.bool_ and (got.kept == one.kept).all()
        got.latents[:] = 7
        assert held.get(("s", number)).latents.tobytes() == one.latents.tobytes()


def test_latents_stay_within_their_cap_and_their_pool() -> None:
    held = LatentMemory(8 * LATENT_PAGE_BYTES)
    one = Held(np.ones((36, 24), np.float32), np.ones(36, np.bool_))  # four pages
    for number in range(500):
        held.put(("s", number), one)
        assert held.bytes <= 8 * LATENT_PAGE_BYTES and held.pool_bytes == 8 * LATENT_PAGE_BYTES
    held.get(("s", 498))
    with pytest.raises(UnknownSceneError):
        held.get(("s", 497))
