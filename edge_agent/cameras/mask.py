"""Regions that may never be seen: painted over where frames enter, before anybody looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from edge_agent.cameras.ring import Pixels
from protos.errors import MaskError, PictureError
from protos.process.files import expanded

_FILE = ".png"
_MARGIN_PX = 1
Hidden = npt.NDArray[np.bool_]
"""Which pixels are painted over, `[height, width]`."""
Polygon = tuple[tuple[float, float], ...]


class Mask:
    """The regions of one camera that are hidden.

    Args:
        polygons: corners in shares of width and height, 0 to 1.
        files: pictures in which everything but white is hidden.
    """

    def __init__(self, polygons: Sequence[Polygon] = (), files: Sequence[Image.Image] = ()) -> None:
        self._polygons, self._files = tuple(polygons), tuple(files)
        self._made: dict[tuple[int, int], Hidden] = {}

    @classmethod
    def of(cls, texts: Sequence[str]) -> Mask:
        """Read masks as they are written in settings: `0,0 0.5,0 0.5,1` or a PNG file's path.

        Raises:
            MaskError: a file is missing, broken or hides nothing, or a polygon is none.
        """
        files = [text for text in texts if text.lower().endswith(_FILE)]
        return cls(
            [_polygon(text) for text in texts if text not in files],
            [_file(text) for text in files],
        )

    def __bool__(self) -> bool:
        return bool(self._polygons or self._files)

    def hidden(self, width: int, height: int) -> Hidden | None:
        """The pixels of a picture of this size that are painted over; None for no mask at all."""
        if not self:
            return None
        if (width, height) not in self._made:
            self._made = {(width, height): self._draw(width, height)}
        return self._made[width, height]

    def paint(self, pixels: Pixels) -> Pixels:
        """A picture with its hidden regions black; itself if nothing is hidden.

        Args:
            pixels: RGB, `[height, width, 3]`.
        """
        hidden = self.hidden(pixels.shape[1], pixels.shape[0])
        if hidden is None:
            return pixels
        painted: Pixels = pixels * ~hidden[..., None]
        return painted

    def _draw(self, width: int, height: int) -> Hidden:
        drawn = np.zeros((height, width), np.bool_)
        for polygon in self._polygons:
            plane = Image.new("1", (width, height))
            corners = [(x * (width - 1), y * (height - 1)) for x, y in polygon]
            ImageDraw.Draw(plane).polygon(corners, fill=1, outline=1)
            drawn |= np.asarray(plane, np.bool_)
        for file in self._files:
            grown = np.asarray(file.resize((width, height), Image.Resampling.BILINEAR))
            drawn |= grown > 0
        return _grown(drawn)


def _grown(drawn: Hidden) -> Hidden:
    """The region and a margin: scaling mixes the pixels along its edge."""
    for axis in (0, 1):
        wider = drawn.copy()
        for step in (-_MARGIN_PX, _MARGIN_PX):
            moved = np.roll(drawn, step, axis)
            edge = slice(0, _MARGIN_PX) if step > 0 else slice(-_MARGIN_PX, None)
            moved[(slice(None),) * axis + (edge,)] = False
            wider |= moved
        drawn = wider
    return drawn


def _polygon(text: str) -> Polygon:
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) < 6 or len(numbers) % 2 or not all(0.0 <= n <= 1.0 for n in numbers):
        raise MaskError(
            f"mask {text!r} is no polygon: write at least three corners as shares of width and "
            "height, such as '0,0 0.5,0 0.5,1 0,1', or the path of a PNG file (ending .png)"
        )
    corners = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    if len(set(corners)) < 3:
        raise MaskError(f"mask {text!r} is no polygon: fewer than three different corners")
    return corners


def _file(text: str) -> Image.Image:
    """The hidden part of a mask file as 255, the rest as 0 (mode L)."""
    from projector.models import pictures  # a third of what a process without such a mask loads

    path = expanded(Path(text))
    try:
        samples = np.asarray(pictures.read(path, formats=("PNG",)))
    except (PictureError, OSError) as error:
        raise MaskError(f"mask {text}: {error}") from error
    hidden = (samples < 255).any(axis=2)
    if not hidden.any():
        raise MaskError(f"mask {text} hides nothing: paint what must not be seen black, on white")
    return Image.fromarray((hidden * np.uint8(255)).astype(np.uint8))
