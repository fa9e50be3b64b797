"""A bundle is believed bit by bit, and only for the models it was trained for."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projector.bundle.describe import BundleInfo
from projector.bundle.files import (
    CERTIFICATE,
    FEEDBACK_FILES,
    FILES,
)
from projector.bundle.keys import SigningKey, TrustedKeys
from projector.bundle.load import Bundle
from projector.bundle.sign import sign_bundle
from projector.bundle.write import write_bundle
from projector.models.vlm import VLM
from protos.errors import (
    BundleCorruptError,
    BundleLayoutError,
    BundleMissingError,
    BundleVersionError,
    ConfigError,
)
from protos.layout import KVLayout
from tests.fakes.tiny_models import picture
from tests.projector.bundle.conftest import replace
from tests.projector.conftest import make_encoder


def test_what_was_written_is_what_is_loaded(
    bundle_info: tuple[Path, BundleInfo],
    bundle_parts: dict[str, Any],
    source: KVLayout,
    target: KVLayout,
) -> None:
    path, info = bundle_info
    loaded = Bundle.load(path, source, target, version=3)
    assert loaded.info == info == Bundle.peek(path)
    assert loaded.digest == info.digest and len(info.digest) == 64
    assert loaded.encoder.digest == bundle_parts["encoder"].digest
    assert loaded.cloud == bundle_parts["cloud"]
    assert loaded.certificate == {"agreement": 0.5}
    assert (info.ladder, info.default_point) == ((0, 1, 254), 1)
    by_name = Bundle.load(path, source.fingerprint, target.fingerprint)
    assert by_name.digest == loaded.digest


def test_the_digest_changes_with_any_part(
    bundle_parts: dict[str, Any], bundle_info: tuple[Path, BundleInfo], tmp_path: Path
) -> None:
    digests = {bundle_info[1].digest}
    for number, change in enumerate(
        [
            {"version": 4},
            {"certificate": {"agreement": 0.6}},
            {"encoder": make_encoder(bundle_parts["source"], selector="kv_norm")},
            {"default_point": 0},
        ]
    ):
        info = write_bundle(tmp_path / str(number), **{**bundle_parts, **change})
        digests.add(info.digest)
    assert len(digests) == 5


def test_a_way_back_is_loaded_with_the_rest_and_its_absence_changes_nothing(
    bundle_info: tuple[Path, BundleInfo],
    two_way: dict[str, Any],
    source: KVLayout,
    target: KVLayout,
    tmp_path: Path,
) -> None:
    info = write_bundle(tmp_path, **two_way)
    loaded = Bundle.load(tmp_path, source, target)
    assert loaded.feedback is not None
    assert loaded.feedback.encoder.digest == two_way["feedback"].encoder.digest
    assert loaded.feedback.decoder.digest == two_way["feedback"].decoder.digest
    assert info.names == (*FILES, *FEEDBACK_FILES)
    assert Bundle.load(bundle_info[0], source, target).feedback is None
    again = write_bundle(tmp_path, **{**two_way, "feedback": None})
    assert again == bundle_info[1], "without a way back it is what it was before there was any"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted((*FILES, "bundle.json"))


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("by_name", [False, True])
def test_another_model_is_refused_and_the_difference_named(
    folder: Path, source: KVLayout, target: KVLayout, side: str, by_name: bool
) -> None:
    live = {"source": source, "target": target}
    wrong = dataclasses.replace(live[side], weights_digest="0" * 64, cache_dtype="bfloat16")
    given: dict[str, Any] = {**live, side: wrong.fingerprint if by_name else wrong}
    with pytest.raises(BundleLayoutError, match=side) as caught:
        Bundle.load(folder, **given)
    assert caught.value.code == 603
    if not by_name:
        assert "cache_dtype, weights_digest" in caught.value.message


def test_sides_that_were_swapped_are_refused(
    folder: Path, source: KVLayout, target: KVLayout
) -> None:
    with pytest.raises(BundleLayoutError):
        Bundle.load(folder, target, source)


def test_another_version_of_the_bundle_is_refused(
    folder: Path, source: KVLayout, target: KVLayout
) -> None:
    with pytest.raises(BundleVersionError, match="version 3.*version 4"):
        Bundle.load(folder, source, target, version=4)


@pytest.mark.parametrize("name", [*FILES, "bundle.json"])
def test_a_missing_file_is_refused_by_name(
    folder: Path, source: KVLayout, target: KVLayout, name: str
) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleMissingError, match=name):
        Bundle.load(folder, source, target)


@pytest.mark.parametrize("name", [*FILES, "bundle.json"])
@pytest.mark.parametrize("keep", [0.0, 0.5, -1.0])
def test_a_truncated_or_grown_file_is_refused(
    folder: Path, source: KVLayout, target: KVLayout, name: str, keep: float
) -> None:
    blob = (folder / name).read_bytes()
    (folder / name).write_bytes(blob + b"\n" if keep < 0 else blob[: int(len(blob) * keep)])
    with pytest.raises(BundleCorruptError):
        Bundle.load(folder, source, target)


def test_a_certificate_with_an_infinity_is_refused(
    folder: Path, two_way: dict[str, Any], source: KVLayout, target: KVLayout
) -> None:
    write_bundle(folder, **two_way)
    replace(folder, CERTIFICATE, b'{"accuracy": 1e999}')
    with pytest.raises(BundleCorruptError, match=r"602\.4"):
        Bundle.load(folder, source, target)


def test_a_frame_goes_from_picture_to_answer_through_a_bundle(
    folder: Path, vlms: dict[str, VLM], source: KVLayout, target: KVLayout
) -> None:
    edge, cloud = vlms["idefics3"], vlms["llava-llama"]
    bundle = Bundle.load(folder, edge.layout, cloud.layout)
    point = bundle.encoder.point(bundle.info.default_point)
    states = edge.states(edge.prefill([picture(0), picture(1)]))
    coded = [bundle.encoder.encode(state, point) for state in states]
    latents = np.stack(
        [
            bundle.encoder.scatter(bundle.encoder.decode(c.payload, c.kept, point), c.kept)
            for c in coded
        ]
    )
    kept = np.stack([c.kept for c in coded])
    keys, values = bundle.backend().project(latents, kept, cloud.positions)
    scene = cloud.scene_cache(keys, values)
    questions = [cloud.question_ids("where is the car ?")] * 2
    answers = cloud.answer(scene, questions, 4)
    alone = cloud.answer([(k[1:], v[1:]) for k, v in scene], questions[1:], 4)
    assert answers[1] == alone[0]


def test_an_unknown_backend_is_refused_with_the_nearest_name(
    folder: Path, source: KVLayout, target: KVLayout
) -> None:
    with pytest.raises(ConfigError, match="did you mean 'onnxruntime'"):
        Bundle.load(folder, source, target).backend("onnx-runtime")


REFERENCE = Path(__file__).parents[3] / "reference"


@pytest.mark.slow
@pytest.mark.parametrize("edge", ["edge-a", "edge-b", "edge-c"])
def test_every_committed_bundle_fits_the_committed_models_and_can_be_signed(
    key: SigningKey, tmp_path: Path, edge: str
) -> None:
    source, target = (VLM.load(REFERENCE / "models" / name).layout for name in (edge, "cloud"))
    committed = REFERENCE / "bundles" / f"{edge}-cloud"
    loaded = Bundle.load(committed, source, target)
    folder = shutil.copytree(committed, tmp_path / "copy")
    sign_bundle(folder, key)
    trusted = TrustedKeys({key.public: "build"})
    again = Bundle.load(folder, source, target, trusted=trusted)
    assert (again.digest, again.signer) == (loaded.digest, "build")
