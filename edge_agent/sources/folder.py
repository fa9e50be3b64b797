"""A directory of pictures or texts (`.txt`, or the lines of `texts.jsonl`), or one file.

Files that a model engineer keeps beside them (questions, labels) are passed over. A file that does
not decode becomes a capture with an error, so that one bad file never ends a run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from edge_agent.sources import Capture
from edge_agent.sources.address import options_of
from edge_agent.sources.tries import MOST_TRIES, Tries, key_of
from edge_agent.sources.watched import WatchedFolder
from projector.models import pictures
from projector.models.foreign import in_words
from protos.errors import BridgeError, ContextError, PictureError, SourceError
from protos.process.files import expanded, text_of, without_mark
from protos.process.folders import list_files, open_file, said

TEXT = ".txt"
TEXTS = "texts.jsonl"
BESIDE = ("questions.jsonl", "labels.jsonl")
"""Files beside the pictures that `projector` reads (`projector/training/dataset.py`)."""
_LONGEST_TEXT = 1 << 20
_LONGEST_FILE = 1 << 26


def read_picture(path: Path, max_pixels: int = pictures.MAX_PIXELS) -> Image.Image:
    """Decode a picture file to RGB by the rule of `projector/models/pictures.py`.

    Args:
        path: a PNG, JPEG, WebP, AVIF, BMP or TIFF file.
        max_pixels: most pixels that are decoded.

    Raises:
        PictureError: the file cannot be read, is in no known format, is damaged or too large, or
            has samples of unknown depth.
    """
    return pictures.read(path, max_pixels=max_pixels)


def read_text(path: Path) -> str:
    """Decode a UTF-8 file and strip the whitespace around its text.

    Raises:
        ContextError: the file cannot be read, is longer than a mebibyte, or is not UTF-8.
    """
    try:
        with open_file(path) as file:
            raw = file.read(_LONGEST_TEXT + 1)
        if len(raw) > _LONGEST_TEXT:
            raise ContextError(f"{path.name} is longer than {_LONGEST_TEXT} bytes")
        return text_of(raw, path.name, ContextError).strip()
    except OSError as error:
        raise ContextError(f"{path.name} cannot be read as a text: {error}") from error


def read_lines(path: Path) -> tuple[Capture, ...]:
    """The texts of a file of `{"name": "a", "text": "…"}`, one a line.

    Raises:
        SourceError: the file cannot be read, is too long, or is not UTF-8.
    """
    try:
        written = path.stat().st_mtime
        with open_file(path) as file:
            raw = file.read(_LONGEST_FILE + 1)
            if file.tell() > _LONGEST_FILE:
                raise SourceError(f"source {path} is longer than {_LONGEST_FILE} bytes")
    except OSError as error:
        raise SourceError(f"source {path} cannot be read: {error}") from error
    made = []
    lines = without_mark(raw, f"source {path}", SourceError).splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["name"], row["text"]
            if not (isinstance(name, str) and isinstance(text, str) and name):
                raise TypeError("name and text must be text")
            made.append(Capture(name, None, written, text=text.strip()))
        except (ValueError, KeyError, TypeError) as error:
            why = f"expected name and text ({in_words(error)})"
            bad = ContextError(f"{path.name}, line {number}: {why}")
            made.append(Capture(f"{path.name}:{number}", None, written, error=bad))
    return tuple(made)


@dataclass(frozen=True)
class Folder:
    """The regular files of one directory, sorted by name; hidden files are passed over.

    Attributes:
        files: one capture each.
        lines: captures of `texts.jsonl`, which come first.
        max_pixels: most pixels of a picture that are decoded.
        skipped: number of entries of the directory that were passed over, by kind.
        tries: knows which files ended a start of the agent.
    """

    files: tuple[Path, ...]
    lines: tuple[Capture, ...] = ()
    max_pixels: int = pictures.MAX_PIXELS
    skipped: Mapping[str, int] = field(default_factory=dict)
    tries: Tries = field(default_factory=Tries, compare=False, repr=False)

    @classmethod
    def from_path(cls, path: Path) -> Folder:
        """Open a directory, or one file as a source of a single capture.

        Raises:
            SourceError: the path is not there, cannot be listed, or holds no file.
        """
        if path.is_file():
            return cls((), read_lines(path)) if path.name == TEXTS else cls((path,))
        if not path.exists():
            raise SourceError(f"source {path}: there is no such file or directory")
        if not path.is_dir():
            raise SourceError(f"source {path} is neither a file nor a directory: a pipe or device")
        try:
            found = list_files(path)
        except OSError as error:
            raise SourceError(f"source {path} cannot be listed: {error}") from error
        files = tuple(entry for entry in found.files if entry.name not in (*BESIDE, TEXTS))
        lines = read_lines(path / TEXTS) if (path / TEXTS).is_file() else ()
        if not files and not lines:
            passed = f"; passed over: {said(found.skipped)}" if found.skipped else ""
            raise SourceError(
                f"source {path} is empty: put PNG, JPEG, WebP, AVIF, BMP, TIFF or .txt files in "
                f"it, or a {TEXTS}{passed}"
            )
        return cls(files, lines, skipped=found.skipped)

    def __len__(self) -> int:
        return len(self.lines) + len(self.files)

    def __iter__(self) -> Iterator[Capture]:
        yield from self.lines
        for path in self.files:
            yield read_file(path, self.max_pixels, self.tries)


def read_file(
    path: Path, max_pixels: int = pictures.MAX_PIXELS, tries: Tries | None = None
) -> Capture:
    """The capture of one file; with an error if it cannot be read, or is set aside.

    Args:
        path: the file.
        max_pixels: most pixels that are decoded.
        tries: knows which files ended a start of the agent.
    """
    tries = tries or Tries()
    try:
        captured_at, key = path.stat().st_mtime, key_of(path)
    except OSError:
        captured_at, key = 0.0, str(path)
    if tries.set_aside(key):
        cause = PictureError(
            f"{path.name} is set aside: {MOST_TRIES} starts of the agent ended while it worked on "
            "it; touch the file to have it tried again"
        )
        return Capture(path.name, None, captured_at, error=cause, set_aside=True)
    known = tries

    def work() -> AbstractContextManager[object]:
        return known.on(key)

    try:
        with work():
            if path.suffix.lower() == TEXT:
                return Capture(path.name, None, captured_at, text=read_text(path), work=work)
            picture = read_picture(path, max_pixels)
        return Capture(path.name, picture, captured_at, work=work)
    except BridgeError as error:
        return Capture(path.name, None, captured_at, error=error)


def open_source(uri: str) -> Folder | WatchedFolder:
    """Open `folder:///absolute`, `folder:relative` or a plain path; with `?watch=1` watch it.

    Raises:
        SourceError: the path is not there, cannot be listed, or holds no file; or an option cannot
            be used.
    """
    plain = not uri.startswith("folder:")
    text = uri.removeprefix("folder:").removeprefix("//")
    place, mark, query = text.partition("?")
    if not place or "\0" in unquote(place):  # an empty path would be the current folder
        raise SourceError(f"source {uri!r} names no folder: write a path, or folder:///path")
    path = expanded(Path(text if plain else unquote(text)))
    if not mark or path.exists():  # a question mark may be part of a name
        return Folder.from_path(path)
    options, _ = options_of("folder", query, uri)
    path = expanded(Path(place if plain else unquote(place)))
    if not options.get("watch"):
        return Folder.from_path(path)
    if not path.is_dir():
        raise SourceError(f"source {uri!r}: there is no such folder to watch: {path}")
    return WatchedFolder(path, read_file, (*BESIDE, TEXTS))
