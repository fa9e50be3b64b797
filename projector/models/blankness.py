"""Finds pictures that cannot answer any question."""

from __future__ import annotations

from typing import Any, Final

from PIL import Image

DEGENERATE: Final = "degenerate"
_LONGEST_SHAPE = 64
_SAME_LEVELS = 2  # grey levels this close count as one colour


def degenerate(picture: Image.Image) -> str:
    """Why the picture cannot answer any question; empty if it can."""
    width, height = picture.size
    if max(width, height) > _LONGEST_SHAPE * min(width, height):
        return f"{width} x {height} pixels, one side is over {_LONGEST_SHAPE} times the other"
    rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    few = rgb.resize((16, 16), Image.Resampling.NEAREST)
    if _flat(few) and _flat(rgb):
        return "one flat colour"
    return ""


def _flat(picture: Image.Image) -> bool:
    levels: Any = picture.getextrema()
    return all(high - low <= _SAME_LEVELS for low, high in levels)
