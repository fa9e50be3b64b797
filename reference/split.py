"""A split of the yard as `projector` wants it, and where pairs made of it are kept.

Knows the yard and its rendered blocks; knows nothing of maps or bundles.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from projector.models.vlm import VLM
from reference.pictures import Pictures
from reference.yard import ask, true_answer

HELD_OUT = 512
"""Pictures of validation on which choices are made."""


class Split:
    """A split of the yard as `projector` wants it: picture i, and questions about picture i."""

    def __init__(self, split: str, count: int, pool: Path) -> None:
        """Renders what is missing.

        Args:
            split: a split of the yard.
            count: how many pictures, a multiple of 256.
            pool: where rendered blocks are kept.
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
        """What the labels of picture `other` answer to a question."""
        _, scenes, place = self.pictures[other]
        return true_answer(scenes, place, text)


def pairs_folder(name: str, source: VLM, target: VLM) -> str:
    """Name of the folder of an edge model's pairs, one for each pair of models."""
    return f"corpus-{name}-{source.layout.fingerprint[:8]}-{target.layout.fingerprint[:8]}"
