"""Pictures in a folder, and questions about them with their answers: what maps are judged on.

Knows files. Knows no model. A folder holds pictures and, where answers are to be judged or trained
on, `questions.jsonl`, one object a line:

    {"picture": "a.png", "question": "is there a dog ?", "answer": "yes", "kind": "presence"}

Lines with `"control": true` are never asked; they only say what is true of that picture when it
stands in for another.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image, UnidentifiedImageError

from protos.errors import FrameMalformedError, PictureError, SourceError
from protos.layout import read_json

QUESTIONS = "questions.jsonl"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_LONGEST_LINE = 1 << 16
_MOST_LINES = 10_000_000


@dataclass(frozen=True)
class Asked:
    """One question about one picture of a dataset."""

    picture: int
    text: str
    answer: str
    kind: str


class Dataset:
    """A folder of pictures, sorted by name, with its questions."""

    def __init__(self, folder: Path) -> None:
        """Reads names and questions, no picture yet.

        Raises:
            SourceError: no such folder, no picture in it, or questions that cannot be read or are
                about pictures that are not there.
        """
        if not folder.is_dir():
            raise SourceError(f"{folder} is not a folder")
        self.folder = folder
        self.files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
        if not self.files:
            raise SourceError(f"{folder} holds no picture ({', '.join(SUFFIXES)})")
        self._asked: dict[int, list[Asked]] = defaultdict(list)
        self._truth: dict[tuple[int, str], str] = {}
        if (folder / QUESTIONS).exists():
            self._read_questions(folder / QUESTIONS)

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.files)

    @property
    def digest(self) -> str:
        """SHA-256 over the pictures' names and sizes: whether a corpus was made of these."""
        names = "\0".join(f"{path.name}:{path.stat().st_size}" for path in self.files)
        return hashlib.sha256(names.encode()).hexdigest()

    def picture(self, index: int) -> Image.Image:
        """Picture `index`, RGB.

        Raises:
            PictureError: it is none.
        """
        path = self.files[index]
        try:
            with Image.open(path) as opened:
                return opened.convert("RGB")
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
            raise PictureError(f"{path} cannot be read as a picture: {error}") from error

    def asked(self, index: int) -> Sequence[Asked]:
        """Every question that is asked of picture `index`, in the file's order."""
        return self._asked[index]

    def questions(self, index: int, count: int, seed: int) -> Sequence[tuple[str, str]]:
        """Exactly `count` (question, answer) pairs, repeated if the picture has fewer.

        Args:
            index: the picture.
            count: how many.
            seed: 0 takes the first ones of the file, any other draws.

        Raises:
            SourceError: there are no questions about it.
        """
        rows = self._asked[index]
        if not rows:
            raise SourceError(f"{self.folder / QUESTIONS} asks nothing about {self.files[index]}")
        pairs = [(row.text, row.answer) for row in rows]
        if seed:
            Random(f"{self.files[index].name} {seed}").shuffle(pairs)
        return (pairs * -(-count // len(pairs)))[:count]

    def truth(self, index: int, text: str) -> str | None:
        """What is true of picture `index`, asked `text`; None if the file does not say."""
        return self._truth.get((index, text))

    def _read_questions(self, path: Path) -> None:
        place = {file.name: index for index, file in enumerate(self.files)}
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number > _MOST_LINES:
                    raise SourceError(f"{path} has more than {_MOST_LINES:,} lines")
                if not line.strip():
                    continue
                try:
                    row = read_json(line, _LONGEST_LINE, f"line {number}")
                    name, text, answer = row["picture"], row["question"], row["answer"]
                    kind, control = row.get("kind", "all"), row.get("control", False)
                except (FrameMalformedError, KeyError, TypeError, AttributeError) as error:
                    raise SourceError(
                        f"{path}, line {number}: expected an object with picture, question and "
                        f"answer ({error})"
                    ) from error
                if not all(isinstance(v, str) and v for v in (name, text, answer, kind)):
                    raise SourceError(f"{path}, line {number}: fields must be text, not empty")
                if name not in place:
                    raise SourceError(f"{path}, line {number}: there is no picture '{name}'")
                index = place[name]
                self._truth[index, text] = answer
                if not control:
                    self._asked[index].append(Asked(index, text, answer, kind))


def write_questions(folder: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write `questions.jsonl`."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / QUESTIONS).write_text(lines, encoding="utf-8")
