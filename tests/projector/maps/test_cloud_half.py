"""Bundles of an earlier form are read into the one map class, and compute what their graphs do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from projector.bundle.load import Bundle
from projector.maps import is_cloud_half, is_map, load
from projector.maps.cloud_half import CLOUD_HALF, take_edge_half
from protos.errors import BundleFormatError

SHIPPED = Path(__file__).parents[3] / "reference" / "bundles"
BUNDLES = sorted(path for path in SHIPPED.iterdir() if path.is_dir())


@pytest.fixture(scope="module", params=BUNDLES, ids=[path.name for path in BUNDLES])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    info = Bundle.peek(request.param)
    return Bundle.load(request.param, info.source, info.target)


def described(blob: bytes, **changed: Any) -> bytes:
    """The blob with other entries in its configuration."""
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    config = json.loads(header["__metadata__"][CLOUD_HALF]) | changed
    header["__metadata__"][CLOUD_HALF] = json.dumps(config)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + blob[8 + length :]


def test_the_map_computes_what_the_graph_computes(bundle: Bundle) -> None:
    info = bundle.info
    assert is_cloud_half(bundle.cloud.weights) and not is_map(bundle.cloud.weights)
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((3, info.source.tokens, info.rank)).astype(np.float32)
    kept = rng.random(latents.shape[:2]) > 0.3
    latents[~kept] = np.nan
    positions = np.arange(5, 5 + info.target.tokens)
    graph, weights = (
        bundle.backend(name).project(latents, kept, positions) for name in ("onnxruntime", "torch")
    )
    for theirs, mine in zip(graph, weights, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * np.abs(theirs).max())


def test_with_the_encoders_half_it_is_the_whole_map(bundle: Bundle) -> None:
    info, encoder = bundle.info, bundle.encoder
    made = load(bundle.cloud.weights, info.source, info.target)
    take_edge_half(made, encoder.x_mean, encoder.x_scale, encoder.projection)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, info.source.tokens, info.source.state_dim)).astype(np.float32)
    positions = np.arange(info.target.tokens)
    every = np.ones(x.shape[:2], dtype=np.bool_)
    _, values = bundle.backend().project(encoder.project(x), every, positions)
    with torch.no_grad():
        states = made(torch.from_numpy(x)).numpy()
    target = info.target
    shape = (2, target.tokens, 2, target.layers, target.kv_heads, target.head_dim)
    mine = states.reshape(shape)[:, :, 1].transpose(2, 0, 3, 1, 4)
    np.testing.assert_allclose(mine, values, atol=1e-4 * np.abs(values).max())


def test_what_was_read_is_written_in_todays_form_and_computes_the_same(bundle: Bundle) -> None:
    info = bundle.info
    made = load(bundle.cloud.weights, info.source, info.target)
    again = load(made.to_bytes(), info.source, info.target)
    z = torch.randn(2, info.source.tokens, info.rank)
    torch.testing.assert_close(again.cloud(z), made.cloud(z), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rank": "32"}, "not a cloud half"),
        ({"more": 1}, "not a cloud half"),
        ({"layers": 7}, "the cloud half is for .layers, heads, head_dim."),
        ({"tokens": 9}, "the cloud half is for .tokens in, tokens out"),
        ({"rotary_dim": 32}, "the cloud half is for .tokens in, tokens out"),
        ({"mix_expand": 4}, "no version wrote"),
        ({"rank": 0}, "do not fit its configuration"),
        ({"inner": 2}, "do not fit its configuration"),
        ({"mix_width": 512}, "do not fit its configuration"),
        ({"mix_width": 30}, "do not fit its configuration"),
        ({"mix_depth": 10**9}, "do not fit its configuration"),
        ({"mix_depth": 3}, "do not fit its configuration"),
    ],
)
def test_a_cloud_half_that_lies_about_itself_is_refused(changed: dict[str, Any], said: str) -> None:
    info = Bundle.peek(BUNDLES[0])
    blob = (BUNDLES[0] / "cloud.safetensors").read_bytes()
    load(described(blob), info.source, info.target)
    with pytest.raises(BundleFormatError, match=said):
        load(described(blob, **changed), info.source, info.target)


def test_a_cloud_half_of_other_layouts_or_cut_short_is_refused() -> None:
    info = Bundle.peek(BUNDLES[0])
    blob = (BUNDLES[0] / "cloud.safetensors").read_bytes()
    with pytest.raises(BundleFormatError, match="the cloud half is for"):
        load(blob, replace(info.source, grid=(5, 5)), info.target)
    with pytest.raises(BundleFormatError, match="not a cloud half"):
        load(blob[:-4], info.source, info.target)
