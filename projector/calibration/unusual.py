"""Alters pictures so that they look unlike training pictures; a guard learns from them.

Sizes are shares of the shorter side, so that an alteration looks the same at any resolution.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter

from projector.models.pictures import read

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float64]

_SIDE = 144
"""The sizes below are for a shorter side of this many pixels."""


def unusual(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Apply one of eleven alterations that happen to cameras and that few training sets show.

    Noise, blur, coarse pixels, poor JPEG, blocks in front, wrong colours, too bright, too dark, low
    contrast, a slanted camera, a closer one.

    Args:
        picture: RGB, of any size.
        rng: draws which, and how much.

    Returns:
        A picture of the same size.
    """
    made = _UNUSUAL[int(rng.integers(len(_UNUSUAL)))](picture, rng)
    return made if isinstance(made, Image.Image) else Image.fromarray(_bytes(made))


def _bytes(values: npt.NDArray[np.floating]) -> Pixels:
    pixels: Pixels = np.clip(values, 0, 255).astype(np.uint8)
    return pixels


def _values(picture: Image.Image) -> Values:
    return np.asarray(picture).astype(np.float64)


def _scale(picture: Image.Image) -> float:
    return min(picture.size) / _SIDE


def _shrunk(picture: Image.Image, side: int, how: Image.Resampling) -> Image.Image:
    """The picture with at most `side` pixels on its shorter side."""
    scale = min(1.0, side / min(picture.size))
    width, height = (max(1, round(length * scale)) for length in picture.size)
    return picture.resize((width, height), how)


def _noisy(picture: Image.Image, rng: np.random.Generator) -> Values:
    values, scale = _values(picture), max(1.0, _scale(picture))
    rows, columns = ((np.arange(n) / scale).astype(int) for n in values.shape[:2])
    grains = rng.normal(0, rng.uniform(8, 35), (rows[-1] + 1, columns[-1] + 1, 3))
    noise: Values = values + grains[rows][:, columns]
    return noise


def _blurred(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 2.6) * _scale(picture)))


def _coarse(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    side, bilinear = int(rng.integers(32, 72)), Image.Resampling.BILINEAR
    return _shrunk(picture, side, bilinear).resize(picture.size, bilinear)


def _poor_jpeg(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    buffer, bicubic = io.BytesIO(), Image.Resampling.BICUBIC
    _shrunk(picture, _SIDE, bicubic).save(buffer, "JPEG", quality=int(rng.integers(4, 16)))
    return read(buffer.getvalue()).resize(picture.size, bicubic)


def _blocked(picture: Image.Image, rng: np.random.Generator) -> Values:
    values, scale = _values(picture), _scale(picture)
    rows, columns = values.shape[:2]
    for _ in range(int(rng.integers(1, 4))):
        height, width = (int(length * scale) for length in rng.integers(20, 60, 2))
        top, left = rng.integers(0, rows - height), rng.integers(0, columns - width)
        values[top : top + height, left : left + width] = rng.integers(0, 255, 3)
    return values


def _tinted(picture: Image.Image, rng: np.random.Generator) -> Values:
    tinted: Values = _values(picture) * rng.uniform(0.55, 1.35, 3)
    return tinted


def _bright(picture: Image.Image, rng: np.random.Generator) -> Values:
    return _values(picture) * float(rng.uniform(1.3, 1.9))


def _dark(picture: Image.Image, rng: np.random.Generator) -> Values:
    return _values(picture) * float(rng.uniform(0.3, 0.75))


def _flat(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Contrast(picture).enhance(rng.uniform(0.3, 0.75))


def _slanted(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    angle = float(rng.uniform(-35, 35))
    red, green, blue = (int(value) for value in rng.integers(0, 255, 3))
    return picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(red, green, blue))


def _closer(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    share = rng.integers(90, 130) / _SIDE
    width, height = (max(1, int(length * share)) for length in picture.size)
    left = int(rng.integers(0, picture.width - width + 1))
    top = int(rng.integers(0, picture.height - height + 1))
    cut = picture.crop((left, top, left + width, top + height))
    return cut.resize(picture.size, Image.Resampling.BICUBIC)


_UNUSUAL: tuple[Callable[[Image.Image, np.random.Generator], Image.Image | Values], ...] = (
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
