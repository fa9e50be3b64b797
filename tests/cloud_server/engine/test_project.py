"""Latents of a group go to the backend in one call; a frame that overflows is left out alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cloud_server.engine.project import project
from projector.codec.arrays import Floats
from projector.codec.deltas import Held

LAYERS, HEADS, TOKENS, DIM, RANK = 2, 1, 5, 3, 4
POSITIONS = np.arange(7, 7 + TOKENS)


class Backend:
    """Writes down what it is given. Keys hold a frame's first latent, values its last."""

    tokens, rank = TOKENS, RANK

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def project(self, latents: Floats, kept: Any, positions: Any) -> tuple[Floats, Floats]:
        self.calls.append((latents, kept, positions))
        shape = (LAYERS, len(latents), HEADS, TOKENS, DIM)
        first, last = (latents[:, 0, at].reshape(1, -1, 1, 1, 1) for at in (0, -1))
        return np.broadcast_to(first, shape).copy(), np.broadcast_to(last, shape).copy()


def frame(tokens: int, first: float, last: float = 1.0) -> Held:
    latents = np.full((tokens, RANK), first, np.float32)
    latents[:, -1] = last
    return Held(latents, np.arange(tokens) % 2 == 0)


def test_a_group_is_one_call_and_shorter_texts_are_padded_with_unknown_tokens() -> None:
    backend: Any = Backend()
    made = project(backend, [frame(5, 1.0), frame(2, 2.0)], POSITIONS)
    ((latents, known, positions),) = backend.calls
    assert latents.shape == (2, TOKENS, RANK) and latents.dtype == np.float32
    assert (latents[1, 2:] == 0).all() and (latents[1, :2, 0] == 2).all()
    assert known.tolist() == [[True, False, True, False, True], [True] + [False] * 4]
    assert positions is POSITIONS
    assert made.finite == [True, True]
    assert made.keys.shape == made.values.shape == (LAYERS, 2, HEADS, TOKENS, DIM)
    assert torch.equal(made.keys[:, 1], torch.full((LAYERS, HEADS, TOKENS, DIM), 2.0))


def test_a_frame_whose_keys_or_values_overflow_is_left_out_and_its_neighbours_are_not() -> None:
    backend: Any = Backend()
    bad = [frame(5, np.inf), frame(5, 1.0, np.nan)]
    made = project(backend, [frame(5, 3.0), *bad, frame(5, 4.0)], POSITIONS)
    assert made.finite == [True, False, False, True]
    assert made.keys[0, :, 0, 0, 0].tolist() == [3.0, 4.0]
    assert made.values.isfinite().all()
