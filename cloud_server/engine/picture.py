"""The picture point's payload: a PNG, JPEG or WebP file becomes a picture, within bounds.

A small file may take long to read: it may hold many pixels, many passes over them (a JPEG file's
scans), or much beside them (thousands of PNG chunks, each a profile to inflate). `charge_of` looks
only at the file's structure, and at no more than a bounded number of pieces.
"""

from __future__ import annotations

import re
import struct

from PIL import Image

from projector.models import pictures
from protos.errors import PictureError

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_MOST_PIECES = 300  # of a file, beside its pixels; one profile may take 255 in a JPEG file
_MOST_PIXEL_PIECES = 16384  # some encoders write one per row
_COMPRESSED = b"iCCP", b"zTXt", b"iTXt"
_INFLATED = 1 << 20  # pixels charged for each of these: it may inflate to as many bytes
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_NO_SIZES = b"\xc4\xc8\xcc"  # these markers lie among those of frames but start none
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_MOST_SCANS, _USUAL_SCANS = 100, 10
"""Scans of a JPEG file; a usual progressive one passes over its pixels about ten times."""


def charge_of(file: bytes) -> tuple[int, int]:
    """A picture's pixels, and the pixels that it is charged as; nothing is decoded.

    Raises:
        PictureError: not such a file, or one of more pieces than ordinary pictures have.
    """
    if file.startswith(_PNG) and len(file) >= 24:
        return _png(file)
    if file.startswith(_JPEG):
        return _jpeg(file)
    width, height = pictures.size(file, formats=pictures.WIRE_FORMATS)
    return width * height, width * height


def _png(file: bytes) -> tuple[int, int]:
    width, height = struct.unpack(">II", file[16:24])
    place, others, parts, compressed, profiles = len(_PNG), 0, 0, 0, 0
    while place + 8 <= len(file):
        length, kind = struct.unpack(">I4s", file[place : place + 8])
        place += length + 12
        parts += kind == b"IDAT"
        others += kind != b"IDAT"
        compressed += kind in _COMPRESSED
        profiles += kind == b"iCCP"
        _require_usual(others, parts)
        if profiles > 1:
            raise PictureError("the PNG file has more than one colour profile: save it with one")
    return width * height, width * height + compressed * _INFLATED


def _jpeg(file: bytes) -> tuple[int, int]:
    pixels, place, others, scans = 0, len(_JPEG), 0, 0
    while (found := _MARKER.search(file, place)) is not None:
        stray, place, marker = found.start() - place, found.end(), file[found.end() - 1]
        if marker == _EOI and scans:
            break  # more pictures follow
        if not scans:
            others += 1 + stray  # Pillow reads stray bytes one by one
        scans += marker == _SOS
        _require_usual(others, 0)
        if scans > _MOST_SCANS:
            raise PictureError(
                f"the JPEG file has more than {_MOST_SCANS} scans: save it as an ordinary one"
            )
        if marker in (_SOI, _EOI):
            continue
        if 0xC0 <= marker <= 0xCF and marker not in _NO_SIZES and len(file) >= place + 7:
            height, width = struct.unpack(">HH", file[place + 3 : place + 7])
            pixels = max(pixels, width * height)
        place += max(2, int.from_bytes(file[place : place + 2], "big"))
    if not pixels or not scans:
        raise PictureError("the JPEG file holds no picture: it was cut off, or is damaged")
    return pixels, pixels * max(1, -(-scans // _USUAL_SCANS))


def _require_usual(others: int, parts: int) -> None:
    if others > _MOST_PIECES or parts > _MOST_PIXEL_PIECES:
        raise PictureError(
            f"the file has more than {_MOST_PIECES} pieces beside its pixels, or more than "
            f"{_MOST_PIXEL_PIECES} of pixels: save it as an ordinary PNG or JPEG"
        )


def open_picture(file: bytes, max_px: int) -> Image.Image:
    """Decode a picture file as `projector/models/pictures.py` does; its size is checked first.

    Args:
        file: the whole file.
        max_px: largest width and height.

    Returns:
        An RGB picture.

    Raises:
        PictureError: not such a file, damaged, too large, or of unknown depth.
    """
    return pictures.read(file, formats=pictures.WIRE_FORMATS, max_side=max_px)
