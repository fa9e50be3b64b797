"""Using packages: the target answers from one as it does through the bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projector import package as packages
from projector.bundle.load import Bundle
from projector.bundle.write import write_bundle
from projector.models.vlm import VLM
from projector.package import CONFIG, Package
from protos.errors import (
    BundleLayoutError,
    BundleVersionError,
    ConfigError,
    NonFiniteError,
    PackageFormatError,
)
from protos.layout import KVLayout
from protos.state import KVState
from tests.projector.package.conftest import (
    forged,
    make,
    refused,
    with_member,
)


def direct(
    state: KVState, kept: Any, bundle: Bundle, vlm: VLM, question: str
) -> tuple[Any, Any, str]:
    """The way through the bundle with no package in between."""
    grid = np.zeros((len(kept), bundle.info.rank), dtype=np.float32)
    grid[kept] = bundle.encoder.project(state.flat())[kept]
    keys, values = bundle.backend().project(grid[None], kept[None], vlm.positions)
    said = vlm.generate_text(vlm.scene_cache(keys, values), [question])
    return keys, values, said[0]


@pytest.mark.parametrize("codec", ["float32", "fp8_e4m3"])
def test_the_answer_is_that_of_the_direct_way_through_the_bundle(
    file: Path, vlms: dict[str, VLM], seen: KVState, bundle: Bundle, codec: str
) -> None:
    vlm, layout = vlms["llava-llama"], vlms["idefics3"].layout
    kept = np.arange(16) % 3 > 0
    made = make(layout, kept, state=seen, bundle=bundle, codec=codec)
    packages.write(made, file)
    package = packages.read(file)
    # Packed without loss it is the state itself that counts; packed in FP8, the state that is left.
    state = seen if codec == "float32" else package.state()
    keys, values, said = direct(state, kept, bundle, vlm, "what is this")
    ours = packages.project(package, bundle, vlm.positions)
    np.testing.assert_array_equal(ours[0], keys)
    np.testing.assert_array_equal(ours[1], values)
    assert packages.answer(package, bundle, vlm, "what is this") == said != ""
    exact = direct(seen, kept, bundle, vlm, "what is this")[0]
    assert np.linalg.norm(ours[0] - exact) < 0.1 * np.linalg.norm(exact)


@pytest.fixture
def thought(seen: KVState, bundle: Bundle, source: KVLayout) -> Iterator[Package]:
    yield make(source, np.ones(16, dtype=np.bool_), state=seen, bundle=bundle, embed=True)


def test_an_embedded_bundle_suffices(file: Path, thought: Package, bundle: Bundle) -> None:
    packages.write(thought, file)
    package = packages.read(file)
    inside = packages.fitting_bundle(package, None, bundle.info.target)
    assert inside.info == bundle.info
    assert inside.cloud == bundle.cloud
    packages.verify(file)


def test_another_bundle_or_model_is_refused(
    thought: Package,
    bundle: Bundle,
    vlms: dict[str, VLM],
    bundle_parts: dict[str, Any],
    tmp_path: Path,
) -> None:
    with pytest.raises(BundleLayoutError, match="target"):
        packages.fitting_bundle(thought, None, vlms["llava-qwen2"].layout)
    write_bundle(tmp_path, **(bundle_parts | {"version": 4}))
    with pytest.raises(BundleVersionError, match="version 4"):
        packages.fitting_bundle(thought, tmp_path, bundle.info.target)
    metadata = thought.info.metadata
    other = dataclasses.replace(metadata, source=packages.Model("else", "ab" * 32))
    with pytest.raises(BundleLayoutError, match="else"):
        packages.check_fit(dataclasses.replace(thought.info, metadata=other), bundle)
    lying = dataclasses.replace(metadata, head_dim=metadata.head_dim + 1)
    with pytest.raises(BundleLayoutError, match="carries"):
        packages.check_fit(dataclasses.replace(thought.info, metadata=lying), bundle)


def test_without_a_bundle_the_one_to_name_is_named(
    seen: KVState, bundle: Bundle, source: KVLayout
) -> None:
    bare = make(source, np.ones(16, dtype=np.bool_), state=seen, bundle=bundle)
    with pytest.raises(ConfigError, match="'tiny' version 3"):
        packages.fitting_bundle(bare, None, bundle.info.target)


@pytest.mark.parametrize(
    "change", [{"bundle_digest": "ab" * 32}, {"rank": 3}, {"bundle_id": "x"}, {"embedded": False}]
)
def test_an_embedded_bundle_that_is_not_the_one_named_is_refused(
    file: Path, thought: Package, change: dict[str, Any]
) -> None:
    blob = forged(thought, lambda plain: plain.update(change), CONFIG)
    assert isinstance(refused(file, blob), PackageFormatError)


def test_an_embedded_file_that_is_not_the_bundles_is_refused(file: Path, thought: Package) -> None:
    blob = with_member(thought, "w_matrix/cloud.onnx", b"another graph")
    assert isinstance(refused(file, blob), PackageFormatError)


def test_numbers_too_large_to_project_are_a_typed_error(
    seen: KVState, bundle: Bundle, source: KVLayout, vlms: dict[str, VLM]
) -> None:
    large = dataclasses.replace(seen, keys=np.full_like(seen.keys, 3e38))
    made = make(source, np.ones(16, dtype=np.bool_), state=large, bundle=bundle, codec="float32")
    with pytest.raises(NonFiniteError):
        packages.project(made, bundle, vlms["llava-llama"].positions)
