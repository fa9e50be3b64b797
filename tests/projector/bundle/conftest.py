"""A bundle on disk to damage, and ways to damage it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from projector.bundle.describe import BundleInfo, canonical_json
from projector.bundle.keys import SigningKey


@pytest.fixture
def folder(bundle_info: tuple[Path, BundleInfo], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_info[0], tmp_path / "copy"))


def rewrite(folder: Path, **change: Any) -> None:
    """Change fields of the description (None removes one) and seal it again."""
    file = folder / "bundle.json"
    plain = {**json.loads(file.read_text()), **change}
    plain = {name: value for name, value in plain.items() if value is not None}
    del plain["digest"]
    plain["digest"] = hashlib.sha256(canonical_json(plain)).hexdigest()
    file.write_bytes(canonical_json(plain))


def replace(folder: Path, name: str, blob: bytes) -> None:
    """Put another file in place, and say so in the description."""
    files = json.loads((folder / "bundle.json").read_text())["files"]
    files[name] = {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
    (folder / name).write_bytes(blob)
    rewrite(folder, files=files)


def edit(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.create(tmp_path / "key.pem")
