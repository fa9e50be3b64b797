"""Crops: which part of a picture a question needs, and a scene that has that part from its picture.

`wanted` finds the smallest window of the large model's grid that holds enough of the attention that
the question's last token pays to the scene.
The crop that comes is put at its place on a canvas of its mean colour (`on_canvas`) and seen by the
model's own vision. `put_into_scenes` takes the tokens of that window from there, and all others
from the scene as it was projected.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cloud_server.engine.scenes import SceneMemory
from cloud_server.engine.work import Work
from projector.models import cache as kv
from projector.models.attention import Looked, measuring
from projector.models.frozen import FrozenModel
from projector.models.slab import Part
from protos.crop import THOUSAND, Box
from protos.errors import PictureError

Grid = tuple[int, int]


def wanted(
    model: FrozenModel,
    context: Part,
    prefix: Part,
    question: list[int],
    attention: float,
    most_share: float,
) -> tuple[Box, float]:
    """The part of the picture that a question looks at.

    Args:
        model: the large model.
        context: keys and values of the scene's tokens, `[layers, kv_heads, N, head_dim]`.
        prefix: those of the model's own tokens before them.
        question: token ids.
        attention: share of the attention to the scene that the part is to have.
        most_share: largest share of the grid's rows, and of its columns, that it may have. If even
            that is not enough, it is the best part of that size.

    Returns:
        The part, and its share of the attention that the question's last token pays to the scene.

    Raises:
        PictureError: the model's attention cannot be measured.
    """
    before, tokens = prefix[0].shape[2], context[0].shape[2]
    held = before + tokens
    layers = [
        (
            torch.cat((prefix[0][layer], context[0][layer].to(prefix[0].dtype)), dim=1)[None],
            torch.cat((prefix[1][layer], context[1][layer].to(prefix[1].dtype)), dim=1)[None],
        )
        for layer in range(len(prefix[0]))
    ]
    looked = Looked(before, tokens, torch.tensor([held + len(question) - 1], device=model.device))
    ids = torch.tensor([question], device=model.device)
    places = torch.arange(held, held + len(question), device=model.device)[None]
    with torch.inference_mode(), measuring(looked):
        model.run(ids, kv.new_cache(layers), positions=places)
    if looked.sums is None:
        raise PictureError(f"the attention of {model.layout.model_id} cannot be measured")
    weights = looked.sums[0].cpu().numpy().astype(np.float64)
    return smallest(weights.reshape(model.layout.grid), attention, most_share)


def smallest(
    weights: npt.NDArray[np.float64], enough: float, most_share: float
) -> tuple[Box, float]:
    """The smallest window of weights `[rows, columns]` that has enough of them, and its share."""
    rows, columns = weights.shape
    longest = max(rows, columns)
    for size in range(1, longest + 1):
        share = size / longest
        found = _best(weights, max(1, round(share * rows)), max(1, round(share * columns)))
        if found[1] >= enough or (size + 1) / longest > most_share + 1e-9:
            break
    return found


def _best(weights: npt.NDArray[np.float64], high: int, wide: int) -> tuple[Box, float]:
    """The window of that size with the largest sum, and its share of all weights."""
    rows, columns = weights.shape
    sums = np.lib.stride_tricks.sliding_window_view(weights, (high, wide)).sum(axis=(2, 3))
    top, left = map(int, np.unravel_index(int(sums.argmax()), sums.shape))
    box = Box(
        _edge(left, columns), _edge(top, rows), _edge(left + wide, columns), _edge(top + high, rows)
    )
    total = float(weights.sum())
    return box, float(sums[top, left]) / total if total > 0 else 0.0


def _edge(cell: int, cells: int) -> int:
    return round(THOUSAND * cell / cells)


def inside(box: Box, grid: Grid) -> npt.NDArray[np.bool_]:
    """The tokens of a grid that lie within a box as `wanted` makes them, `[rows * columns]`."""
    rows, columns = grid
    down, across = np.zeros(rows, dtype=np.bool_), np.zeros(columns, dtype=np.bool_)
    down[round(box.top * rows / THOUSAND) : round(box.bottom * rows / THOUSAND)] = True
    across[round(box.left * columns / THOUSAND) : round(box.right * columns / THOUSAND)] = True
    return (down[:, None] & across).reshape(-1)


def on_canvas(crop: Image.Image, box: Box, max_px: int) -> Image.Image:
    """The crop at its place in a picture of its mean colour.

    Args:
        crop: RGB.
        box: its place.
        max_px: longest side of the whole.
    """
    width = crop.width * THOUSAND / (box.right - box.left)
    height = crop.height * THOUSAND / (box.bottom - box.top)
    scale = min(1.0, max_px / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    left, top, right, bottom = box.pixels(*size)
    mean = np.asarray(crop).reshape(-1, 3).mean(axis=0).round().astype(int)
    canvas = Image.new("RGB", size, tuple(mean.tolist()))
    if crop.size != (right - left, bottom - top):
        crop = crop.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    canvas.paste(crop, (left, top))
    return canvas


def put_into_scenes(
    grid: Grid, scenes: SceneMemory, works: Sequence[Work], keys: Tensor, values: Tensor
) -> None:
    """Replace, for each crop, all tokens outside its window by those of its scene, in place.

    Args:
        grid: rows and columns of the picture's tokens.
        scenes: holds each crop's scene.
        works: a group at the picture point; those without a box stay as they are.
        keys: of their pictures or canvases, rotated, `[layers, group, kv_heads, N, head_dim]`.
        values: as the keys.
    """
    with torch.inference_mode():
        for index, work in enumerate(works):
            if not work.job.box or work.scene is None:
                continue
            outside = torch.as_tensor(~inside(Box(*work.job.box), grid), device=keys.device)
            for made, held in zip((keys, values), scenes.read(work.scene), strict=True):
                made[:, index][:, :, outside] = held[:, :, outside].to(made.dtype)
