"""Prints 25 pictures with a question each: `python -m reference.yard.contact_sheet --out x.jpg`."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from reference.yard.questions import ask
from reference.yard.render import render
from reference.yard.scene import PICTURE_PX, SPLITS, sample_scenes

_ROWS = _COLUMNS = 5
_SCALE = 2
_CAPTION_PX = 44
_GAP_PX = 8


def contact_sheet(split: str, start: int) -> Image.Image:
    """25 pictures of `split` from `start` on, twice their size, captions below."""
    scenes = sample_scenes(split, start, _ROWS * _COLUMNS)
    side = PICTURE_PX * _SCALE
    width, height = side + _GAP_PX, side + _CAPTION_PX + _GAP_PX
    sheet = Image.new("RGB", (_COLUMNS * width, _ROWS * height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for index, pixels in enumerate(render(scenes)):
        left, top = (index % _COLUMNS) * width, (index // _COLUMNS) * height
        picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        sheet.paste(picture, (left, top))
        question = ask(scenes, index, 1, seed=0)[0]
        caption = f"{question.text}\n{question.answer}"
        draw.multiline_text((left + 2, top + side + 2), caption, fill="black", font=font)
    return sheet


def main() -> None:
    """Writes the sheet to the file named by `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=SPLITS, default="validation")
    parser.add_argument("--start", type=int, default=0, help="first picture of the split")
    arguments = parser.parse_args()
    contact_sheet(arguments.split, arguments.start).save(arguments.out, quality=88)


if __name__ == "__main__":
    main()
