"""The yard as a camera: `yard://test?start=0&count=50&questions=6`, with questions to each picture.

With `sequence=3` the pictures are consecutive frames of one fixed camera; else each shows another
scene.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from PIL import Image

from edge_agent.sources import Capture
from protos.errors import SourceError
from reference.yard import SPLITS, Question, Scenes, ask, render, sample_scenes, sample_sequence

_BLOCK = 64
_DEFAULTS = {"start": 0, "count": 50, "questions": 6}
_SEED = 0


@dataclass(frozen=True)
class Yard:
    """Pictures `start` to `start + count - 1` of a split, or frames of one of its sequences.

    Attributes:
        split: one of `reference.yard.SPLITS`.
        start: index of the first picture or frame.
        count: number of pictures or frames.
        questions: questions about each picture.
        sequence: number of the sequence; None for stills.
    """

    split: str
    start: int
    count: int
    questions: int
    sequence: int | None = None

    def __len__(self) -> int:
        """The number of captures."""
        return self.count

    def __iter__(self) -> Iterator[Capture]:
        """Yields the captures; pictures are rendered a block at a time."""
        for first in range(self.start, self.start + self.count, _BLOCK):
            size = min(_BLOCK, self.start + self.count - first)
            scenes, asked = self._block(first, size)
            for place, pixels in enumerate(render(scenes)):
                yield Capture(
                    name=f"{self._name}/{first + place:06d}",
                    picture=Image.fromarray(pixels),
                    captured_at=time.time(),
                    questions=tuple(question.text for question in asked(place)),
                )

    @property
    def _name(self) -> str:
        return self.split if self.sequence is None else f"{self.split}/sequence-{self.sequence:06d}"

    def _block(self, first: int, size: int) -> tuple[Scenes, Callable[[int], list[Question]]]:
        """A block's scenes, and the function that gives the questions about a place in it."""
        if self.sequence is None:
            scenes = sample_scenes(self.split, first, size)
            return scenes, lambda place: ask(scenes, place, self.questions, _SEED)
        frames = sample_sequence(self.split, self.sequence, first, size)
        return frames.drawn, lambda place: frames.ask(place, self.questions, _SEED)


def open_source(uri: str) -> Yard:
    """Opens a `yard://` URI.

    Args:
        uri: `yard://SPLIT?sequence=S&start=I&count=N&questions=Q`; all but the split may be left
            out.

    Raises:
        SourceError: an unknown split or parameter, or a value out of range.
    """
    parts = urlsplit(uri)
    split = parts.netloc or parts.path.strip("/") or "test"
    if split not in SPLITS:
        raise SourceError(f"{uri!r}: the yard has the splits {', '.join(SPLITS)}, not {split!r}")
    values = dict(_DEFAULTS)
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in (*_DEFAULTS, "sequence"):
            known = ", ".join((*_DEFAULTS, "sequence"))
            raise SourceError(f"{uri!r}: unknown parameter {name!r}; known: {known}")
        if not text.isdecimal() or int(text) > 10_000_000:
            raise SourceError(f"{uri!r}: {name} must be a whole number, not {text!r}")
        values[name] = int(text)
    if values["count"] < 1:
        raise SourceError(f"{uri!r}: count must be at least 1, or there is nothing to see")
    return Yard(split, **values)
