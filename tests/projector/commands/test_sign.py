"""`projector sign`: a key is made once, and only intact bundles are signed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from projector.bundle.keys import TrustedKeys
from projector.bundle.load import Bundle
from protos.errors import (
    BundleCorruptError,
    BundleMissingError,
    ConfigError,
)
from protos.layout import KVLayout
from tests.projector.commands.conftest import Printed


def test_sign_makes_a_key_once_and_signs(
    printed: Printed, tiny: Path, tmp_path: Path, source: KVLayout, target: KVLayout
) -> None:
    key = tmp_path / "key.pem"
    with pytest.raises(ConfigError, match="keygen"):
        printed("sign", tiny, "--key", key)
    said = printed("sign", tiny, "--key", key, "--create")
    assert said.startswith("tiny version 3 is signed; ") and '"NAME" = "' in said
    shown = json.loads(printed("sign", tiny, "--key", key, "--json"))
    trusted = tmp_path / "trusted.toml"
    trusted.write_text(f'[keys]\n"build" = "{shown["key"]}"\n')
    loaded = Bundle.load(tiny, source, target, trusted=TrustedKeys.load(trusted))
    assert loaded.signer == "build" and loaded.digest == shown["digest"]
    with pytest.raises(ConfigError, match="File exists"):
        printed("sign", tiny, "--key", key, "--create")


def test_sign_refuses_a_damaged_bundle(printed: Printed, tiny: Path, tmp_path: Path) -> None:
    (tiny / "certificate.json").write_text("{}")
    with pytest.raises(BundleCorruptError):
        printed("sign", tiny, "--key", tmp_path / "key.pem", "--create")
    assert not (tiny / "signature.json").exists()
    with pytest.raises(BundleMissingError):
        printed("sign", tmp_path, "--key", tmp_path / "other.pem", "--create")
    assert not (tmp_path / "other.pem").exists()
