"""Opens picture files as streams: with Pillow, or a PNG file chunk by chunk."""

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
    """Open from a stream: Pillow memory-maps a file given by name, and skews turned TIFF files."""
    with stream_of(file) as stream, Image.open(stream, formats=tuple(formats)) as opened:
        yield opened


def stream_of(file: Path | bytes) -> BinaryIO:
    """A picture file's bytes as a stream, from disk or from memory."""
    return io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")


def less_metadata(file: Path | bytes, kinds: Sequence[bytes]) -> bytes | None:
    """A PNG file with its pixels and its intact chunks of these kinds only; None if not PNG."""
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
    """Kind, offset and length of each chunk of a PNG file; nothing for other files."""
    if stream.read(len(_PNG)) != _PNG:
        return
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        place = stream.tell()
        yield kind, place, length
        stream.seek(place + length + 4)
