"""Pictures or texts in a folder, and questions about them with their answers.

A folder holds pictures, or texts: `.txt` files, `texts.jsonl` with one
`{"name": "a", "text": "Amp lives in Rome."}` a line, or both. To train on answers or to judge them,
it also needs `questions.jsonl`, one object a line (for a text, `"text"` instead of `"picture"`):

    {"picture": "a.png", "question": "is there a dog ?", "answer": "yes", "kind": "presence"}

Lines with `"control": true` are never asked; they give that picture's true answer when it stands in
for another. `"weight"` (1 by default) makes a question likelier to be drawn. A second question of
one `"group"` is drawn only after one of every other group.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import ClassVar

from PIL import Image

from projector.models import pictures
from projector.models.foreign import in_words
from projector.models.tokens import sound
from protos.errors import FitError, FrameMalformedError, PictureError, SourceError
from protos.process.files import text_of, without_mark
from protos.process.folders import Listing, list_files, open_file, said
from protos.strict_json import read_json

QUESTIONS = "questions.jsonl"
TEXTS = "texts.jsonl"
_BESIDE = (QUESTIONS, TEXTS, "labels.jsonl")
LONGEST_LINE = 1 << 16
LEAST_QUESTIONS = 384
"""Least questions about held-out inputs for a figure."""
_LONGEST_TEXT = 1 << 20
_MOST_LINES = 10_000_000


@dataclass(frozen=True, slots=True)
class Asked:
    """One question about one picture of a dataset."""

    picture: int
    text: str
    answer: str
    kind: str
    weight: float = 1.0
    group: str = ""


class Dataset:
    """A folder of pictures, sorted by name, with its questions."""

    unit: ClassVar[str] = "picture"

    def __init__(self, folder: Path, max_pixels: int = pictures.MAX_PIXELS) -> None:
        """Reads names and questions, no picture yet.

        Args:
            folder: the folder of pictures.
            max_pixels: most pixels of a picture that is decoded.

        Raises:
            SourceError: no such folder, no picture in it, or questions that cannot be read or are
                about pictures that are not there.
        """
        self.folder, self.max_pixels = folder, max_pixels
        self.skipped: dict[str, int] = {}
        """Number of entries that were passed over, by kind."""
        self.files = self._find()
        self._asked: dict[int, list[Asked]] = defaultdict(list)
        self._truth: dict[tuple[int, str], str] = {}
        if (folder / QUESTIONS).exists():
            self._read_questions(folder / QUESTIONS)

    def _find(self) -> list[Path]:
        files = self._of(pictures.SUFFIXES)
        if not files:
            known = ", ".join(pictures.SUFFIXES)
            raise SourceError(f"{self.folder} holds no picture ({known}){self._over}")
        return files

    def _of(self, suffixes: Collection[str]) -> list[Path]:
        """The folder's files with one of these suffixes; all else is counted as passed over."""
        found = _listed(self.folder)
        files = [path for path in found.files if path.suffix.lower() in suffixes]
        others = sum(path.name not in _BESIDE for path in found.files) - len(files)
        self.skipped = {**found.skipped, **({"of_another_suffix": others} if others else {})}
        return files

    @property
    def _over(self) -> str:
        return f"; passed over: {said(self.skipped)}" if self.skipped else ""

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.files)

    @property
    def digest(self) -> str:
        """SHA-256 over all inputs and their names; ties a corpus to them.

        Raises:
            PictureError, SourceError: one of them cannot be read.
        """
        return self._digests[0]

    @property
    def contents(self) -> tuple[str, ...]:
        """A digest of each input's bytes without its name, to tell which were seen before.

        Raises:
            PictureError, SourceError: one of them cannot be read.
        """
        return self._digests[1]

    @cached_property
    def _digests(self) -> tuple[str, tuple[str, ...]]:
        whole, each = hashlib.sha256(), []
        for index, path in enumerate(self.files):
            blob = self._content(index)
            whole.update(f"{path.name}\0{len(blob)}\0".encode() + blob)
            each.append(hashlib.blake2b(blob, digest_size=8).hexdigest())
        return whole.hexdigest(), tuple(each)

    def _content(self, index: int) -> bytes:
        path = self.files[index]
        try:
            with open_file(path) as file:
                return file.read()
        except OSError as error:
            raise PictureError(f"{path} cannot be read: {error.strerror or error}") from error

    @property
    def questions_digest(self) -> str:
        """SHA-256 of the questions and answers; of no bytes if there are none."""
        path = self.folder / QUESTIONS
        return hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()

    def picture(self, index: int) -> Image.Image:
        """Picture `index`, RGB, by the rule of `projector/models/pictures.py`.

        Raises:
            PictureError: it is not a picture, too large, or of an unknown depth.
        """
        return pictures.read(self.files[index], max_pixels=self.max_pixels)

    def asked(self, index: int) -> Sequence[Asked]:
        """Every question that is asked of picture `index`, in the file's order."""
        return self._asked[index]

    def require_questions(self, per_input: int, inputs: range | None = None) -> None:
        """Refuse too few questions for a figure.

        Args:
            per_input: at most so many questions of each input count.
            inputs: the inputs that count; all by default.

        Raises:
            FitError: fewer than 384.
        """
        chosen = range(len(self)) if inputs is None else inputs
        count = sum(len(self.asked(index)[:per_input]) for index in chosen)
        if count < LEAST_QUESTIONS:
            raise FitError(
                f"{count} held-out questions: a figure from fewer than {LEAST_QUESTIONS} says "
                f"nothing; add {self.unit}s or questions"
            )

    def questions(self, index: int, count: int, seed: int) -> Sequence[tuple[str, str]]:
        """Exactly `count` (question, answer) pairs, repeated if the picture has fewer.

        Args:
            index: the picture.
            count: number of pairs.
            seed: 0 takes the first ones of the file, any other draws.

        Raises:
            SourceError: there are no questions about it.
        """
        rows = self._asked[index]
        if not rows:
            raise SourceError(f"{self.folder / QUESTIONS} asks nothing about {self.files[index]}")
        if seed:
            rows = _drawn(rows, Random(f"{self.files[index].name} {seed}"), count)
        pairs = [(row.text, row.answer) for row in rows]
        return (pairs * -(-count // len(pairs)))[:count]

    def truth(self, index: int, text: str) -> str | None:
        """The true answer to `text` about picture `index`; None if the file has none."""
        return self._truth.get((index, text))

    def _read_questions(self, path: Path) -> None:
        place = {file.name: index for index, file in enumerate(self.files)}
        same: dict[str, str] = {}  # a question asked of many inputs is held once
        for number, line in numbered_lines(path):
            try:
                row = read_json(line, LONGEST_LINE, f"line {number}")
                name, text, answer = row[self.unit], row["question"], row["answer"]
                kind, control = row.get("kind", "all"), row.get("control", False)
                weight, group = row.get("weight", 1.0), row.get("group", "")
            except (FrameMalformedError, KeyError, TypeError, AttributeError) as error:
                raise SourceError(
                    f"{path}, line {number}: expected an object with {self.unit}, question "
                    f"and answer ({in_words(error)})"
                ) from error
            if not all(isinstance(v, str) and v and sound(v) for v in (name, text, answer, kind)):
                raise SourceError(
                    f"{path}, line {number}: fields must be text, not empty, in valid Unicode"
                )
            if not (isinstance(group, str) and type(weight) in (int, float) and weight > 0):
                raise SourceError(
                    f"{path}, line {number}: weight must be a number above 0, group text"
                )
            if name not in place:
                raise SourceError(f"{path}, line {number}: there is no {self.unit} '{name}'")
            index = place[name]
            text, answer, kind, group = (same.setdefault(t, t) for t in (text, answer, kind, group))
            self._truth[index, text] = answer
            if not control:
                self._asked[index].append(Asked(index, text, answer, kind, weight, group))


def _drawn(rows: Sequence[Asked], random: Random, count: int) -> list[Asked]:
    """At least `count` questions in a random order, or all there are.

    Weighted draws without replacement (Efraimidis and Spirakis, 2006), one from each group at a
    time; a group has the weight of its heaviest question.
    """
    drawn = list(rows)
    if all(row.weight == 1.0 and not row.group for row in rows):
        random.shuffle(drawn)
        return drawn
    groups: dict[object, list[Asked]] = defaultdict(list)
    for place, row in enumerate(rows):
        groups[row.group or place].append(row)
    drawn.clear()
    while groups and len(drawn) < count:
        weights = {name: max(row.weight for row in group) for name, group in groups.items()}
        keys = {name: math.log(1.0 - random.random()) / weights[name] for name in groups}
        for name in sorted(keys, key=lambda one: -keys[one]):
            group = groups[name]
            drawn.append(group.pop(random.randrange(len(group))))
            if not group:
                del groups[name]
    return drawn


class Texts(Dataset):
    """A folder of texts with its questions: those of `texts.jsonl`, then `.txt` files by name."""

    unit: ClassVar[str] = "text"

    def _find(self) -> list[Path]:
        files = self._of((".txt",))
        self._texts: dict[str, str] = {}
        if (self.folder / TEXTS).exists():
            self._texts = _read_texts(self.folder / TEXTS)
            twice = sorted(self._texts.keys() & {path.name for path in files})
            if twice:
                raise SourceError(f"{self.folder} holds '{twice[0]}' in {TEXTS} and as a file")
            files = [*(self.folder / name for name in self._texts), *files]
        if not files:
            raise SourceError(f"{self.folder} holds no text ({TEXTS}, or .txt files){self._over}")
        return files

    def _content(self, index: int) -> bytes:
        return self.text(index).encode()

    def text(self, index: int) -> str:
        """Text `index`.

        Raises:
            SourceError: it cannot be read, is no UTF-8 or longer than a mebibyte.
        """
        path = self.files[index]
        if path.name in self._texts:
            return self._texts[path.name]
        try:
            with open_file(path) as file:
                raw = file.read(_LONGEST_TEXT + 1)
            if len(raw) > _LONGEST_TEXT:
                raise SourceError(f"{path} is longer than {_LONGEST_TEXT} bytes")
            return text_of(raw, path, SourceError).strip()
        except OSError as error:
            raise SourceError(f"{path} cannot be read as a text: {error}") from error

    def picture(self, index: int) -> Image.Image:
        """Texts have no pictures.

        Raises:
            PictureError: always.
        """
        raise PictureError(f"{self.files[index]} is a text")


def open_folder(folder: Path, max_pixels: int = pictures.MAX_PIXELS) -> Dataset:
    """The pictures of a folder (of at most so many pixels), or its texts.

    Raises:
        SourceError: as `Dataset` and `Texts`; or the folder holds both.
    """
    suffixes = {path.suffix.lower() for path in _listed(folder).files}
    texts = ".txt" in suffixes or (folder / TEXTS).exists()
    if texts and suffixes & set(pictures.SUFFIXES):
        raise SourceError(f"{folder} holds pictures and texts: keep them in two folders")
    return Texts(folder) if texts else Dataset(folder, max_pixels)


def _listed(folder: Path) -> Listing:
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder")
    try:
        return list_files(folder)
    except OSError as error:
        raise SourceError(f"{folder} cannot be listed: {error.strerror or error}") from error


def _read_texts(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, line in numbered_lines(path):
        try:
            row = read_json(line, _LONGEST_TEXT, f"line {number}")
            name, text = row["name"], row["text"]
        except (FrameMalformedError, KeyError, TypeError) as error:
            raise SourceError(
                f"{path}, line {number}: expected an object with name and text ({in_words(error)})"
            ) from error
        fields = (name, text)
        if not all(isinstance(v, str) and v and sound(v) for v in fields) or "/" in name:
            raise SourceError(
                f"{path}, line {number}: name (without '/') and text must be text, not empty, in "
                "valid Unicode"
            )
        if name in texts:
            raise SourceError(f"{path}, line {number}: a second text '{name}'")
        texts[name] = text
    return texts


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1.

    Raises:
        SourceError: it cannot be read, there are more than ten million, or they are in another
            encoding than UTF-8.
    """
    try:
        file = open_file(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    with file:
        for number, line in enumerate(file, start=1):
            if number > _MOST_LINES:
                raise SourceError(f"{path} has more than {_MOST_LINES:,} lines")
            if number == 1:
                line = without_mark(line, path, SourceError)
            if line.strip():
                yield number, line


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write `texts.jsonl`, from names to texts."""
    lines = (json.dumps({"name": n, "text": t}, ensure_ascii=False) for n, t in texts.items())
    (folder / TEXTS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_questions(folder: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write `questions.jsonl`."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / QUESTIONS).write_text(lines, encoding="utf-8")
