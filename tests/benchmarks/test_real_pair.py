"""The real pair's contexts and corpus: held-out words stay out, and an answer is in the text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.real_pair import diverse, facts
from benchmarks.real_pair.fit import closed_forms, keep, kept, source_columns
from benchmarks.real_pair.judge import Judge, first_tokens, own_answers
from projector.families.low_rank import LowRank
from projector.families.ridge import Ridge
from projector.lm import LM
from projector.moments import Moments
from projector.texts import collect
from projector.train import Trainer, TrainSettings
from protos.errors import FitError, ModelError
from tests.fakes.tiny_models import tiny_lm


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


def test_no_word_of_the_unseen_split_occurs_in_the_diverse_corpus() -> None:
    texts = diverse.make(600, 0)
    seen = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    assert len(seen) > 1500 and len(set(texts)) > 550
    for word in facts.words("unseen"):
        assert not facts.forms(word) & seen, word
    assert texts == diverse.make(600, 0) != diverse.make(600, 1)


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
        firsts = first_tokens(lm, context.questions[0])
        want += [bool(logits[firsts].argmax() == 0)] * facts.ASKED
    assert got == want == own_answers(lm, CONTEXTS)
    assert judge.clusters == [0] * 4 + [1] * 4 + [2] * 4
    assert len(judge.answers(judge.blind)) == len(got)


def test_candidates_that_begin_alike_are_refused(lm: LM) -> None:
    with pytest.raises(ModelError, match="alike"):
        first_tokens(lm, facts.Question("q", ("red", "red car"), "none"))


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
    made = closed_forms(moments, layout, layout, (8,), 1e-2, every)
    sample = torch.from_numpy(x[:50].astype(np.float32))
    with torch.no_grad():
        for rank, family in ((0, Ridge(weight=1e-2)), (8, LowRank(r=8, weight=1e-2))):
            want = family.build(layout, layout, moments).predict(sample[None])
            got = made[rank].predict(sample[None])
            assert float((got - want).norm() / want.norm()) < (1e-3 if not rank else 0.05)


def test_maps_of_some_source_layers_look_at_no_others(lm: LM) -> None:
    layout = lm.layout
    columns = source_columns(layout, 1)
    block = layout.kv_heads * layout.head_dim
    last = (layout.layers - 1) * block
    assert columns.tolist()[:block] == list(range(last, last + block))
    assert len(columns) == 2 * block
    with pytest.raises(FitError, match="0 source layers"):
        source_columns(layout, 0)
