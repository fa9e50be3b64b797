"""The yard's pictures for training: rendered once, kept on disk, worn by picture codecs if wished.

Knows the yard. Knows no model.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter
from tqdm import tqdm

from reference.yard import Scenes, render, sample_scenes

Pixels = npt.NDArray[np.uint8]

BLOCK = 256
"""Pictures rendered at a time."""


class Pictures:
    """Rendered pictures of one split, kept on disk: every epoch and both models reuse them."""

    def __init__(self, split: str, count: int, folder: Path) -> None:
        """Renders what is missing.

        Args:
            split: a split of the yard.
            count: how many pictures, a multiple of 256.
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
                temporary = path.with_suffix(f".{random.random()}.tmp")
                with temporary.open("wb") as file:
                    np.save(file, render(scenes))
                temporary.replace(path)
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
    """Passes a picture through a random picture codec, as pictures found in the world have been.

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
    image = Image.open(buffer).convert("RGB")
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image)


def unusual(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One of eleven things that training never showed: what the guard is calibrated with.

    Noise, blur, coarse pixels, poor JPEG, blocks in front, wrong colours, too bright, too dark, low
    contrast, a slanted camera, a closer one. Near to night and fog as any darkening and loss of
    contrast is, but not what the shifted split does.

    Args:
        picture: RGB.
        rng: draws which, and how much.
    """
    made = _UNUSUAL[int(rng.integers(len(_UNUSUAL)))](picture, rng)
    return made if isinstance(made, Image.Image) else Image.fromarray(_bytes(made))


def _bytes(values: npt.NDArray[np.floating]) -> Pixels:
    pixels: Pixels = np.clip(values, 0, 255).astype(np.uint8)
    return pixels


def _values(picture: Image.Image) -> npt.NDArray[np.float64]:
    return np.asarray(picture).astype(np.float64)


def _noisy(picture: Image.Image, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    values = _values(picture)
    noise: npt.NDArray[np.float64] = values + rng.normal(0, rng.uniform(8, 35), values.shape)
    return noise


def _blurred(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 2.6)))


def _coarse(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    side, bilinear = int(rng.integers(32, 72)), Image.Resampling.BILINEAR
    return picture.resize((side, side), bilinear).resize(picture.size, bilinear)


def _poor_jpeg(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(rng.integers(4, 16)))
    return Image.open(buffer).convert("RGB")


def _blocked(picture: Image.Image, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    values = _values(picture)
    rows, columns = values.shape[:2]
    for _ in range(int(rng.integers(1, 4))):
        height, width = rng.integers(20, 60, 2)
        top, left = rng.integers(0, rows - height), rng.integers(0, columns - width)
        values[top : top + height, left : left + width] = rng.integers(0, 255, 3)
    return values


def _tinted(picture: Image.Image, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    tinted: npt.NDArray[np.float64] = _values(picture) * rng.uniform(0.55, 1.35, 3)
    return tinted


def _bright(picture: Image.Image, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return _values(picture) * float(rng.uniform(1.3, 1.9))


def _dark(picture: Image.Image, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return _values(picture) * float(rng.uniform(0.3, 0.75))


def _flat(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Contrast(picture).enhance(rng.uniform(0.3, 0.75))


def _slanted(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    angle = float(rng.uniform(-35, 35))
    red, green, blue = (int(value) for value in rng.integers(0, 255, 3))
    return picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(red, green, blue))


def _closer(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = int(rng.integers(90, 130))
    top, left = (int(value) for value in rng.integers(0, picture.height - side, 2))
    cut = picture.crop((left, top, left + side, top + side))
    return cut.resize(picture.size, Image.Resampling.BICUBIC)


_UNUSUAL: tuple[
    Callable[[Image.Image, np.random.Generator], Image.Image | npt.NDArray[np.float64]], ...
] = (
    _noisy,
    _blurred,
    _coarse,
    _poor_jpeg,
    _blocked,
    _tinted,
    _bright,
    _dark,
    _flat,
    _slanted,
    _closer,
)
