"""Labels of pictures for task heads, and of objects marked in a sequence of pictures.

A dataset's folder holds `labels.jsonl`, one object a line:

    {"picture": "a.png", "task": "fire", "label": "yes"}

In a tracking task several objects are marked in earlier pictures, and one of them in this picture.
`places` lists the [x, y] of every object for each earlier picture. `mark` is the place in this
picture. All run from 0 to 1, right and down from the top left. The label says which object is
marked, counted from 1:

    {"picture": "c.png", "task": "track", "label": "2", "before": ["a.png", "b.png"],
     "places": [[[0.1, 0.4], [0.7, 0.2]], [[0.1, 0.4], [0.6, 0.3]]], "mark": [0.5, 0.4]}

Any line may have a `kind`; figures are then given per kind too.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from projector.models.foreign import in_words
from projector.training.dataset import LONGEST_LINE, Dataset, numbered_lines
from protos.errors import CorpusError, FrameMalformedError, SourceError
from protos.strict_json import read_json

LABELS = "labels.jsonl"
_MOST_FRAMES = 64
_MOST_OBJECTS = 64

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Labels:
    """S labelled samples of one task.

    Attributes:
        task: name of the task.
        pictures: `[S]`, index in the dataset of the picture judged.
        labels: S class names.
        kinds: S kinds.
        before: `[S, F]`, indices of earlier pictures; F is 0 unless objects are tracked.
        places: `[S, F, K, 2]`, where the K objects are in them.
        mark: `[S, 2]`, where the marked object is in the picture judged.
    """

    task: str
    pictures: Ints
    labels: tuple[str, ...]
    kinds: tuple[str, ...]
    before: Ints
    places: Floats
    mark: Floats

    def __len__(self) -> int:
        """The number of samples, S."""
        return len(self.pictures)

    @property
    def objects(self) -> int:
        """Objects to choose from, K; 0 if nothing is tracked."""
        return int(self.places.shape[2])

    @property
    def clusters(self) -> Ints:
        """Cluster of each sample, `[S]`: samples of one picture, or of one sequence, share it."""
        return self.before[:, 0] if self.objects else self.pictures

    def take(self, rows: npt.NDArray[Any]) -> Labels:
        """The samples that an index or a mask selects."""
        chosen = np.arange(len(self))[rows]
        return Labels(
            self.task,
            self.pictures[chosen],
            tuple(self.labels[i] for i in chosen),
            tuple(self.kinds[i] for i in chosen),
            self.before[chosen],
            self.places[chosen],
            self.mark[chosen],
        )

    def split(self, share: float) -> tuple[Labels, Labels]:
        """The last `share` of the clusters held out, the rest to train on; none in both.

        Raises:
            CorpusError: one of the two would be empty.
        """
        clusters = np.unique(self.clusters)
        first = len(clusters) - int(round(len(clusters) * share))
        held = np.isin(self.clusters, clusters[first:])
        if not held.any() or held.all():
            raise CorpusError(
                f"{len(clusters)} pictures or sequences cannot be split with {share} held out"
            )
        return self.take(~held), self.take(held)

    def within(self, pictures: int) -> Labels:
        """The samples whose pictures are all among the first `pictures` of the dataset.

        Raises:
            CorpusError: there is no such sample.
        """
        inside = self.take((np.c_[self.pictures, self.before] < pictures).all(axis=1))
        if not len(inside):
            raise CorpusError(f"the corpus holds no picture that is labelled for '{self.task}'")
        return inside


def read_labels(data: Dataset, task: str) -> Labels:
    """One task's samples, in the file's order.

    Raises:
        SourceError: no such file, no such task in it (the message names the nearest), or a
            malformed line (the message has its number).
    """
    path = data.folder / LABELS
    if not path.is_file():
        raise SourceError(f"{data.folder} holds no {LABELS}: a head has nothing to learn from")
    names = {file.name: index for index, file in enumerate(data.files)}
    seen: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    for number, line in numbered_lines(path):
        try:
            plain = read_json(line, LONGEST_LINE, f"line {number}")
            seen[_text(plain, "task")] += 1
            if plain["task"] == task:
                rows.append(_row(plain, names))
                _same_shape(rows[0], rows[-1])
        except (FrameMalformedError, KeyError, TypeError, ValueError) as error:
            raise SourceError(f"{path}, line {number}: {in_words(error)}") from error
    if not rows:
        near = difflib.get_close_matches(task, seen, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise SourceError(f"{path} labels no '{task}' (it has {', '.join(seen) or 'none'}){hint}")
    return Labels(
        task,
        np.array([row["picture"] for row in rows], dtype=np.int64),
        tuple(row["label"] for row in rows),
        tuple(row["kind"] for row in rows),
        np.array([row["before"] for row in rows], dtype=np.int64).reshape(len(rows), -1),
        np.stack([row["places"] for row in rows]),
        np.stack([row["mark"] for row in rows]),
    )


def write_labels(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write `labels.jsonl`."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / LABELS).write_text(lines, encoding="utf-8")


def _row(plain: Mapping[str, Any], names: Mapping[str, int]) -> dict[str, Any]:
    before = plain.get("before", [])
    if not isinstance(before, list) or len(before) > _MOST_FRAMES:
        raise ValueError(f"'before' must list at most {_MOST_FRAMES} pictures")
    label = _text(plain, "label")
    row = {
        "picture": _picture(_text(plain, "picture"), names),
        "label": label,
        "kind": _text(plain, "kind") if "kind" in plain else "all",
        "before": [_picture(name, names) for name in before],
        "places": np.zeros((0, 0, 2), dtype=np.float32),
        "mark": np.zeros(2, dtype=np.float32),
    }
    if not before:
        return row
    row["places"] = places = _points(plain["places"], "places")
    row["mark"] = mark = _points(plain["mark"], "mark")
    if places.ndim != 3 or places.shape[::2] != (len(before), 2) or mark.shape != (2,):
        raise ValueError("'places' must hold [x, y] of each object in each picture of 'before'")
    if not 2 <= places.shape[1] <= _MOST_OBJECTS:
        raise ValueError(f"{places.shape[1]} objects to choose from: expected 2 to {_MOST_OBJECTS}")
    if label not in {str(k + 1) for k in range(places.shape[1])}:
        raise ValueError(f"label '{label}' is not a number from 1 to {places.shape[1]}")
    return row


def _same_shape(first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    if first["places"].shape != other["places"].shape:
        raise ValueError("every line of a task must have the same number of pictures and objects")


def _points(given: Any, name: str) -> Floats:
    points = np.asarray(given, dtype=np.float32)
    if not ((points >= 0) & (points <= 1)).all():
        raise ValueError(f"'{name}' holds numbers outside 0..1")
    return points


def _picture(name: object, names: Mapping[str, int]) -> int:
    if not isinstance(name, str) or name not in names:
        raise ValueError(f"there is no picture {name!r}")
    return names[name]


def _text(plain: Mapping[str, Any], name: str) -> str:
    if not isinstance(plain, dict):
        raise TypeError("expected an object")
    value = plain[name]
    if not isinstance(value, str) or not value:
        raise ValueError(f"'{name}' must be text, not empty")
    return value
