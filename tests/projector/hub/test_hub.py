"""A hub on disk: written, read back, altered, signed, of another large model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projector.bundle.keys import SigningKey, TrustedKeys
from projector.hub.hub import Hub, Member, sign_hub, write_hub
from projector.hub.space import LatentSpace, fit_reading
from protos.entropy.tables import EntropyTables
from protos.errors import (
    BundleCorruptError,
    BundleFormatError,
    BundleLayoutError,
    BundleMissingError,
    SignatureError,
)
from protos.layout import KVLayout
from protos.points import OperatingPoint

R = 8


def make_space(target: KVLayout, **over: Any) -> LatentSpace:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    levels = np.rint(rng.standard_normal((400, R)) * 3).astype(np.int64)
    fields: dict[str, Any] = {
        "target_fingerprint": target.fingerprint,
        "grid": target.grid,
        "points": (OperatingPoint(20, "x1", quantizer="uniform", rank=R, steps="x1"),),
        "reading": normal(target.state_dim, R),
        "y_mean": normal(target.state_dim),
        "y_scale": np.ones(target.state_dim, dtype=np.float32),
        "centre": normal(target.tokens, R),
        "latent_mean": normal(R),
        "latent_scale": np.ones(R, dtype=np.float32),
        "latent_inv_cov": np.eye(R, dtype=np.float32),
        "steps": {"x1": np.full(R, 0.3, dtype=np.float32)},
        "entropy": {"x1": EntropyTables.fit(levels)},
    }
    return LatentSpace(**{**fields, **over})


@pytest.fixture
def hub(tmp_path: Path, bundle_parts: dict[str, Any], target: KVLayout) -> Path:
    folder = tmp_path / "hub"
    write_hub(
        folder,
        id="yard",
        version=2,
        target=target,
        space=make_space(target),
        cloud=bundle_parts["cloud"],
        members=[Member("tiny", 3, "ab" * 32, "cd" * 32)],
        certificate={"reading": {"explained": 0.7}},
    )
    return folder


def test_a_hub_reads_back_as_it_was_written(hub: Path, target: KVLayout) -> None:
    found = Hub.load(hub, target)
    assert (found.info.id, found.info.version, found.info.members[0].id) == ("yard", 2, "tiny")
    assert found.space.to_bytes() == make_space(target).to_bytes()
    assert found.certificate["reading"]["explained"] == 0.7


@pytest.mark.parametrize("name", ["hub.json", "space.safetensors", "cloud.onnx"])
def test_a_flipped_bit_is_refused(hub: Path, target: KVLayout, name: str) -> None:
    blob = bytearray((hub / name).read_bytes())
    blob[len(blob) // 2] ^= 1
    (hub / name).write_bytes(blob)
    with pytest.raises(BundleCorruptError):
        Hub.load(hub, target)


def test_a_missing_file_is_named(hub: Path, target: KVLayout) -> None:
    (hub / "space.safetensors").unlink()
    with pytest.raises(BundleMissingError, match=r"space\.safetensors"):
        Hub.load(hub, target)


def test_a_hub_of_another_large_model_is_refused(hub: Path, source: KVLayout) -> None:
    with pytest.raises(BundleLayoutError, match="the hub is of a large model"):
        Hub.load(hub, source)


def test_a_hub_is_signed_and_a_bundles_key_must_be_trusted(hub: Path, target: KVLayout) -> None:
    key = SigningKey.create(hub.parent / "key.pem")
    other = SigningKey.create(hub.parent / "other.pem")
    trusted = TrustedKeys({key.sign(b"").key: "maker"})
    with pytest.raises(SignatureError):
        Hub.load(hub, target, trusted)
    sign_hub(hub, other)
    with pytest.raises(SignatureError):
        Hub.load(hub, target, trusted)
    sign_hub(hub, key)
    assert Hub.load(hub, target, trusted).signer == "maker"


@pytest.mark.parametrize(
    "over",
    [
        {"latent_scale": np.zeros(R, dtype=np.float32)},
        {"centre": np.zeros((3, R), dtype=np.float32)},
        {"entropy": {}},
    ],
    ids=["no deviation", "another grid", "no tables"],
)
def test_a_contradicting_space_is_refused(target: KVLayout, over: dict[str, Any]) -> None:
    with pytest.raises(BundleFormatError):
        make_space(target, **over)


def test_a_grid_that_is_none_is_refused(target: KVLayout) -> None:
    blob = make_space(target).to_bytes()
    rows, columns = target.grid
    wrong = blob.replace(f'\\"grid\\":[{rows},{columns}]'.encode(), b'\\"grid\\":[0,0]')
    with pytest.raises(BundleFormatError):
        LatentSpace.from_bytes(wrong)


def test_latents_are_read_from_the_large_models_cache() -> None:
    rng = np.random.default_rng(1)
    y = rng.standard_normal((12, 9, 20)).astype(np.float32)
    z = y @ rng.standard_normal((20, R)).astype(np.float32) + 2
    found = fit_reading(y, z, weight=1e-6)
    normal = (y - found.y_stats.mean) / found.y_stats.scale
    np.testing.assert_allclose(normal @ found.matrix + found.z_stats.mean, z, atol=1e-2)
    assert found.explained > 0.999
