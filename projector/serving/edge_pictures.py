"""Finds the picture steps of a model's image processor, and proves that they give its result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from projector.models.exported.manifest import PictureSteps
from projector.models.exported.picture_input import picture_input
from projector.models.pixels import Pixels
from protos.errors import UnsupportedModelError

LARGEST_DIFFERENCE = 1e-6
_SIDES = ((64, 64), (144, 144), (97, 301), (301, 97), (17, 640), (1, 3), (1023, 769))


def picture_steps(pixels: Pixels) -> PictureSteps:
    """The steps of an image processor, checked on pictures of odd sizes.

    Raises:
        UnsupportedModelError: it prepares pictures in a way that the steps cannot say.
    """
    processor = pixels.prompt.processor.image_processor
    steps = _read(processor, pixels)
    worst = 0.0
    for picture in _pictures():
        ours, theirs = picture_input(picture, steps), pixels.of_pictures([picture])
        if set(ours) != set(theirs):
            _refuse(processor, f"it makes {', '.join(sorted(theirs))}")
        for name, wanted in theirs.items():
            if ours[name].shape != tuple(wanted.shape):
                _refuse(processor, f"a picture of {picture.size} becomes {tuple(wanted.shape)}")
            apart = np.abs(ours[name].astype(np.float64) - wanted.double().numpy())
            worst = max(worst, float(apart.max()))
    if not worst <= LARGEST_DIFFERENCE:
        _refuse(processor, f"its pixels differ by up to {worst:.2g}")
    return steps


def _read(processor: Any, pixels: Pixels) -> PictureSteps:
    """What the processor's settings say; `picture_steps` checks it."""
    sizes: list[tuple[Any, int, int]] = []
    size = getattr(processor, "size", None)
    if getattr(processor, "do_resize", True) and size is not None:
        if getattr(size, "longest_edge", None) and not getattr(size, "shortest_edge", None):
            sizes.append(("longest", int(size.longest_edge), 0))
        elif getattr(size, "height", None) and getattr(size, "width", None):
            sizes.append(("exact", int(size.height), int(size.width)))
        elif getattr(size, "shortest_edge", None):
            sizes.append(("shortest", int(size.shortest_edge), 0))
    whole = getattr(processor, "max_image_size", None)  # of Idefics3: a picture kept in one piece
    if whole is not None and not getattr(processor, "do_image_splitting", False):
        edge = whole["longest_edge"] if isinstance(whole, dict) else whole.longest_edge
        sizes.append(("exact", int(edge), int(edge)))
    crop = getattr(processor, "crop_size", None)
    if getattr(processor, "do_center_crop", False) and crop is not None:
        sizes.append(("crop", int(crop.height), int(crop.width)))
    normal = getattr(processor, "do_normalize", False)
    made = pixels.of_pictures([next(_pictures())])
    names = [name for name, value in made.items() if value.is_floating_point()]
    if len(names) != 1:
        _refuse(processor, f"it makes {', '.join(made)}")
    return PictureSteps(
        sizes=sizes,
        resample=int(getattr(processor, "resample", None) or 0),
        scale=float(processor.rescale_factor) if getattr(processor, "do_rescale", False) else 1.0,
        mean=[float(value) for value in processor.image_mean] if normal else [],
        std=[float(value) for value in processor.image_std] if normal else [],
        images_axis=made[names[0]].ndim == 5,
        pixels=names[0],
        mask=next((name for name in made if name != names[0]), ""),
    )


def _pictures() -> Iterator[Image.Image]:
    draw = np.random.default_rng(0)
    for width, height in _SIDES:
        blocks = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        yield Image.fromarray(blocks)


def _refuse(processor: Any, why: str) -> None:
    raise UnsupportedModelError(
        f"the image processor {type(processor).__name__} cannot be exported: {why}; use a model "
        "with a plain one (resize, crop, normalise), or run the checkpoint with torch"
    )
