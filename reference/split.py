"""A split of the yard as a dataset of `projector`, and the folder where its pairs are kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from projector.models.vlm import VLM
from reference.pictures import Pictures
from reference.yard import ask, true_answer

HELD_OUT = 512
"""Validation pictures on which choices are made."""


class Split:
    """A split of the yard as a dataset of `projector`: picture i and the questions about it."""

    def __init__(self, split: str, count: int, pool: Path) -> None:
        """Renders what is missing.

        Args:
            split: a split of the yard.
            count: number of pictures, a multiple of 256.
            pool: folder of rendered blocks.
        """
        self.pictures = Pictures(split, count, pool)

    def picture(self, index: int) -> Image.Image:
        """Picture `index`."""
        return Image.fromarray(self.pictures[index][0])

    def questions(self, index: int, count: int, seed: int) -> Sequence[tuple[str, str]]:
        """Exactly `count` (question, answer) pairs, repeated if the picture has fewer."""
        _, scenes, place = self.pictures[index]
        pairs = [(q.text, q.answer) for q in ask(scenes, place, count, seed)]
        return (pairs * count)[:count]

    def other_labels(self, index: int, other: int, text: str) -> str | None:
        """The answer to a question by the labels of picture `other`."""
        _, scenes, place = self.pictures[other]
        return true_answer(scenes, place, text)


def pairs_folder(name: str, source: VLM, target: VLM) -> str:
    """Name of the folder that holds the pairs of two models."""
    return f"corpus-{name}-{source.layout.fingerprint[:8]}-{target.layout.fingerprint[:8]}"
