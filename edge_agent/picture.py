"""The picture point: the picture itself as a PNG, JPEG or WebP file.

Every other operating point is measured against this one.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from projector.models.pictures import as_rgb

PICTURE = "picture"
"""Name and kind of the picture point."""


@dataclass(frozen=True)
class PictureCodec:
    """How a picture becomes a file.

    Attributes:
        codec: png, jpeg or webp.
        quality: 1 to 100, for JPEG and WebP.
        longest_px: larger pictures are reduced to this longest side, pixels; 0 keeps the size.
    """

    codec: str = "webp"
    quality: int = 80
    longest_px: int = 0

    def encode(self, picture: Image.Image) -> bytes:
        """Return the file's bytes."""
        picture = as_rgb(picture).copy()
        picture.info = {}  # the service must not apply metadata that the edge did not apply
        longest = max(picture.size)
        if 0 < self.longest_px < longest:
            scale = self.longest_px / longest
            width, height = (max(1, round(side * scale)) for side in picture.size)
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        if self.codec == "png":
            picture.save(buffer, "PNG", optimize=True)
        elif self.codec == "jpeg":
            picture.save(buffer, "JPEG", quality=self.quality, optimize=True)
        else:
            picture.save(buffer, "WEBP", quality=self.quality, method=4)
        return buffer.getvalue()
