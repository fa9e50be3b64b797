"""The yard's pictures for training: rendered once, kept on disk, optionally damaged by codecs."""

from __future__ import annotations

import io
import math
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from projector.models.pictures import read
from protos.process.files import write_file
from reference.yard import Scenes, render, sample_scenes

Pixels = npt.NDArray[np.uint8]

BLOCK = 256
"""Pictures rendered at a time."""


class Pictures:
    """Rendered pictures of one split, kept on disk for every epoch and every model."""

    def __init__(self, split: str, count: int, folder: Path) -> None:
        """Renders what is missing.

        Args:
            split: a split of the yard.
            count: number of pictures, a multiple of 256.
            folder: where the rendered blocks are kept.
        """
        self.split, self.count = split, count
        folder.mkdir(parents=True, exist_ok=True)
        self.blocks: list[Pixels] = []
        self.scenes: list[Scenes] = []
        for start in tqdm(range(0, count, BLOCK), desc=f"{split} pictures", unit="block"):
            scenes = sample_scenes(split, start, BLOCK)
            path = folder / f"{split}-{start:06d}.npy"
            if not path.exists():
                blob = io.BytesIO()
                np.save(blob, render(scenes))
                write_file(path, [blob.getbuffer()])
            self.blocks.append(np.load(path, mmap_mode="r"))
            self.scenes.append(scenes)

    def __getitem__(self, index: int) -> tuple[Pixels, Scenes, int]:
        """Returns picture [144, 144, 3] uint8, its block of scenes and its place in the block."""
        return (
            self.blocks[index // BLOCK][index % BLOCK],
            self.scenes[index // BLOCK],
            index % BLOCK,
        )


def lossy(picture: Pixels, rng: random.Random) -> Pixels:
    """Passes a picture through a random picture codec, as real pictures have been.

    Args:
        picture: [H, W, 3] uint8.
        rng: draws codec, quality and size.

    Returns:
        [H, W, 3] uint8, at the original size again.
    """
    if rng.random() < 0.25:
        return picture
    image = Image.fromarray(picture)
    side = picture.shape[0]
    if rng.random() < 0.55:
        small = int(round(side * math.exp(-rng.random() * 1.1)))
        image = image.resize(
            (small, small),
            rng.choice(
                [Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BILINEAR]
            ),
        )
    buffer = io.BytesIO()
    quality = int(round(5 + 90 * rng.random() ** 1.5))
    image.save(buffer, rng.choice(["JPEG", "WEBP"]), quality=quality)
    image = read(buffer.getvalue())
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image)
