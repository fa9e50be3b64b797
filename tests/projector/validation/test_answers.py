"""Answers from a map's cache beside the native one's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from projector.training.dataset import LEAST_QUESTIONS
from projector.validation.answers import Validator
from protos.errors import FitError


def replace_corpus(judge: Validator, count: int) -> Any:
    pairs = judge.corpus
    return replace(pairs, x=pairs.x[:count], y=pairs.y[:count], attention=pairs.attention[:count])


def test_too_few_questions_give_no_figure(judge: Validator) -> None:
    few = replace_corpus(judge, 3)
    with pytest.raises(FitError, match=f"fewer than {LEAST_QUESTIONS}"):
        Validator(judge.trainer, few, judge.dataset)
