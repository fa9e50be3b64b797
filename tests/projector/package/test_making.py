"""Making packages and using them: what comes back, what is derived, what the target answers."""

from __future__ import annotations

import dataclasses
import json
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projector import package as packages
from projector.bundle.load import Bundle
from projector.bundle.write import write_bundle
from projector.models.vlm import VLM
from projector.package import CONFIG, KEYS, MASK, METADATA, PROVENANCE, Package
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
    CERTIFIED,
    LARGE,
    SMALL,
    WHEN,
    forged,
    make,
    no_files,
    random_state,
    refused,
    with_member,
)

# ---------------------------------------------------------------------- what comes back


@pytest.mark.parametrize("codec", packages.CODECS)
def test_what_is_written_is_read_back(file: Path, codec: str) -> None:
    made = make(codec=codec, transformation_quality=0.75)
    packages.write(made, file)
    read = packages.read(file)
    assert read.info == made.info == packages.verify(file).info == packages.peek(file)
    assert read.info.metadata.certification == CERTIFIED
    assert read.info.metadata.compression_ratio == 2 / 3
    assert {name: bytes(blob) for name, blob in read.members.items()} == dict(made.members)
    state, original = read.state(), random_state(SMALL)
    assert (state.grid, state.positions.tolist()) == ((1, 3), [5, 6, 7])
    np.testing.assert_array_equal(state.attention, original.attention)
    assert read.kept.tolist() == [True, False, True]
    # Half a step of an E4M3 mantissa, of float16's, or nothing at all.
    error = {"fp8_e4m3": 2**-4, "float16": 2**-11, "float32": 0}[codec]
    for array, exact in ((state.keys, original.keys), (state.values, original.values)):
        assert not array[:, :, 1].any()
        np.testing.assert_allclose(array[:, :, [0, 2]], exact[:, :, [0, 2]], rtol=error, atol=1e-3)
        if not error:
            np.testing.assert_array_equal(array[:, :, [0, 2]], exact[:, :, [0, 2]])


def test_it_is_a_zip_and_safetensors_that_other_programs_read(file: Path) -> None:
    from safetensors.torch import load

    made = make()
    packages.write(made, file)
    with zipfile.ZipFile(file) as opened:
        assert opened.testzip() is None
        assert [info.filename for info in opened.infolist()] == [*made.members, PROVENANCE]
        assert all(i.compress_type == zipfile.ZIP_STORED for i in opened.infolist())
        assert all(stat.S_ISREG(i.external_attr >> 16) for i in opened.infolist())
        keys, mask = load(opened.read(KEYS)), load(opened.read(MASK))
        assert json.loads(opened.read(METADATA))["source"]["model_id"] == "small"
    decoded = (keys["codes"].float() * keys["scale"]).numpy()
    np.testing.assert_array_equal(decoded, made.state().keys[:, :, [0, 2]])
    assert mask["kept"].tolist() == [True, False, True]
    assert mask["grid"].tolist() == [1, 3]


def test_equal_contents_give_equal_files_and_digests(file: Path) -> None:
    packages.write(make(), file)
    again = file.with_name("again")
    packages.write(make(), again)
    assert file.read_bytes() == again.read_bytes()
    assert make().info.digest != make(description="another").info.digest
    assert make().info.digest != make(state=random_state(SMALL, 1)).info.digest


def test_fp8_is_a_quarter_of_the_numbers() -> None:
    layout = dataclasses.replace(SMALL, layers=4, kv_heads=2, head_dim=16, grid=(8, 32))
    made = make(layout, np.ones(256, dtype=np.bool_))
    numbers = layout.tokens * layout.state_dim // 2
    assert len(made.members[KEYS]) < 1.1 * numbers


@pytest.mark.parametrize("value", [0.0, 1e-38, 3e38])
@pytest.mark.parametrize("codec", packages.CODECS)
def test_extreme_channels_survive(value: float, codec: str) -> None:
    state = random_state(SMALL)
    state.keys[...] = value
    got = make(state=state, codec=codec).state().keys[:, :, [0, 2]]
    np.testing.assert_allclose(got, value, rtol=1e-3, atol=1e-30)


# ---------------------------------------------------------------------- derivations


def test_selecting_tokens_loses_nothing_else() -> None:
    root = make(kept=(True, True, True))
    child = packages.derive(
        root, id="p2", created=WHEN, creator="you", kept=np.array([False, True, True])
    )
    np.testing.assert_array_equal(child.state().keys[:, :, 1:], root.state().keys[:, :, 1:])
    assert child.info.provenance.royalty_percent == 0


def test_quality_and_certification_are_of_what_was_measured() -> None:
    root = make(kept=(True, True, True), codec="float16", transformation_quality=0.93)
    fields: dict[str, Any] = {"created": WHEN, "creator": "you"}
    few = packages.derive(root, id="p2", kept=np.array([False, True, True]), **fields)
    coarse = packages.derive(root, id="p2", codec="fp8_e4m3", **fields)
    named = packages.derive(root, id="p2", description="the same", **fields)
    for child in (few, coarse):
        said = child.info.metadata
        assert (said.transformation_quality, said.certification) == (None, None)
    assert named.info.metadata.certification == CERTIFIED
    assert named.info.metadata.transformation_quality == 0.93


def test_another_bundle_takes_the_certification_away(file: Path) -> None:
    root = make()
    other = no_files(SMALL, dataclasses.replace(LARGE, model_id="other"), "cd" * 32)
    child = packages.derive(root, id="p2", created=WHEN, creator="you", bundle=other)
    assert child.info.metadata.target.model_id == "other"
    assert child.info.metadata.certification is None
    assert child.info.provenance.derivation == ("retarget",)
    with pytest.raises(BundleLayoutError):
        packages.derive(
            root, id="p2", created=WHEN, creator="you", bundle=no_files(LARGE, SMALL, "cd" * 32)
        )


def test_a_derivation_that_changes_nothing_or_adds_tokens_is_refused() -> None:
    root = make()
    fields: dict[str, Any] = {"id": "p2", "created": WHEN, "creator": "you"}
    with pytest.raises(ConfigError, match="nothing"):
        packages.derive(root, **fields, description="a yard", codec="fp8_e4m3", kept=root.kept)
    for kept in ([True, True, True], [False, False, False], [True, True]):
        with pytest.raises(ConfigError):
            packages.derive(root, **fields, kept=np.array(kept))


# ---------------------------------------------------------------------- using it


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
