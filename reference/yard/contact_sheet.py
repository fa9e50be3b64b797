"""Prints 25 pictures with a question each: `python -m reference.yard.contact_sheet --out x.jpg`.

With `--sequences`, frames of four sequences instead, one a row.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from reference.yard.questions import Question, ask
from reference.yard.render import Pixels, render
from reference.yard.scene import PICTURE_PX, SPLITS, sample_scenes
from reference.yard.sequence import sample_sequence

_ROWS = _COLUMNS = 5
_SEQUENCES, _FRAMES, _APART = 4, 6, 12  # rows, columns, frames from one column to the next
_SCALE = 2
_CAPTION_PX = 44
_GAP_PX = 8


Shown = tuple[Pixels, str]  # a picture and what stands below it


def contact_sheet(split: str, start: int) -> Image.Image:
    """25 pictures of `split` from `start` on, with a question each."""
    scenes = sample_scenes(split, start, _ROWS * _COLUMNS)
    asked = [ask(scenes, index, 1, seed=0)[0] for index in range(len(scenes))]
    return _sheet([(p, _caption(q)) for p, q in zip(render(scenes), asked, strict=True)], _COLUMNS)


def strips(split: str, start: int) -> Image.Image:
    """Four sequences of `split` from number `start` on, every twelfth frame, one sequence a row."""
    shown: list[Shown] = []
    for number in range(start, start + _SEQUENCES):
        frames = sample_sequence(split, number, 0, _FRAMES * _APART)
        pictures = render(frames.drawn[::_APART])
        for column, pixels in enumerate(pictures):
            asked = frames.ask(column * _APART, 1, seed=0)
            shown.append((pixels, f"frame {column * _APART}: {_caption(asked[0])}"))
    return _sheet(shown, _FRAMES)


def _caption(question: Question) -> str:
    return f"{question.text}\n{question.answer}"


def _sheet(shown: Sequence[Shown], columns: int) -> Image.Image:
    """Pictures at twice their size, captions below."""
    side = PICTURE_PX * _SCALE
    width, height = side + _GAP_PX, side + _CAPTION_PX + _GAP_PX
    sheet = Image.new("RGB", (columns * width, len(shown) // columns * height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for index, (pixels, caption) in enumerate(shown):
        left, top = (index % columns) * width, (index // columns) * height
        picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        sheet.paste(picture, (left, top))
        draw.multiline_text((left + 2, top + side + 2), caption, fill="black", font=font)
    return sheet


def main() -> None:
    """Writes the sheet to the file named by `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=SPLITS, default="validation")
    parser.add_argument("--start", type=int, default=0, help="first picture or sequence")
    parser.add_argument("--sequences", action="store_true", help="frames of sequences, not stills")
    arguments = parser.parse_args()
    made = (strips if arguments.sequences else contact_sheet)(arguments.split, arguments.start)
    made.save(arguments.out, quality=88)


if __name__ == "__main__":
    main()
