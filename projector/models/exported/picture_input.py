"""Prepares a picture for the vision tower with Pillow and NumPy, as `transformers` does."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from projector.models.exported.manifest import PictureSteps
from projector.models.pictures import as_rgb

_LARGEST_PX = 4096  # of Idefics3's processor


def picture_input(picture: Image.Image, steps: PictureSteps) -> dict[str, npt.NDArray[np.generic]]:
    """The vision tower's inputs for one picture, by name.

    Args:
        picture: any size and mode.
        steps: what the model's own processor does.

    Returns:
        Pixels, float32 `[1, 3, H, W]` (with an axis for images `[1, 1, 3, H, W]`), and the mask,
        int64 `[1, (1,) H, W]`, if the model takes one.

    Raises:
        PictureError: the picture cannot be decoded.
    """
    image = as_rgb(picture)
    for kind, first, second in steps.sizes:
        if kind == "crop":
            image = _cropped(image, first, second)
            continue
        height, width = _size(kind, first, second, image.height, image.width)
        image = image.resize((width, height), Image.Resampling(steps.resample))
    samples = np.moveaxis(np.asarray(image), -1, 0)
    made = (samples.astype(np.float64) * steps.scale).astype(np.float32)
    if steps.mean:
        mean, std = np.array(steps.mean, np.float32), np.array(steps.std, np.float32)
        made = ((made.T - mean) / std).T
    lead = (1, 1) if steps.images_axis else (1,)
    found: dict[str, npt.NDArray[np.generic]] = {
        steps.pixels: np.ascontiguousarray(made).reshape(*lead, *made.shape)
    }
    if steps.mask:
        found[steps.mask] = np.ones((*lead, *made.shape[1:]), np.int64)
    return found


def _size(kind: str, first: int, second: int, height: int, width: int) -> tuple[int, int]:
    """Height and width after one step."""
    if kind == "exact":
        return first, second
    if kind == "longest":
        return _below(*_longest(height, width, first), _LARGEST_PX)
    short, long = sorted((height, width))
    longer = int(first * long / short)
    return (longer, first) if width <= height else (first, longer)


def _longest(height: int, width: int, edge: int) -> tuple[int, int]:
    """Idefics3's size of a picture: the shorter side becomes even."""
    ratio = width / height
    if width >= height:
        width, height = edge, int(edge / ratio)
        height += height % 2
    else:
        height, width = edge, int(edge * ratio)
        width += width % 2
    return max(height, 1), max(width, 1)


def _below(height: int, width: int, edge: int) -> tuple[int, int]:
    ratio = width / height
    if width >= height and width > edge:
        width, height = edge, int(edge / ratio)
    elif height > width and height > edge:
        height, width = edge, int(edge * ratio)
    return max(height, 1), max(width, 1)


def _cropped(image: Image.Image, height: int, width: int) -> Image.Image:
    """The centre of a picture; a smaller one gets a black border."""
    samples = np.asarray(image)
    tall, wide = max(height, image.height), max(width, image.width)
    if (tall, wide) != (image.height, image.width):
        larger = np.zeros((tall, wide, 3), np.uint8)
        top, left = -((image.height - tall) // 2), -((image.width - wide) // 2)
        larger[top : top + image.height, left : left + image.width] = samples
        top += (image.height - height) // 2
        left += (image.width - width) // 2
        samples = larger
    else:
        top, left = (image.height - height) // 2, (image.width - width) // 2
    return Image.fromarray(np.ascontiguousarray(samples[top : top + height, left : left + width]))
