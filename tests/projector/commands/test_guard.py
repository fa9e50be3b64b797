"""`projector guard` on tiny models: what it compares, what it writes, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from projector.bundle.canary import CanarySet
from projector.bundle.load import Bundle
from projector.bundle.write import write_next
from projector.calibration.disagreement import Comparison, Rows, lesson_points
from projector.calibration.unusual import _UNUSUAL, unusual
from projector.codec.risk import WORDS, RiskModel
from projector.models.vlm import VLM
from projector.training.dataset import Dataset, write_texts
from projector.validation.estimate import auroc
from protos.errors import ConfigError
from protos.header import unpack_header
from tests.fakes.tiny_models import tiny_idefics3, tiny_llava
from tests.fakes.toolkit import QUESTIONS, code_of, pictures_with_questions, toolkit

PICTURES = 64


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    return tiny_idefics3(folder), tiny_llava(folder, text="llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    pictures_with_questions(folder, PICTURES)
    return folder


@pytest.fixture(scope="module")
def run(models: tuple[Path, Path]) -> Any:
    return toolkit(models)


@pytest.fixture(scope="module")
def bundle(run: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    corpus, made, report = folder / "corpus", folder / "map", folder / "report"
    assert run("corpus", data, corpus) == 0
    assert run("train", data, corpus, made, "--family", "low_rank", "--set", "r=8") == 0
    assert run("validate", made, data, corpus, report) == 0
    out = folder / "bundle"
    assert (
        run("export", made, data, corpus, out, "--report", report / "report.json", "--force") == 0
    )
    return out


@pytest.fixture(scope="module")
def pair(models: tuple[Path, Path], bundle: Path) -> tuple[Comparison, Bundle]:
    source, target = VLM.load(models[0]), VLM.load(models[1])
    read = Bundle.load(bundle, source.layout, target.layout)
    return Comparison(source, target, read.encoder, read.backend("onnxruntime"), 4), read


@pytest.mark.slow
def test_rows_say_what_the_large_model_answers_from_each(
    pair: tuple[Comparison, Bundle], data: Path
) -> None:
    between, read = pair
    folder = Dataset(data)
    pictures = [folder.picture(index) for index in (3, 5)]
    asked = [[("what is 0", "red"), ("what is 1", "blue")], [("what is 2", "one")]]
    float_point, coarse = read.encoder.point(11), read.encoder.point(1)
    rows = between.rows(pictures, asked, [[float_point, coarse], [coarse]], [3, 5], [False, True])
    assert rows.picture.tolist() == [3, 3, 3, 3, 5]
    assert rows.question.tolist() == [0, 1, 0, 1, 0]
    assert rows.unusual.tolist() == [False] * 4 + [True]
    assert rows.point.tolist() == [11, 11, 1, 1, 1]
    assert np.isfinite(rows.found).all()
    assert (rows.found[:2, 0] < 1e-3).all() and (rows.found[2:, 0] > 0.01).all()
    target = between.target
    seen = [
        target.text(target.answer_pictures([pictures[p]], [target.question_ids(text)], 4)[0])
        for p, text in ((0, "what is 0"), (0, "what is 1"), (1, "what is 2"))
    ]
    right = [a == b for a, b in zip(seen, ("red", "blue", "one"), strict=True)]
    assert rows.right_picture.tolist() == [*right[:2], *right[:2], right[2]]
    agree = ~rows.disagree
    assert (rows.right_frame[agree] == rows.right_picture[agree]).all()
    assert rows.frame_bytes[0] == rows.frame_bytes[1] > rows.frame_bytes[2]


def test_the_service_s_risk_goes_by_what_a_frame_brings(
    pair: tuple[Comparison, Bundle], data: Path
) -> None:
    between, read = pair
    picture = Dataset(data).picture(3)
    point = read.encoder.point(1)
    rows = between.rows([picture], [[("what is 0", "red"), ("of 1", "a")]], [[point]], [3], [False])
    encoder = read.encoder
    state = between.source.states(between.source.prefill([picture]))[0]
    frame = encoder.encode(state, point)
    held = encoder.hold(encoder.decode(frame.payload, frame.kept, point), frame.kept)
    moved = (held.latents - encoder.centre)[frame.kept]
    rng = np.random.default_rng(0)
    count = rows.received.shape[1]
    risk = RiskModel(
        rng.normal(size=count).astype(np.float32),
        rng.normal(scale=0.1, size=count).astype(np.float32),
        -1.0,
        0.5,
    )
    expected = risk.risk(rows.received)
    certainty = risk.mean[4 + WORDS :][:4] @ risk.weights[4 + WORDS :][:4]
    for text, known in zip(("what is 0", "of 1"), expected, strict=True):
        told = risk.of_received(frame.distortion, text, risk.moments_score(moved))
        odds = np.log(known / (1 - known)) + certainty
        assert told == pytest.approx(1 / (1 + np.exp(-odds)), rel=1e-4)
    assert RiskModel.from_bytes(risk.to_bytes()).to_bytes() == risk.to_bytes()


@pytest.mark.slow
def test_the_service_s_guard_alone_leaves_the_edge_half_as_it_is(
    run: Any,
    data: Path,
    bundle: Path,
    pair: tuple[Comparison, Bundle],
    tmp_path: Path,
) -> None:
    out = tmp_path / "guarded"
    flags = ("--within", "0.05", "--work", tmp_path / "asked", "--answer-tokens", "1")
    assert run("guard", bundle, data, out, *flags, "--service-only") == 0
    made = Bundle.load(out, pair[0].source.layout, pair[0].target.layout)
    assert made.encoder.to_bytes() == pair[1].encoder.to_bytes()
    assert made.service_risk is not None and "guard" not in made.certificate


def test_a_picture_is_sent_at_the_default_point_and_at_another(
    pair: tuple[Comparison, Bundle],
) -> None:
    info, encoder = pair[1].info, pair[1].encoder
    rng = np.random.default_rng(0)
    drawn = [lesson_points(encoder, info.ladder, info.default_point, rng) for _ in range(60)]
    assert {points[0].index for points in drawn} == {info.default_point}
    others = {points[1].index for points in drawn}
    assert others == {
        i for i in info.ladder if i != info.default_point and encoder.point(i).kind == "latent"
    }
    (alone,) = lesson_points(encoder, [info.default_point], info.default_point, rng)
    assert alone.index == info.default_point
    with pytest.raises(ConfigError, match="raw_kv"):
        lesson_points(encoder, info.ladder, 253, rng)


@pytest.mark.slow
def test_a_bundle_learns_its_guard_and_keeps_all_else(
    run: Any,
    data: Path,
    bundle: Path,
    pair: tuple[Comparison, Bundle],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, work, between = tmp_path / "guarded", tmp_path / "asked", pair[0]
    flags = ("--within", "0.05", "--work", work, "--answer-tokens", "1")
    assert run("guard", bundle, data, out, *flags) == 0
    told = capsys.readouterr().out
    assert "answers that differ" in told and "version 2" in told
    source, target = between.source, between.target
    before, made = pair[1], Bundle.load(out, source.layout, target.layout)
    assert made.encoder.risk is not None and made.info.version == before.info.version + 1
    assert replace(made.encoder, risk=None).to_bytes() == before.encoder.to_bytes()
    service = made.certificate["service_guard"]
    assert made.service_risk is not None and before.service_risk is None
    assert service["limit"] == pytest.approx(made.service_risk.limit, abs=1e-4)
    assert service["questions"] == PICTURES * QUESTIONS
    assert (made.info.ladder, made.info.default_point) == (
        before.info.ladder,
        before.info.default_point,
    )
    found = made.certificate["guard"]
    assert (found["pictures"], found["questions"]) == (PICTURES, PICTURES * QUESTIONS)
    assert found["limit"] == pytest.approx(made.encoder.risk.limit, abs=1e-4)
    latent = {p.name for p in made.encoder.points if p.kind == "latent"}
    assert made.encoder.point(made.info.default_point).name in found["by_point"]
    assert set(found["by_point"]) <= latent and len(found["by_point"]) > 3
    asked = sum(one["questions"] for one in found["by_point"].values())
    assert asked == 2 * PICTURES * QUESTIONS
    assert found["unusual_share"] == 0.5 and {"ordinary", "unusual"} <= set(found)
    for kind in ("ordinary", "unusual"):
        right, over = found[kind], found[kind]["over_the_limit"]
        told = (right["frames"]["mean"], right["guarded"]["mean"], right["seeing"]["mean"])
        assert all(0 <= share <= 1 for share in told)
        assert abs(told[1] - told[0]) <= over + 1e-4 and abs(told[2] - told[1]) <= 1 - over + 1e-4
    blocks = sorted(work.iterdir())
    assert len(blocks) == PICTURES // 8
    blocks[0].unlink()
    stamps = [path.stat().st_mtime_ns for path in blocks[1:]]
    assert run("guard", bundle, data, out, *flags) == 0
    assert [path.stat().st_mtime_ns for path in blocks[1:]] == stamps, "not asked again"
    again = Bundle.load(out, source.layout, target.layout)
    assert again.encoder.to_bytes() == made.encoder.to_bytes()
    corpus, other = bundle.parent / "corpus", tmp_path / "calibrated"
    held = (data, corpus, data, corpus, other, "--coarseness", "1,3", "--quiet", "0")
    assert run("calibrate", out, *held) == 0
    assert "projector guard" in capsys.readouterr().out
    later = Bundle.load(other, source.layout, target.layout)
    assert later.encoder.risk is None and "guard" not in later.certificate, "of points now gone"


def test_what_a_guard_cannot_be_learnt_from_is_refused_by_name(
    run: Any,
    data: Path,
    bundle: Path,
    pair: tuple[Comparison, Bundle],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    notes = tmp_path / "notes"
    notes.mkdir()
    write_texts(notes, {"a": "the red car"})
    raw = tmp_path / "raw"
    read = pair[1]
    write_next(read, raw, encoder=read.encoder, default_point=253)
    for arguments, name, said in (
        ((bundle, data, out, "--questions", "2"), "fit", "fewer than 384"),
        ((bundle, notes, out), "config", "for pictures"),
        ((bundle, tmp_path / "nowhere", out), "source", "not a folder"),
        ((raw, data, out), "config", "raw_kv"),
    ):
        code = run("guard", *arguments, "--work", tmp_path / "asked")
        told = capsys.readouterr().err
        assert code == code_of(name) and said in told, told
        assert not out.exists()
    assert run("guard", bundle, data, out, "--within", "1.5") == code_of("config")
    assert "less than 1" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(144, 144), (640, 360), (9, 30)])
@pytest.mark.parametrize("which", range(len(_UNUSUAL)))
def test_an_unusual_picture_is_another_one_of_the_same_size(
    size: tuple[int, int], which: int
) -> None:
    rng = np.random.default_rng(which)
    plain = Image.fromarray(rng.integers(60, 200, (*size[::-1], 3), dtype=np.uint8))

    class Drawn:
        """A generator whose first draw is known."""

        first = True

        def integers(self, *bounds: Any, **kwargs: Any) -> Any:
            if self.first:
                self.first = False
                return which
            return rng.integers(*bounds, **kwargs)

        def __getattr__(self, name: str) -> Any:
            return getattr(rng, name)

    made = unusual(plain, Drawn())  # type: ignore[arg-type]
    assert made.size == size and made.mode == "RGB"
    changed = np.abs(np.asarray(made).astype(int) - np.asarray(plain)).mean()
    assert changed > 1 or min(size) < 32, "of a few pixels there is little to blur"


def test_rows_are_joined_and_chosen_field_by_field() -> None:
    def some(at: int) -> Rows:
        values = np.arange(at, at + 3)
        flags = values % 2 == 0
        return Rows(*[np.eye(3, dtype=np.float32)] * 2, *[values] * 3, *[flags] * 3, ~flags, values)

    whole = Rows.join([some(0), some(10)])
    assert len(whole) == 6 and whole.picture.tolist() == [0, 1, 2, 10, 11, 12]
    even = whole.where(whole.right_frame)
    assert even.picture.tolist() == [0, 2, 10, 12] and even.found.shape == (4, 3)
    assert not even.right_picture.any()


def test_auroc_is_the_chance_of_ranking_an_event_higher() -> None:
    event = np.array([True, False, True, False])
    assert auroc(np.array([0.9, 0.1, 0.8, 0.2]), event) == 1.0
    assert auroc(np.array([0.5, 0.5, 0.5, 0.5]), event) == 0.5
    assert auroc(np.array([0.1, 0.9, 0.8, 0.2]), event) == 0.25


@pytest.mark.slow
def test_canary_writes_what_the_large_model_says_from_frames_and_from_pictures(
    run: Any, bundle: Path, data: Path, pair: tuple[Comparison, Bundle], tmp_path: Path
) -> None:
    between, before = pair
    assert run("canary", bundle, data, "--out", tmp_path / "judged", "--frames", 5) == 0
    made = Bundle.load(tmp_path / "judged", between.source.layout, between.target.layout)
    assert made.info.version == before.info.version + 1
    assert made.encoder.digest == before.encoder.digest
    assert made.canary is not None and len(made.canary.frames) == 5
    for index, frame in enumerate(made.canary.frames):
        header, body = unpack_header(frame.header, frame.payload)
        point = before.encoder.point(header.operating_point)
        latents = before.encoder.scatter(
            before.encoder.decode(body, header.kept, point), header.kept
        )
        keys, values = between.backend.project(
            latents[None], header.kept[None], between.target.positions
        )
        question = between.target.question_ids(frame.question)
        said = between.target.answer(between.target.scene_cache(keys, values), [question], 16)
        assert between.target.text(said[0]) == frame.answer
        seen = between.target.prefill([Dataset(data).picture(index)], attention=False).layers()
        told = between.target.answer(seen, [question], 16)
        assert between.target.text(told[0]) == frame.seen


def test_export_writes_a_canary_set_by_itself(bundle: Path) -> None:
    info = Bundle.peek(bundle)
    assert "canary.json" in info.files
    file = bundle / "canary.json"
    made = CanarySet.from_bytes(file.read_bytes(), info.source.tokens, info.points, file)
    assert len(made.frames) == 48
