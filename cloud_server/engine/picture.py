"""The picture point's payload: a PNG, JPEG or WebP file becomes a picture, within bounds."""

from __future__ import annotations

from PIL import Image

from projector import pictures


def pixels_of(file: bytes) -> int:
    """Pixels of a picture, as the file's header has them; nothing is decoded.

    Raises:
        PictureError: not such a file.
    """
    width, height = pictures.size(file, formats=pictures.WIRE_FORMATS)
    return width * height


def open_picture(file: bytes, max_px: int) -> Image.Image:
    """Decode a picture file by the rule of `projector/pictures.py`; its size is checked first.

    Args:
        file: the whole file.
        max_px: largest width and height.

    Returns:
        An RGB picture.

    Raises:
        PictureError: not such a file, damaged, too large, or of a depth that cannot be told.
    """
    return pictures.read(file, formats=pictures.WIRE_FORMATS, max_side=max_px)
