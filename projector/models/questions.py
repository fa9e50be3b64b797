"""Checks a question about a picture, and turns it into ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from projector.models.tokens import CHARACTERS_PER_TOKEN
from protos.errors import QuestionError, QuestionTooLongError


def ids_of_question(
    text: str, reserved: Sequence[str], most: int, ids_of: Callable[[str], list[int]]
) -> list[int]:
    """The ids that follow the last image token: the question and the cue to answer.

    Args:
        text: the question.
        reserved: texts that it must not hold.
        most: tokens of the longest question, with its template.
        ids_of: the prompt's ids after the picture for a question.

    Raises:
        QuestionError: it is blank, or holds a reserved text.
        QuestionTooLongError: more than `most` tokens.
    """
    if not text.strip():
        raise QuestionError("the question is empty")
    held = next((token for token in reserved if token in text), None)
    if held is not None:
        raise QuestionError(f"the question holds '{held}', a token reserved by the model")
    if len(text) > CHARACTERS_PER_TOKEN * most:
        raise QuestionTooLongError(
            f"the question has {len(text)} characters; at most {most} tokens fit"
        )
    ids = ids_of(text)
    if len(ids) > most:
        raise QuestionTooLongError(
            f"the question takes {len(ids)} tokens with its template; at most {most} fit"
        )
    return ids
