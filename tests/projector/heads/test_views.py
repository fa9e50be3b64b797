"""What heads look at is what the cloud would have: maps, bundles, coding included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from projector.bundle.load import Bundle
from projector.heads.views import FrozenMap
from projector.maps.base import write
from projector.maps.ridge import Ridge
from projector.training.corpus import Corpus
from protos.errors import ConfigError, FitError
from protos.layout import KVLayout

PICTURES = 5


@pytest.fixture
def corpus(source: KVLayout, target: KVLayout) -> Corpus:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((PICTURES, source.tokens, source.state_dim))
    y = rng.standard_normal((PICTURES, target.tokens, target.state_dim))
    attention = rng.random((PICTURES, source.tokens))
    return Corpus(*(part.astype(np.float16) for part in (x, y, attention)))


def whole(frozen: FrozenMap, view: str, corpus: Corpus) -> np.ndarray[Any, Any]:
    return np.concatenate(list(frozen.look(view, corpus)))


def test_projected_states_of_a_bundle_are_what_its_backend_serves(
    bundle_info: Any, corpus: Corpus, source: KVLayout, target: KVLayout
) -> None:
    path, info = bundle_info
    frozen = FrozenMap.open(path, source, target)
    assert frozen.owner("projected") == frozen.owner("latents") == info.digest
    assert frozen.owner("native") == target.fingerprint
    bundle = Bundle.load(path, source, target)
    latents = bundle.encoder.project(corpus.x.astype(np.float32))
    np.testing.assert_allclose(whole(frozen, "latents", corpus), latents, atol=1e-5)
    kept = np.ones(latents.shape[:2], dtype=np.bool_)
    positions = np.arange(target.tokens, dtype=np.int64)
    _, values = bundle.backend("onnxruntime").project(latents, kept, positions)
    flat = whole(frozen, "projected", corpus)
    mine = flat.reshape(PICTURES, target.tokens, 2, target.layers, target.kv_heads, -1)[:, :, 1]
    np.testing.assert_allclose(values.transpose(1, 3, 0, 2, 4), mine, atol=2e-3)


def test_a_point_drops_and_rounds_as_a_frame_does(
    bundle_info: Any, corpus: Corpus, source: KVLayout, target: KVLayout
) -> None:
    path, _ = bundle_info
    exact = whole(FrozenMap.open(path, source, target), "latents", corpus)
    sent = whole(FrozenMap.open(path, source, target, "coarse"), "latents", corpus)
    there = np.abs(sent).sum(axis=-1) > 0
    assert (there.sum(axis=1) == 8).all()  # the point's token budget
    off = np.abs(sent - exact)[there]
    assert 0.01 < off.max() <= 0.26  # half of its steps of 0.5
    assert not np.allclose(
        whole(FrozenMap.open(path, source, target, "coarse"), "projected", corpus),
        whole(FrozenMap.open(path, source, target), "projected", corpus),
        atol=1e-2,
    )
    for name in ("nonsense", "picture"):
        with pytest.raises(ConfigError, match="no point"):
            FrozenMap.open(path, source, target, name)


def test_a_map_s_views_are_its_own_output_and_the_two_models_states(
    corpus: Corpus, source: KVLayout, target: KVLayout, tmp_path: Path
) -> None:
    made = Ridge().make(source, target).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    write(tmp_path / "map.safetensors", made)
    frozen = FrozenMap.open(tmp_path, source, target)
    with torch.no_grad():
        want = made(torch.from_numpy(corpus.x.astype(np.float32))).numpy()
    np.testing.assert_allclose(whole(frozen, "projected", corpus), want, atol=1e-5)
    np.testing.assert_array_equal(whole(frozen, "native", corpus), corpus.y)
    np.testing.assert_array_equal(whole(frozen, "edge", corpus), corpus.x)
    some = next(frozen.look("projected", corpus, np.array([3, 1])))
    np.testing.assert_allclose(some, want[[3, 1]], atol=1e-5)
    corpus.y[2, 0, 0] = np.nan
    with pytest.raises(FitError, match="NaN"):
        whole(frozen, "native", corpus)
    with pytest.raises(ConfigError, match="no view"):
        next(frozen.look("above", corpus))
