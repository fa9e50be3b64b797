"""The scenes held for questions: keys and values in pages, within a bound.

Keys and values are copied in and out, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cloud_server.engine.pages import PagePool
from cloud_server.engine.store import Name, SceneStore


@dataclass(frozen=True, eq=False)
class Scene:
    """Keys (rotated) and values of some image or text tokens, somewhere in a `SceneMemory`."""

    tokens: int
    pages: tuple[int, ...]


class SceneMemory:
    """Scenes by name; when full, the largest owner loses its least recently used one.

    A scene that the present step uses keeps its pages until `end_step`, even if a newer one takes
    its place in the store meanwhile.

    Args:
        max_bytes: bound for all scenes together. The newest is held even if it alone is larger.
        like: any key or value of the model, for dtype and device.
        layers: the model's layers.
        kv_heads: the model's key-value heads.
        head_dim: the model's dimensions per head.
        page_tokens: tokens of a page; scenes of a multiple of it waste nothing.
    """

    def __init__(
        self,
        max_bytes: int,
        like: Tensor,
        layers: int,
        kv_heads: int,
        head_dim: int,
        page_tokens: int,
    ) -> None:
        self._page_tokens = page_tokens
        shape = (2, layers, kv_heads, page_tokens, head_dim)
        self._pool = PagePool(shape, like.dtype, like.device, max_bytes)
        self._store: SceneStore[Scene] = SceneStore(max_bytes, self._dropped)
        self._in_use: set[Scene] = set()
        self._late: list[Scene] = []

    def __len__(self) -> int:
        return len(self._store)

    def __contains__(self, name: object) -> bool:
        return name in self._store

    @property
    def bytes(self) -> int:
        """Bytes of the scenes held, in whole pages."""
        return self._store.bytes

    @property
    def pool_bytes(self) -> int:
        """Bytes of all pages, used or free."""
        return self._pool.bytes

    def put(
        self, name: Name | None, keys: Tensor, values: Tensor, use: bool, owner: str = ""
    ) -> Scene:
        """Hold a scene; one of the same name is replaced.

        Args:
            name: the scene's name; None for a scene of this step only, which replaces no other.
            keys: `[layers, kv_heads, tokens, head_dim]`, of any dtype and device.
            values: as the keys.
            use: whether this step reads it.
            owner: as `Job.owner`.
        """
        tokens = keys.shape[2]
        count = -(-tokens // self._page_tokens)
        size = count * self._pool.page_bytes
        if name is not None:
            self._store.make_room(name, size)
        scene = Scene(tokens, tuple(self._pool.take(count)))
        for place, page in enumerate(scene.pages):
            held = slice(place * self._page_tokens, min(tokens, (place + 1) * self._page_tokens))
            into = self._pool[page][:, :, :, : held.stop - held.start]
            into[0].copy_(keys[:, :, held])
            into[1].copy_(values[:, :, held])
        if name is None:
            self._late.append(scene)
            return scene
        self._store.put(name, scene, size, owner)
        if use:
            self._in_use.add(scene)
        return scene

    def get(self, name: Name) -> Scene:
        """The scene of that name, for this step.

        Raises:
            UnknownSceneError: it is not held (any more).
        """
        scene = self._store.get(name)
        self._in_use.add(scene)
        return scene

    def read(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """Keys and values `[layers, kv_heads, tokens, head_dim]`; not to be written to."""
        pages = [self._pool[page] for page in scene.pages]
        whole = pages[0] if len(pages) == 1 else torch.cat(pages, dim=3)
        keys, values = whole[:, :, :, : scene.tokens]
        return keys, values

    def forget(self, session: str) -> None:
        """Let go of every scene of a session."""
        self._store.forget(session)

    def drop(self, name: Name) -> None:
        """Let go of a scene, if held."""
        self._store.drop(name)

    def end_step(self) -> None:
        """End the step: nothing that it used is read any more."""
        self._in_use.clear()
        for scene in self._late:
            self._pool.give(scene.pages)
        self._late.clear()

    def _dropped(self, scene: Scene) -> None:
        if scene in self._in_use:
            self._late.append(scene)
        else:
            self._pool.give(scene.pages)
