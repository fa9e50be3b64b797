"""Every backend computes the map; the map computes its formula; the graph is the map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from projector.bundle.load import Bundle
from projector.maps import Map, ServedMap
from projector.maps.mix import Mix
from projector.models.autocast import product_type
from projector.serving import backends
from projector.serving.backends import Backend, CloudFiles
from protos.errors import BundleFormatError, ConfigError, FrameMalformedError
from protos.layout import KVLayout
from protos.rotation import rotate
from protos.state import KVState
from reference.demo.halves import BUNDLE
from tests.projector.conftest import GPU, RANK, cloud_files, make_map

RUNNABLE = ["onnxruntime", "torch", "bfloat16"]
PLACES = [
    ("onnxruntime", "cpu"),
    ("torch", "cpu"),
    ("bfloat16", "cpu"),
    pytest.param("torch", "cuda", marks=GPU),
    pytest.param("bfloat16", "cuda", marks=GPU),
]
ERRORS = {"bfloat16": 0.02}
"""Largest error by backend, as a share of the largest number; 1e-4 for those in float32."""
START = 7


@pytest.fixture(scope="module", params=[0, 32], ids=["no mixing", "mixing"])
def made(
    request: pytest.FixtureRequest, source: KVLayout, target: KVLayout
) -> tuple[Map, CloudFiles]:
    one = make_map(source, target, mix_width=request.param)
    return one, cloud_files(one)


def frame(target: KVLayout, batch: int = 3) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(batch)
    latents = rng.standard_normal((batch, target.tokens, RANK)).astype(np.float32)
    kept = rng.random((batch, target.tokens)) > 0.4
    return latents, kept, np.arange(START, START + target.tokens)


def open_backend(name: str, files: CloudFiles, target: KVLayout, device: str = "cpu") -> Backend:
    return backends.get(name)(files, target, RANK, device=device)


@pytest.mark.parametrize("name, device", PLACES)
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_every_backend_computes_the_formula(
    made: tuple[Map, CloudFiles], target: KVLayout, name: str, device: str, batch: int
) -> None:
    """Reference in float64 NumPy, rotation by `protos.layout`."""
    half, files = made
    latents, kept, positions = frame(target, batch)
    keys, values = open_backend(name, files, target, device).project(latents, kept, positions)
    onto, rounding = half.onto(), half.rounding
    assert onto is not None and rounding is not None
    filled = np.where(kept[..., None], latents, rounding.empty.detach().numpy())
    with torch.inference_mode():
        z = half.double().latent(torch.from_numpy(filled.astype(np.float64))).numpy()
        half.float()
    up, mean, scale = (t.detach().double().numpy() for t in (onto, half.y_mean, half.y_scale))
    y = (z @ up) * scale + mean
    for row in range(batch):
        state = KVState.from_flat(y[row], target, positions)
        size = np.abs(state.values).max() * ERRORS.get(name, 1e-4)
        np.testing.assert_allclose(values[:, row], state.values, atol=size)
        truth = rotate(state.keys, target.rope, positions)
        np.testing.assert_allclose(keys[:, row], truth, atol=size)


@pytest.mark.parametrize("name, device", PLACES)
def test_what_a_dropped_row_holds_does_not_matter(
    made: tuple[Map, CloudFiles], target: KVLayout, name: str, device: str
) -> None:
    backend = open_backend(name, made[1], target, device)
    latents, kept, positions = frame(target)
    before = backend.project(latents, kept, positions)
    latents[~kept] = np.nan
    after = backend.project(latents, kept, positions)
    for one, other in zip(before, after, strict=True):
        assert np.isfinite(other).all() and (one == other).all()


@pytest.mark.skipif(product_type() is not torch.bfloat16, reason="no bfloat16 products here")
@pytest.mark.parametrize("bundle", sorted(BUNDLE.parent.iterdir()), ids=lambda path: path.name)
def test_a_frame_in_bfloat16_has_the_same_bits_whichever_frames_share_its_batch(
    bundle: Path,
) -> None:
    info = Bundle.peek(bundle)
    backend = Bundle.load(bundle, info.source, info.target).backend("bfloat16")
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((40, info.source.tokens, info.rank), dtype=np.float32)
    kept = rng.random(latents.shape[:2]) > 0.3
    positions = np.arange(START, START + info.target.tokens)
    together = backend.project(latents, kept, positions)
    for batch in (1, 2, 3, 5, 8, 16, 17, 33):
        some = backend.project(latents[-batch:], kept[-batch:], positions)
        for one, all_ in zip(some, together, strict=True):
            np.testing.assert_array_equal(one, all_[:, -batch:], err_msg=f"{batch} frames")


@pytest.mark.parametrize("name", RUNNABLE)
def test_wrong_shapes_are_refused_at_the_door(
    made: tuple[Map, CloudFiles], target: KVLayout, name: str
) -> None:
    backend = open_backend(name, made[1], target)
    latents, kept, positions = frame(target)
    for wrong in (
        (latents[:, :-1], kept, positions),
        (latents[..., :-1], kept, positions),
        (latents, kept[:1], positions),
        (latents, kept, positions[:-1]),
        (latents[0], kept[0], positions),
    ):
        with pytest.raises(FrameMalformedError, match="the map takes"):
            backend.project(*wrong)


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_cloud_half_that_cannot_run_is_a_format_error(target: KVLayout, name: str) -> None:
    with pytest.raises(BundleFormatError):
        open_backend(name, CloudFiles(weights=b"junk", graph=b"junk"), target)


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_device_that_is_not_there_is_a_config_error(
    made: tuple[Map, CloudFiles], target: KVLayout, name: str
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match="cuda"):
        backends.get(name)(made[1], target, RANK, device="cuda")


def test_every_backend_is_known() -> None:
    assert set(backends.BACKENDS) == {*RUNNABLE, "tensorrt"}
    with pytest.raises(ConfigError):
        backends.get("nosuch")


@pytest.mark.quick(1)
def test_tensorrt_says_what_it_lacks(made: tuple[Map, CloudFiles], target: KVLayout) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match="tensorrt"):
        open_backend("tensorrt", made[1], target)


@pytest.mark.parametrize("order", ["source", "target"])
def test_a_mixing_block_changes_nothing_before_training_and_mixes_after(
    source: KVLayout, target: KVLayout, order: str
) -> None:
    config = {"r": RANK}
    half: Any = Mix(inner="factors", config=config, width=32, order=order).make(source, target)
    z = torch.randn(2, target.tokens, RANK)
    with torch.no_grad():
        torch.testing.assert_close(half.latent(z), z)
        torch.nn.init.normal_(half.outward.weight)
        moved = z.clone()
        moved[:, 3] += 1.0
        change = (half.latent(moved) - half.latent(z)).abs().amax(dim=(0, 2))
    assert (change > 1e-6).all(), "every token hears of a change in one"


def test_the_map_can_be_trained_end_to_end(source: KVLayout, target: KVLayout) -> None:
    one = make_map(source, target).train()
    latents, kept, positions = frame(target)
    cos, sin = (torch.from_numpy(a) for a in target.rope.cos_sin(positions))
    keys, values = ServedMap(one)(torch.from_numpy(latents), torch.from_numpy(kept), cos, sin)
    (keys.square().mean() + values.square().mean()).backward()
    edge_half = {"inner.inward", "rounding.log_steps"}
    for name, parameter in one.named_parameters():
        if name in edge_half:
            continue
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
