"""The real pair's contexts and corpus: held-out words stay out, and an answer is in the text."""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.real_pair import __main__ as bench
from benchmarks.real_pair import diverse, export, facts, learn, page
from benchmarks.real_pair.fit import closed_forms, keep, kept, source_columns
from benchmarks.real_pair.judge import Judge, answer_ids, apart, own_answers
from benchmarks.real_pair.learn import FULL, Learner, Settings
from projector.maps.low_rank import LowRank
from projector.maps.metric import Metric
from projector.maps.moments import Moments
from projector.maps.ridge import Ridge
from projector.maps.tuned import Tuned
from projector.models.lm import LM
from projector.training.dataset import open_folder
from projector.training.settings import TrainSettings
from projector.training.texts import collect
from projector.training.train import Trainer
from protos.errors import CorpusError, FitError, ModelError
from reference.report.parts import markdown
from tests.fakes.tiny_models import subword_tokenizer, tiny_gemma3, tiny_lm


@pytest.mark.parametrize("binding", [False, True])
def test_no_word_of_the_unseen_split_occurs_in_training_in_any_number(binding: bool) -> None:
    seen = {
        form
        for context in facts.make("train", 400, 0, binding)
        for text in (context.text, *(q.text for q in context.questions))
        for word in re.findall(r"[a-z]+", text.lower())
        for form in facts.forms(word)
    }
    assert facts.words("train") <= seen
    for word in facts.words("unseen"):
        assert not facts.forms(word) & seen, word


BY_HAND = """
cows tigers frogs camels mice deer lizards spiders whales eagles chefs carpenters dentists
plumbers butchers tailors scientists waiters librarians guards banana egg mushroom tomato onion
carrot cookie grape keys bells flags drums shovels buckets pillows blankets guitars clocks dogs
horses foxes wolves knives monkeys
"""


@pytest.mark.parametrize("other", BY_HAND.split())
def test_the_other_number_of_a_word_is_a_form_of_it_both_ways(other: str) -> None:
    told = facts.words("unseen") | facts.words("train")
    known = [word for word in told if other in facts.forms(word)]
    assert len(known) == 1 and known[0] in facts.forms(other)


@pytest.mark.slow
def test_texts_and_questions_are_exported_as_projector_reads_them(
    vocabularies: tuple[list[str], list[str]], tmp_path: Path, capsys: Any
) -> None:
    rows = export.lessons(40, diverse.Words.of(*vocabularies))
    assert export.write(tmp_path / "lessons", rows) == 40
    held = open_folder(tmp_path / "lessons")
    assert len(held) == 40 and all(held.asked(i) for i in range(40))
    assert held.questions(0, 2, 0)[0] in rows[0][1]
    assert export.main([str(tmp_path / "held"), "--facts", "unseen", "--count", "5"]) == 0
    facts_held = open_folder(tmp_path / "held")
    assert len(facts_held) == 5 and "5 texts" in capsys.readouterr().out
    question, answer = facts_held.questions(0, 1, 0)[0]
    assert answer in facts.make("unseen", 1, 1)[0].text and question.strip()
    nothing = [str(tmp_path / "x"), "--lessons", "5", "--pair", str(tmp_path)]
    assert export.main(nothing) == ModelError.exit_code
    assert "make real-pair" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        export.main([str(tmp_path / "x"), "--lessons", "0"])


_ENDS = "ax ix an en in on un ar er ow ush ell".split()
RARE = [f"{a}{b}{c}" for a in "bdfgklmnprstvwz" for b in "aeio" for c in _ENDS]


@pytest.fixture(scope="module")
def vocabularies() -> tuple[list[str], list[str]]:
    """As two tokenizers would have them, every held-out word in both."""
    some = sorted({word for piece in diverse.prose() for word in re.findall("[A-Za-z]{3,}", piece)})
    held = [form for word in facts.words("unseen") for form in (word, word.capitalize())]
    words = [*some, *RARE, *(word.capitalize() for word in RARE), *held]
    return [f"\u0120{word}" for word in words], [f"\u2581{word}" for word in [*words, "Quartz"]]


