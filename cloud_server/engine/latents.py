"""What delta frames change: the latents of scenes, kept in pages within a bound.

Knows names, sizes and pages; a copy in is a copy out, bit for bit. Knows no job, bundle or model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cloud_server.engine.pages import PagePool
from cloud_server.engine.store import Name, Store
from projector.codec.deltas import Held

LATENT_PAGE_BYTES = 1024


@dataclass(frozen=True, eq=False)
class _Latents:
    """Where the latents `[tokens, rank]` and the tokens known of one frame are."""

    tokens: int
    rank: int
    pages: tuple[int, ...]


class LatentMemory:
    """What is known of the scenes that delta frames change; the longest unused goes first.

    Args:
        max_bytes: of all of them together. The newest is held even if it alone is larger.
    """

    def __init__(self, max_bytes: int) -> None:
        self._pool = PagePool((LATENT_PAGE_BYTES,), torch.uint8, most_bytes=max_bytes)
        self._store: Store[_Latents] = Store(max_bytes, self._dropped)

    def __contains__(self, name: object) -> bool:
        return name in self._store

    @property
    def bytes(self) -> int:
        """Of what is held, whole pages."""
        return self._store.bytes

    @property
    def pool_bytes(self) -> int:
        """Of all pages, used or free."""
        return self._pool.bytes

    def put(self, name: Name, held: Held) -> None:
        """Keep a copy; one of the same name is replaced."""
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
        self._store.put(name, _Latents(tokens, rank, pages), size)

    def get(self, name: Name) -> Held:
        """A copy of what is known.

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

    def _dropped(self, entry: _Latents) -> None:
        self._pool.give(entry.pages)
