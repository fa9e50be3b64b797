"""Two language models to a judged map over texts, by the commands, on tiny random models."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from projector.bundle.load import Bundle
from projector.calibration.calibrate import FLOAT_POINT
from projector.codec.encoder import Encoder
from projector.commands import cli
from projector.maps import load
from projector.models.lm import LM
from projector.models.packed import Packed
from projector.models.tokens import align, fresh
from projector.training import texts
from projector.training.corpus import Corpus
from projector.training.dataset import Dataset, Texts, open_folder, write_questions, write_texts
from projector.training.fit import moments_of
from projector.training.ragged import present
from projector.training.sensitivity import token_weights
from projector.training.settings import TrainSettings
from projector.training.train import Trainer
from projector.validation.answers import Validator
from projector.validation.reconstruction import reconstruction
from projector.validation.validate import by_rank
from protos.errors import (
    BundleFormatError,
    BundleLayoutError,
    ConfigError,
    ContextError,
    CorpusError,
    FitError,
    FrameMalformedError,
    SourceError,
)
from protos.state import KVState
from tests.fakes.tiny_models import picture, tiny_gemma3, tiny_lm
from tests.fakes.toolkit import code_of, toolkit

COUNT = 64
WORDS = "red green blue car truck dog cat tree crate fire".split()
ANSWERS = ("yes", "no", "one", "two")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    return tiny_lm(folder), tiny_gemma3(folder)


@pytest.fixture(scope="module")
def pair(models: tuple[Path, Path]) -> tuple[LM, LM]:
    return LM.load(models[0]), LM.load(models[1])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = Random(0)
    rows: list[dict[str, object]] = []
    for index in range(COUNT):
        text = " ".join(rng.choices(WORDS, k=rng.randint(2, 5)))
        (folder / f"{index:03d}.txt").write_text(text + "\n")
        for k in range(6):
            row = {"text": f"{index:03d}.txt", "question": f"what is {WORDS[k]} ?"}
            rows.append({**row, "answer": ANSWERS[(index + k) % 4], "kind": WORDS[k % 2]})
    write_questions(folder, rows)
    return folder


@pytest.fixture(scope="module")
def run(models: tuple[Path, Path]) -> Any:
    return toolkit(models)


@pytest.fixture(scope="module")
def folder(run: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("corpus")
    assert run("corpus", data, made) == 0
    return made


@pytest.fixture(scope="module")
def corpus(pair: tuple[LM, LM], data: Path, folder: Path) -> Corpus:
    held = Texts(data)
    return texts.collect(*pair, held.text, COUNT, folder, inputs=held.digest)


@pytest.fixture(scope="module")
def made(run: Any, data: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("map")
    steps = ("--reconstruct-steps", "4", "--task-steps", "4", "--batch", "4")
    assert run("train", data, folder, out, "--set", "r=8", *steps) == 0
    return out


def test_every_row_is_a_target_token_beside_the_source_token_that_covers_its_end(
    corpus: Corpus, pair: tuple[LM, LM], data: Path
) -> None:
    source, target = pair
    for index in (0, 17, COUNT - 1):
        text = Texts(data).text(index)
        mine, theirs = source.tokens(text), target.tokens(text)
        x = source.states([mine.ids])[0].flat()[align(mine, theirs)]
        y = target.states([theirs.ids])[0].flat()
        assert len(theirs.ids) > len(mine.ids)
        np.testing.assert_allclose(corpus.x[index : index + 1][0], x, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(corpus.y[index : index + 1][0], y, rtol=2e-3, atol=2e-3)


def test_a_batch_is_as_wide_as_its_longest_text_and_says_what_is_not_there(corpus: Corpus) -> None:
    lengths = corpus.x.lengths
    batch = corpus.y[np.array([3, 9, 5])]
    assert batch.shape == (3, lengths[[3, 9, 5]].max(), corpus.y.shape[2])
    np.testing.assert_array_equal(present(batch).sum(1), lengths[[3, 9, 5]])
    np.testing.assert_allclose(corpus.attention.sum(1), 1, rtol=1e-2)


def test_a_text_in_a_batch_of_longer_ones_is_answered_as_if_alone(
    corpus: Corpus, pair: tuple[LM, LM], data: Path, tmp_path: Path
) -> None:
    """Native caches, ragged, against the model that reads text and question in one pass."""
    target = pair[1]
    held = Texts(data)
    trainer = Trainer(None, corpus, target, held.questions, TrainSettings(), tmp_path)  # type: ignore[type-var]
    ids, answer = target.question_ids("what is red ?"), target.answer_ids("yes")
    rows = [0, 1, 2, 3]
    packed = Packed.of([[(ids, answer), (ids[1:], answer)] for _ in rows])
    with torch.no_grad():
        got = trainer.logits(packed, trainer.native_layers(corpus.y[:4]))
        got = got.unflatten(0, (4, 2, len(answer)))
        for row in rows:
            whole = [*target.prefix_ids, *target.tokens(held.text(row)).ids, *ids, *answer[:-1]]
            want = target.model(input_ids=torch.tensor([whole])).logits[0, -len(answer) :]
            torch.testing.assert_close(got[row, 0], want, atol=0.05, rtol=0.05)


def test_training_goes_through_the_frozen_model_and_resumes_to_the_same_map(
    run: Any, data: Path, folder: Path, made: Path
) -> None:
    log = [json.loads(line) for line in (made / "state" / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in log] == ["reconstruct"] * 4 + ["task"] * 4
    assert all(np.isfinite(row["loss"]) for row in log)
    before = (made / "map.safetensors").read_bytes()
    steps = ("--reconstruct-steps", "4", "--task-steps", "4", "--batch", "4")
    assert run("train", data, folder, made, "--set", "r=8", *steps) == 0
    assert (made / "map.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_report_on_texts_has_every_control_and_makes_a_bundle_of_the_map(
    run: Any, data: Path, folder: Path, made: Path, pair: tuple[LM, LM], tmp_path: Path
) -> None:
    assert run("validate", made, data, folder, tmp_path) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["questions"] == 6 * COUNT
    assert set(report["accuracy"]) >= {
        *("native", "mapped", "blind", "other_picture"),
        *("mean_state", "untrained_map", "untrained_edge"),
        *("mapped_fp8", "edge_only"),
    }
    assert all(np.isfinite(list(arm.values())).all() for arm in report["accuracy"].values())
    assert "texts differ in length" in report["bound"]["none"]
    page = (tmp_path / "report.html").read_text()
    worst = report["worst_pictures"][0]["picture"]
    assert (data / worst).read_text().strip() in page
    judged = ("--report", tmp_path / "report.json", "--precision", "float16", "--force")
    assert run("export", made, data, folder, tmp_path / "bundle", *judged) == 0
    source, target = pair
    bundle = Bundle.load(tmp_path / "bundle", source.layout, target.layout)
    assert bundle.certificate["stored_in"] == "float16"
    assert bundle.certificate["accuracy"].keys() == report["accuracy"].keys()
    _check_encoder(bundle.encoder, source, target)


def test_directions_of_a_family_that_has_none_are_refused_at_once(
    run: Any, data: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("--family", "mlp", "--directions", "8")
    assert run("train", data, folder, tmp_path / "map", *chosen) == ConfigError.exit_code
    assert "--family low_rank or ridge, not 'mlp'" in capsys.readouterr().err
    for family, count in (("low_rank", 63), ("ridge", 100_000)):
        chosen = ("--family", family, "--directions", str(count))
        assert run("train", data, folder, tmp_path / "map", *chosen) == FitError.exit_code
        assert f"{count} directions: expected" in capsys.readouterr().err
    assert not (tmp_path / "map").exists()


def test_a_map_of_texts_is_shown_cut_to_lower_ranks(
    pair: tuple[LM, LM], data: Path, corpus: Corpus, made: Path, tmp_path: Path
) -> None:
    source, target = pair
    texts_of = open_folder(data)
    mapped = load((made / "map.safetensors").read_bytes(), source.layout, target.layout)
    trainer: Any = Trainer(mapped, corpus, target, texts_of.questions, TrainSettings(), tmp_path)
    cut = by_rank(Validator(trainer, corpus, texts_of), 0.0, 1.0)  # texts end where they end
    assert [row["rank"] for row in cut] == [4]
    assert 0 <= cut[0]["accuracy"] <= 1


def _check_encoder(encoder: Encoder, source: LM, target: LM) -> None:
    """Tables of texts, at every point; what is no frame of a text is refused."""
    text = "red car dog cat tree"
    place = align(source.tokens(text), target.tokens(text))
    whole = source.states([source.tokens(text).ids])[0]
    x = whole.flat()[place]
    state = KVState.from_flat(x, source.layout, whole.positions[place])
    new = fresh(place)
    assert encoder.text and new.sum() < len(new)
    errors = {}
    for point in encoder.points:
        coded = encoder.encode(state, point, new)
        z = encoder.decode(coded.payload, new, point)
        np.testing.assert_array_equal(encoder.hold(z, new).latents, coded.held.latents)
        errors[point.name] = coded.distortion.quantize
        assert coded.distortion.dropped_attention == 0 and coded.held.kept.all()
    want = encoder.project(x)
    sent = encoder.encode(state, encoder.point(FLOAT_POINT), new).held.latents
    np.testing.assert_allclose(sent, want, rtol=1e-4, atol=1e-4)
    assert errors["float"] < errors["fine"] < errors["coarsest"]
    every = encoder.encode(state, encoder.point(FLOAT_POINT))
    assert every.kept.all() and len(every.payload) == 4 * encoder.rank * len(place)
    late = new.copy()
    late[0] = False
    for kept, base in ((late, None), (new, every.held)):
        with pytest.raises(ConfigError, match="first token"):
            encoder.encode(state, encoder.point(FLOAT_POINT), kept, base)
        with pytest.raises(FrameMalformedError, match="first token"):
            encoder.decode(coded.payload, kept, encoder.point(FLOAT_POINT), base)
    with pytest.raises(FrameMalformedError, match="grid of 129"):
        encoder.decode(b"", np.ones(129, dtype=np.bool_), encoder.point(FLOAT_POINT))
    few = dataclasses.replace(encoder.point(FLOAT_POINT), tokens=3)
    with pytest.raises(BundleFormatError, match="does not send texts whole"):
        dataclasses.replace(encoder, points=(few,))
    blob = encoder.to_bytes()
    assert Encoder.from_bytes(blob).text
    with pytest.raises(BundleFormatError, match="left out"):
        Encoder.from_bytes(blob.replace(b'\\"text\\":true', b'\\"text\\":null'))


def test_the_fit_counts_real_tokens_only(corpus: Corpus, pair: tuple[LM, LM]) -> None:
    from projector.maps.ridge import Ridge

    moments = moments_of(corpus, *pair)
    assert moments.count == corpus.x.lengths.sum()
    member = Ridge().build(pair[0].layout, pair[1].layout, moments)
    rows = [corpus.x[i : i + 1][0].astype(np.float32) for i in range(COUNT)]
    want = [corpus.y[i : i + 1][0].astype(np.float32) for i in range(COUNT)]
    with torch.no_grad():
        got = member.predict(torch.from_numpy(np.concatenate(rows))[None])[0].numpy()
    normal = (np.concatenate(want) - member.y_mean.numpy()) / member.y_scale.numpy()
    found = reconstruction(member, corpus)["whole"]
    assert found["mse"] == pytest.approx(np.square(got - normal).mean(), rel=1e-3)


@pytest.mark.slow
def test_the_native_arm_agrees_with_itself_and_another_text_does_not(
    corpus: Corpus, pair: tuple[LM, LM], data: Path, made: Path, tmp_path: Path
) -> None:
    held = Texts(data)
    blob = (made / "map.safetensors").read_bytes()
    member = load(blob, pair[0].layout, pair[1].layout)
    trainer = Trainer(member, corpus, pair[1], held.questions, TrainSettings(), tmp_path)
    judge = Validator(trainer, corpus, held)
    native = judge.native()
    assert all(native.full) and max(native.kl) < 1e-4
    assert np.mean(judge.blind().kl) > 1e-3 and np.mean(judge.other_picture().kl) > 1e-3
    with pytest.raises(BundleLayoutError, match="source"):  # the other direction
        load(blob, pair[1].layout, pair[0].layout)


def test_other_pairs_other_texts_and_damaged_shards_are_refused(
    pair: tuple[LM, LM], models: tuple[Path, Path], data: Path, folder: Path, tmp_path: Path
) -> None:
    held = Texts(data)

    def again(one: LM, two: LM, where: Path = folder, inputs: str = held.digest) -> None:
        texts.collect(one, two, held.text, COUNT, where, inputs=inputs)

    with pytest.raises(CorpusError, match="another pair of models"):
        again(*pair[::-1])
    with pytest.raises(CorpusError, match="other inputs"):
        again(*pair, inputs="other")
    other = tmp_path / "mixed"
    shutil.copytree(models[0], other)
    plain = json.loads((other / "tokenizer.json").read_text())
    vocabulary = plain["model"]["vocab"]
    vocabulary["car"], vocabulary["dog"] = vocabulary["dog"], vocabulary["car"]
    (other / "tokenizer.json").write_text(json.dumps(plain))
    with pytest.raises(CorpusError, match="other tokenizers"):
        again(LM.load(other), pair[1])
    with pytest.raises(CorpusError, match="64 tokens of a text, the target 128"):
        again(LM.load(models[0], text_tokens=64), pair[1])
    with pytest.raises(CorpusError, match="no texts"):
        texts.collect(*pair, held.text, 0, tmp_path / "none")
    (shard,) = folder.glob("*.safetensors")
    whole = shard.read_bytes()
    for cut in (0, 7, 100, len(whole) - 1):
        (tmp_path / shard.name).write_bytes(whole[:cut])
        with pytest.raises(CorpusError, match="not a readable shard|is empty"):
            again(*pair, where=tmp_path)
    metadata = {"inputs": held.digest}
    metadata |= {s: m.layout.fingerprint for s, m in zip(("source", "target"), pair, strict=True)}
    tensors = load_file(shard)
    for name, value in (("x", np.nan), ("ends", 0)):
        broken = {key: array.copy() for key, array in tensors.items()}
        broken[name][3] = value
        save_file(broken, tmp_path / shard.name, metadata=metadata)
        with pytest.raises(CorpusError, match="NaN|expected 64 with"):
            again(*pair, where=tmp_path)
            moments_of(texts.collect(*pair, held.text, COUNT, tmp_path, inputs=held.digest), *pair)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (" ", "empty"),
        ("a " * 100_000, "characters"),
        ("red " * 100, "tokens"),
        ("<eos>", "reserved"),
    ],
)
def test_a_text_that_a_model_cannot_read_stops_the_corpus_by_its_number(
    pair: tuple[LM, LM], tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ContextError, match=f"text 1: .*{said}"):
        texts.collect(*pair, lambda i: text if i else "red", 2, tmp_path)
    assert not list(tmp_path.iterdir())


def test_texts_past_the_models_window_are_refused(
    models: tuple[Path, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--source", str(models[0]), "--target", str(models[1]), "--text-tokens", "200"]
    assert cli.main(["corpus", str(data), str(tmp_path), *both]) == code_of("context")
    assert "sliding windows" in capsys.readouterr().err


def test_a_folder_of_texts_is_read_from_files_or_from_one_file(tmp_path: Path) -> None:
    write_texts(tmp_path, {"a": "red car", "b": "\u732b"})
    held = open_folder(tmp_path)
    assert isinstance(held, Texts) and len(held) == 2 and held.text(1) == "\u732b"
    before = held.digest
    write_texts(tmp_path, {"a": "red cat", "b": "\u732b"})
    assert Texts(tmp_path).digest != before
    (tmp_path / "c.txt").write_text("x")
    both = Texts(tmp_path)
    assert [both.text(i) for i in range(len(both))] == ["red cat", "\u732b", "x"]
    write_texts(tmp_path, {"a": "red cat", "c.txt": "y"})
    with pytest.raises(SourceError, match="'c.txt' in texts.jsonl and as a file"):
        open_folder(tmp_path)
    (tmp_path / "texts.jsonl").unlink()
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match="cannot be read as a text"):
        Texts(tmp_path).text(0)
    picture(0).save(tmp_path / "a.png")
    with pytest.raises(SourceError, match="pictures and texts"):
        open_folder(tmp_path)
    (tmp_path / "c.txt").unlink()
    assert type(open_folder(tmp_path)) is Dataset
    with pytest.raises(SourceError, match="not a folder"):
        open_folder(tmp_path / "none")


@pytest.mark.parametrize(
    "line",
    ['{"name": "a"}', '{"name": "", "text": "x"}', '{"name": "../a", "text": "x"}', "[]", "{",
     '{"name": "a", "text": ""}', '{"name": "b", "text": "x"}\n{"name": "b", "text": "y"}'],
)  # fmt: skip
def test_lines_that_are_no_texts_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "texts.jsonl").write_text(line + "\n")
    with pytest.raises(SourceError, match="line [12]"):
        Texts(tmp_path)


def test_bad_input_ends_with_its_error_and_no_traceback(
    run: Any, data: Path, folder: Path, made: Path, tmp_path: Path, capsys: Any
) -> None:
    cases: list[tuple[tuple[object, ...], str, str]] = [
        (("train", data, folder, tmp_path / "o", "--family", "mix"), "fit", "texts have none"),
        (("train", data, tmp_path / "none", tmp_path / "o"), "corpus", "holds no shard"),
    ]
    for arguments, name, said in cases:
        assert run(*arguments) == code_of(name), arguments
        shown = capsys.readouterr().err
        assert said in shown and "Traceback" not in shown


@pytest.mark.parametrize("what", ["texts.jsonl", "questions.jsonl"])
def test_half_a_surrogate_pair_is_no_text(tmp_path: Path, what: str) -> None:
    (tmp_path / "texts.jsonl").write_text('{"name": "a", "text": "the car"}\n')
    bad = {
        "texts.jsonl": '{"name": "a", "text": "the \\ud800 car"}',
        "questions.jsonl": '{"text": "a", "question": "is \\ud800", "answer": "red"}',
    }
    (tmp_path / what).write_text(bad[what] + "\n")
    with pytest.raises(SourceError, match="valid Unicode"):
        Texts(tmp_path)


def test_a_text_that_cannot_be_written_is_refused_by_its_reader(pair: tuple[LM, LM]) -> None:
    with pytest.raises(ContextError, match="not valid Unicode"):
        pair[0].tokens("the \udcff car")


@pytest.mark.slow
def test_texts_too_are_fitted_in_focus(run: Any, data: Path, folder: Path, tmp_path: Path) -> None:
    """Tokens weigh what answers depend on; there are none past a text's end."""
    blobs = []
    for name, flags in (("alike", ()), ("focus", ("--focus",))):
        assert run("train", data, folder, tmp_path / name, "--set", "r=8", *flags) == 0
        blobs.append((tmp_path / name / "map.safetensors").read_bytes())
    assert blobs[0] != blobs[1]