@pytest.mark.slow
def test_no_word_of_the_unseen_split_occurs_in_the_lessons(
    vocabularies: tuple[list[str], list[str]],
) -> None:
    words = diverse.Words.of(*vocabularies)
    made = diverse.make(600, 0, words)
    told = [lesson.text for lesson in made]
    told += [part for one in made for asked in (*one.brief, *one.full) for part in asked]
    seen = {word for text in told for word in re.findall(r"[a-z]+", text.lower())}
    assert len(seen) > 1500 and len({lesson.text for lesson in made}) > 500
    for word in facts.words("unseen"):
        assert not facts.forms(word) & seen, word
    assert made == diverse.make(600, 0, words) != diverse.make(600, 1, words)


@pytest.mark.slow
def test_choices_are_made_on_words_that_no_lesson_and_no_split_holds(
    vocabularies: tuple[list[str], list[str]],
) -> None:
    words = diverse.Words.of(*vocabularies)
    assert len(words.held) > 5
    lessons = diverse.make(900, 0, words)
    told = {word for one in lessons for word in re.findall(r"[a-z]+", one.text.lower())}
    told |= {form for split in facts.SPLITS for w in facts.words(split) for form in facts.forms(w)}
    for word in words.held:
        assert not facts.forms(word.lower()) & told, word


@pytest.mark.slow
def test_a_lesson_asks_for_what_its_text_says(vocabularies: tuple[list[str], list[str]]) -> None:
    for lesson in diverse.make(300, 1, diverse.Words.of(*vocabularies)):
        for seed, kind in ((3, lesson.full or lesson.brief), (4, lesson.brief)):
            asked = lesson.questions(6, seed)
            assert len(asked) == 6 and asked == lesson.questions(6, seed)
            assert set(asked) <= set(kind)
            for question, answer in asked:
                begun = question.rpartition("Answer: ")[2]
                assert f"{begun} {answer}" in lesson.text


@pytest.mark.parametrize("language", sorted(facts.FOREIGN))
def test_facts_in_other_languages_hold_their_answers(language: str) -> None:
    for context in facts.foreign(language, 20, 0):
        assert len(context.questions) == facts.ASKED
        for question in context.questions:
            assert len(set(question.candidates)) == facts.CANDIDATES
            begun = re.split("Antwort: |回答：", question.text)[1]
            assert f"{begun}{question.space}{question.candidates[0]}" in context.text


@pytest.mark.parametrize("binding", [False, True])
@pytest.mark.parametrize("split", facts.SPLITS)
def test_every_question_has_eight_different_answers_and_the_text_holds_the_right_one(
    split: str, binding: bool
) -> None:
    for context in facts.make(split, 200, 1, binding):
        assert len(context.questions) == facts.ASKED
        for question in context.questions:
            assert len(set(question.candidates)) == facts.CANDIDATES
            assert set(question.candidates) <= set(facts.RELATIONS[question.relation].values[split])
            name = re.search(r"(\w+) (lives|owns|works|likes|wears|carries)", question.text)
            assert name is not None
            sentences = re.findall(r"[^.]+\.", context.text)
            about = [s for s in sentences if name[0] in s]
            assert len(about) == 1 and question.candidates[0] in about[0]


def test_binding_contexts_say_the_same_of_several_people() -> None:
    for context in facts.make("unseen", 50, 2, binding=True):
        others = [
            candidate
            for question in context.questions
            for candidate in question.candidates[1:]
            if re.search(rf"\b{candidate}\b", context.text)
        ]
        assert others


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LM:
    return LM.load(tiny_lm(tmp_path_factory.mktemp("lm")))


WORDS = ("red", "green", "blue", "car", "truck", "dog", "cat", "tree")
CONTEXTS = [
    facts.Context(text, (facts.Question("what is left ?", WORDS, "none"),) * facts.ASKED)
    for text in ("the red car", "a dog below the blue truck .", "one cat")
]


