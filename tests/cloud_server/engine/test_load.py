"""Bundles that cannot be served are refused at start."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

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
