"""The rival at its best: JPEG, WebP and AVIF at the useful qualities and sizes, and PNG.

The frontier is chosen on validation pictures; only its points are measured on test.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from PIL import Image

from edge_agent.picture import PictureCodec
from projector.models.pictures import FORMATS, read

SIZES_PX = (24, 32, 40, 48, 56, 64, 96, 144)
QUALITIES = {
    "jpeg": (10, 35, 70),
    "webp": (1, 10, 20, 35, 50, 80),
    "avif": (15, 35, 55, 80),
}
"""Settings near the frontier of a wider sweep: 230 settings, with 16 and 80 px (docs/log.md)."""
_WEBP_CONTAINER_BYTES = 20  # RIFF (12) and the VP8 chunk's header (8)
_JPEG_SCAN = b"\xff\xda"
_AVIF_DATA = b"mdat"


@dataclass(frozen=True)
class Rival:
    """One picture codec at one setting."""

    codec: str
    quality: int
    px: int

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.codec} q{self.quality} {self.px} px" if self.px else self.codec

    def encode(self, picture: Image.Image) -> bytes:
        """The picture as a file."""
        if self.codec != "avif":
            return PictureCodec(self.codec, self.quality, self.px).encode(picture)
        if self.px < max(picture.size):
            picture = picture.resize((self.px, self.px), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "AVIF", quality=self.quality, speed=4)
        return buffer.getvalue()


RIVALS = tuple(
    Rival(codec, quality, px)
    for codec, qualities in QUALITIES.items()
    for quality, px in product(qualities, SIZES_PX)
)


def bare_bytes(file: bytes) -> int:
    """Size of `bare`."""
    return len(bare(file))


def bare(file: bytes) -> bytes:
    """A file without the parts that both ends could agree on once.

    Those are the container of WebP and AVIF, and the tables before the scan of a JPEG. No camera
    sends pictures without them, but no codec can do better than this.
    """
    if file[:4] == b"RIFF":
        return file[_WEBP_CONTAINER_BYTES:]
    if file[:2] == b"\xff\xd8":
        return file[file.rindex(_JPEG_SCAN) :]
    at = file.find(_AVIF_DATA)
    return file[at + len(_AVIF_DATA) :] if at >= 0 else file


def worn(files: Sequence[bytes]) -> list[Image.Image]:
    """The pictures as the cloud decodes them."""
    return [read(file, formats=(*FORMATS, "AVIF")) for file in files]


def sweep(
    rivals: Sequence[Rival],
    pictures: Sequence[Image.Image],
    accuracy: Callable[[list[Image.Image]], float],
    progress: Callable[[int], None],
) -> list[dict[str, object]]:
    """Size and accuracy of every rival."""
    rows: list[dict[str, object]] = []
    for rival in rivals:
        files = [rival.encode(picture) for picture in pictures]
        rows.append(
            {
                "codec": rival.codec,
                "quality": rival.quality,
                "px": rival.px,
                "bytes": sum(map(len, files)) / len(files),
                "bare_bytes": sum(map(bare_bytes, files)) / len(files),
                "accuracy": accuracy(worn(files)),
            }
        )
        progress(1)
    return rows