def test_tokens_past_a_texts_end_weigh_nothing(
    corpus: Corpus, pair: tuple[LM, LM], data: Path, tmp_path: Path
) -> None:
    few = corpus.part(slice(0, 16))
    asks = Texts(data).questions
    trainer: Any = Trainer(None, few, pair[1], asks, TrainSettings(), tmp_path / "state")
    weights = token_weights(trainer)
    there = np.arange(weights.shape[1]) < few.y.lengths[:, None]
    assert (weights[there] > 0).all() and not weights[~there].any()
    assert weights[there].mean() == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("name", ["texts.jsonl", "questions.jsonl"])
def test_a_byte_order_mark_in_front_of_json_lines_is_passed_over(tmp_path: Path, name: str) -> None:
    lines = {
        "texts.jsonl": '{"name": "a.txt", "text": "Zoe lives in Rome."}\n',
        "questions.jsonl": '{"text": "a.txt", "question": "Where ?", "answer": "Rome"}\n',
    }
    for file, line in lines.items():
        encoding = "utf-8-sig" if file == name else "utf-8"
        (tmp_path / file).write_text(line, encoding=encoding)
    data = open_folder(tmp_path)
    assert data.questions(0, 1, 0) == [("Where ?", "Rome")]
    (tmp_path / name).write_text(lines[name], encoding="utf-16")
    with pytest.raises(SourceError, match=f"{name} cannot be read.*UTF-16; save it as UTF-8"):
        open_folder(tmp_path)
