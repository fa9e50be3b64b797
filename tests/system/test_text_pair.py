"""Two language models through the whole product: `edge-agent` to a real `cloud-server` and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec import structs

from cloud_server.engine.jobs import Answered, Failed, Job, JobEvent
from cloud_server.engine.transformers import TransformersEngine
from cloud_server.settings import load as cloud_settings
from edge_agent import cli
from edge_agent.prefill import load as load_edge
from edge_agent.settings import PREFIX, Settings
from projector.calibration.calibrate import FP8_POINT
from protos.errors import BundleLayoutError, ConfigError, ContextError
from tests.cloud_server import stage
from tests.fakes.text_pair import QUESTION, TEXTS, TextPair, in_process, make_pair
from tests.fakes.tiny_models import picture, tiny_idefics3
from tests.fakes.toolkit import code_of

pytestmark = pytest.mark.slow

Ask = Callable[..., int]
LONG = "the " * 25  # 100 of the large model's tokens


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TextPair:
    return make_pair(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def server(pair: TextPair) -> Iterator[stage.Server]:
    with stage.running_server(pair.target, [pair.bundle]) as running:
        yield running


@pytest.fixture
def ask(
    pair: TextPair, server: stage.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Ask:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    monkeypatch.setenv(PREFIX + "STATE_DIR", str(tmp_path / "state"))

    def call(
        command: str, *arguments: str, model: Path | None = None, to: Path | None = None
    ) -> int:
        flags = ["--model", str(model or pair.source), "--server", f"127.0.0.1:{server.port}"]
        flags += ["--target-tokenizer", str(to or pair.target), "--give-up-s", "20"]
        return cli.main([command, *arguments, *flags])

    return call


@pytest.mark.parametrize("point", ["fp8", "fine", "float"])
def test_the_answer_over_the_wire_is_the_one_in_process(
    ask: Ask, pair: TextPair, point: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    chosen = TEXTS[::5][:6]
    for index, text in enumerate(chosen):
        (folder / f"{index}.txt").write_text(text + "\n")
    assert ask("run", "--source", str(folder), "--question", QUESTION, "--point", point) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    got = {int(record["capture"][0]): record for record in records}
    want = [in_process(pair, text, QUESTION, point) for text in chosen]
    assert [got[i]["answer"] for i in range(len(chosen))] == want
    assert len(set(want)) > 1, "answers that do not depend on the text would prove nothing"
    assert len({record["tokens"] for record in records}) > 1
    # Letters of a word stand for one token of the source: it travels once.
    assert all(2 * record["kept_tokens"] < record["tokens"] for record in records)


def test_ask_takes_a_text_or_its_file(
    ask: Ask, pair: TextPair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "note.md"
    file.write_text(TEXTS[7] + "\n")
    assert ask("ask", "--text", TEXTS[7], "--question", QUESTION) == 0
    assert ask("ask", "--text-file", str(file), "--question", QUESTION) == 0
    want = in_process(pair, TEXTS[7], QUESTION, "fp8")
    assert capsys.readouterr().out == f"{want}\n{want}\n"
    assert ask("ask", "--text", TEXTS[7], "--question", QUESTION, "--json", "--edge-only-too") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["edge_answer"] == pair.edge.see(TEXTS[7]).answer(QUESTION, 16)
    assert TEXTS[7] not in json.dumps(record)


@pytest.mark.parametrize(
    ("arguments", "name", "said"),
    [
        (["--text", " "], "context", "empty"),
        (["--text", "a " * 100_000], "context", "characters"),
        (["--text", "the " * 40], "context", "159 tokens"),
        (["--text", "<eos>"], "context", "reserved"),
        (["--text", "\u732b"], "context", "no token for '\u732b'"),
        (["--text", "the car", "--question", " "], "config", "blank"),
        (["--text", "the car", "--question", "<eos>"], "question", "reserved"),
        (["--text", "the car", "--question", "a" * 400], "question_too_long", "does not fit"),
        (["--text", "the car", "--question", "a" * 600], "question_too_long", "600 bytes"),
        (["--text", "the car", "--token-budget", "2"], "config", "travels whole"),
        (["--text", "the car", "--point", "picture"], "config", "not one of"),
        (["--text", "the car", "--text-tokens", "64"], "incompatible_layout", "64"),
        (["--text", "the car", "--text-file", "x"], "config", "one picture, --text"),
        (["--text-file", "nowhere.txt"], "context", "nowhere.txt"),
        ([], "config", "one picture, --text"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    ask: Ask, arguments: list[str], name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [] if "--question" in arguments else ["--question", QUESTION]
    assert ask("ask", *arguments, *asked) == code_of(name)
    out, err = capsys.readouterr()
    assert out == "" and said in err and "Traceback" not in err


def test_text_models_and_pictures_are_kept_apart(
    ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(0).save(tmp_path / "a.png")
    assert ask("ask", str(tmp_path / "a.png"), QUESTION) == code_of("context")
    assert "reads texts, this is a picture" in capsys.readouterr().err
    vlm = load_edge(tiny_idefics3(tmp_path))
    with pytest.raises(Exception, match="sees pictures, this is a text"):
        vlm.see("the car")
    assert ask("feedback", "--text", "the car", "--question", QUESTION) == code_of("no_feedback")


def test_mixed_tokenizers_are_refused(
    ask: Ask, pair: TextPair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids may be the same and mean other words: digests tell, on both sides."""
    arguments = ("ask", "--text", "the car", "--question", QUESTION)
    assert ask(*arguments, to=pair.source) == code_of("incompatible_layout")
    assert "--target-tokenizer" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(pair.source, other)
    plain = json.loads((other / "tokenizer.json").read_text())
    vocabulary = plain["model"]["vocab"]
    vocabulary["car"], vocabulary["dog"] = vocabulary["dog"], vocabulary["car"]
    (other / "tokenizer.json").write_text(json.dumps(plain))
    assert ask(*arguments, model=other) == code_of("incompatible_layout")
    assert "tokenizer" in capsys.readouterr().err
    assert ask(*arguments, to=tmp_path) == code_of("model")
    with pytest.raises(ConfigError, match="--target-tokenizer"):
        load_edge(pair.source).see("the car")


