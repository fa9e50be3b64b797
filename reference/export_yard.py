"""Writes pictures of the yard and their questions to a folder: `python -m reference.export_yard`.

Knows the yard and the folder that `projector corpus` reads. Besides the questions asked, every
other question that the labels answer is written as a control, so that a picture can stand in for
another.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from projector.dataset import write_questions
from reference.yard import SPLITS, ask, list_questions, render, sample_scenes

_BLOCK = 64


def export(folder: Path, split: str, start: int, count: int, questions: int) -> None:
    """Write `count` pictures of a split as PNG, and `questions.jsonl`.

    Args:
        folder: made if missing.
        split: of the yard.
        start: index of the first picture.
        count: how many.
        questions: asked of each picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    with tqdm(total=count, desc=f"{split} pictures", unit="picture") as bar:
        for first in range(start, start + count, _BLOCK):
            size = min(_BLOCK, start + count - first)
            scenes = sample_scenes(split, first, size)
            for place, pixels in enumerate(render(scenes)):
                name = f"{split}-{first + place:06d}.png"
                Image.fromarray(pixels).save(folder / name, compress_level=1)
                asked = ask(scenes, place, questions, 0)
                known = {q.text for q in asked}
                for q in asked:
                    rows.append(
                        {"picture": name, "question": q.text, "answer": q.answer, "kind": q.kind}
                    )
                for q in list_questions(scenes, place):
                    if q.text not in known:
                        rows.append(
                            {
                                "picture": name,
                                "question": q.text,
                                "answer": q.answer,
                                "kind": q.kind,
                                "control": True,
                            }
                        )
                bar.update(1)
    write_questions(folder, rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=2048)
    parser.add_argument("--questions", type=int, default=16, help="asked of each picture")
    args = parser.parse_args()
    export(args.folder, args.split, args.start, args.count, args.questions)


if __name__ == "__main__":
    main()
