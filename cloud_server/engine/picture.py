"""The picture point's payload: a PNG, JPEG or WebP file becomes a picture, within bounds.

Knows Pillow; trusts nothing: format and size are looked at before any pixel is decoded.
"""

from __future__ import annotations

import io
import struct
import warnings

from PIL import Image, UnidentifiedImageError

from protos.errors import PictureError

FORMATS = ("PNG", "JPEG", "WEBP")


def open_picture(file: bytes, max_px: int) -> Image.Image:
    """Decode a picture file.

    Args:
        file: the whole file.
        max_px: largest width and height.

    Returns:
        An RGB picture (the first frame of an animated one).

    Raises:
        PictureError: not such a file, damaged, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(file), formats=FORMATS)
        width, height = picture.size
        if width > max_px or height > max_px:
            raise PictureError(
                f"a picture of {width} x {height} pixels; at most {max_px} a side are accepted"
            )
        return picture.convert("RGB")
    except UnidentifiedImageError as error:
        raise PictureError(
            f"the payload of {len(file)} bytes is no PNG, JPEG or WebP file"
        ) from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
        MemoryError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        raise PictureError(f"the picture file is damaged: {error}") from error
