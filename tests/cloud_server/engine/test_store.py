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