def test_a_question_is_answered_by_the_candidate_that_the_whole_model_finds_likeliest(
    lm: LM, tmp_path: Path
) -> None:
    pairs = collect(lm, lm, [c.text for c in CONTEXTS].__getitem__, len(CONTEXTS), tmp_path)
    nothing = TrainSettings(reconstruct_steps=0, task_steps=0)
    trainer: Any = Trainer(None, pairs, lm, lambda *_: [], nothing, tmp_path / "state")
    judge = Judge(trainer, CONTEXTS)
    got = judge.answers(lambda i: judge.states(pairs.y[i.start : i.stop]))
    want = []
    for context in CONTEXTS:
        ids = [*lm.tokens(context.text).ids, *lm.question_ids(context.questions[0].text)]
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([ids])).logits[0, -1]
        firsts = [ids[0] for ids in answer_ids(lm, context.questions[0])]
        want += [bool(logits[firsts].argmax() == 0)] * facts.ASKED
    assert got == want == own_answers(lm, CONTEXTS)
    assert judge.clusters == [0] * 4 + [1] * 4 + [2] * 4
    assert len(judge.answers(judge.blind)) == len(got)


def test_a_cache_that_is_not_finite_is_never_right(lm: LM, tmp_path: Path) -> None:
    pairs = collect(lm, lm, [c.text for c in CONTEXTS].__getitem__, len(CONTEXTS), tmp_path)
    nothing = TrainSettings(reconstruct_steps=0, task_steps=0)
    trainer: Any = Trainer(None, pairs, lm, lambda *_: [], nothing, tmp_path / "state")
    judge = Judge(trainer, CONTEXTS)
    with pytest.raises(FitError, match="not finite"):
        judge.answers(lambda i: judge.states(pairs.y[i.start : i.stop] * np.float16(np.inf)))


def test_candidates_that_begin_alike_are_told_apart_by_all_their_tokens(lm: LM) -> None:
    candidates = ("red car", "red truck", "blue car", "blue", "dog", "cat", "tree car", "green")
    rows = answer_ids(lm, facts.Question("what is it ?", candidates, "none"))
    assert not apart(rows) and apart([row for row in rows if len(row) == 1])
    asked = [*lm.tokens("the red car").ids, *lm.question_ids("what is it ?")]
    scores = []
    with torch.no_grad():
        for row in rows:
            logits = lm.model(input_ids=torch.tensor([[*asked, *row]])).logits[0]
            told = logits.log_softmax(-1)[len(asked) - 1 : -1]
            scores.append(float(told.gather(1, torch.tensor(row)[:, None]).sum()))
    order = [int(i) for i in np.argsort(scores)[::-1]]
    for first, right in ((order[0], True), (order[1], False)):
        turned = (candidates[first], *(c for i, c in enumerate(candidates) if i != first))
        question = facts.Question("what is it ?", turned, "none")
        assert own_answers(lm, [facts.Context("the red car", (question,))]) == [right]


def test_closed_forms_are_those_of_the_families(lm: LM, tmp_path: Path) -> None:
    layout, rng = lm.layout, np.random.default_rng(0)
    d = layout.state_dim
    x = rng.standard_normal((1200, d)) @ rng.standard_normal((d, d)) / d**0.5
    y = x @ rng.standard_normal((d, d)) / d**0.5 + rng.standard_normal((1200, d))
    parts = [Moments.of([(x[i::3], y[i::3])]) for i in range(3)]
    for place, part in enumerate(parts):
        keep(part, tmp_path / f"{place}.npz")
    moments = kept(tmp_path / "0.npz") + kept(tmp_path / "1.npz") + kept(tmp_path / "2.npz")
    np.testing.assert_allclose(moments.xy, parts[0].xy + parts[1].xy + parts[2].xy, rtol=1e-4)
    every = source_columns(layout, layout.layers)
    assert every.tolist() == list(range(d))
    made, best = closed_forms(moments, layout, layout, (8,), 1e-2, every, None, 16)
    sample = torch.from_numpy(x.astype(np.float32))
    half = d // 2
    plain = (
        (0, Ridge(weight=1e-2, spread=False)),
        (8, LowRank(r=8, weight=1e-2, spread=False)),
    )
    with torch.no_grad():
        for rank, family in plain:
            want = family.build(layout, layout, moments).predict(sample[None])[0]
            got = made[rank].predict(sample[None])[0]
            apart = (got - want)[:, half:].norm() / want[:, half:].norm()
            assert float(apart) < (1e-3 if not rank else 0.05)
            # Keys point the same way, and each head's spread as widely as the target's own.
            alike = torch.cosine_similarity(got[:, :half], want[:, :half], dim=0)
            assert float(alike.min()) > (0.9999 if not rank else 0.99)
            spread = got[:, :half].square().mean(0).view(-1, layout.head_dim).mean(1)
            torch.testing.assert_close(spread, torch.ones_like(spread), rtol=0.03, atol=0)
    xx, _ = moments.normalised()
    there = best.numpy().T @ (xx + 1e-2 * np.eye(d)) @ best.numpy()
    np.testing.assert_allclose(there, np.eye(16), atol=1e-3)


