"""Making packages: what comes back, and what is derived."""

from __future__ import annotations

import dataclasses
import json
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projector import package as packages
from projector.package import KEYS, MASK, METADATA, PROVENANCE
from protos.errors import (
    BundleLayoutError,
    ConfigError,
)
from tests.projector.package.conftest import (
    CERTIFIED,
    LARGE,
    SMALL,
    WHEN,
    make,
    no_files,
    random_state,
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
