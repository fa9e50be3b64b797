"""Turns pictures into the tensors that a model's forward takes besides token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from projector.models.pictures import as_rgb
from projector.models.prompt import MARKS, Prompt
from protos.errors import PictureError

_NO_PIXELS = MARKS | {
    *("input_ids", "attention_mask"),
    *("rows", "cols", "num_patches", "num_crops", "grids"),  # only for the processor's own text
}


@dataclass(frozen=True)
class Prepared:
    """One picture from `VLM.prepare`: what the model's forward needs besides ids."""

    pixels: dict[str, Tensor]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors; pictures with equal shapes can form one batch."""
        return tuple(tuple(value.shape) for value in self.pixels.values())


class Pixels:
    """Pictures to tensors, by the image processor alone if that gives the same result."""

    def __init__(self, prompt: Prompt) -> None:
        """Try both ways on one picture."""
        self.prompt = prompt
        self.alone = False
        self.alone = self._suffices_alone()

    def of_pictures(
        self, pictures: Sequence[Image.Image | Prepared], alone: bool | None = None
    ) -> dict[str, Tensor]:
        """What the model's forward needs besides ids, one row per picture."""
        done = [picture.pixels for picture in pictures if isinstance(picture, Prepared)]
        if len(done) == len(pictures):
            return {name: torch.cat([pixels[name] for pixels in done]) for name in done[0]}
        rgb = [as_rgb(picture) for picture in pictures if not isinstance(picture, Prepared)]
        nested = [[picture] for picture in rgb]
        if self.alone if alone is None else alone:
            try:
                made = self.prompt.processor.image_processor(images=nested, return_tensors="pt")
            except ValueError as error:
                raise PictureError(f"the model's processor refused it: {error}") from error
        else:
            made = self.prompt.processor(
                text=[self.prompt.render("Q")] * len(rgb), images=nested, return_tensors="pt"
            )
        return {k: v for k, v in made.items() if k not in _NO_PIXELS and isinstance(v, Tensor)}

    def _suffices_alone(self) -> bool:
        """Whether the image processor alone (faster) gives the whole processor's result."""
        blank = Image.new("RGB", (64, 64), (90, 120, 150))
        whole = self.prompt.inputs("Q", blank)
        alone = self.of_pictures([blank], alone=True)
        names = set(whole) - _NO_PIXELS
        return set(alone) == names and all(
            alone[k].shape == whole[k].shape and bool((alone[k] == whole[k]).all()) for k in names
        )
