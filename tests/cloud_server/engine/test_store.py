"""The store of what frames left."""

from __future__ import annotations

import pytest

from cloud_server.engine.store import SceneStore
from protos.errors import (
    UnknownSceneError,
)


def test_the_scene_store_counts_bytes_and_replaces_a_scene_of_the_same_name() -> None:
    dropped: list[str] = []
    store: SceneStore[str] = SceneStore(100, dropped.append)
    store.put(("s", 1), "a", 60)
    store.put(("s", 1), "b", 30)
    assert (store.get(("s", 1)), store.bytes, len(store)) == ("b", 30, 1)
    store.put(("t", 1), "huge", 500)
    assert len(store) == 1 and store.get(("t", 1)) == "huge"
    with pytest.raises(UnknownSceneError):
        store.get(("s", 1))


def test_an_owner_that_fills_the_store_pushes_out_its_own_entries() -> None:
    dropped: list[str] = []
    store: SceneStore[str] = SceneStore(100, dropped.append)
    store.put(("quiet", 1), "quiet", 10, "small/gate")
    for number in range(30):
        store.put((f"greedy-{number % 3}", number), "greedy", 10, f"big/d{number % 3}")
    assert store.get(("quiet", 1)) == "quiet"
    assert set(dropped) == {"greedy"} and (len(store), store.bytes) == (10, 100)
