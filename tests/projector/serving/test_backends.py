"""Every backend computes the map; the map computes its formula; the graph is the map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from projector.maps.cloud_half import CloudConfig, CloudHalf
from projector.serving import backends, export
from projector.serving.backends import Backend, CloudFiles
from protos.errors import BundleFormatError, ConfigError, FrameMalformedError
from protos.layout import KVLayout
from protos.rotation import rotate
from protos.state import KVState
from tests.projector.conftest import GPU, RANK, make_half

RUNNABLE = ["onnxruntime", "torch"]
PLACES = [("onnxruntime", "cpu"), ("torch", "cpu"), pytest.param("torch", "cuda", marks=GPU)]
START = 7


@pytest.fixture(scope="module", params=[0, 32], ids=["no mixing", "mixing"])
def made(request: pytest.FixtureRequest, target: KVLayout) -> tuple[CloudHalf, CloudFiles]:
    half = make_half(target, mix_width=request.param)
    return half, CloudFiles(weights=half.to_bytes(), graph=export.export(half).graph)


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
    made: tuple[CloudHalf, CloudFiles], target: KVLayout, name: str, device: str, batch: int
) -> None:
    """Reference in float64 NumPy, rotation by `protos.layout`."""
    half, files = made
    latents, kept, positions = frame(target, batch)
    keys, values = open_backend(name, files, target, device).project(latents, kept, positions)
    filled = np.where(kept[..., None], latents, half.empty.detach().numpy())
    z = filled.astype(np.float64)
    if half.mix is not None:
        with torch.inference_mode():
            z = half.mix.double()(*[torch.from_numpy(z)] * 2).numpy()
            half.mix.float()
    up, mean, scale = (t.detach().double().numpy() for t in (half.up, half.y_mean, half.y_scale))
    y = (z @ up) * scale + mean
    for row in range(batch):
        state = KVState.from_flat(y[row], target, positions)
        size = np.abs(state.values).max()
        np.testing.assert_allclose(values[:, row], state.values, atol=1e-4 * size)
        truth = rotate(state.keys, target.rope, positions)
        np.testing.assert_allclose(keys[:, row], truth, atol=1e-4 * size)


@pytest.mark.parametrize("name, device", PLACES)
def test_what_a_dropped_row_holds_does_not_matter(
    made: tuple[CloudHalf, CloudFiles], target: KVLayout, name: str, device: str
) -> None:
    backend = open_backend(name, made[1], target, device)
    latents, kept, positions = frame(target)
    before = backend.project(latents, kept, positions)
    latents[~kept] = np.nan
    after = backend.project(latents, kept, positions)
    for one, other in zip(before, after, strict=True):
        assert np.isfinite(other).all() and (one == other).all()


@pytest.mark.parametrize("name", RUNNABLE)
def test_wrong_shapes_are_refused_at_the_door(
    made: tuple[CloudHalf, CloudFiles], target: KVLayout, name: str
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
    made: tuple[CloudHalf, CloudFiles], target: KVLayout, name: str
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match="cuda"):
        backends.get(name)(made[1], target, RANK, device="cuda")


def test_every_backend_is_known() -> None:
    assert set(backends.BACKENDS) == {*RUNNABLE, "tensorrt"}
    with pytest.raises(ConfigError):
        backends.get("nosuch")


def test_tensorrt_says_what_it_lacks(made: tuple[CloudHalf, CloudFiles], target: KVLayout) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match="tensorrt"):
        open_backend("tensorrt", made[1], target)


def test_a_mixing_block_changes_nothing_before_training_and_mixes_after(target: KVLayout) -> None:
    config = CloudConfig.of(target, RANK, mix_width=32)
    half = CloudHalf(config)
    assert half.mix is not None
    z = torch.randn(2, target.tokens, RANK)
    with torch.no_grad():
        torch.testing.assert_close(half.mix(z, z), z)
        torch.nn.init.normal_(half.mix.outward.weight)
        moved = z.clone()
        moved[:, 3] += 1.0
        change = (half.mix(moved, moved) - half.mix(z, z)).abs().amax(dim=(0, 2))
    assert (change > 1e-6).all(), "every token hears of a change in one"


def test_the_map_can_be_trained_end_to_end(target: KVLayout) -> None:
    half = make_half(target).train()
    latents, kept, positions = frame(target)
    cos, sin = (torch.from_numpy(a) for a in target.rope.cos_sin(positions))
    keys, values = half(torch.from_numpy(latents), torch.from_numpy(kept), cos, sin)
    (keys.square().mean() + values.square().mean()).backward()
    for name, parameter in half.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"mix_width": 512},
        {"mix_width": 30},
        {"rotary_dim": 3},
        {"rotary_dim": 64},
        {"inner": 2, "mix_width": 32},
        {"inner": 99},
    ],
)
def test_a_shape_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    fields = {"rank": 4, "layers": 1, "kv_heads": 1, "head_dim": 8, "tokens": 9}
    with pytest.raises(BundleFormatError):
        CloudConfig(**{**fields, **wrong})
