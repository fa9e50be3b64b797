"""Small packages, packages forged with every digest made to fit, and a place to write them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projector import package as packages
from projector.bundle.describe import BundleInfo
from projector.bundle.keys import SigningKey
from projector.bundle.load import Bundle
from projector.models.vlm import VLM
from projector.package import METADATA, PROVENANCE, Certification, Package
from projector.package.archive import pack
from projector.serving.backends import CloudFiles
from protos.errors import BridgeError
from protos.layout import KVLayout, RopeSpec
from protos.state import KVState
from tests.fakes.tiny_models import picture

WHEN = "2026-01-31T12:00:00Z"
CERTIFIED = Certification("gold", 0.125, 0.97, WHEN, "report 7")
ROPE = RopeSpec(1e4, 2, False, "default", 1.0, (1.0,))
SMALL = KVLayout("small", 1, 1, 2, ROPE, "float32", (1, 3), "t", "w")
LARGE = dataclasses.replace(SMALL, model_id="large", layers=2, weights_digest="x")


def random_state(layout: KVLayout, seed: int = 0) -> KVState:
    rng = np.random.default_rng(seed)
    shape = (layout.layers, layout.kv_heads, layout.tokens, layout.head_dim)
    attention = rng.random(layout.tokens).astype(np.float32)
    return KVState(
        keys=rng.standard_normal(shape).astype(np.float32),
        values=rng.standard_normal(shape).astype(np.float32),
        positions=np.arange(layout.tokens) + 5,
        grid=layout.grid,
        attention=attention / attention.sum(),
    )


def no_files(source: KVLayout, target: KVLayout, digest: str = "ab" * 32) -> Bundle:
    """A bundle that can be named, not run."""
    info = BundleInfo("b", 1, digest, source, target, 4, (), 0, (), {})
    return Bundle(info, None, CloudFiles(b"", b""), {}, Path())  # type: ignore[arg-type]


def make(layout: KVLayout = SMALL, kept: Any = (True, False, True), **over: Any) -> Package:
    fields = {
        "id": "p1",
        "created": WHEN,
        "creator": "me",
        "description": "a yard",
        "certification": CERTIFIED,
        "royalty_percent": 2.5,
    }
    state = over.pop("state", random_state(layout))
    bundle = over.pop("bundle", None) or no_files(layout, LARGE)
    return packages.create(state, np.array(kept), layout, bundle, **{**fields, **over})


def members_of(package: Package) -> dict[str, Any]:
    return {**package.members, PROVENANCE: package.info.provenance.to_bytes()}


def archive(members: dict[str, Any]) -> bytes:
    """Any members as the writer would lay them out, their checksums right."""
    return b"".join(pack(members))


def refused(path: Path, blob: bytes) -> BridgeError:
    path.write_bytes(blob)
    with pytest.raises(BridgeError) as caught:
        packages.verify(path)
    with pytest.raises(BridgeError):
        packages.read(path)
    return caught.value


def forged(
    package: Package, change: Callable[[dict[str, Any]], None], name: str = METADATA
) -> bytes:
    """A package whose JSON member says something else, every digest and checksum made to fit."""
    plain = json.loads(bytes(members_of(package)[name]))
    change(plain)
    return with_member(package, name, packages_json(plain))


def packages_json(plain: Any) -> bytes:
    return (json.dumps(plain, indent=1, sort_keys=True) + "\n").encode()


def with_member(package: Package, name: str, blob: bytes) -> bytes:
    members = {**package.members, name: blob}
    provenance = json.loads(package.info.provenance.to_bytes())
    if name == PROVENANCE:
        provenance = json.loads(blob)
        del members[PROVENANCE]
    else:
        provenance["members"][name] = {
            "bytes": len(blob),
            "sha256": hashlib.sha256(blob).hexdigest(),
        }
    rest = {k: v for k, v in provenance.items() if k not in ("digest", "signature")}
    provenance["digest"] = hashlib.sha256(packages_json(rest)).hexdigest()
    return archive({**members, PROVENANCE: packages_json(provenance)})


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.create(tmp_path / "key.pem")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "packages"
    folder.mkdir()
    return folder / "p.neural-bridge"


@pytest.fixture(scope="session")
def bundle(bundle_info: Any) -> Bundle:
    path, info = bundle_info
    return Bundle.load(path, info.source, info.target)


@pytest.fixture(scope="session")
def seen(vlms: dict[str, VLM]) -> KVState:
    vlm = vlms["idefics3"]
    return vlm.states(vlm.prefill([picture(1)]))[0]
