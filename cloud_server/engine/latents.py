"""The latents of scenes, for delta frames to change: kept in pages, within a bound.

Latents are copied in and out, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cloud_server.engine.pages import PagePool
from cloud_server.engine.store import Name, SceneStore
from projector.codec.deltas import Held

LATENT_PAGE_BYTES = 1024


@dataclass(frozen=True, eq=False)
class _Latents:
    """The pages of one frame: its latents `[tokens, rank]`, and a mask of the tokens known."""

    tokens: int
    rank: int
    pages: tuple[int, ...]


class LatentMemory:
    """The latents of each scene; when full, the largest owner loses its least recently used ones.

    Args:
        max_bytes: bound for all of them together. The newest is held even if it alone is larger.
    """

    def __init__(self, max_bytes: int) -> None:
        self._pool = PagePool((LATENT_PAGE_BYTES,), torch.uint8, most_bytes=max_bytes)
        self._store: SceneStore[_Latents] = SceneStore(max_bytes, self._dropped)

    def __contains__(self, name: object) -> bool:
        return name in self._store

    @property
    def bytes(self) -> int:
        """Bytes of what is held, in whole pages."""
        return self._store.bytes

    @property
    def pool_bytes(self) -> int:
        """Bytes of all pages, used or free."""
        return self._pool.bytes

    def put(self, name: Name, held: Held, owner: str = "") -> None:
        """Keep a copy for an owner (`Job.owner`); it replaces one of the same name."""
        raw = np.concatenate(
            (
                np.ascontiguousarray(held.latents, dtype=np.float32).view(np.uint8).reshape(-1),
                held.kept.view(np.uint8),
            )
        )
        count = -(-len(raw) // LATENT_PAGE_BYTES)
        size = count * LATENT_PAGE_BYTES
        self._store.make_room(name, size)
        pages = tuple(self._pool.take(count))
        for page, start in zip(pages, range(0, len(raw), LATENT_PAGE_BYTES), strict=True):
            part = raw[start : start + LATENT_PAGE_BYTES]
            self._pool[page].numpy()[: len(part)] = part
        tokens, rank = held.latents.shape
        self._store.put(name, _Latents(tokens, rank, pages), size, owner)

    def get(self, name: Name) -> Held:
        """A copy of the latents known.

        Raises:
            UnknownSceneError: it is not held (any more).
        """
        entry = self._store.get(name)
        raw = np.concatenate([self._pool[page].numpy() for page in entry.pages])
        split = entry.tokens * entry.rank * 4
        latents = raw[:split].view(np.float32).reshape(entry.tokens, entry.rank)
        return Held(latents, raw[split : split + entry.tokens].view(np.bool_))

    def forget(self, session: str) -> None:
        """Let go of every frame of a session."""
        self._store.forget(session)

    def drop(self, name: Name) -> None:
        """Let go of a frame's latents, if held."""
        self._store.drop(name)

    def _dropped(self, entry: _Latents) -> None:
        self._pool.give(entry.pages)
