"""The real pair's contexts and corpus: held-out words stay out, and an answer is in the text."""

from __future__ import annotations

import re

import pytest

from benchmarks.real_pair import diverse, facts


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