def test_a_metric_spends_the_rank_where_errors_cost_most(lm: LM) -> None:
    layout, rng = lm.layout, np.random.default_rng(0)
    d, blocks = layout.state_dim, 2 * layout.layers
    x = rng.standard_normal((2000, d))
    y = x @ rng.standard_normal((d, d)) / d**0.5
    moments = Moments.of([(x, y)])
    scale = moments.y_stats.scale
    dear = np.zeros((blocks, d // blocks, d // blocks))
    dear[-1] = np.eye(d // blocks)  # only the last layer's values matter
    columns = source_columns(layout, layout.layers)
    sample = torch.from_numpy(x[:200].astype(np.float32))[None]
    errors = {}
    for name, metric in (("plain", None), ("dear", Metric.of(dear, scale, 1e-4))):
        made, _ = closed_forms(moments, layout, layout, (4,), 1e-2, columns, metric)
        with torch.no_grad():
            missed = made[0].predict(sample) - made[4].predict(sample)
        errors[name] = missed.square().mean((0, 1)).view(blocks, -1).mean(1)
    assert errors["dear"][-1] < 0.9 * errors["plain"][-1]
    others = slice(layout.layers, -1)  # the other layers' values; keys are stretched besides
    assert errors["dear"][others].mean() > errors["plain"][others].mean()


@pytest.fixture(scope="module", params=["forward", "reverse"])
def learner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    folder = tmp_path_factory.mktemp("real")
    rare = " ".join(f"{word} {word.capitalize()}" for word in RARE)
    told = [*diverse.prose()[:200], *(c.text for c in facts.make("train", 60, 0)), *[rare] * 30]
    paths = [
        tiny_lm(folder, "llama", 4, subword_tokenizer(told, 4000), max_position_embeddings=1024),
        tiny_gemma3(
            folder,
            tokenizer=subword_tokenizer(told[::-1], 5000),
            sliding_window=700,
            max_position_embeddings=1024,
        ),
    ]
    if request.param == "reverse":
        paths.reverse()
    source, target = (LM.load(path, text_tokens=300) for path in paths)
    settings = Settings(ranks=(24, 16), texts=60, directions=32, steps=3, batch=4, questions=2)
    return Learner(source, target, folder / "work", settings)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [FULL, 16])
def test_a_map_carried_on_begins_at_the_closed_form_and_stays_of_its_family(
    learner: Learner, rank: int
) -> None:
    start = learner.maps(0)[rank]
    begun = Tuned(start, learner.directions(0))
    x = torch.from_numpy(learner.training.x[0:2].astype(np.float32)).nan_to_num(0.0)
    with torch.no_grad():
        want = start.predict(x)
        for other in (begun.predict(x), begun.merged().predict(x)):
            torch.testing.assert_close(other, want, rtol=0.05, atol=0.05)
    made = learner.tuned(rank)
    assert type(made) is type(start) and made.rank == start.rank
    with torch.no_grad():
        assert float((made.predict(x) - want).abs().max()) > 1e-4


@pytest.mark.slow
def test_the_benchmark_reports_every_arm_and_resumes(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "FOREIGN_CONTEXTS", 2)
    args = argparse.Namespace(contexts=4, seeds=2, out=learner.work)
    report = bench.Bench(args, learner).run()
    arms = {(arm["name"], arm["seed"]): arm for arm in report["arms"]}
    carried = {"full + KL", "rank 16 + KL"}
    fixed = {"native", "no context", "source alone", "another context", "mean state"}
    closed = {"full", "rank 24", "rank 16"}
    lengths = {"rank 16, keys as predicted"} if learner.target.layout.qk_norm else set()
    assert {name for name, _ in arms} >= carried | fixed | closed | lengths | {
        "rank 16 + KL, int4",
        "untrained edge, rank 16",
        "untrained edge, full",
    }
    assert ("full", 1) in arms and ("full + KL", 1) not in arms
    for split in ("unseen", "seen", "binding"):
        assert 0 <= arms[("full", 0)][f"acc_{split}"]["mean"] <= 1
    assert set(report["fit"]["unseen"]) == {"full", "rank 16"} | carried
    assert report["ttft"]["ratio"] > 0
    spent = set(report["training_minutes"])
    assert {"corpus training", "moments 0", "moments 3", "sensitivity", "tuned 16"} <= spent
    assert len(report["targets"]) == 8
    text = markdown(page.parts(report, report))
    for name in carried | fixed | closed:
        assert f"\n| {name}" in text
    assert "The other direction" in text and text.count("| yes |") + text.count("**no**") == 8
    assert "numbers per token" in page.draw(report)
    assert report["settings"]["contexts"] == 4 and arms[("native", None)]["n_german"] > 0
    again = bench.Bench(args, learner)
    assert len(again.rows) > 40
    assert again.run()["arms"] == report["arms"]
    other = bench.Bench(argparse.Namespace(contexts=5, seeds=2, out=learner.work), learner)
    assert not other.rows, "of other contexts"
    fewer = bench.Bench(argparse.Namespace(contexts=4, seeds=1, out=learner.work), learner)
    assert {arm["seed"] for arm in fewer.run()["arms"]} == {None, 0}
    assert len(bench.Bench(args, learner).rows) == len(again.rows), "nothing was forgotten"


@pytest.mark.slow
def test_what_was_learnt_from_other_texts_is_not_gone_on_with(
    learner: Learner, tmp_path: Path
) -> None:
    def fresh() -> Learner:
        return Learner(learner.source, learner.target, tmp_path, learner.settings)

    fresh().claim()
    fresh().claim()
    (mark,) = tmp_path.glob("lessons-*.txt")
    mark.write_text("0" * 64)
    with pytest.raises(CorpusError, match="other texts"):
        fresh().claim()
    mark.unlink()
    (tmp_path / "moments-5-0.npz").touch()
    with pytest.raises(CorpusError, match="other texts"):
        fresh().claim()


@pytest.mark.slow
def test_a_step_that_is_killed_is_counted_up_to_there(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learn, "_NOTED_S", 0.01)
    first = Learner(learner.source, learner.target, tmp_path, learner.settings)

    def kept() -> float:
        again = Learner(learner.source, learner.target, tmp_path, learner.settings)
        return sum(again.spent.get("moments 1", {}).values())

    with first.timed("moments 1", ("texts",)):
        until = time.monotonic() + 30
        while not (so_far := kept()) and time.monotonic() < until:
            time.sleep(0.01)  # killed here, this is what the next run would read
        assert so_far > 0
    assert kept() > so_far
    whole = kept()
    second = Learner(learner.source, learner.target, tmp_path, learner.settings)
    with second.timed("moments 1", ("texts",)):
        time.sleep(0.02)
    assert kept() >= whole + 0.02


@pytest.mark.slow
def test_minutes_are_of_the_settings_that_a_step_was_made_with(learner: Learner) -> None:
    learner.tuned(16)
    mine = learner.minutes()
    assert {"moments 1", "sensitivity", "closed forms 0", "tuned 16"} <= set(mine)
    plan = learner.settings
    for changed, gone in (
        ({"steps": plan.steps + 1}, {"tuned 16"}),
        ({"questions": plan.questions + 1}, {"tuned 16"}),
        ({"ridge": 0.5}, {"tuned 16", "closed forms 0"}),
    ):
        other = Learner(learner.source, learner.target, learner.work, replace(plan, **changed))
        assert gone <= set(mine) - set(other.minutes())
        assert other.minutes()["moments 1"] == mine["moments 1"]


def test_maps_of_some_source_layers_look_at_no_others(lm: LM) -> None:
    layout = lm.layout
    columns = source_columns(layout, 1)
    block = layout.kv_heads * layout.head_dim
    last = (layout.layers - 1) * block
    assert columns.tolist()[:block] == list(range(last, last + block))
    assert len(columns) == 2 * block
    with pytest.raises(FitError, match="0 source layers"):
        source_columns(layout, 0)
