"""The picture point: the large model's own prefill of pictures, instead of decode and project."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from cloud_server.engine.work import Picture
from projector.models.lm import LM
from projector.models.vlm import VLM
from protos.errors import PictureError


def prepare_picture(model: VLM | LM, picture: Image.Image) -> Picture:
    """Prepare a picture for the model; called in the reader's thread.

    Raises:
        PictureError: the model reads texts.
    """
    return _seeing(model).prepare(picture)


def prefill_pictures(model: VLM | LM, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor]:
    """Keys (rotated) and values of a group of pictures that were prepared to the same shapes.

    Returns:
        Each `[layers, group, kv_heads, N, head_dim]`, image tokens only.

    Raises:
        PictureError: the model reads texts, or cannot process one of the pictures.
    """
    made = _seeing(model).prefill(pictures, attention=False)
    start = made.prefix_tokens
    return (
        torch.stack([key[:, :, start:] for key in made.keys]),
        torch.stack([value[:, :, start:] for value in made.values]),
    )


def _seeing(model: VLM | LM) -> VLM:
    if isinstance(model, LM):
        raise PictureError(f"{model.layout.model_id} reads texts, it sees no pictures")
    return model
