"""A bundle is believed bit by bit, and only for the models it was trained for."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from projector.bundle import describe, feedback, files, load, refusals, sign
from projector.bundle.describe import BundleInfo, canonical_json
from projector.bundle.files import (
    CERTIFICATE,
    EDGE,
    FEEDBACK_DECODER,
    FEEDBACK_ENCODER,
    FEEDBACK_FILES,
    FILES,
    GRAPH,
    SIGNATURE,
)
from projector.bundle.keys import SigningKey, TrustedKeys
from projector.bundle.load import Bundle
from projector.bundle.refusals import REFUSALS
from projector.bundle.sign import sign_bundle
from projector.bundle.write import write_bundle
from projector.models.vlm import VLM
from protos.errors import (
    BundleCorruptError,
    BundleFormatError,
    BundleLayoutError,
    BundleMissingError,
    BundleVersionError,
    ConfigError,
    DiskFullError,
    SignatureError,
)
from protos.layout import KVLayout
from tests.fakes.tiny_models import picture
from tests.projector.conftest import POINTS, make_encoder


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
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted((*FILES, "bundle.json"))


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


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_way_back_of_other_models_cannot_be_bundled(
    two_way: dict[str, Any], tmp_path: Path, part: str
) -> None:
    feedback, other = two_way["feedback"], two_way["source"].fingerprint
    wrong = dataclasses.replace(getattr(feedback, part), source_fingerprint=other)
    with pytest.raises(BundleFormatError, match="not for these models"):
        write_bundle(
            tmp_path, **{**two_way, "feedback": dataclasses.replace(feedback, **{part: wrong})}
        )


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
    plain["digest"] = hashlib.sha256(canonical_json(plain)).hexdigest()
    file.write_bytes(canonical_json(plain))
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


def elsewhere(file: Path) -> bytes:
    """A graph whose first weights lie in a file beside the process."""
    graph = onnx.load_from_string(file.read_bytes())
    weights = graph.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="secret.bin")
    return bytes(graph.SerializeToString())


REASONS: dict[str, Callable[[Path], object]] = {
    "302.1": lambda folder: rewrite(folder, version=9),
    "601.1": lambda folder: (folder / EDGE).unlink(),
    "602.1": lambda folder: (folder / GRAPH).open("ab").write(b"\n"),
    "602.2": lambda folder: os.truncate(folder / GRAPH, 10),
    "602.3": lambda folder: edit(folder, CERTIFICATE, "0.5", "0.6"),
    "602.4": lambda folder: edit(folder, "bundle.json", "{", "{{"),
    "602.5": lambda folder: edit(folder, "bundle.json", '"tiny"', '"tidy"'),
    "602.6": lambda folder: edit(folder, "bundle.json", ": 3", ":  3"),
    "603.1": lambda folder: rewrite(folder, source_layout=other_layout(folder, "source_layout")),
    "603.2": lambda folder: rewrite(folder, target_layout=other_layout(folder, "target_layout")),
    "604.1": lambda folder: rewrite(folder, format=2),
    "604.2": lambda folder: (folder / "bundle.json").write_text("[]"),
    "604.3": lambda folder: rewrite(folder, ladder=None),
    "604.4": lambda folder: rewrite(folder, rank="8"),
    "604.5": lambda folder: rewrite(folder, default_point=99),
    "604.6": lambda folder: rewrite(folder, files={}),
    "604.7": lambda folder: replace(folder, EDGE, b"no encoder"),
    "604.8": lambda folder: rewrite(folder, rank=9),
    "604.9": lambda folder: replace(folder, FEEDBACK_DECODER, b"no decoder"),
    "604.10": lambda folder: replace(
        folder,
        FEEDBACK_ENCODER,
        make_encoder(Bundle.peek(folder).target, points=POINTS[:2]).to_bytes(),
    ),
    "604.11": lambda folder: replace(folder, GRAPH, elsewhere(folder / GRAPH)),
    "605.1": lambda folder: edit(folder, SIGNATURE, '"format": 1', '"format": 2'),
    "605.2": lambda folder: rewrite(folder, id="another"),
    "605.3": lambda folder: (folder / SIGNATURE).unlink(),
    "605.4": lambda folder: sign_bundle(folder, SigningKey.create(folder / "stranger.pem")),
}
"""Per numbered reason a way to make a good bundle be refused for it."""


def other_layout(folder: Path, name: str) -> Any:
    return {**json.loads((folder / "bundle.json").read_text())[name], "weights_digest": "0" * 64}


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.create(tmp_path / "key.pem")


@pytest.mark.parametrize("number", list(REFUSALS))
def test_every_reason_to_refuse_has_a_number_that_ends_the_message(
    folder: Path,
    two_way: dict[str, Any],
    source: KVLayout,
    target: KVLayout,
    key: SigningKey,
    number: str,
) -> None:
    write_bundle(folder, **two_way)
    signed = number.startswith("605")
    trusted = TrustedKeys({key.public: "build"}) if signed else None
    if signed:
        sign_bundle(folder, key)
    Bundle.load(folder, source, target, 3, trusted)
    REASONS[number](folder)
    cls, _ = REFUSALS[number]
    with pytest.raises(cls) as caught:
        Bundle.load(folder, source, target, 3, trusted)
    assert caught.value.message.endswith(f" [{number}]"), caught.value.message
    assert type(caught.value) is cls and number.startswith(str(cls.code))


def test_a_graph_with_weights_elsewhere_is_not_written_either(
    folder: Path, two_way: dict[str, Any], tmp_path: Path
) -> None:
    write_bundle(folder, **two_way)
    cloud = dataclasses.replace(two_way["cloud"], graph=elsewhere(folder / GRAPH))
    with pytest.raises(BundleFormatError, match=r"604\.11"):
        write_bundle(tmp_path / "another", **(two_way | {"cloud": cloud}))
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize(
    "change",
    [
        *({"id": name} for name in (["a"], "", "x" * 257, "two\nlines", 3)),
        *({"version": -5}, {"version": True}, {"format": True}, {"format": "1"}),
    ],
)
def test_a_description_whose_fields_cannot_be_is_refused(
    folder: Path,
    two_way: dict[str, Any],
    source: KVLayout,
    target: KVLayout,
    change: dict[str, Any],
) -> None:
    write_bundle(folder, **two_way)
    rewrite(folder, **change)
    with pytest.raises(BundleFormatError, match=r"604\.4"):
        Bundle.load(folder, source, target)


@pytest.mark.parametrize("ladder", [[], [1, 1]])
def test_a_ladder_of_nothing_or_of_one_point_twice_is_refused(
    folder: Path, two_way: dict[str, Any], source: KVLayout, target: KVLayout, ladder: list[int]
) -> None:
    write_bundle(folder, **two_way)
    rewrite(folder, ladder=ladder)
    with pytest.raises(BundleFormatError, match=r"604\.5"):
        Bundle.load(folder, source, target)


def test_a_certificate_with_an_infinity_is_refused(
    folder: Path, two_way: dict[str, Any], source: KVLayout, target: KVLayout
) -> None:
    write_bundle(folder, **two_way)
    replace(folder, CERTIFICATE, b'{"accuracy": 1e999}')
    with pytest.raises(BundleCorruptError, match=r"602\.4"):
        Bundle.load(folder, source, target)


def test_every_reason_has_a_test_and_every_test_a_reason() -> None:
    assert set(REASONS) == set(REFUSALS)
    modules = (describe, feedback, files, load, refusals, sign)
    source = "".join(map(inspect.getsource, modules))
    assert set(re.findall(r'"(\d{3}\.\d+)"', source)) == set(REASONS)


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_that_reads_as_infinity_is_refused(
    folder: Path, source: KVLayout, target: KVLayout, number: str
) -> None:
    edit(folder, "bundle.json", '"version": 3', f'"version": {number}')
    with pytest.raises(BundleCorruptError, match="602.4"):
        Bundle.load(folder, source, target)


# ---------------------------------------------------------------------- signatures


def test_a_signed_bundle_loads_and_names_its_signer(
    folder: Path, source: KVLayout, target: KVLayout, key: SigningKey
) -> None:
    sign_bundle(folder, key)
    trusted = TrustedKeys({key.public: "build server"})
    assert Bundle.load(folder, source, target, trusted=trusted).signer == "build server"
    assert Bundle.load(folder, source, target).signer is None


def test_signing_twice_gives_the_same_bytes_and_signing_anew_replaces(
    folder: Path, source: KVLayout, target: KVLayout, key: SigningKey, tmp_path: Path
) -> None:
    sign_bundle(folder, key)
    first = (folder / SIGNATURE).read_bytes()
    (folder / SIGNATURE).write_bytes(b"broken")
    sign_bundle(folder, key)
    assert (folder / SIGNATURE).read_bytes() == first
    other = SigningKey.create(tmp_path / "other.pem")
    sign_bundle(folder, other)
    trusted = TrustedKeys({other.public: "other"})
    assert Bundle.load(folder, source, target, trusted=trusted).signer == "other"


@pytest.mark.parametrize(
    "blob",
    [b"", b"{}", b"null", b"[1]", b"{" * 900, b"x" * 5000, b'{"key": 1, "value": 2}', b"\xff\xfe"],
)
def test_a_broken_signature_is_refused_even_where_none_is_required(
    folder: Path, source: KVLayout, target: KVLayout, blob: bytes
) -> None:
    (folder / SIGNATURE).write_bytes(blob)
    with pytest.raises(SignatureError, match="605.1"):
        Bundle.load(folder, source, target)


def test_a_signature_that_cannot_be_read_is_not_taken_for_none(
    folder: Path, source: KVLayout, target: KVLayout
) -> None:
    (folder / SIGNATURE).mkdir()
    with pytest.raises(BundleMissingError, match="signature.json"):
        Bundle.load(folder, source, target)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_bundle_is_not_signed(folder: Path, key: SigningKey, name: str) -> None:
    blob = bytearray((folder / name).read_bytes())
    blob[-1] ^= 1
    (folder / name).write_bytes(blob)
    with pytest.raises(BundleCorruptError):
        sign_bundle(folder, key)
    assert not (folder / SIGNATURE).exists()


def test_a_signature_over_the_same_bytes_for_something_else_is_refused(
    folder: Path, source: KVLayout, target: KVLayout, key: SigningKey
) -> None:
    signature = key.sign((folder / "bundle.json").read_bytes())
    plain = {"format": 1, "key": signature.key, "value": signature.value}
    (folder / SIGNATURE).write_bytes(canonical_json(plain))
    with pytest.raises(SignatureError, match="605.2"):
        Bundle.load(folder, source, target)


def test_writing_a_bundle_anew_removes_the_old_signature(
    folder: Path, source: KVLayout, target: KVLayout, key: SigningKey, bundle_parts: dict[str, Any]
) -> None:
    sign_bundle(folder, key)
    write_bundle(folder, **{**bundle_parts, "version": 4})
    assert Bundle.load(folder, source, target).info.version == 4
    with pytest.raises(SignatureError, match="605.3"):
        Bundle.load(folder, source, target, trusted=TrustedKeys({key.public: "build"}))


# ---------------------------------------------------------------------- a write that fails


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("name", [*FILES, "bundle.json"])
def test_with_no_room_left_the_earlier_bundle_stays_whole(
    folder: Path, source: KVLayout, target: KVLayout, bundle_parts: dict[str, Any], name: str
) -> None:
    (folder / f"{name}.part").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="no room to write .* bytes") as caught:
        write_bundle(folder, **{**bundle_parts, "version": 4})
    assert caught.value.code == 610
    assert Bundle.load(folder, source, target).info.version == 3
    assert not list(folder.glob("*.part"))


def test_with_no_room_for_a_signature_the_bundle_stays_unsigned(
    folder: Path, source: KVLayout, target: KVLayout, key: SigningKey
) -> None:
    (folder / f"{SIGNATURE}.part").symlink_to("/dev/full")
    with pytest.raises(DiskFullError):
        sign_bundle(folder, key)
    assert Bundle.load(folder, source, target).info.version == 3
    assert not (folder / SIGNATURE).exists()


def test_a_folder_that_cannot_be_made_is_a_config_error(
    bundle_parts: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot write"):
        write_bundle(tmp_path / "file" / "bundle", **bundle_parts)


@pytest.mark.parametrize("earlier", [False, True], ids=["new folder", "over an earlier bundle"])
def test_a_write_stopped_at_any_step_leaves_one_whole_bundle_or_none(
    bundle_info: tuple[Path, BundleInfo],
    bundle_parts: dict[str, Any],
    source: KVLayout,
    target: KVLayout,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    earlier: bool,
) -> None:
    """The process dies at each call that touches the disk, in turn; nothing cleans up after it."""
    seen = []
    for step in range(100):
        folder = tmp_path / str(step)
        if earlier:
            shutil.copytree(bundle_info[0], folder)
        with monkeypatch.context() as patched:
            died = stop_at(step, patched)
            with contextlib.suppress(Stopped):
                write_bundle(folder, **{**bundle_parts, "version": 4})
        try:
            seen.append(Bundle.load(folder, source, target).info.version)
        except BundleMissingError:
            seen.append(0)
        if not died():
            break
    whole = seen.index(4)
    assert seen[-1] == 4 and set(seen[whole:]) == {4}, seen
    assert set(seen[:whole]) == ({3, 0} if earlier else {0}), seen
    assert len(seen) > 10


class Stopped(BaseException):
    """What no handler of the writer may catch and tidy up after."""


def stop_at(step: int, patched: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Let `step` calls that change the disk pass; that one and all later ones raise."""
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count > step:
                raise Stopped
            return real(*args, **kwargs)

        return call

    patched.setattr(os, "fsync", counted(os.fsync))
    patched.setattr(os, "replace", counted(os.replace))
    patched.setattr(Path, "unlink", counted(Path.unlink))
    return lambda: count > step


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
