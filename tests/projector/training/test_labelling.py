"""Questions for unlabelled pictures: templates, draws, and the large model's own answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from projector.models.vlm import VLM
from projector.training.dataset import Dataset
from projector.training.labelling import chosen, label, read_questions
from protos.errors import SourceError
from tests.fakes.tiny_models import picture


def test_a_template_stands_for_each_of_its_parts(tmp_path: Path) -> None:
    file = tmp_path / "ask.txt"
    file.write_text("is there a {dog|cat} {left|right} ?\n\nhow many cars ?\nhow many cars ?\n")
    assert read_questions(file) == [
        "is there a dog left ?",
        "is there a dog right ?",
        "is there a cat left ?",
        "is there a cat right ?",
        "how many cars ?",
    ]


@pytest.mark.parametrize("text", ["", "is there a {dog ?\n", "a dog } ?\n", "{a|b}" * 20 + "\n"])
def test_questions_that_cannot_be_asked_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "ask.txt"
    file.write_text(text)
    with pytest.raises(SourceError):
        read_questions(file)


def test_a_pictures_questions_depend_on_its_name_alone() -> None:
    questions = [str(n) for n in range(100)]
    assert chosen(questions, "a.png", 6) == chosen(questions, "a.png", 6)
    assert chosen(questions, "a.png", 6) != chosen(questions, "b.png", 6)
    assert chosen(questions[:3], "a.png", 6) == questions[:3]


def test_answers_are_those_of_the_large_model_seeing_the_picture(
    tmp_path: Path, vlms: dict[str, VLM]
) -> None:
    target = vlms["llava-llama"]
    for index in range(3):
        picture(index).save(tmp_path / f"{index}.png")
    data = Dataset(tmp_path)
    questions = ["what is left", "is the car red", "how many dog"]
    made = label(target, data, [0, 2], questions, 2, max_new_tokens=4)
    assert {one.picture for one in made} <= {0, 2}
    for one in made:
        alone = target.answer_pictures(
            [data.picture(one.picture)], [target.question_ids(one.question)], 4
        )
        assert one.answer == target.text(alone[0]).strip()
        assert 0 < one.confidence <= 1
