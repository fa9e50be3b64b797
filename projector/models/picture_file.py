"""Picture files as streams: opened by Pillow, or a PNG file read chunk by chunk."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"


@contextmanager
def open_picture(file: Path | bytes, formats: Sequence[str]) -> Iterator[Image.Image]:
    """From a stream: a file that Pillow knows by name it maps, and skews turned TIFF files."""
    with stream_of(file) as stream, Image.open(stream, formats=tuple(formats)) as opened:
        yield opened


def stream_of(file: Path | bytes) -> BinaryIO:
    """The bytes of a picture file, from where it is or from memory."""
    return io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")


def less_metadata(file: Path | bytes, kinds: Sequence[bytes]) -> bytes | None:
    """A PNG file's pixels, and its intact chunks of these kinds; None for other files."""
    with stream_of(file) as stream:
        if stream.read(len(_PNG)) != _PNG:
            return None
        whole = _PNG + stream.read()
    parts = [_PNG]
    for kind, place, length in png_chunks(io.BytesIO(whole)):
        part = whole[place - 8 : place + length + 4]
        intact = zlib.crc32(part[4:-4]) == int.from_bytes(part[-4:], "big")
        if kind in _PIXEL_CHUNKS or (kind in kinds and intact):
            parts.append(part)
    return b"".join(parts)


def png_chunks(stream: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Kind, place and length of the chunks of a PNG file; none of other files."""
    if stream.read(len(_PNG)) != _PNG:
        return
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        place = stream.tell()
        yield kind, place, length
        stream.seek(place + length + 4)
