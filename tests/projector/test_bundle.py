"""A bundle is believed bit by bit, and only for the models it was trained for."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projector import bundle as bundles
from projector.bundle import Bundle, BundleInfo, write_bundle
from projector.vlm import VLM
from protos.errors import (
    BridgeError,
    BundleCorruptError,
    BundleFormatError,
    BundleLayoutError,
    BundleMissingError,
    BundleVersionError,
    ConfigError,
)
from protos.layout import KVLayout
from tests.fakes.tiny_models import picture
from tests.projector.conftest import make_encoder


@pytest.fixture
def folder(bundle_info: tuple[Path, BundleInfo], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_info[0], tmp_path / "copy"))


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


def test_writing_twice_gives_the_same_bytes(
    bundle_parts: dict[str, Any], bundle_info: tuple[Path, BundleInfo], tmp_path: Path
) -> None:
    again = write_bundle(tmp_path, **bundle_parts)
    assert again.digest == bundle_info[1].digest
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted((*bundles.FILES, "bundle.json"))


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


def test_another_version_of_the_format_is_refused(
    folder: Path, source: KVLayout, target: KVLayout
) -> None:
    file = folder / "bundle.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(BundleFormatError, match="format 2, this version reads 1"):
        Bundle.load(folder, source, target)


@pytest.mark.parametrize("name", [*bundles.FILES, "bundle.json"])
def test_a_missing_file_is_refused_by_name(
    folder: Path, source: KVLayout, target: KVLayout, name: str
) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleMissingError, match=name):
        Bundle.load(folder, source, target)


@pytest.mark.parametrize("name", [*bundles.FILES, "bundle.json"])
@pytest.mark.parametrize("keep", [0.0, 0.5, -1.0])
def test_a_truncated_or_grown_file_is_refused(
    folder: Path, source: KVLayout, target: KVLayout, name: str, keep: float
) -> None:
    blob = (folder / name).read_bytes()
    (folder / name).write_bytes(blob + b"\n" if keep < 0 else blob[: int(len(blob) * keep)])
    with pytest.raises(BundleCorruptError):
        Bundle.load(folder, source, target)


def test_every_flipped_bit_of_the_description_is_refused(folder: Path) -> None:
    file = folder / "bundle.json"
    blob = file.read_bytes()
    for bit in range(8 * len(blob)):
        broken = bytearray(blob)
        broken[bit // 8] ^= 1 << (bit % 8)
        try:
            bundles._describe(bytes(broken), folder)
        except (BundleCorruptError, BundleFormatError):
            continue
        pytest.fail(f"bit {bit} of {len(blob)} bytes was flipped and nobody noticed")


@pytest.mark.parametrize("name", bundles.FILES)
def test_flipped_bits_of_every_other_file_are_refused(
    folder: Path, source: KVLayout, target: KVLayout, name: str
) -> None:
    file = folder / name
    blob = file.read_bytes()
    rng = np.random.default_rng(1)
    bits = {0, 7, 8 * len(blob) - 1, *rng.integers(8 * len(blob), size=24).tolist()}
    for bit in bits:
        broken = bytearray(blob)
        broken[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(broken)
        with pytest.raises(BundleCorruptError, match=name):
            Bundle.load(folder, source, target)


@pytest.mark.parametrize(
    "change",
    [
        {"default_point": 9},
        {"ladder": [0, 9]},
        {"rank": "8"},
        {"rank": 9},
        {"files": {}},
        {"files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}},
        {"operating_points": []},
        {"source_layout": {}},
        {"target_layout": None},
        {"extra": 1},
    ],
    ids=lambda change: json.dumps(change)[:30],
)
def test_a_description_that_is_sealed_but_wrong_is_refused(
    folder: Path, source: KVLayout, target: KVLayout, change: dict[str, Any]
) -> None:
    file = folder / "bundle.json"
    plain = {**json.loads(file.read_text()), **change}
    del plain["digest"]
    plain["digest"] = bundles.hashlib.sha256(bundles._canonical(plain)).hexdigest()
    file.write_bytes(bundles._canonical(plain))
    with pytest.raises(BundleFormatError):
        Bundle.load(folder, source, target)


def test_a_half_written_bundle_is_missing_not_wrong(
    bundle_parts: dict[str, Any], tmp_path: Path
) -> None:
    parts = {**bundle_parts, "default_point": 99}
    with pytest.raises(BundleFormatError):
        write_bundle(tmp_path, **parts)
    with pytest.raises(BundleMissingError):
        Bundle.peek(tmp_path)


def test_an_encoder_of_another_source_cannot_be_bundled(
    bundle_parts: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(BundleFormatError, match="another source"):
        write_bundle(tmp_path, **{**bundle_parts, "source": bundle_parts["target"]})


def test_every_refusal_is_a_numbered_error() -> None:
    for error in (
        BundleMissingError,
        BundleCorruptError,
        BundleLayoutError,
        BundleFormatError,
        BundleVersionError,
    ):
        assert issubclass(error, BridgeError) and error.code


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
