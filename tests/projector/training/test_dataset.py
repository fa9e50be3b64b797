"""A folder of inputs: what is broken is named, questions are drawn as its lines say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from projector.training.dataset import Dataset, write_questions
from protos.errors import PictureError, SourceError
from tests.fakes.tiny_models import picture

QUESTION = {"picture": "a.png", "answer": "yes"}


def folder(path: Path, rows: list[dict[str, object]]) -> Dataset:
    picture(0).save(path / "a.png")
    write_questions(path, [QUESTION | row for row in rows])
    return Dataset(path)


def test_a_heavier_question_is_drawn_before_others_in_proportion(tmp_path: Path) -> None:
    data = folder(tmp_path, [{"question": "a", "weight": 3}, {"question": "b"}])
    first = Counter(data.questions(0, 1, seed)[0][0] for seed in range(1, 2001))
    assert 0.72 < first["a"] / 2000 < 0.78
    assert data.questions(0, 2, 0) == [("a", "yes"), ("b", "yes")], "seed 0: as in the file"


def test_of_a_group_a_second_question_waits_for_every_other_group(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"question": f"a{k}", "group": "a"} for k in range(4)]
    data = folder(tmp_path, [*rows, {"question": "b", "weight": 0.01}])
    for seed in range(1, 40):
        drawn = [text for text, _ in data.questions(0, 5, seed)]
        assert len(set(drawn)) == 5 and "b" in drawn[:2]


@pytest.mark.parametrize("wrong", [{"weight": 0}, {"weight": "1"}, {"weight": True}, {"group": 3}])
def test_a_weight_that_is_none_is_refused_with_its_line(
    tmp_path: Path, wrong: dict[str, object]
) -> None:
    with pytest.raises(SourceError, match="line 1: weight must be a number above 0"):
        folder(tmp_path, [{"question": "a", **wrong}])


def test_a_picture_that_is_broken_inside_is_refused_by_its_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)  # more than one IDAT chunk
    Image.fromarray(noise).save(tmp_path / "broken.png")
    whole = (tmp_path / "broken.png").read_bytes()
    second = whole.index(b"IDAT", whole.index(b"IDAT") + 4)
    (tmp_path / "broken.png").write_bytes(whole[:second] + b"\x01DAT" + whole[second + 4 :])
    with pytest.raises(PictureError, match=r"broken\.png"):
        Dataset(tmp_path).picture(0)


def test_questions_about_pictures_that_are_not_there_are_refused(
    data: Path, tmp_path: Path
) -> None:
    picture(0).save(tmp_path / "a.png")
    for row in (
        '{"picture": "b.png", "question": "q", "answer": "a"}',
        '{"picture": "a.png", "question": "q"}',
        '{"picture": "a.png", "question": "", "answer": "a"}',
        "[]",
        "{",
    ):
        (tmp_path / "questions.jsonl").write_text(row + "\n")
        with pytest.raises(SourceError, match="line 1"):
            Dataset(tmp_path)
