"""The yard: rendered camera pictures with questions, for the reference models and their tests."""

from reference.yard.questions import (
    ANSWERS,
    VOCABULARY,
    Question,
    ask,
    draw_weight,
    list_questions,
    true_answer,
)
from reference.yard.render import render
from reference.yard.scene import (
    COLOURS,
    GROUPS,
    KINDS,
    PICTURE_PX,
    SPLITS,
    Scenes,
    sample_scenes,
)
from reference.yard.sequence import Sequence, sample_sequence

__all__ = [
    "ANSWERS",
    "COLOURS",
    "GROUPS",
    "KINDS",
    "PICTURE_PX",
    "SPLITS",
    "VOCABULARY",
    "Question",
    "Scenes",
    "Sequence",
    "ask",
    "draw_weight",
    "list_questions",
    "render",
    "sample_scenes",
    "sample_sequence",
    "true_answer",
]
