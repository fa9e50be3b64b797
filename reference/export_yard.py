"""Writes pictures of the yard with questions and labels: `python -m reference.export_yard`.

The folder is as `projector` reads it: pictures, `questions.jsonl`, `labels.jsonl`. Every question
that the labels answer but that is not asked is written as a control, so that a picture can stand in
for another. With `--questions 0` all are asked, each with its probability of being drawn. Existing
pictures are not drawn again. With `--sequences` the pictures are frames of sequences that have
something to track.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from projector.heads.labels import write_labels
from projector.training.dataset import write_questions
from protos.process.files import write_file
from reference.yard import (
    SPLITS,
    Question,
    ask,
    draw_weight,
    list_questions,
    render,
    sample_scenes,
    sample_sequence,
)
from reference.yard.labels import BEFORE, NOW, frame_labels, picture_labels, tracks

_BLOCK = 64
_FRAMES = (*BEFORE, NOW)

Rows = list[dict[str, object]]


def export(folder: Path, split: str, start: int, count: int, questions: int) -> None:
    """Write `count` pictures of a split as PNG, with questions and labels.

    Args:
        folder: made if missing.
        split: split of the yard.
        start: index of the first picture.
        count: number of pictures.
        questions: questions about each picture; 0 for all there are, with their weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked_rows: Rows = []
    label_rows: Rows = []
    with tqdm(total=count, desc=f"{split} pictures", unit="picture") as bar:
        for first in range(start, start + count, _BLOCK):
            size = min(_BLOCK, start + count - first)
            scenes = sample_scenes(split, first, size)
            names = [f"{split}-{first + place:06d}.png" for place in range(size)]
            if not all((folder / name).exists() for name in names):
                for name, pixels in zip(names, render(scenes), strict=True):
                    _save(Image.fromarray(pixels), folder / name)
            for place, name in enumerate(names):
                listed = list_questions(scenes, place)
                if questions:
                    asked_rows += _questions(name, ask(scenes, place, questions, 0), listed)
                else:
                    asked_rows += [_weighed(name, q) for q in ask(scenes, place, len(listed), 0)]
                label_rows += _labels(name, picture_labels(scenes, place))
                bar.update(1)
    write_questions(folder, asked_rows)
    write_labels(folder, label_rows)


def export_sequences(folder: Path, split: str, start: int, count: int, questions: int) -> None:
    """Write three frames each of `count` sequences of a split, with questions and labels.

    Args:
        folder: made if missing.
        split: split of the yard.
        start: number of the first sequence tried; those with nothing to track are left out.
        count: number of sequences written.
        questions: questions about each frame.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked_rows: Rows = []
    label_rows: Rows = []
    number, written = start, 0
    with tqdm(total=count, desc=f"{split} sequences", unit="sequence") as bar:
        while written < count:
            sequence = sample_sequence(split, number, 0, NOW + 1)
            number += 1
            samples = tracks(sequence)
            if not samples:
                continue
            written += 1
            names = [f"{split}-sequence-{number - 1:06d}-{frame:04d}.png" for frame in _FRAMES]
            for frame, name in zip(_FRAMES, names, strict=True):
                pixels = render(sequence.drawn[frame : frame + 1])[0]
                Image.fromarray(pixels).save(folder / name, compress_level=1)
                asked = sequence.ask(frame, questions, 0)
                asked_rows += _questions(name, asked, sequence.listed(frame))
            label_rows += _labels(names[-1], frame_labels(sequence, NOW))
            label_rows += [
                {
                    "picture": names[-1],
                    "task": "track",
                    "label": str(sample.label + 1),
                    "kind": "moved" if sample.moving else "still",
                    "before": names[:-1],
                    "places": sample.places.round(4).tolist(),
                    "mark": sample.mark.round(4).tolist(),
                }
                for sample in samples
            ]
            bar.update(1)
    write_questions(folder, asked_rows)
    write_labels(folder, label_rows)


def _save(picture: Image.Image, path: Path) -> None:
    """Write a picture as a PNG file, whole or not at all."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    write_file(path, file.getvalue())


def _questions(name: str, asked: Sequence[Question], listed: Sequence[Question]) -> Rows:
    known = {q.text for q in asked}
    controls = [q for q in listed if q.text not in known]
    return [_question(name, q) for q in asked] + [
        _question(name, q) | {"control": True} for q in controls
    ]


def _question(name: str, asked: Question) -> dict[str, object]:
    return {"picture": name, "question": asked.text, "answer": asked.answer, "kind": asked.kind}


def _weighed(name: str, asked: Question) -> dict[str, object]:
    """A question with the weight by which `ask` draws it."""
    weight = draw_weight(asked.subkind, asked.answer)
    group = f"{asked.subkind} {asked.answer}"
    return _question(name, asked) | {"weight": weight, "group": group}


def _labels(name: str, labels: Mapping[str, str]) -> Rows:
    return [{"picture": name, "task": task, "label": label} for task, label in labels.items()]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--start", type=int, default=0, help="first picture or sequence")
    parser.add_argument("--count", type=int, default=2048, help="pictures, or sequences")
    parser.add_argument("--questions", type=int, default=16, help="per picture; 0: all")
    parser.add_argument("--sequences", action="store_true", help="frames of sequences, not stills")
    args = parser.parse_args()
    write = export_sequences if args.sequences else export
    write(args.folder, args.split, args.start, args.count, args.questions)


if __name__ == "__main__":
    main()
