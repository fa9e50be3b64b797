"""Bundles that cannot be served are refused at start."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from cloud_server.engine.bundles import LoadedBundles
from cloud_server.engine.jobs import Load, Loaded, Offer
from cloud_server.engine.transformers import TransformersEngine
from cloud_server.settings import load
from projector.bundle.keys import SigningKey
from projector.bundle.load import Bundle
from projector.bundle.sign import sign_bundle
from projector.models.vlm import VLM
from protos.errors import (
    BundleLayoutError,
    ConfigError,
    SignatureError,
)
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files
from tests.fakes import tiny_models


def test_two_bundles_for_one_edge_model_are_refused_at_start(files: Files, tmp_path: Path) -> None:
    target = VLM.load(files.model).layout
    twin = stage.write_random_bundle(
        tmp_path / "twin", target, stage.SOURCE, files.cloud, version=2
    )
    settings = load({"model": files.model, "bundles": [files.bundle, twin]}, environ=stage.DEVICE)
    with pytest.raises(ConfigError, match="same edge"):
        TransformersEngine(settings, lambda event: None).load()


def test_a_bundle_for_another_large_model_is_refused_at_start(files: Files, tmp_path: Path) -> None:
    other = tiny_models.tiny_llava(tmp_path, seed=9)
    settings = load({"model": other, "bundles": [files.bundle]}, environ=stage.DEVICE)
    with pytest.raises(BundleLayoutError, match="weights_digest"):
        TransformersEngine(settings, lambda event: None).load()


def test_with_trusted_keys_only_what_they_signed_is_served(files: Files, tmp_path: Path) -> None:
    mine = tmp_path / "bundle"
    shutil.copytree(files.bundle, mine)
    key = SigningKey.create(tmp_path / "key.pem")
    trusted = tmp_path / "trusted.toml"
    trusted.write_text(f'[keys]\n"build server" = "{key.public}"\n')
    given = {"model": files.model, "bundles": [mine], "threads": 1, "trusted_keys": trusted}
    with pytest.raises(SignatureError, match="not signed"):
        TransformersEngine(load(given, environ=stage.DEVICE), lambda event: None).load()
    sign_bundle(mine, key)
    (offer,) = TransformersEngine(load(given, environ=stage.DEVICE), lambda event: None).load()
    assert offer.bundle_digest == Bundle.peek(mine).digest


def test_edge_models_of_one_hub_share_its_cloud_half(files: Files, tmp_path: Path) -> None:
    """Memory must not grow with edge models."""
    target = VLM.load(files.model).layout
    folders = [
        stage.write_random_bundle(tmp_path / name, target, layout, files.cloud)
        for name, layout in (("a", stage.SOURCE), ("b", stage.OTHER_SOURCE))
    ]
    hot = stage.write_random_bundle(tmp_path / "c", target, stage.STRANGER, files.cloud)
    read = threading.Event()
    made = LoadedBundles(load({"model": files.model}, environ=stage.DEVICE), read.set)
    loaded = [Bundle.load(path, Bundle.peek(path).source, target) for path in folders]
    made.open(loaded, target, threads=1)
    (one, backend), (two, other) = (made[bundle.digest] for bundle in loaded)
    assert backend is other
    assert one.cloud.weights is two.cloud.weights
    made.unload(one.digest)
    later = Load(Bundle.peek(hot).digest, str(hot))
    made.load(later)
    assert read.wait(60)
    offer, loaded_later = made.take()
    assert isinstance(offer, Offer) and isinstance(loaded_later, Loaded)
    assert offer.tokens == stage.STRANGER.tokens
    assert loaded_later.digest == later.digest
    assert made[later.digest][1] is other  # hot, and after the first of them has gone