class Bench:
    """An engine alone, and what it said."""

    def __init__(self, model: Path, bundle: Path) -> None:
        given = {"model": model, "bundles": [bundle], "threads": 1}
        self.said: list[JobEvent] = []
        self.engine = TransformersEngine(
            cloud_settings(given, environ=stage.DEVICE), self.said.append
        )
        (self.offer,) = self.engine.load()

    def job(self, pair: TextPair, id: int, text: str, question: str, limit: int = 8) -> Job:
        sight, encoder = pair.edge.see(text), pair.encoder
        encoded = encoder.encode(sight.state, encoder.point(FP8_POINT), sight.fresh)
        return Job(
            id=id,
            session="s",
            frame_number=id,
            request_id=f"{id:016x}",
            question=question,
            max_new_tokens=limit,
            received_ns=0,
            bundle=self.offer.bundle_digest,
            point=FP8_POINT,
            kept=encoded.kept.tobytes(),
            body=encoded.payload,
        )

    def drain(self) -> None:
        while self.engine.busy:
            self.engine.step()


@pytest.fixture(scope="module")
def bench(pair: TextPair) -> Bench:
    return Bench(pair.target, pair.bundle)


def test_texts_of_different_lengths_share_a_running_batch(pair: TextPair, bench: Bench) -> None:
    chosen = ["the", TEXTS[3], LONG.strip(), TEXTS[40], "dog"]
    for index, text in enumerate(chosen):
        bench.engine.submit(bench.job(pair, index, text, QUESTION))
        if index == 2:
            bench.engine.step()
    bench.drain()
    answers = {event.job: event.text for event in bench.said if isinstance(event, Answered)}
    want = [in_process(pair, text, QUESTION, "fp8", 8) for text in chosen]
    assert [answers[i] for i in range(len(chosen))] == want


def test_an_answer_that_would_pass_the_window_is_refused_by_name(
    pair: TextPair, bench: Bench
) -> None:
    """1 + 125 + 256 tokens and the answer's: the window sees 400."""
    text, question = "the " * 31 + "a", "a" * 255
    for limit, kind in ((18, Answered), (19, Failed)):
        job = bench.job(pair, 100 + limit, text, question, limit)
        assert 1 + len(job.kept) + 256 + limit == 400 + (limit - 18)
        bench.engine.submit(job)
        bench.drain()
        last = bench.said[-1]
        assert isinstance(last, kind), last
    assert isinstance(last, Failed)
    assert last.code == ContextError.code and "sliding windows" in last.message


def test_a_bundle_of_the_other_direction_is_refused_where_it_is_served(
    pair: TextPair, tmp_path: Path
) -> None:
    back = make_pair(tmp_path, reverse=True)
    with pytest.raises(BundleLayoutError, match=r"\[603\.2\]"):
        Bench(pair.target, back.bundle)
    with pytest.raises(ContextError, match="sliding windows"):
        load_edge(back.source, text_tokens=200)
    text = TEXTS[5]  # the way it is meant, it serves too: letters to words
    engine = Bench(back.target, back.bundle)
    engine.engine.submit(engine.job(back, 1, text, QUESTION))
    engine.drain()
    last = engine.said[-1]
    assert isinstance(last, Answered) and last.text == in_process(back, text, QUESTION, "fp8", 8)


def test_damaged_frames_of_texts_are_refused(pair: TextPair, bench: Bench) -> None:
    """A first token that is missing would stand for nothing; a delta has nothing to change."""
    job = bench.job(pair, 200, TEXTS[0], QUESTION)
    kept = job.kept_mask.copy()
    kept[0] = False
    other = kept.tobytes()
    for broken in (
        structs.replace(job, kept=other),
        structs.replace(job, kept=job.kept.ljust(129, b"\0")),
        structs.replace(job, body=job.body[:-1]),
    ):
        bench.engine.submit(broken)
        bench.drain()
        last = bench.said[-1]
        assert isinstance(last, Failed) and 200 <= last.code < 300, last
