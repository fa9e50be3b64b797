"""Questions about unlabelled pictures, answered by a large model that sees the pictures (torch).

Such answers are no truth: they say what the large model would have said, which is what a map is to
preserve. Each keeps its confidence.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from projector.models.vlm import VLM
from projector.training.dataset import Dataset, numbered_lines
from protos.errors import BridgeError, SourceError
from protos.process.files import text_of

_CHOICE = re.compile(r"\{([^{}]*)\}")
_MOST_QUESTIONS = 100_000
_BATCH = 16


@dataclass(frozen=True)
class Labelled:
    """One question that was answered.

    Attributes:
        picture: index of the picture.
        question: as asked.
        answer: the model's.
        confidence: probability that the model gave the answer's first token, 0 to 1.
    """

    picture: int
    question: str
    answer: str
    confidence: float


def read_questions(path: Path) -> list[str]:
    """Questions of a file, one a line; `{a|b}` stands for each of its parts.

    Raises:
        SourceError: it cannot be read, holds no question, or stands for more than 100,000.
    """
    found: dict[str, None] = {}
    for number, line in numbered_lines(path):
        try:
            text = text_of(line, path).strip()
        except BridgeError as error:
            raise SourceError(f"{path}, line {number}: {error}") from error
        pieces = _CHOICE.split(text)
        options = [p.split("|") if at % 2 else [p] for at, p in enumerate(pieces)]
        if "{" in "".join(pieces[::2]) or "}" in "".join(pieces[::2]):
            raise SourceError(f"{path}, line {number}: a brace without its partner")
        for parts in itertools.product(*options):
            found.setdefault(" ".join("".join(parts).split()), None)
            if len(found) > _MOST_QUESTIONS:
                raise SourceError(f"{path} stands for more than {_MOST_QUESTIONS:,} questions")
    if not found:
        raise SourceError(f"{path} holds no question")
    return list(found)


def chosen(questions: Sequence[str], name: str, count: int) -> list[str]:
    """Questions for one picture: a draw that depends on its name alone."""
    if len(questions) <= count:
        return list(questions)
    return Random(name).sample(questions, count)


def label(
    target: VLM,
    data: Dataset,
    pictures: Sequence[int],
    questions: Sequence[str],
    count: int,
    told: Callable[[int], None] = lambda _: None,
    max_new_tokens: int = 16,
) -> list[Labelled]:
    """Ask the large model about pictures; answers without a word are left out.

    Args:
        target: the large model.
        data: the pictures.
        pictures: indices of those to ask about.
        questions: to draw from.
        count: questions per picture, at most.
        told: called with how many more pictures are done.
        max_new_tokens: longest answer.

    Raises:
        PictureError: a picture cannot be read.
        QuestionError, QuestionTooLongError: the model cannot take a question.
    """
    ids = {text: target.question_ids(text) for text in questions}
    made: list[Labelled] = []
    for begin in range(0, len(pictures), _BATCH):
        some = pictures[begin : begin + _BATCH]
        asked = [(row, q) for row, i in enumerate(some)
                 for q in chosen(questions, data.files[i].name, count)]  # fmt: skip
        seen = target.prefill([data.picture(i) for i in some], attention=False).layers()
        rows = torch.tensor([row for row, _ in asked], device=target.device)
        layers = [(key[rows], value[rows]) for key, value in seen]
        wanted = [ids[text] for _, text in asked]
        answers = target.answer(layers, wanted, max_new_tokens)
        chances = target.first_token(layers, wanted)
        for (row, text), answer, chance in zip(asked, answers, chances, strict=True):
            said = target.text(answer).strip()
            if said:
                made.append(Labelled(some[row], text, said, float(chance[answer[0]])))
        told(len(some))
    return made
